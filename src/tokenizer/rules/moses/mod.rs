//! XLM and FlauBERT: the Moses rules for punctuation and words, then merges of letters into pieces, the last of a word marked
//! by `</w>`.
//!
//! The Moses rules are those of the statistical translation system's preprocessing (Koehn et al. 2007).

mod merges;
mod prefixes;
mod properties;
mod punctuation;
mod rule;
mod words;

use std::sync::{Arc, LazyLock};

use super::aligned::Aligned;
use super::classes::CharClass;
use super::vocabulary::Vocabulary;
use super::{Piece, Segmenter, Spelled, is_space};
use crate::Result;
pub(crate) use merges::Merges;
pub(crate) use prefixes::Prefixes;
use punctuation::Punctuation;
use words::Words;

/// The steps before and after the Moses rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letters {
    /// Words are lowercased and lose their accents, or not.
    WithoutAccents(bool),
    /// The text is composed (NFC) and its double quotes made plain first, and lowercased or not.
    Composed { lowercase: bool },
}

/// How XLM and FlauBERT cut texts.
#[derive(Debug)]
pub(crate) struct MosesBpe {
    letters: Letters,
    punctuation: Punctuation,
    words: Words,
    merges: Merges,
    vocabulary: Arc<Vocabulary>,
    unk: u32,
}

impl MosesBpe {
    /// Returns a tokenizer for texts in `language`, two letters such as `en`.
    pub(crate) fn new(
        language: &str,
        letters: Letters,
        prefixes: Prefixes,
        merges: Merges,
        vocabulary: Vocabulary,
        unk: u32,
    ) -> Self {
        Self {
            letters,
            punctuation: Punctuation::new(language),
            words: Words::new(language, prefixes),
            merges,
            vocabulary: Arc::new(vocabulary),
            unk,
        }
    }

    /// Returns the words of a text.
    fn words(&self, text: &Aligned) -> Vec<Aligned> {
        let mut text = text.clone();
        if let Letters::Composed { lowercase } = self.letters {
            text = text
                .replace("``", "\"")
                .replace("''", "\"")
                .through(|text| {
                    text.nfc();
                });
            if lowercase {
                text = text.map(char::to_lowercase);
            }
        }
        let text = self.punctuation.apply(&text);
        let words = self.words.cut(&text.filter(|c| !is_unprintable(c)));
        if self.letters != Letters::WithoutAccents(true) {
            return words;
        }
        let bare = |word: &Aligned| {
            let lower = word.map(char::to_lowercase);
            let decomposed = lower.through(|word| {
                word.nfd();
            });
            decomposed.filter(|c| !is_mark(c)).map(char::to_lowercase)
        };
        words.iter().map(bare).collect()
    }
}

impl Segmenter for MosesBpe {
    fn segment(&self, text: &Aligned, _: Option<&Aligned>, pieces: &mut Vec<Piece>) -> Result<()> {
        for word in self.words(text) {
            for (at, range) in self.merges.cut(word.as_str()).into_iter().enumerate() {
                let mut spelled = word.as_str()[range.clone()].to_owned();
                if range.end == word.len() {
                    spelled.push_str(merges::END);
                }
                pieces.push(Piece {
                    id: self.vocabulary.id(&spelled).unwrap_or(self.unk),
                    span: word.span(range),
                    begins_word: at == 0,
                });
            }
        }
        Ok(())
    }

    fn join(&self, tokens: &[Spelled<'_>]) -> String {
        let text: String = tokens.iter().map(|token| token.text).collect();
        text.replace(merges::END, " ")
            .trim_matches(is_space)
            .to_owned()
    }

    /// By its own spelling no token continues a word: what is marked is where words end.
    fn continues_word(&self, _token: &str) -> bool {
        false
    }
}

/// Returns whether `c` is a control, format, private or unassigned character.
fn is_unprintable(c: char) -> bool {
    static CLASS: LazyLock<CharClass> = LazyLock::new(|| CharClass::new(r"\p{C}"));
    CLASS.contains(c)
}

/// Returns whether `c` is a mark over or under another character.
fn is_mark(c: char) -> bool {
    static CLASS: LazyLock<CharClass> = LazyLock::new(|| CharClass::new(r"\p{Mn}"));
    CLASS.contains(c)
}
