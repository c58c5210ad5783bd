//! RoFormer: Chinese words by a dictionary (jieba, without its model for unknown words); a word that the vocabulary holds is
//! a token, others are cut as BERT cuts them.

use std::fmt;
use std::sync::{Arc, LazyLock};

use jieba_rs::Jieba;

use super::aligned::Aligned;
use super::vocabulary::Vocabulary;
use super::{Piece, Segmenter, Spelled, word_pieces};
use crate::Result;
use crate::tokenizer::guard::failed;

/// The words of jieba's dictionary with how often each was counted; see `jieba/README.md`.
static WORDS: &str = include_str!("jieba/words.txt");

static JIEBA: LazyLock<Jieba> = LazyLock::new(|| {
    let mut words = WORDS.as_bytes();
    Jieba::with_dict(&mut words).expect("a dictionary that ships with the crate")
});

/// How words are cut that the vocabulary does not hold.
pub(crate) struct ChineseWords {
    pub(crate) vocabulary: Arc<Vocabulary>,
    /// From a word that the vocabulary does not hold to pieces.
    pub(crate) pieces: tokenizers::Tokenizer,
    /// The tokenizer of a `tokenizer.json`: its normalizer sees the text before words are looked for, and its decoder joins
    /// tokens.
    pub(crate) whole: Option<tokenizers::Tokenizer>,
}

impl fmt::Debug for ChineseWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChineseWords")
            .field("whole", &self.whole.is_some())
            .finish_non_exhaustive()
    }
}

impl Segmenter for ChineseWords {
    fn segment(&self, text: &Aligned, _: Option<&Aligned>, pieces: &mut Vec<Piece>) -> Result<()> {
        let normalized;
        let normalizer = self.whole.as_ref().and_then(|whole| whole.get_normalizer());
        let text = if let Some(normalizer) = normalizer {
            let mut done = Ok(());
            normalized = text.through(|text| {
                done = tokenizers::Normalizer::normalize(normalizer, text).map_err(failed);
            });
            done?;
            &normalized
        } else {
            text
        };
        let mut at = 0;
        for word in JIEBA.cut(text.as_str(), false) {
            let word = word.word;
            let range = at..at + word.len();
            at = range.end;
            match self.vocabulary.id(word) {
                Some(id) => pieces.push(Piece {
                    id,
                    span: text.span(range),
                    begins_word: true,
                }),
                None => word_pieces::cut(&self.pieces, &text.slice(range), pieces)?,
            }
        }
        Ok(())
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Option<Result<String>> {
        let whole = self.whole.as_ref()?;
        // It does not know tokens that were added later.
        if ids.iter().any(|&id| whole.id_to_token(id).is_none()) {
            return None;
        }
        Some(whole.decode(ids, skip_special_tokens).map_err(failed))
    }

    fn join(&self, tokens: &[Spelled<'_>]) -> String {
        word_pieces::join(tokens)
    }

    fn continues_word(&self, token: &str) -> bool {
        token.starts_with("##")
    }
}
