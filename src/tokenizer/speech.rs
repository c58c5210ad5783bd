//! Speech: reading the ids that a model says step by step.

use super::Tokenizer;
use super::engine::Engine;
use super::rules::letterwise::{Letterwise, Said};
use crate::{Error, Result};

/// A letter or word of a text that a speech model said, and the model's steps in which it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// The letter or word.
    pub text: String,
    /// The first step.
    pub start: usize,
    /// One behind the last step.
    pub end: usize,
}

impl From<Said> for Spoken {
    fn from(said: Said) -> Self {
        Self {
            text: said.text,
            start: said.start,
            end: said.end,
        }
    }
}

impl Tokenizer {
    /// The text of `ids` as they are, equal ones in a row each by itself, for ids that come from a text rather than from a
    /// speech model; [`decode`](Self::decode) folds them. The same for tokenizers that are not for speech.
    pub fn decode_unfolded(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let Ok(letters) = self.letters() else {
            return self.decode(ids, skip_special_tokens);
        };
        let tokens = self.spelled(ids, skip_special_tokens);
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        Ok(letters.text(&letters.read(&tokens, false)))
    }

    /// The letters that a speech model said and when, one id a step.
    ///
    /// # Errors
    ///
    /// If the tokenizer is not one for speech (`Wav2Vec2CTCTokenizer`).
    pub fn spoken_letters(&self, ids: &[u32]) -> Result<Vec<Spoken>> {
        let letters = self.letters()?;
        let tokens = self.spelled(ids, false);
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let said = letters.read(&tokens, true);
        Ok(said.into_iter().map(Spoken::from).collect())
    }

    /// The words that a speech model said and when, one id a step.
    ///
    /// # Errors
    ///
    /// As [`spoken_letters`](Self::spoken_letters).
    pub fn spoken_words(&self, ids: &[u32]) -> Result<Vec<Spoken>> {
        let letters = self.letters()?;
        let tokens = self.spelled(ids, false);
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let words = letters.words(&letters.read(&tokens, true));
        Ok(words.into_iter().map(Spoken::from).collect())
    }

    fn letters(&self) -> Result<&Letterwise> {
        let letters = match &self.core.engine {
            Engine::Rules(rules) => rules.letterwise(),
            Engine::Library(_) => None,
        };
        letters.ok_or_else(|| {
            Error::Tokenizer(format!("a {} is not one for speech", self.class_name()))
        })
    }

    fn spelled(&self, ids: &[u32], skip_special_tokens: bool) -> Vec<String> {
        let special = self.all_special_ids();
        let kept = ids
            .iter()
            .filter(|id| !(skip_special_tokens && special.contains(id)));
        kept.filter_map(|&id| self.id_to_token(id)).collect()
    }
}
