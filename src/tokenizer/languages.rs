//! Texts of several languages: mBART's tokenizers add the token of the language to each text.

use std::sync::Arc;

use super::family::Family;
use super::folder::post;
use super::{Encoding, Tokenizer, legacy};
use crate::{Error, Result};

/// The source and target languages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Languages {
    pub(super) source: String,
    pub(super) target: Option<String>,
}

impl Tokenizer {
    /// Returns the language whose token is added to texts (`en_XX`), for a multilingual tokenizer; `None` for all
    /// others.
    pub fn source_language(&self) -> Option<&str> {
        let languages = self.languages.as_ref()?;
        Some(&languages.source)
    }

    /// Returns the language of [`encode_target`](Self::encode_target), where one is set.
    pub fn target_language(&self) -> Option<&str> {
        self.languages.as_ref()?.target.as_deref()
    }

    /// Sets the language of the texts that are encoded from now on, such as `de_DE`.
    ///
    /// # Errors
    ///
    /// If the tokenizer is not one of several languages, or does not have this one.
    pub fn set_source_language(&mut self, code: &str) -> Result<()> {
        let post = self.post_of_language(code)?;
        self.post = Arc::new(post);
        if let Some(languages) = &mut self.languages {
            code.clone_into(&mut languages.source);
        }
        Ok(())
    }

    /// Sets the language of [`encode_target`](Self::encode_target).
    ///
    /// # Errors
    ///
    /// Like [`set_source_language`](Self::set_source_language).
    pub fn set_target_language(&mut self, code: &str) -> Result<()> {
        self.post_of_language(code)?;
        if let Some(languages) = &mut self.languages {
            languages.target = Some(code.to_owned());
        }
        Ok(())
    }

    /// Encodes a text in the target language, as `text_target` does in `transformers`.
    ///
    /// # Errors
    ///
    /// If no target language is set.
    pub fn encode_target(&self, text: &str) -> Result<Encoding> {
        let target = self.target_language().ok_or_else(|| {
            Error::Tokenizer(format!(
                "a {} has no target language; choose one with set_target_language",
                self.class_name()
            ))
        })?;
        let mut other = self.clone();
        other.post = Arc::new(self.post_of_language(target)?);
        other.encode(text)
    }

    /// Returns the special tokens around a text of that language.
    fn post_of_language(&self, code: &str) -> Result<super::Post> {
        let family = Family::of_class(&self.class_name());
        let codes: Vec<&str> = family.iter().flat_map(|f| f.language_codes()).collect();
        let family = family.filter(|_| self.languages.is_some());
        let family = family.ok_or_else(|| {
            Error::Tokenizer(format!(
                "a {} has no languages to choose from",
                self.class_name()
            ))
        })?;
        if !codes.contains(&code) || self.token_to_id(code).is_none() {
            return Err(Error::argument(
                "language",
                format!("{code:?} is not one of {}", codes.join(", ")),
            ));
        }
        let place = self.class_name();
        let id = |token: &str| self.token_to_id(token);
        post(legacy::post_processor(
            family,
            &self.special,
            &place,
            false,
            Some(code),
            id,
        )?)
    }
}
