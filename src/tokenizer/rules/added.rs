//! Tokens that are cut out of a text before anything else is done with it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use tokenizers::AddedToken;

use super::aligned::Aligned;

/// The added tokens by id and by content.
#[derive(Clone, Debug, Default)]
pub(crate) struct Added {
    by_id: BTreeMap<u32, AddedToken>,
    by_content: HashMap<String, u32>,
    /// The contents by their first character, longest first.
    by_first: HashMap<char, Vec<(String, u32)>>,
}

/// A part of a text.
#[derive(Debug)]
pub(crate) enum Part {
    /// Bytes to be segmented.
    Text(Range<usize>),
    /// An added token and its bytes, the spaces that it eats included.
    Token(u32, Range<usize>),
}

impl Part {
    /// Returns the bytes of the part.
    pub(crate) fn range(&self) -> Range<usize> {
        let (Part::Text(range) | Part::Token(_, range)) = self;
        range.clone()
    }

    /// Returns the id of an added token.
    pub(crate) fn token(&self) -> Option<u32> {
        match self {
            Part::Text(_) => None,
            Part::Token(id, _) => Some(*id),
        }
    }
}

impl Added {
    pub(crate) fn insert(&mut self, id: u32, token: AddedToken) {
        self.remove(id);
        if let Some(first) = token.content.chars().next() {
            self.forget(&token.content);
            let list = self.by_first.entry(first).or_default();
            list.push((token.content.clone(), id));
            list.sort_by_key(|(content, _)| std::cmp::Reverse(content.len()));
        }
        self.by_content.insert(token.content.clone(), id);
        self.by_id.insert(id, token);
    }

    pub(crate) fn remove(&mut self, id: u32) {
        if let Some(old) = self.by_id.remove(&id) {
            self.forget(&old.content);
        }
    }

    fn forget(&mut self, content: &str) {
        self.by_content.remove(content);
        let list = content
            .chars()
            .next()
            .and_then(|c| self.by_first.get_mut(&c));
        if let Some(list) = list {
            list.retain(|(known, _)| known != content);
        }
    }

    pub(crate) fn get(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id)
    }

    pub(crate) fn id(&self, content: &str) -> Option<u32> {
        self.by_content.get(content).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.by_id.iter().map(|(id, token)| (*id, token))
    }

    /// Returns the longest token at the beginning of `text`.
    pub(crate) fn at_start(&self, text: &str) -> Option<(u32, usize)> {
        let list = self.by_first.get(&text.chars().next()?)?;
        let found = list
            .iter()
            .find(|(content, _)| text.starts_with(content.as_str()));
        found.map(|(content, id)| (*id, content.len()))
    }

    /// Splits `text` at its added tokens: the leftmost first, and of those that begin there the longest. Depending on
    /// its flags, a token may strip adjacent spaces, which are those that `is_space` knows, or match only between spaces.
    pub(crate) fn split(&self, text: &Aligned, is_space: fn(char) -> bool) -> Vec<Part> {
        let text = text.as_str();
        let mut parts = Vec::new();
        // Where the text that is not yet in a part begins.
        let mut open = 0;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let found = self.at_start(&text[at..]);
            let Some((id, length)) = found.filter(|(id, _)| self.stands_alone(*id, text, at))
            else {
                at += c.len_utf8();
                continue;
            };
            let token = &self.by_id[&id];
            let (mut start, mut end) = (at, at + length);
            let mut text_end = at;
            if token.lstrip {
                text_end = open + text[open..at].trim_end_matches(is_space).len();
                // Places are the library's, to which some of Python's spaces are none.
                start = open + text[open..at].trim_end_matches(char::is_whitespace).len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start_matches(is_space).len();
            }
            if text_end > open {
                parts.push(Part::Text(open..text_end));
            }
            parts.push(Part::Token(id, start..end));
            (open, at) = (end, end);
        }
        if open < text.len() {
            parts.push(Part::Text(open..text.len()));
        }
        parts
    }

    /// Returns whether the token at `at` matches there: a token that must be a single word needs spaces or nothing on
    /// both sides.
    fn stands_alone(&self, id: u32, text: &str, at: usize) -> bool {
        let token = &self.by_id[&id];
        if !token.single_word {
            return true;
        }
        let before = text[..at].chars().next_back();
        let after = text[at + token.content.len()..].chars().next();
        before.is_none_or(|c| c == ' ') && after.is_none_or(|c| c == ' ')
    }
}

#[cfg(test)]
mod tests {
    use super::super::is_space;
    use super::*;

    fn cut(text: &str) -> Vec<String> {
        let mut added = Added::default();
        added.insert(7, AddedToken::from("<m>", true).lstrip(true));
        added.insert(8, AddedToken::from("<m>>", true));
        added.insert(9, AddedToken::from("am", false).single_word(true));
        let aligned = Aligned::new(text);
        let parts = added.split(&aligned, is_space).into_iter();
        parts
            .map(|part| match part {
                Part::Text(range) => text[range].to_owned(),
                Part::Token(id, range) => format!("{id}:{}", &text[range]),
            })
            .collect()
    }

    #[test]
    fn texts_are_split_at_the_longest_token_with_the_spaces_it_strips() {
        assert_eq!(cut("a  <m> b"), ["a", "7:  <m>", " b"]);
        assert_eq!(cut("<m>><m>"), ["8:<m>>", "7:<m>"]);
        assert_eq!(cut("am I am. ham am"), ["9:am", " I am. ham ", "9:am"]);
        assert_eq!(cut(""), [""; 0]);
    }
}
