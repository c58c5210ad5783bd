//! TAPAS: BERT's words and pieces, and a special token for texts without words.

use std::fmt;
use std::sync::LazyLock;

use super::aligned::Aligned;
use super::classes::CharClass;
use super::{Piece, Segmenter, Spelled, is_space, word_pieces};
use crate::Result;

pub(crate) struct TableWords {
    pub(crate) bert: tokenizers::Tokenizer,
    /// The token for a text without words.
    pub(crate) empty: u32,
}

impl fmt::Debug for TableWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableWords")
            .field("empty", &self.empty)
            .finish_non_exhaustive()
    }
}

impl Segmenter for TableWords {
    fn segment(&self, text: &Aligned, _: Option<&Aligned>, pieces: &mut Vec<Piece>) -> Result<()> {
        if has_no_words(text.as_str()) {
            pieces.push(Piece {
                id: self.empty,
                span: text.span(0..text.len()),
                begins_word: true,
            });
            return Ok(());
        }
        word_pieces::cut(&self.bert, text, pieces)
    }

    fn join(&self, tokens: &[Spelled<'_>]) -> String {
        word_pieces::join(tokens)
    }

    fn continues_word(&self, token: &str) -> bool {
        token.starts_with("##")
    }
}

/// Returns whether a text is a way to leave a cell empty, or has no letter and no digit.
fn has_no_words(text: &str) -> bool {
    static WORDS: LazyLock<CharClass> = LazyLock::new(|| CharClass::new(r"[\p{L}\p{N}]"));
    let lower = text.to_lowercase();
    let plain = lower.trim_matches(is_space);
    matches!(plain, "n/a" | "?" | "nan") || !plain.chars().any(|c| WORDS.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_without_words_give_no_words() {
        for text in ["", " ? ", "N/A", "nan", "--", "_", "…!"] {
            assert!(has_no_words(text), "{text:?}");
        }
        for text in ["a", "0", "n / a", "_x", "½", "Empty"] {
            assert!(!has_no_words(text), "{text:?}");
        }
    }
}
