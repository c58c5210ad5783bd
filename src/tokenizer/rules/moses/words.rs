//! Words and signs by the Moses rules.

use std::sync::LazyLock;

use super::prefixes::{Prefix, Prefixes};
use super::properties::{ALPHABETIC, DIGITS, LOWERCASE, NUMBERS};
use super::rule::{Rule, class};
use crate::tokenizer::rules::aligned::Aligned;
use crate::tokenizer::rules::is_space;

#[derive(Debug)]
pub(super) struct Words {
    apostrophes: Vec<Rule>,
    prefixes: Prefixes,
}

/// What is the same for all languages.
struct Common {
    spaces: Rule,
    signs: Rule,
    commas: [Rule; 3],
    last_dot: Rule,
}

static COMMON: LazyLock<Common> = LazyLock::new(|| {
    let number = class(NUMBERS);
    let letters = format!("{}{}", class(ALPHABETIC), class(DIGITS));
    Common {
        spaces: Rule::new(r"[\s\x1c-\x1f]+", " "),
        signs: Rule::new(&format!(r"([^{letters}\s\x1c-\x1f.'`,\-])"), " $1 "),
        commas: [
            Rule::new(&format!("([^{number}]),"), "$1 , "),
            Rule::new(&format!(",([^{number}])"), " , $1"),
            Rule::new(&format!("([{number}]),$"), "$1 , "),
        ],
        last_dot: Rule::new(r"\.' ?$", " . ' "),
    }
});

/// What dots in a row are while single ones are looked at: one `DOT` for each, then `MULTI`.
const DOT: &str = "DOT";
const DOTS_END: &str = "MULTI";

impl Words {
    pub(super) fn new(language: &str, prefixes: Prefixes) -> Self {
        let alpha = class(ALPHABETIC);
        let number = class(NUMBERS);
        let rules: Vec<(String, &str)> = match language {
            "en" => vec![
                (format!("([^{alpha}])'([^{alpha}])"), "$1 ' $2"),
                (format!("([^{alpha}{number}])'([{alpha}])"), "$1 ' $2"),
                (format!("([{alpha}])'([^{alpha}])"), "$1 ' $2"),
                (format!("([{alpha}])'([{alpha}])"), "$1 '$2"),
                (format!("([{number}])'(s)"), "$1 '$2"),
            ],
            "fr" | "it" => vec![
                (format!("([^{alpha}])'([^{alpha}])"), "$1 ' $2"),
                (format!("([^{alpha}])'([{alpha}])"), "$1 ' $2"),
                (format!("([{alpha}])'([^{alpha}])"), "$1 ' $2"),
                (format!("([{alpha}])'([{alpha}])"), "$1' $2"),
            ],
            _ => vec![("'".to_owned(), " ' ")],
        };
        let rules = rules.iter();
        Self {
            apostrophes: rules.map(|(from, to)| Rule::new(from, to)).collect(),
            prefixes,
        }
    }

    /// Returns the words and signs of a text.
    pub(super) fn cut(&self, text: &Aligned) -> Vec<Aligned> {
        let common = &*COMMON;
        let text = common.spaces.apply(text).filter(|c| c > '\u{1f}');
        let text = common.signs.apply(&text.trim(is_space));
        let mut text = hide_dots(&text);
        for rule in common.commas.iter().chain(&self.apostrophes) {
            text = rule.apply(&text);
        }
        let text = self.cut_last_dots(&split(&text));
        let text = common.spaces.apply(&text).trim(is_space);
        let text = common.last_dot.apply(&text);
        split(&show_dots(&text))
    }

    /// Returns the words joined with spaces, the dots at their ends cut off but where they belong to the word.
    fn cut_last_dots(&self, words: &[Aligned]) -> Aligned {
        let mut new = Aligned::default();
        for (at, word) in words.iter().enumerate() {
            if at > 0 {
                let before = word.span_at(0).0;
                new.push(' ', (before, before));
            }
            let next = words.get(at + 1).map(Aligned::as_str);
            let prefix = word
                .as_str()
                .strip_suffix('.')
                .filter(|prefix| !prefix.is_empty());
            match prefix {
                Some(prefix) if !self.keeps_dot(prefix, next) => {
                    new.push_from(word, 0..prefix.len());
                    new.push(' ', word.span_at(prefix.len()));
                    new.push_from(word, prefix.len()..word.len());
                }
                _ => new.push_from(word, 0..word.len()),
            }
        }
        new
    }

    /// Returns whether the full stop after `word` is part of it.
    fn keeps_dot(&self, word: &str, next: Option<&str>) -> bool {
        let first = next.and_then(|next| next.chars().next());
        word.contains('.') && word.chars().any(|c| holds(ALPHABETIC, c))
            || self.prefixes.get(word) == Some(Prefix::Always)
            || first.is_some_and(|c| holds(LOWERCASE, c))
            || self.prefixes.get(word) == Some(Prefix::BeforeNumbers)
                && first.is_some_and(|c| c.is_ascii_digit())
    }
}

/// Returns whether `c` is in one of the sorted ranges.
fn holds(ranges: &[(u32, u32)], c: char) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= c as u32);
    after > 0 && c as u32 <= ranges[after - 1].1
}

/// Returns the parts of a text between spaces.
fn split(text: &Aligned) -> Vec<Aligned> {
    let mut parts = Vec::new();
    let mut open = None;
    for (range, c) in text.chars() {
        match open {
            Some(start) if is_space(c) => {
                parts.push(text.slice(start..range.start));
                open = None;
            }
            None if !is_space(c) => open = Some(range.start),
            _ => {}
        }
    }
    if let Some(start) = open {
        parts.push(text.slice(start..text.len()));
    }
    parts
}

/// Dots in a row as words of letters, with a space on either side.
fn hide_dots(text: &Aligned) -> Aligned {
    if !text.as_str().contains("..") {
        return text.clone();
    }
    let mut new = Aligned::with_capacity(text.len());
    let mut rest = 0;
    while let Some(start) = text.as_str()[rest..].find("..").map(|at| rest + at) {
        let behind = text.as_str()[start..].trim_start_matches('.').len();
        let end = text.len() - behind;
        new.push_from(text, rest..start);
        let (from, to) = text.span(start..end);
        let span = (from as u32, to as u32);
        new.push(' ', span);
        (start..end).for_each(|_| new.push_str(DOT, span));
        new.push_str(DOTS_END, span);
        if end < text.len() {
            new.push(' ', span);
        }
        rest = end;
    }
    new.push_from(text, rest..text.len());
    new
}

/// Returns the dots that [`hide_dots`] hid.
fn show_dots(text: &Aligned) -> Aligned {
    if !text.as_str().contains(DOTS_END) {
        return text.clone();
    }
    let mut new = Aligned::with_capacity(text.len());
    let mut rest = 0;
    while let Some(end) = text.as_str()[rest..].find(DOTS_END).map(|at| rest + at) {
        let before = &text.as_str()[rest..end];
        let dots = (before.len() - before.trim_end_matches(DOT).len()) / DOT.len();
        let behind = end + DOTS_END.len();
        if dots == 0 {
            new.push_from(text, rest..behind);
        } else {
            let start = end - dots * DOT.len();
            new.push_from(text, rest..start);
            let (from, to) = text.span(start..behind);
            (0..dots).for_each(|_| new.push('.', (from as u32, to as u32)));
        }
        rest = behind;
    }
    new.push_from(text, rest..text.len());
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(language: &str, text: &str) -> Vec<String> {
        let words = Words::new(language, Prefixes::of(language));
        let words = words.cut(&Aligned::new(text)).into_iter();
        words.map(|word| word.as_str().to_owned()).collect()
    }

    #[test]
    fn words_punctuation_and_full_stops_are_split() {
        assert_eq!(
            cut("en", "It's (so) 5,300, no?"),
            ["It", "'s", "(", "so", ")", "5,300", ",", "no", "?"]
        );
        assert_eq!(
            cut("en", "Mr. Hill left. At 5 p.m. he ran..."),
            [
                "Mr.", "Hill", "left", ".", "At", "5", "p.m.", "he", "ran", "..."
            ]
        );
        assert_eq!(
            cut("en", "No. 7 and No. Yes.. no.'"),
            ["No.", "7", "and", "No", ".", "Yes", "..", "no", ".", "'"]
        );
        assert_eq!(cut("fr", "l'eau d'abord"), ["l'", "eau", "d'", "abord"]);
        assert_eq!(cut("de", "l'eau"), ["l", "'", "eau"]);
        assert_eq!(cut("en", "漢字a"), ["漢", "字", "a"]);
        assert_eq!(cut("en", ""), [""; 0]);
    }

    #[test]
    fn every_word_keeps_its_offsets() {
        let text = "Well… it's 5,300...  Mr. X.";
        let characters: Vec<char> = text.chars().collect();
        let words = Words::new("en", Prefixes::of("en"));
        for word in words.cut(&Aligned::new(text)) {
            let (start, end) = word.span(0..word.len());
            let stood: String = characters[start..end].iter().collect();
            assert_eq!(stood, word.as_str());
        }
    }
}
