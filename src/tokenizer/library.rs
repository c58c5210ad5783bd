//! A pipeline of the `tokenizers` library: normalizer, pre-tokenizer, model, decoder and added tokens.

use std::ops::{Deref, DerefMut};

use tokenizers::{AddedToken, Encoding};

use super::guard::failed;
use super::rules::is_space;
use crate::{Error, Result};

/// The library's tokenizer, and what its settings can't say.
#[derive(Clone)]
pub(super) struct Library {
    tokenizer: tokenizers::Tokenizer,
    /// Whether a text that begins with no space gets one: what `add_prefix_space` is to transformers' Python classes. The
    /// library's own setting of that name puts one behind every added token too.
    leading_space: bool,
}

impl Deref for Library {
    type Target = tokenizers::Tokenizer;

    fn deref(&self) -> &tokenizers::Tokenizer {
        &self.tokenizer
    }
}

impl DerefMut for Library {
    fn deref_mut(&mut self) -> &mut tokenizers::Tokenizer {
        &mut self.tokenizer
    }
}

impl Library {
    pub(super) fn new(tokenizer: tokenizers::Tokenizer, leading_space: bool) -> Self {
        Self {
            tokenizer,
            leading_space,
        }
    }

    pub(super) fn has_leading_space(&self) -> bool {
        self.leading_space
    }

    pub(super) fn into_tokenizer(self) -> tokenizers::Tokenizer {
        self.tokenizer
    }

    /// Returns the tokens of `text` with offsets in characters.
    pub(super) fn encode(&self, text: &str) -> Result<Encoding> {
        let Some(spaced) = self.spaced(text) else {
            return self.encode_char_offsets(text, false).map_err(failed);
        };
        let encoding = self.encode_char_offsets(spaced, false).map_err(failed)?;
        // The space is no part of the text; it stands for the first character.
        let back = |&(start, end): &(usize, usize)| {
            (start.saturating_sub(1), end.saturating_sub(1).max(1))
        };
        Ok(Encoding::new(
            encoding.get_ids().to_vec(),
            encoding.get_type_ids().to_vec(),
            encoding.get_tokens().to_vec(),
            encoding.get_word_ids().to_vec(),
            encoding.get_offsets().iter().map(back).collect(),
            encoding.get_special_tokens_mask().to_vec(),
            encoding.get_attention_mask().to_vec(),
            Vec::new(),
            Default::default(),
        ))
    }

    /// Appends the ids of `text`.
    pub(super) fn append_ids(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let spaced = self.spaced(text);
        let text = spaced.as_deref().unwrap_or(text);
        let encoding = self.encode_fast(text, false).map_err(failed)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// Returns `text` with a space before it, where it must get one.
    fn spaced(&self, text: &str) -> Option<String> {
        let bare = self.leading_space && text.chars().next().is_some_and(|c| !is_space(c));
        bare.then(|| format!(" {text}"))
    }

    /// Adds `tokens`, as [`Engine::add`](super::engine::Engine::add) says.
    pub(super) fn add(&mut self, tokens: Vec<(Option<u32>, AddedToken)>) -> Result<()> {
        // The library counts tokens to find the next id, which is wrong where ids have gaps.
        let vocabulary = self.get_vocab(true);
        let rows = vocabulary.values().max().map_or(0, |id| id + 1);
        let gaps = rows as usize != vocabulary.len();
        let mut next = rows;
        let mut missing: Vec<&str> = Vec::new();
        for (wanted, token) in &tokens {
            let content = token.content.as_str();
            if content.is_empty() {
                continue;
            }
            let known = vocabulary.get(content).copied().or_else(|| {
                let at = missing.iter().position(|seen| *seen == content)?;
                Some(rows + at as u32)
            });
            let id = known.unwrap_or(next);
            if let Some(wanted) = wanted.filter(|wanted| *wanted != id) {
                return Err(Error::Tokenizer(format!(
                    "the added token {content:?} is to have the id {wanted}, but the vocabulary of {rows} ids leaves {id} for \
                     it; the files do not belong together"
                )));
            }
            if known.is_none() {
                if gaps {
                    return Err(Error::Tokenizer(format!(
                        "the token {content:?} can't be added: the vocabulary's {} tokens have ids up to {} with gaps between, \
                         so that a new id is not certain",
                        vocabulary.len(),
                        rows - 1
                    )));
                }
                missing.push(content);
                next += 1;
            }
        }
        for (_, token) in tokens {
            let added = if token.special {
                self.add_special_tokens([token])
            } else {
                self.add_tokens([token])
            };
            added.map_err(failed)?;
        }
        Ok(())
    }
}
