//! Classes of characters by their Unicode properties.

use regex_syntax::hir::{Class, HirKind};

/// A set of characters, as sorted ranges.
#[derive(Debug)]
pub(crate) struct CharClass(Box<[(char, char)]>);

impl CharClass {
    /// Returns the characters of a class in the syntax of regular expressions, such as `[\p{Mn}\s]`.
    ///
    /// # Panics
    ///
    /// If `class` is none; it is never input.
    pub(crate) fn new(class: &str) -> Self {
        let parsed = regex_syntax::parse(class).expect("a class without user input");
        let HirKind::Class(Class::Unicode(class)) = parsed.into_kind() else {
            unreachable!("only classes of characters are asked for");
        };
        let ranges = class.ranges().iter();
        Self(ranges.map(|range| (range.start(), range.end())).collect())
    }

    pub(crate) fn contains(&self, c: char) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= c);
        after > 0 && c <= self.0[after - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn character_classes_match_their_unicode_property() {
        let marks = CharClass::new(r"\p{Mn}");
        assert!(marks.contains('\u{301}') && !marks.contains('e') && !marks.contains('\0'));
        let punctuation = CharClass::new(r"[\p{P}$+]");
        assert!("$+!。".chars().all(|c| punctuation.contains(c)));
        assert!(!punctuation.contains('a') && !punctuation.contains(char::MAX));
    }
}
