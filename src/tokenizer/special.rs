//! Which token plays which part: beginning, end, unknown, separator, padding, classification, mask.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::{Error, Result};

/// The parts that a special token can play, in the order in which transformers lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Bos,
    Eos,
    Unk,
    Sep,
    Pad,
    Cls,
    Mask,
}

impl Role {
    pub(crate) const ALL: [Role; 7] = [
        Role::Bos,
        Role::Eos,
        Role::Unk,
        Role::Sep,
        Role::Pad,
        Role::Cls,
        Role::Mask,
    ];

    /// Returns the key in `tokenizer_config.json` and `special_tokens_map.json`.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Role::Bos => "bos_token",
            Role::Eos => "eos_token",
            Role::Unk => "unk_token",
            Role::Sep => "sep_token",
            Role::Pad => "pad_token",
            Role::Cls => "cls_token",
            Role::Mask => "mask_token",
        }
    }
}

/// The special tokens by role, and those without one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SpecialTokens {
    roles: [Option<AddedToken>; 7],
    pub(crate) additional: Vec<AddedToken>,
}

impl SpecialTokens {
    pub(crate) fn get(&self, role: Role) -> Option<&AddedToken> {
        self.roles[role as usize].as_ref()
    }

    pub(crate) fn set(&mut self, role: Role, token: Option<AddedToken>) {
        self.roles[role as usize] = token;
    }

    /// Returns all of them in transformers' order, each once.
    pub(crate) fn all(&self) -> Vec<&AddedToken> {
        let mut tokens: Vec<&AddedToken> = Vec::new();
        for token in self.roles.iter().flatten().chain(&self.additional) {
            if tokens.iter().all(|seen| seen.content != token.content) {
                tokens.push(token);
            }
        }
        tokens
    }

    /// Takes what `object` (either of the two JSON files, `file`) says. A token written as a plain string keeps the flags
    /// (`lstrip`, ...) of `defaults` when that has a token for the role; a role given as `null` is left empty.
    ///
    /// The tokens without a role are listed under `additional_special_tokens`, or since version 5 of transformers under
    /// `extra_special_tokens`, where they may have names.
    pub(crate) fn update_from(
        &mut self,
        object: &Map<String, Value>,
        defaults: &SpecialTokens,
        file: &Path,
    ) -> Result<()> {
        let malformed = |key: &str, value: &Value| {
            Error::format(
                file,
                format!(
                    "{key} is {value}, but a special token is a string, an object with a string \"content\", or null"
                ),
            )
        };
        for role in Role::ALL {
            if let Some(value) = object.get(role.key()) {
                let token = token_from_json(value, defaults.get(role));
                self.set(role, token.ok_or_else(|| malformed(role.key(), value))?);
            }
        }
        let mut unnamed: Option<Vec<AddedToken>> = None;
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            let values: Vec<&Value> = match object.get(key) {
                None | Some(Value::Null) => continue,
                Some(Value::Array(tokens)) => tokens.iter().collect(),
                Some(Value::Object(named)) if key == "extra_special_tokens" => {
                    named.values().collect()
                }
                Some(other) => {
                    let what = format!("{key} is {other}, but it must be a list of tokens");
                    return Err(Error::format(file, what));
                }
            };
            for value in values {
                let token = token_from_json(value, None).flatten();
                let token = token.ok_or_else(|| malformed(&format!("an item of {key}"), value))?;
                let unnamed = unnamed.get_or_insert_default();
                if unnamed.iter().all(|known| known.content != token.content) {
                    unnamed.push(token);
                }
            }
            unnamed.get_or_insert_default();
        }
        if let Some(tokens) = unnamed {
            self.additional = tokens;
        }
        Ok(())
    }

    /// Returns the content of `special_tokens_map.json`.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        for role in Role::ALL {
            if let Some(token) = self.get(role) {
                object.insert(role.key().to_owned(), token_to_json(token));
            }
        }
        if !self.additional.is_empty() {
            let tokens = self.additional.iter().map(token_to_json).collect();
            object.insert("additional_special_tokens".to_owned(), tokens);
        }
        object
    }
}

/// Returns a special token with the usual flags: matched literally, without stripping spaces.
pub(crate) fn plain(content: &str) -> AddedToken {
    AddedToken::from(content, true)
}

/// Returns the token that `value` describes: `None` when it is malformed, `Some(None)` for an explicit `null`.
fn token_from_json(value: &Value, default: Option<&AddedToken>) -> Option<Option<AddedToken>> {
    let flag = |name| match value.get(name) {
        None | Some(Value::Null) => Some(false),
        Some(flag) => flag.as_bool(),
    };
    match value {
        Value::Null => Some(None),
        Value::String(content) => {
            let flags = default.cloned().unwrap_or_else(|| plain(content));
            Some(Some(AddedToken {
                content: content.clone(),
                ..flags
            }))
        }
        Value::Object(object) => Some(Some(AddedToken {
            content: object.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word")?,
            lstrip: flag("lstrip")?,
            rstrip: flag("rstrip")?,
            normalized: flag("normalized")?,
            special: true,
        })),
        _ => None,
    }
}

fn token_to_json(token: &AddedToken) -> Value {
    json!({
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
    })
}
