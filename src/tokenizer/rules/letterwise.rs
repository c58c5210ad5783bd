//! Wav2Vec2: one token per character, a delimiter for the space, and greedy decoding of a speech model's output.

use std::sync::Arc;

use super::aligned::Aligned;
use super::vocabulary::Vocabulary;
use super::{Piece, Segmenter, Spelled, Stretches, is_space};
use crate::Result;

/// How characters become tokens and tokens a text.
#[derive(Clone, Debug)]
pub(crate) struct Letterwise {
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) unk: u32,
    /// The token between words.
    pub(crate) delimiter: String,
    /// What the delimiter is in a text.
    pub(crate) space: String,
    /// The blank token of CTC.
    pub(crate) blank: String,
    /// Whether texts are made of capitals, and read as small letters.
    pub(crate) capitals: bool,
}

/// A character of a text that a speech model said, and when: in steps of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Letterwise {
    /// Returns what tokens in a row say: with `folded`, equal ones are one; blanks say nothing.
    pub(crate) fn read(&self, tokens: &[&str], folded: bool) -> Vec<Said> {
        let mut said = Vec::new();
        let mut start = 0;
        for run in tokens.chunk_by(|left, right| folded && left == right) {
            let end = start + run.len();
            if run[0] != self.blank {
                let space = run[0] == self.delimiter;
                let text = if space { &self.space } else { run[0] };
                said.push(Said {
                    text: text.to_owned(),
                    start,
                    end,
                });
            }
            start = end;
        }
        said
    }

    /// Returns the text of what was said.
    pub(crate) fn text(&self, said: &[Said]) -> String {
        let text: String = said.iter().map(|said| said.text.as_str()).collect();
        let text = text.trim_matches(is_space);
        if self.capitals {
            text.to_lowercase()
        } else {
            text.to_owned()
        }
    }

    /// Returns the words of what was said.
    pub(crate) fn words(&self, said: &[Said]) -> Vec<Said> {
        let words = said.split(|said| said.text == self.space);
        words
            .filter_map(|word| {
                let (first, last) = (word.first()?, word.last()?);
                Some(Said {
                    text: word.iter().map(|said| said.text.as_str()).collect(),
                    start: first.start,
                    end: last.end,
                })
            })
            .collect()
    }
}

impl Segmenter for Letterwise {
    fn segment(&self, text: &Aligned, _: Option<&Aligned>, pieces: &mut Vec<Piece>) -> Result<()> {
        let text = match self.capitals {
            true => text.map(char::to_uppercase),
            false => text.clone(),
        };
        let mut begins_word = true;
        let mut push = |token: &str, span| {
            let space = token == self.delimiter;
            pieces.push(Piece {
                id: self.vocabulary.id(token).unwrap_or(self.unk),
                span,
                begins_word: begins_word || space,
            });
            begins_word = space;
        };
        for (range, c) in text.chars() {
            let span = text.span(range.clone());
            if c == ' ' {
                // Each character of the delimiter is a token, as in transformers; it has one.
                let mut buffer = [0; 4];
                self.delimiter
                    .chars()
                    .for_each(|c| push(c.encode_utf8(&mut buffer), span));
            } else {
                push(&text.as_str()[range], span);
            }
        }
        Ok(())
    }

    fn join(&self, tokens: &[Spelled<'_>]) -> String {
        let tokens: Vec<&str> = tokens.iter().map(|token| token.text).collect();
        self.text(&self.read(&tokens, true))
    }

    fn letterwise(&self) -> Option<&Letterwise> {
        Some(self)
    }

    fn stretches(&self) -> Stretches {
        Stretches::One
    }

    fn continues_word(&self, token: &str) -> bool {
        token != self.delimiter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_letters_collapse_unless_a_blank_separates_them() {
        let letters = Letterwise {
            vocabulary: Arc::new(Vocabulary::in_order(
                ["_", "|", "A", "B"].map(str::to_owned),
            )),
            unk: 0,
            delimiter: "|".to_owned(),
            space: " ".to_owned(),
            blank: "_".to_owned(),
            capitals: true,
        };
        let tokens = ["_", "A", "A", "_", "A", "|", "|", "B", "_", "|"];
        let said = letters.read(&tokens, true);
        assert_eq!(letters.text(&said), "aa b");
        let words = letters.words(&said);
        let words: Vec<_> = words
            .iter()
            .map(|word| (word.text.as_str(), word.start, word.end))
            .collect();
        assert_eq!(words, [("AA", 1, 5), ("B", 7, 8)]);
        assert_eq!(letters.text(&letters.read(&tokens, false)), "aaa  b");
        let mut pieces = Vec::new();
        letters
            .segment(&Aligned::new("b a"), None, &mut pieces)
            .unwrap();
        assert_eq!(
            pieces.iter().map(|piece| piece.id).collect::<Vec<_>>(),
            [3, 1, 2]
        );
    }
}
