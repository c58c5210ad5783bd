//! Adds tokens to an existing tokenizer.

use std::sync::Arc;

use tokenizers::AddedToken;

use super::byte_words::ByteWords;
use super::engine::Engine;
use super::{Core, Tokenizer};
use crate::{Error, Result};

impl Tokenizer {
    /// Adds tokens, which are matched as a whole anywhere in a text. Returns how many were new.
    ///
    /// New tokens get ids after the largest: the model's embedding must then be resized to [`len`](Self::len) rows.
    ///
    /// ```
    /// use cloze::tokenizer::Tokenizer;
    /// let mut tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 270)?;
    /// assert_eq!(tokenizer.add_tokens(&["quasar", "blazar", "quasar"])?, 2);
    /// assert!(tokenizer.tokenize("a quasar")?.contains(&"quasar".to_owned()));
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn add_tokens<S: AsRef<str>>(&mut self, tokens: &[S]) -> Result<usize> {
        self.add(tokens, false)
    }

    /// Adds special tokens without a role: like [`add_tokens`](Self::add_tokens), but decoding that skips special
    /// tokens omits them, and they are never masked.
    pub fn add_special_tokens<S: AsRef<str>>(&mut self, tokens: &[S]) -> Result<usize> {
        self.add(tokens, true)
    }

    fn add<S: AsRef<str>>(&mut self, tokens: &[S], special: bool) -> Result<usize> {
        let tokens = tokens.iter().map(AsRef::as_ref);
        if tokens.clone().any(str::is_empty) {
            return Err(Error::argument("tokens", "a token must not be empty"));
        }
        let before = self.len();
        let added = tokens.map(|token| AddedToken::from(token, special));
        let added: Vec<AddedToken> = added.collect();
        // Those that are special tokens already stay as they are.
        let mut new = added.clone();
        new.retain(|token| {
            self.special
                .all()
                .iter()
                .all(|known| known.content != token.content)
        });
        let mut engine = self.core.engine.clone();
        engine.add(new.iter().map(|token| (None, token.clone())).collect())?;
        self.core = Arc::new(self.core.with_engine(engine));
        if special {
            let all = Arc::make_mut(&mut self.special);
            for token in new {
                if all
                    .additional
                    .iter()
                    .all(|known| known.content != token.content)
                {
                    all.additional.push(token);
                }
            }
        }
        Ok(self.len() - before)
    }
}

impl Core {
    /// Everything that goes with an engine and nothing else.
    pub(super) fn new(engine: Engine) -> Self {
        Self {
            byte_words: ByteWords::new(&engine),
            engine,
            columns: Arc::default(),
            entities: None,
            own_files: Vec::new(),
            hash: Default::default(),
            continues: Default::default(),
            ends: Default::default(),
        }
    }

    /// Returns the same with another engine.
    fn with_engine(&self, engine: Engine) -> Self {
        Self {
            columns: Arc::clone(&self.columns),
            entities: self.entities.clone(),
            own_files: self.own_files.clone(),
            ..Self::new(engine)
        }
    }
}
