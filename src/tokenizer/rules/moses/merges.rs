//! Letters merged into pieces, the best pair of neighbours first (Sennrich, Haddow and Birch 2016).

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::{Error, Result};

/// Marks the last piece of a word.
pub(super) const END: &str = "</w>";

/// The pairs that are merged, by their rank.
#[derive(Debug, Default)]
pub(crate) struct Merges(HashMap<(String, String), usize>);

impl Merges {
    /// Reads `merges.txt`: two pieces per line, in order of priority; anything after them is ignored.
    pub(crate) fn read(path: &Path, text: &str) -> Result<Self> {
        let mut merges = HashMap::new();
        for (number, line) in (1..).zip(text.split('\n')) {
            let line = line.trim_end_matches('\r');
            if line.is_empty() || line.starts_with("#version") {
                continue;
            }
            let mut pieces = line.split_whitespace();
            let (Some(left), Some(right)) = (pieces.next(), pieces.next()) else {
                return Err(Error::Format {
                    path: path.to_path_buf(),
                    line: Some(number),
                    message: format!(
                        "{line:?} is not a merge, which is two pieces with a space between"
                    ),
                });
            };
            let rank = merges.len();
            merges
                .entry((left.to_owned(), right.to_owned()))
                .or_insert(rank);
        }
        Ok(Self(merges))
    }

    /// Returns the pieces of a word.
    pub(super) fn cut(&self, word: &str) -> Vec<Range<usize>> {
        let chars = word.char_indices();
        let mut pieces: Vec<Range<usize>> = chars.map(|(at, c)| at..at + c.len_utf8()).collect();
        let spell = |range: &Range<usize>| {
            let mut piece = word[range.clone()].to_owned();
            if range.end == word.len() {
                piece.push_str(END);
            }
            piece
        };
        let rank = |pair: &[Range<usize>]| self.0.get(&(spell(&pair[0]), spell(&pair[1]))).copied();
        let mut ranks: Vec<Option<usize>> = pieces.windows(2).map(rank).collect();
        while let Some(best) = ranks.iter().flatten().min().copied() {
            let mut at = 0;
            while at + 1 < pieces.len() {
                if ranks[at] == Some(best) {
                    pieces[at].end = pieces[at + 1].end;
                    pieces.remove(at + 1);
                    ranks.remove(at);
                    // Its neighbours are looked up below; until then they match nothing again in this round.
                    if at > 0 {
                        ranks[at - 1] = None;
                    }
                    if at < ranks.len() {
                        ranks[at] = None;
                    }
                }
                at += 1;
            }
            ranks = pieces.windows(2).map(rank).collect();
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_merged_by_rank_everywhere() {
        let text = "#version: 1\na b 7\nab a 3\nb</w> x\nab a</w>\na a\n";
        let merges = Merges::read(Path::new("merges.txt"), text).unwrap();
        let cut = |word: &str| {
            let pieces = merges.cut(word).into_iter();
            pieces
                .map(|range| word[range].to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(cut("ababa"), ["ab", "aba"]);
        assert_eq!(cut("abaab"), ["aba", "a", "b"]);
        assert_eq!(cut("aaaa"), ["aa", "a", "a"]);
        assert_eq!(cut("é"), ["é"]);
        assert_eq!(cut(""), [""; 0]);
        let error = Merges::read(Path::new("merges.txt"), "a b\nc\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
