//! Tokens and their ids.

use std::collections::{BTreeMap, HashMap};

/// A vocabulary whose ids may have gaps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vocabulary {
    ids: HashMap<String, u32>,
    tokens: BTreeMap<u32, String>,
}

impl Vocabulary {
    pub(crate) fn new(tokens: impl IntoIterator<Item = (String, u32)>) -> Self {
        let mut vocabulary = Self::default();
        for (token, id) in tokens {
            // Where a token is there twice the first counts, where an id is, the first as well.
            vocabulary.ids.entry(token.clone()).or_insert(id);
            vocabulary.tokens.entry(id).or_insert(token);
        }
        vocabulary
    }

    /// Tokens with the ids 0, 1, ...
    pub(crate) fn in_order(tokens: impl IntoIterator<Item = String>) -> Self {
        Self::new(tokens.into_iter().zip(0..))
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub(crate) fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(&id).map(String::as_str)
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns one more than the largest id.
    pub(crate) fn rows(&self) -> u32 {
        self.tokens.last_key_value().map_or(0, |(id, _)| id + 1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().map(|(id, token)| (token.as_str(), *id))
    }
}
