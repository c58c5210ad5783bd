//! Converts the words that a user wants scored to token ids.

use crate::tokenizer::{EncodeOptions, Tokenizer};
use crate::{Error, Result};

/// Returns the ids of `targets`, each once, in their order, and the assumptions made.
pub(super) fn resolve(
    targets: &[String],
    tokenizer: &Tokenizer,
    vocab: usize,
) -> Result<(Vec<u32>, Vec<String>)> {
    let options = EncodeOptions::new().add_special_tokens(false);
    let mut ids = Vec::with_capacity(targets.len());
    let mut warnings = Vec::new();
    for target in targets {
        let id = match tokenizer.token_to_id(target) {
            Some(id) => id,
            None => {
                let encoding = tokenizer.encode_with(target, &options)?;
                let Some((&id, token)) = encoding.ids.first().zip(encoding.tokens.first()) else {
                    warnings.push(format!(
                        "the target {target:?} gives no token and is ignored"
                    ));
                    continue;
                };
                warnings.push(format!(
                    "the target {target:?} is not a token of the vocabulary; using its first token {token:?} instead"
                ));
                id
            }
        };
        if id as usize >= vocab {
            return Err(Error::FillMask(format!(
                "the target {target:?} has the id {id}, but the model knows only {vocab} tokens: does the tokenizer belong to the model?"
            )));
        }
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    for warning in &warnings {
        eprintln!("warning: fill_mask: {warning}");
    }
    if ids.is_empty() {
        return Err(Error::FillMask(format!(
            "none of the targets {targets:?} is a token; give at least one that the tokenizer knows"
        )));
    }
    Ok((ids, warnings))
}
