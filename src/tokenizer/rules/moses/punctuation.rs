//! Punctuation made plain: East Asian signs, quotation marks of all kinds, spaces before and after signs.

use super::rule::Rule;
use crate::tokenizer::rules::aligned::Aligned;
use crate::tokenizer::rules::is_space;

/// Signs and their plain forms, one for one.
const PLAIN: [(char, &str); 36] = [
    ('，', ","),
    ('、', ","),
    ('”', "\""),
    ('“', "\""),
    ('∶', ":"),
    ('：', ":"),
    ('？', "?"),
    ('《', "\""),
    ('》', "\""),
    ('）', ")"),
    ('！', "!"),
    ('（', "("),
    ('；', ";"),
    ('」', "\""),
    ('「', "\""),
    ('０', "0"),
    ('１', "1"),
    ('２', "2"),
    ('３', "3"),
    ('４', "4"),
    ('５', "5"),
    ('６', "6"),
    ('７', "7"),
    ('８', "8"),
    ('９', "9"),
    ('～', "~"),
    ('’', "'"),
    ('…', "..."),
    ('━', "-"),
    ('〈', "<"),
    ('〉', ">"),
    ('【', "["),
    ('】', "]"),
    ('％', "%"),
    // Full stops take the spaces behind them along, see below.
    ('。', "。"),
    ('．', "．"),
];

/// The rules for all languages, in their order.
const COMMON: &[(&str, &str)] = &[
    // Brackets and spaces.
    (r"\r", ""),
    (r"\(", " ("),
    (r"\)", ") "),
    (r" +", " "),
    (r"\) ([.!:?;,])", ")$1"),
    (r"\( ", "("),
    (r" \)", ")"),
    (r"(\d) %", "$1%"),
    (r" :", ":"),
    (r" ;", ";"),
    // Quotation marks and dashes.
    (r"`", "'"),
    (r"''", " \" "),
    (r"[„“”]", "\""),
    (r"–", "-"),
    (r"—", " - "),
    (r" +", " "),
    (r"´", "'"),
    (r"([a-zA-Z])‘([a-zA-Z])", "$1'$2"),
    (r"([a-zA-Z])’([a-zA-Z])", "$1'$2"),
    (r"[‘‚’]", "'"),
    (r"''", "\""),
    (r"´´", "\""),
    (r"…", "..."),
    ("\u{a0}«\u{a0}", "\""),
    ("«\u{a0}", "\""),
    (r"«", "\""),
    ("\u{a0}»\u{a0}", "\""),
    ("\u{a0}»", "\""),
    (r"»", "\""),
    // Spaces that do not break.
    ("\u{a0}%", "%"),
    ("nº\u{a0}", "nº "),
    ("\u{a0}:", ":"),
    ("\u{a0}ºC", " ºC"),
    ("\u{a0}cm", " cm"),
    ("\u{a0}\\?", "?"),
    ("\u{a0}!", "!"),
    ("\u{a0};", ";"),
    (",\u{a0}", ", "),
    (r" +", " "),
];

#[derive(Debug)]
pub(super) struct Punctuation {
    stops: [Rule; 2],
    rules: Vec<Rule>,
}

impl Punctuation {
    pub(super) fn new(language: &str) -> Self {
        let mut rules: Vec<Rule> = COMMON
            .iter()
            .map(|(from, to)| Rule::new(from, to))
            .collect();
        match language {
            "en" => rules.push(Rule::new(r#""([,.]+)"#, "$1\"")),
            "de" | "es" | "fr" => {
                rules.push(Rule::new(",\"", "\","));
                // Not at the end of a sentence.
                rules.push(Rule::new(r#"(\.+)"([\s\x1c-\x1f]*[^<])"#, "\"$1$2"));
            }
            _ => {}
        }
        let point = match language {
            "de" | "es" | "cz" | "cs" | "fr" => ",",
            _ => ".",
        };
        rules.push(Rule::new("(\\d)\u{a0}(\\d)", &format!("$1{point}$2")));
        Self {
            stops: [
                Rule::new(r"。[\s\x1c-\x1f]*", ". "),
                Rule::new(r"．[\s\x1c-\x1f]*", ". "),
            ],
            rules,
        }
    }

    pub(super) fn apply(&self, text: &Aligned) -> Aligned {
        let mut text = self.stops[0].apply(text);
        if !text.as_str().is_ascii() {
            let mut new = Aligned::with_capacity(text.len());
            for (range, c) in text.chars() {
                match PLAIN.iter().find(|(sign, _)| *sign == c) {
                    Some((_, plain)) => new.push_str(plain, text.span_at(range.start)),
                    None => new.push_from(&text, range),
                }
            }
            text = self.stops[1].apply(&new);
        }
        for rule in &self.rules {
            text = rule.apply(&text);
        }
        text.trim(is_space)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_is_normalized() {
        let plain = |language: &str, text: &str| {
            let punctuation = Punctuation::new(language);
            punctuation.apply(&Aligned::new(text)).as_str().to_owned()
        };
        assert_eq!(plain("en", "「１２。  ３」（ a ） ."), "\"12. 3\" (a).");
        assert_eq!(
            plain("en", "he said “yes”, — “no”."),
            "he said \"yes,\" - \"no.\""
        );
        assert_eq!(
            plain("fr", "«\u{a0}oui\u{a0}», 3\u{a0}000 ; 5 %"),
            "\"oui\", 3,000; 5%"
        );
        assert_eq!(plain("ru", "3\u{a0}000"), "3.000");
    }
}
