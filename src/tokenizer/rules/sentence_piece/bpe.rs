//! Cutting by merges: the neighbours whose joined piece has the best score become one, until no joined piece is known.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use super::proto::{Kind, Piece};
use super::trie::Trie;

#[derive(Debug)]
pub(super) struct Bpe {
    pieces: HashMap<String, (usize, f32)>,
    /// Pieces that are found whole before anything is merged.
    whole: Trie,
}

/// Two neighbours that may become one.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    /// The joined length, by which outdated merges are recognised.
    length: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

/// A stretch of the text; empty when it has gone into its left neighbour.
struct Symbol {
    range: Range<usize>,
    /// Whether it is a piece that is found whole.
    frozen: bool,
    before: Option<usize>,
    after: Option<usize>,
}

impl Bpe {
    pub(super) fn new(pieces: &[Piece]) -> Self {
        let kind = |wanted: Kind| {
            let pieces = pieces.iter().enumerate();
            pieces.filter(move |(_, piece)| piece.kind == wanted)
        };
        let whole = kind(Kind::UserDefined);
        let known = kind(Kind::Normal).chain(kind(Kind::UserDefined));
        Self {
            pieces: known
                .map(|(id, piece)| (piece.text.clone(), (id, piece.score)))
                .collect(),
            whole: Trie::new(whole.map(|(id, piece)| (piece.text.as_str(), id as u32))),
        }
    }

    pub(super) fn cut(&self, text: &str, unk: usize) -> Vec<(Range<usize>, usize)> {
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let whole = self.whole.prefixes(&text.as_bytes()[at..]).last();
            let length = whole.map_or(c.len_utf8(), |(length, _)| length);
            let number = symbols.len();
            symbols.push(Symbol {
                range: at..at + length,
                frozen: whole.is_some(),
                before: number.checked_sub(1),
                after: (at + length < text.len()).then_some(number + 1),
            });
            at += length;
        }
        let mut open = BinaryHeap::new();
        let offer =
            |symbols: &[Symbol], left: usize, right: usize, open: &mut BinaryHeap<Merge>| {
                let (from, to) = (&symbols[left], &symbols[right]);
                if from.frozen || to.frozen {
                    return;
                }
                if let Some(&(_, score)) = self.pieces.get(&text[from.range.start..to.range.end]) {
                    open.push(Merge {
                        score,
                        left,
                        right,
                        length: to.range.end - from.range.start,
                    });
                }
            };
        for right in 1..symbols.len() {
            offer(&symbols, right - 1, right, &mut open);
        }
        while let Some(merge) = open.pop() {
            let (left, right) = (merge.left, merge.right);
            let joined = symbols[left].range.len() + symbols[right].range.len();
            if symbols[left].range.is_empty()
                || symbols[right].range.is_empty()
                || joined != merge.length
            {
                continue;
            }
            symbols[left].range.end = symbols[right].range.end;
            let end = symbols[right].range.end;
            symbols[right].range = end..end;
            let after = symbols[right].after;
            symbols[left].after = after;
            if let Some(after) = after {
                symbols[after].before = Some(left);
                offer(&symbols, left, after, &mut open);
            }
            if let Some(before) = symbols[left].before {
                offer(&symbols, before, left, &mut open);
            }
        }
        let left = symbols.into_iter().map(|symbol| symbol.range);
        left.filter(|range| !range.is_empty())
            .map(|range| {
                let id = self
                    .pieces
                    .get(&text[range.clone()])
                    .map_or(unk, |(id, _)| *id);
                (range, id)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_merge_is_applied_first() {
        let texts = ["<unk>", "a", "b", "c", "bc", "ab", "abc", "[x]"];
        let kinds = |text: &str| match text {
            "<unk>" => Kind::Unknown,
            "[x]" => Kind::UserDefined,
            _ => Kind::Normal,
        };
        let pieces = texts.iter().enumerate();
        let pieces: Vec<Piece> = pieces
            .map(|(id, text)| Piece {
                text: (*text).to_owned(),
                score: -(id as f32),
                kind: kinds(text),
            })
            .collect();
        let bpe = Bpe::new(&pieces);
        let ids = |text: &str| {
            bpe.cut(text, 0)
                .into_iter()
                .map(|(_, id)| id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids("abc"), [6]);
        assert_eq!(ids("abab"), [5, 5]);
        assert_eq!(ids("a[x]bc?"), [1, 7, 4, 0]);
        assert_eq!(ids(""), [0; 0]);
    }
}
