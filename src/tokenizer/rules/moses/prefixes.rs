//! Words after which a full stop is part of the word.
//!
//! The lists of Moses are not included, because they are licensed under the LGPL. The lists here contain letters,
//! titles, ranks and months of English and French, written for this project. A folder may contain the Moses list of its
//! language as `nonbreaking_prefix.en` (`.fr`, ...), which then replaces the list here.

use std::collections::HashMap;

/// When the dot belongs to the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    Always,
    /// Only before a number, as in `No`.
    BeforeNumbers,
}

/// The words of a language.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefixes(HashMap<String, Prefix>);

const ENGLISH: &str = "Mr Mrs Ms Messrs Mme Mlle Dr Drs Prof Rev Hon St Sr Supt Insp Gov Sen Rep Adm Gen Brig Col Maj Capt Lt \
    Sgt Cpl Pvt Comdr Bros Corp Op Ph v vs i.e e.g Jan Feb Mar Apr Jun Jul Aug Sep Oct Nov Dec";
const ENGLISH_NUMBERED: &str = "No Art pp";
const FRENCH: &str = "MM av art chap cf fig hab p pp vol éd etc tél";
/// Marks words of a Moses list that count only before numbers.
const NUMERIC_ONLY: &str = "#NUMERIC_ONLY#";

impl Prefixes {
    /// Returns those known for a language; where there are none, the English ones.
    pub(crate) fn of(language: &str) -> Self {
        let capitals = ('A'..='Z').map(|letter| letter.to_string());
        let mut prefixes: HashMap<String, Prefix> =
            capitals.map(|letter| (letter, Prefix::Always)).collect();
        let (words, numbered) = match language {
            "fr" => (FRENCH, ""),
            _ => (ENGLISH, ENGLISH_NUMBERED),
        };
        let mut add = |words: &str, when| {
            for word in words.split_whitespace() {
                prefixes.insert(word.to_owned(), when);
            }
        };
        add(words, Prefix::Always);
        add(numbered, Prefix::BeforeNumbers);
        if language == "fr" {
            // Small letters count too, but "a" is a word.
            ('b'..='z').for_each(|letter| add(&letter.to_string(), Prefix::Always));
        }
        Self(prefixes)
    }

    /// Reads a list as Moses has them: one word a line, `#` before remarks.
    pub(crate) fn read(list: &str) -> Self {
        let lines = list.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            lines
                .map(|line| match line.strip_suffix(NUMERIC_ONLY) {
                    Some(word) => (word.trim().to_owned(), Prefix::BeforeNumbers),
                    None => (line.to_owned(), Prefix::Always),
                })
                .collect(),
        )
    }

    pub(crate) fn get(&self, word: &str) -> Option<Prefix> {
        self.0.get(word).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moses_prefix_lists_are_read() {
        let list = Prefixes::read("# a remark\nDr\n\n  Nr #NUMERIC_ONLY#\nz.B\n");
        assert_eq!(list.get("Dr"), Some(Prefix::Always));
        assert_eq!(list.get("Nr"), Some(Prefix::BeforeNumbers));
        assert_eq!(list.get("z.B"), Some(Prefix::Always));
        assert_eq!(list.get("Mr"), None);
        assert_eq!(Prefixes::of("en").get("No"), Some(Prefix::BeforeNumbers));
        assert_eq!(Prefixes::of("fr").get("Mr"), None);
    }
}
