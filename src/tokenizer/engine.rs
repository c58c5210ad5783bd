//! The engines that turn text into ids and back.

use std::collections::HashMap;

use tokenizers::{AddedToken, PostProcessorWrapper};

use super::checks;
use super::guard::{failed, guarded};
use super::library::Library;
use super::rules::Rules;
use crate::Result;

/// Text to tokens and back, without the special tokens around a text. The library's panics end here.
#[derive(Clone)]
pub(super) enum Engine {
    /// A pipeline of the `tokenizers` library.
    Library(Box<Library>),
    /// The rules of transformers' Python classes.
    Rules(Box<Rules>),
}

impl Engine {
    /// Takes over the library's tokenizer; its post-processor is returned separately, so that truncation can happen
    /// before it.
    pub(super) fn library(
        mut tokenizer: tokenizers::Tokenizer,
    ) -> (Self, Option<PostProcessorWrapper>) {
        let post = tokenizer.get_post_processor().cloned();
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        (
            Engine::Library(Box::new(Library::new(tokenizer, false))),
            post,
        )
    }

    /// Takes over a tokenizer of the library that puts a space before texts that begin with none.
    pub(super) fn with_leading_space(tokenizer: tokenizers::Tokenizer) -> Self {
        Engine::Library(Box::new(Library::new(tokenizer, true)))
    }

    /// Returns whether texts that begin with no space get one, and added tokens within them don't.
    pub(super) fn has_leading_space(&self) -> bool {
        matches!(self, Engine::Library(library) if library.has_leading_space())
    }

    pub(super) fn rules(rules: Rules) -> Self {
        Engine::Rules(Box::new(rules))
    }

    /// Returns the tokens of `text` with offsets in characters.
    pub(super) fn encode(&self, text: &str) -> Result<tokenizers::Encoding> {
        guarded("encoding", || match self {
            Engine::Library(library) => library.encode(text),
            Engine::Rules(rules) => rules.encode(text),
        })
    }

    /// Appends the ids of `text`.
    pub(super) fn append_ids(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        guarded("encoding", || match self {
            Engine::Library(library) => library.append_ids(text, ids),
            Engine::Rules(rules) => {
                ids.extend(rules.pieces(text, false)?.iter().map(|piece| piece.id));
                Ok(())
            }
        })
    }

    /// Decodes `ids`; `special` are the ids of the special tokens, and those in `alone` are kept separate, with spaces
    /// around.
    pub(super) fn decode(
        &self,
        ids: &[u32],
        skip: bool,
        special: &[u32],
        alone: &dyn Fn(u32) -> bool,
    ) -> Result<String> {
        guarded("decoding", || match self {
            Engine::Rules(rules) => rules.decode(ids, skip, special, alone),
            Engine::Library(library) if !ids.iter().any(|&id| alone(id)) => {
                library.decode(ids, skip).map_err(failed)
            }
            Engine::Library(library) => {
                let kept = ids.iter().copied();
                let kept: Vec<u32> = kept.filter(|id| !(skip && special.contains(id))).collect();
                let mut texts = Vec::new();
                for stretch in kept.chunk_by(|&left, &right| !alone(left) && !alone(right)) {
                    let text = match alone(stretch[0]) {
                        true => library.id_to_token(stretch[0]).unwrap_or_default(),
                        false => library.decode(stretch, false).map_err(failed)?,
                    };
                    if !text.is_empty() {
                        texts.push(text);
                    }
                }
                Ok(texts.join(" "))
            }
        })
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Engine::Library(library) => library.token_to_id(token),
            Engine::Rules(rules) => rules.token_to_id(token),
        }
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Engine::Library(library) => library.id_to_token(id),
            Engine::Rules(rules) => rules.id_to_token(id),
        }
    }

    /// Returns the number of tokens, with or without the added ones.
    pub(super) fn vocab_size(&self, with_added: bool) -> usize {
        match self {
            Engine::Library(library) => library.get_vocab_size(with_added),
            Engine::Rules(rules) => rules.vocab_size(with_added),
        }
    }

    /// Returns the added tokens with their ids, in the order of these.
    pub(super) fn added_tokens(&self) -> Vec<(u32, AddedToken)> {
        let mut tokens: Vec<(u32, AddedToken)> = match self {
            Engine::Library(library) => library.get_added_tokens_decoder().into_iter().collect(),
            Engine::Rules(rules) => rules
                .added()
                .map(|(id, token)| (id, token.clone()))
                .collect(),
        };
        tokens.sort_by_key(|(id, _)| *id);
        tokens
    }

    /// Adds `tokens`, special or not according to their flags, with the requested id or else one after the largest.
    ///
    /// Fails rather than give two tokens one id.
    pub(super) fn add(&mut self, tokens: Vec<(Option<u32>, AddedToken)>) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        match self {
            Engine::Library(library) => library.add(tokens),
            Engine::Rules(rules) => rules.add(tokens),
        }
    }

    /// Returns all tokens and their ids.
    pub(super) fn vocabulary(&self) -> HashMap<String, u32> {
        match self {
            Engine::Library(library) => library.get_vocab(true),
            Engine::Rules(rules) => rules
                .vocabulary()
                .map(|(token, id)| (token.to_owned(), id))
                .collect(),
        }
    }

    /// Returns the largest id and one more: how many rows an embedding needs at least.
    pub(super) fn rows(&self) -> u32 {
        match self {
            Engine::Library(_) => self.vocabulary().values().max().map_or(0, |id| id + 1),
            Engine::Rules(rules) => rules.rows(),
        }
    }

    /// Checks that all ids are within bounds and unique.
    pub(super) fn check_ids(&self) -> Result<(), String> {
        let vocabulary = self.vocabulary();
        checks::ids(vocabulary.iter().map(|(token, id)| (token.as_str(), *id)))
    }
}
