//! Replacing by patterns in a text that remembers where it came from.

use regex::Regex;

use crate::tokenizer::rules::aligned::Aligned;

/// A pattern and what is put in place of what it matches.
#[derive(Debug)]
pub(super) struct Rule {
    pattern: Regex,
    new: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    /// What a group of the pattern matched.
    Group(usize),
    Text(String),
}

impl Rule {
    /// In `new`, `$1` and so on refer to the groups of `pattern`.
    ///
    /// # Panics
    ///
    /// If `pattern` is none; it is never input.
    pub(super) fn new(pattern: &str, new: &str) -> Self {
        let mut parts = Vec::new();
        for (at, part) in new.split('$').enumerate() {
            let digits = part.chars().next().and_then(|c| c.to_digit(10));
            let text = match digits.filter(|_| at > 0) {
                Some(group) => {
                    parts.push(Part::Group(group as usize));
                    &part[1..]
                }
                None => part,
            };
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
        }
        Self {
            pattern: Regex::new(pattern).expect("a pattern without user input"),
            new: parts,
        }
    }

    /// Replaces all matches of the pattern, from left to right. A new character gets the offsets of the same character
    /// in the match, or else of the whole match.
    pub(super) fn apply(&self, text: &Aligned) -> Aligned {
        if !self.pattern.is_match(text.as_str()) {
            return text.clone();
        }
        let mut new = Aligned::with_capacity(text.len());
        let mut done = 0;
        for found in self.pattern.captures_iter(text.as_str()) {
            let Some(whole) = found.get(0) else {
                continue;
            };
            new.push_from(text, done..whole.start());
            let (start, end) = text.span(whole.range());
            // Up to where the match has been used; a new character that stands behind it there stands for that one.
            let mut used = whole.start();
            for part in &self.new {
                match part {
                    Part::Group(number) => {
                        if let Some(group) = found.get(*number) {
                            new.push_from(text, group.range());
                            used = used.max(group.end());
                        }
                    }
                    Part::Text(part) => {
                        for c in part.chars() {
                            let rest = &text.as_str()[used..whole.end()];
                            match rest.find(c) {
                                Some(at) => {
                                    new.push(c, text.span_at(used + at));
                                    used += at + c.len_utf8();
                                }
                                None => new.push(c, (start as u32, end as u32)),
                            }
                        }
                    }
                }
            }
            done = whole.end();
        }
        new.push_from(text, done..text.len());
        new
    }
}

/// Returns a table of ranges of code points as the inside of a class in a pattern.
pub(super) fn class(ranges: &[(u32, u32)]) -> String {
    let ranges = ranges.iter();
    ranges
        .map(|(first, last)| format!("\\x{{{first:x}}}-\\x{{{last:x}}}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_their_offsets_and_new_text_gets_those_of_the_match() {
        let rule = Rule::new(r"(\w)'(\w)", "$1 '$2");
        let new = rule.apply(&Aligned::new("it's o'k '"));
        assert_eq!(new.as_str(), "it 's o 'k '");
        assert_eq!(new.span(4..5), (3, 4), "the s");
        assert_eq!(new.span(3..4), (2, 3), "the apostrophe");
        assert_eq!(
            class(&[(0x41, 0x5a), (0x10400, 0x10400)]),
            r"\x{41}-\x{5a}\x{10400}-\x{10400}"
        );
    }
}
