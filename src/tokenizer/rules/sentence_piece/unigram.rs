//! The best way to cut a text by the scores of the pieces (Kudo 2018), found from left to right (Viterbi).

use std::ops::Range;

use super::proto::{Kind, Piece};
use super::trie::Trie;

/// How much less than the worst piece a character costs that no piece fits.
const UNKNOWN_PENALTY: f32 = 10.0;

#[derive(Debug)]
pub(super) struct Unigram {
    trie: Trie,
    /// By id; `None` for pieces that are never chosen.
    scores: Vec<Option<Score>>,
    unknown: f32,
}

#[derive(Clone, Copy, Debug)]
enum Score {
    Of(f32),
    /// Always the best for its length.
    Always,
}

#[derive(Clone, Copy)]
struct Node {
    /// Where the piece that ends here begins; `usize::MAX` when none does.
    start: usize,
    id: usize,
    score: f32,
}

impl Unigram {
    pub(super) fn new(pieces: &[Piece]) -> Self {
        let normal = pieces.iter().filter(|piece| piece.kind == Kind::Normal);
        let least = normal.map(|piece| piece.score).fold(f32::MAX, f32::min);
        let least = if least == f32::MAX { 0.0 } else { least };
        let score = |piece: &Piece| match piece.kind {
            Kind::Normal => Some(Score::Of(piece.score)),
            Kind::UserDefined => Some(Score::Always),
            Kind::Unknown | Kind::Control | Kind::Unused | Kind::Byte(_) => None,
        };
        let scores: Vec<Option<Score>> = pieces.iter().map(score).collect();
        let chosen = pieces.iter().zip(0..).zip(&scores);
        let chosen = chosen.filter(|(_, score)| score.is_some());
        Self {
            trie: Trie::new(chosen.map(|((piece, id), _)| (piece.text.as_str(), id))),
            scores,
            unknown: least - UNKNOWN_PENALTY,
        }
    }

    /// Returns the pieces of `text`: bytes and id of each, `unk` for single characters that no piece fits.
    pub(super) fn cut(&self, text: &str, unk: usize) -> Vec<(Range<usize>, usize)> {
        let none = Node {
            start: usize::MAX,
            id: unk,
            score: 0.0,
        };
        let mut ends = vec![none; text.len() + 1];
        ends[0].start = 0;
        for (at, c) in text.char_indices() {
            let so_far = ends[at].score;
            let mut single = false;
            let mut offer = |end: usize, id: usize, score: f64| {
                let node = &mut ends[end];
                let score = (score + f64::from(so_far)) as f32;
                if node.start == usize::MAX || score > node.score {
                    *node = Node {
                        start: at,
                        id,
                        score,
                    };
                }
            };
            for (length, id) in self.trie.prefixes(&text.as_bytes()[at..]) {
                let score = match self.scores[id as usize] {
                    Some(Score::Of(score)) => f64::from(score),
                    Some(Score::Always) => length as f64 * f64::from(f32::MIN_POSITIVE) - 0.1,
                    None => continue,
                };
                single |= length == c.len_utf8();
                offer(at + length, id as usize, score);
            }
            if !single {
                offer(at + c.len_utf8(), unk, f64::from(self.unknown));
            }
        }
        let mut pieces = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let node = ends[end];
            pieces.push((node.start..end, node.id));
            end = node.start;
        }
        pieces.reverse();
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(pieces: &[(&str, f32, Kind)]) -> Unigram {
        let pieces: Vec<Piece> = pieces
            .iter()
            .map(|&(text, score, kind)| Piece {
                text: text.to_owned(),
                score,
                kind,
            })
            .collect();
        Unigram::new(&pieces)
    }

    #[test]
    fn the_best_sum_of_scores_wins() {
        let normal = Kind::Normal;
        let model = model(&[
            ("<unk>", 0.0, Kind::Unknown),
            ("a", -1.0, normal),
            ("b", -2.0, normal),
            ("ab", -2.5, normal),
            ("abc", -9.0, normal),
            ("c", -3.0, normal),
            ("bc", -0.5, Kind::Unused),
            ("xyz", 0.0, Kind::UserDefined),
        ]);
        let ids = |text: &str| {
            model
                .cut(text, 0)
                .into_iter()
                .map(|(_, id)| id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids("abc"), [3, 5]);
        assert_eq!(ids("bc"), [2, 5], "an unused piece is never chosen");
        assert_eq!(ids("axyzé"), [1, 7, 0]);
        assert_eq!(ids(""), [0; 0]);
        assert_eq!(model.cut("éb", 0), [(0..2, 0), (2..3, 2)]);
    }
}
