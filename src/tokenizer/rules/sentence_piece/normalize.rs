//! What a `SentencePiece` model does to a text before it is cut: its own map of characters, and spaces.

use super::proto::Proto;
use super::trie::Trie;
use super::{SPACE, SPACE_STR};
use crate::tokenizer::rules::aligned::Aligned;

#[derive(Debug)]
pub(super) struct Normalizer {
    map: CharsMap,
    /// Pieces that the map leaves alone.
    symbols: Trie,
    add_dummy_prefix: bool,
    whitespace_as_suffix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Normalizer {
    pub(super) fn new(proto: &Proto, symbols: Trie) -> Self {
        Self {
            map: CharsMap::new(&proto.charsmap),
            symbols,
            add_dummy_prefix: proto.add_dummy_prefix,
            whitespace_as_suffix: proto.whitespace_as_suffix,
            remove_extra_whitespaces: proto.remove_extra_whitespaces,
            escape_whitespaces: proto.escape_whitespaces,
        }
    }

    /// Returns the replacement for the beginning of `text`, and how many bytes it replaces.
    fn prefix<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        if let Some((length, _)) = self.symbols.prefixes(text.as_bytes()).last() {
            return (&text[..length], length);
        }
        let longest = self.map.longest(text);
        longest.unwrap_or_else(|| {
            let length = text.chars().next().map_or(0, char::len_utf8);
            (&text[..length], length)
        })
    }

    /// Returns the text as the model sees it.
    pub(super) fn apply(&self, input: &Aligned) -> Aligned {
        let text = input.as_str();
        let mut at = 0;
        if self.remove_extra_whitespaces {
            while at < text.len() {
                let (to, length) = self.prefix(&text[at..]);
                if to != " " {
                    break;
                }
                at += length;
            }
        }
        let mut new = Aligned::with_capacity(text.len() + SPACE.len_utf8());
        if at == text.len() {
            return new;
        }
        let space = if self.escape_whitespaces { SPACE } else { ' ' };
        if self.add_dummy_prefix && !self.whitespace_as_suffix {
            new.push(space, input.span_at(at));
        }
        let mut after_space = self.remove_extra_whitespaces;
        while at < text.len() {
            let (to, length) = self.prefix(&text[at..]);
            let mut kept = to;
            if after_space {
                kept = kept.trim_start_matches(' ');
            }
            let (start, end) = input.span(at..at + length);
            for c in kept.chars() {
                let c = if c == ' ' { space } else { c };
                new.push(c, (start as u32, end as u32));
            }
            if !kept.is_empty() {
                after_space = kept.ends_with(' ');
            }
            at += length;
            after_space &= self.remove_extra_whitespaces;
        }
        if self.remove_extra_whitespaces {
            let end = new.as_str().trim_end_matches(space).len();
            new.truncate(end);
        }
        if self.add_dummy_prefix && self.whitespace_as_suffix {
            let end = input.span_at(text.len()).0;
            new.push(space, (end, end));
        }
        new
    }
}

/// Replacements for beginnings of texts: a double-array trie (the layout of the Darts library) of what is replaced, whose
/// values are places in a block of zero-terminated strings.
#[derive(Debug, Default)]
struct CharsMap {
    units: Vec<u32>,
    strings: Vec<u8>,
}

impl CharsMap {
    /// Takes a map whose head was checked; whatever else is wrong with it matches nothing.
    fn new(bytes: &[u8]) -> Self {
        let Some((size, rest)) = bytes.split_first_chunk::<4>() else {
            return Self::default();
        };
        let (trie, strings) = rest.split_at((u32::from_le_bytes(*size) as usize).min(rest.len()));
        let units = trie.chunks_exact(4);
        let unit = |unit: &[u8]| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]);
        Self {
            units: units.map(unit).collect(),
            strings: strings.to_vec(),
        }
    }

    /// Returns the replacement for the longest beginning of `text` that has one, and the bytes that it replaces.
    fn longest(&self, text: &str) -> Option<(&str, usize)> {
        let mut found = None;
        let mut at = offset(*self.units.first()?);
        for (length, byte) in (1..).zip(text.bytes()) {
            at ^= u32::from(byte);
            let Some(&unit) = self.units.get(at as usize) else {
                break;
            };
            if unit & (1 << 31 | 0xff) != u32::from(byte) || byte == 0 {
                break;
            }
            at ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let leaf = self.units.get(at as usize)?;
                found = Some((length, leaf & !(1 << 31)));
            }
        }
        let (length, place) = found?;
        let string = self.strings.get(place as usize..)?;
        let end = string.iter().position(|byte| *byte == 0)?;
        let string = std::str::from_utf8(&string[..end]).ok()?;
        text.is_char_boundary(length).then_some((string, length))
    }
}

/// Returns where a unit's children begin, relative to its own place.
fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & 1 << 9) >> 6)
}

impl Normalizer {
    /// Returns whether spaces before a text are the model's own work, so that decoding takes them away.
    pub(super) fn owns_first_space(&self) -> bool {
        self.add_dummy_prefix || self.remove_extra_whitespaces
    }

    pub(super) fn removes_extra_spaces(&self) -> bool {
        self.remove_extra_whitespaces
    }
}

/// Returns the mark of a space at the beginning of a piece, taken off.
pub(super) fn without_space(piece: &str) -> Option<&str> {
    piece.strip_prefix(SPACE_STR)
}
