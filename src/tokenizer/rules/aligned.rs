//! A text that remembers where each of its characters came from, through every rewriting.

use std::ops::Range;

use tokenizers::{NormalizedString, tokenizer::normalizer};

/// A rewritten text that keeps, for every byte, the span of characters of the original that it comes from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aligned {
    text: String,
    /// By byte of `text`: start and end in characters of the original.
    spans: Vec<(u32, u32)>,
}

impl Aligned {
    /// Returns the original itself, each character standing for itself.
    pub(crate) fn new(original: &str) -> Self {
        let mut aligned = Self::with_capacity(original.len());
        for (at, c) in (0..).zip(original.chars()) {
            aligned.push(c, (at, at + 1));
        }
        aligned
    }

    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            spans: Vec::with_capacity(bytes),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Appends a character that comes from `span` of the original.
    pub(crate) fn push(&mut self, c: char, span: (u32, u32)) {
        self.text.push(c);
        self.spans.resize(self.text.len(), span);
    }

    /// Appends characters that all come from `span` of the original.
    pub(crate) fn push_str(&mut self, text: &str, span: (u32, u32)) {
        self.text.push_str(text);
        self.spans.resize(self.text.len(), span);
    }

    /// Lets the last character end at `end`, where it ends before.
    pub(crate) fn extend(&mut self, end: u32) {
        let last = self.text.chars().next_back().map_or(0, char::len_utf8);
        let from = self.text.len() - last;
        for span in &mut self.spans[from..] {
            span.1 = span.1.max(end);
        }
    }

    /// Lets the character at `byte` begin at `start`, where it begins behind.
    pub(crate) fn begin(&mut self, byte: usize, start: u32) {
        let c = self.text[byte..].chars().next();
        let end = byte + c.map_or(0, char::len_utf8);
        for span in &mut self.spans[byte..end] {
            span.0 = span.0.min(start);
        }
    }

    /// Appends a part of another text with its spans.
    pub(crate) fn push_from(&mut self, other: &Aligned, range: Range<usize>) {
        self.text.push_str(&other.text[range.clone()]);
        self.spans.extend_from_slice(&other.spans[range]);
    }

    /// Drops everything after the first `bytes` bytes.
    pub(crate) fn truncate(&mut self, bytes: usize) {
        self.text.truncate(bytes);
        self.spans.truncate(bytes);
    }

    /// Returns a part of the text, in bytes.
    pub(crate) fn slice(&self, range: Range<usize>) -> Aligned {
        let mut part = Self::with_capacity(range.len());
        part.push_from(self, range);
        part
    }

    /// Returns the span of a byte; after the end, the empty span there.
    pub(crate) fn span_at(&self, byte: usize) -> (u32, u32) {
        match self.spans.get(byte) {
            Some(span) => *span,
            None => self.spans.last().map_or((0, 0), |last| (last.1, last.1)),
        }
    }

    /// Returns the span of a range of bytes.
    pub(crate) fn span(&self, range: Range<usize>) -> (usize, usize) {
        if range.is_empty() {
            let at = self.span_at(range.start).0 as usize;
            return (at, at);
        }
        let (start, end) = (self.spans[range.start].0, self.spans[range.end - 1].1);
        (start as usize, end.max(start) as usize)
    }

    /// Returns each character with its range of bytes.
    pub(crate) fn chars(&self) -> impl Iterator<Item = (Range<usize>, char)> {
        let chars = self.text.char_indices();
        chars.map(|(at, c)| (at..at + c.len_utf8(), c))
    }

    /// Returns every character replaced by those that `rewrite` gives for it.
    pub(crate) fn map<I: IntoIterator<Item = char>>(
        &self,
        mut rewrite: impl FnMut(char) -> I,
    ) -> Aligned {
        let mut new = Self::with_capacity(self.len());
        for (range, c) in self.chars() {
            let span = self.spans[range.start];
            for c in rewrite(c) {
                new.push(c, span);
            }
        }
        new
    }

    /// Returns the text without the characters for which `keep` is false.
    pub(crate) fn filter(&self, keep: impl Fn(char) -> bool) -> Aligned {
        self.map(|c| keep(c).then_some(c))
    }

    /// Returns the text with empty spans for the characters where `empty` is true.
    pub(crate) fn with_empty_spans(&self, empty: impl Fn(char) -> bool) -> Aligned {
        let mut new = Self::with_capacity(self.len());
        for (range, c) in self.chars() {
            let (start, end) = self.spans[range.start];
            new.push(c, (start, if empty(c) { start } else { end }));
        }
        new
    }

    /// Replaces every `from` by `to`, which gets the span of its last character, as in the library.
    pub(crate) fn replace(&self, from: &str, to: &str) -> Aligned {
        if !self.text.contains(from) {
            return self.clone();
        }
        let mut new = Self::with_capacity(self.len());
        let mut done = 0;
        for (at, found) in self.text.match_indices(from) {
            new.push_from(self, done..at);
            done = at + found.len();
            new.push_str(to, self.span_at(done - 1));
        }
        new.push_from(self, done..self.len());
        new
    }

    /// Returns the part between leading and trailing characters for which `space` is true.
    pub(crate) fn trim(&self, space: impl Fn(char) -> bool + Copy) -> Aligned {
        let rest = self.text.trim_start_matches(space);
        let start = self.len() - rest.len();
        let end = start + rest.trim_end_matches(space).len();
        self.slice(start..end)
    }

    /// Returns the text after a step of the library's normalizers.
    pub(crate) fn through(&self, step: impl FnOnce(&mut NormalizedString)) -> Aligned {
        let mut normalized = NormalizedString::from(self.text.as_str());
        step(&mut normalized);
        let mut new = Self::with_capacity(normalized.get().len());
        for (at, c) in normalized.get().char_indices() {
            let range = normalizer::Range::Normalized(at..at + c.len_utf8());
            let from = normalized.convert_offsets(range).unwrap_or(0..0);
            let (start, end) = self.span(from.start.min(self.len())..from.end.min(self.len()));
            new.push(c, (start as u32, end as u32));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rewrite_keeps_the_offsets() {
        let text = Aligned::new("éaß ½``b");
        let new = text.replace("``", "\"").through(|text| {
            text.nfkd();
        });
        assert_eq!(new.as_str(), "e\u{301}aß 1\u{2044}2\"b");
        let at = |needle: &str| {
            let start = new.as_str().find(needle).unwrap();
            new.span(start..start + needle.len())
        };
        assert_eq!(at("e\u{301}"), (0, 1));
        assert_eq!(at("1\u{2044}2"), (4, 5));
        assert_eq!(at("\""), (6, 7));
        assert_eq!(at("b"), (7, 8));
        let upper = new.map(char::to_uppercase).filter(|c| c != 'A');
        assert_eq!(upper.as_str(), "E\u{301}SS 1\u{2044}2\"B");
        assert_eq!(upper.span(3..5), (2, 3));
        assert_eq!(Aligned::new("  a ").trim(|c| c == ' ').span(0..1), (2, 3));
    }
}
