//! Which token plays which part: beginning, end, unknown, separator, padding, classification, mask.

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

/// The parts that a special token can play, in the order in which the reference lists them.
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

    /// The key in `tokenizer_config.json` and `special_tokens_map.json`.
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

    /// All of them in the reference's order, each once.
    pub(crate) fn all(&self) -> Vec<&AddedToken> {
        let mut tokens: Vec<&AddedToken> = Vec::new();
        for token in self.roles.iter().flatten().chain(&self.additional) {
            if tokens.iter().all(|seen| seen.content != token.content) {
                tokens.push(token);
            }
        }
        tokens
    }

    /// Takes what `object` (either of the two JSON files) says. A token written as a plain string keeps the flags
    /// (`lstrip`, ...) of `defaults` when that has a token for the role; a role given as `null` is left empty.
    pub(crate) fn update_from(&mut self, object: &Map<String, Value>, defaults: &SpecialTokens) {
        for role in Role::ALL {
            if let Some(value) = object.get(role.key()) {
                self.set(role, token_from_json(value, defaults.get(role)));
            }
        }
        if let Some(Value::Array(tokens)) = object.get("additional_special_tokens") {
            self.additional = tokens
                .iter()
                .filter_map(|token| token_from_json(token, None))
                .collect();
        }
    }

    /// The content of `special_tokens_map.json`.
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

/// A special token with the flags that almost all have: matched as it stands, no spaces eaten.
pub(crate) fn plain(content: &str) -> AddedToken {
    AddedToken::from(content, true)
}

fn token_from_json(value: &Value, default: Option<&AddedToken>) -> Option<AddedToken> {
    let flag = |name| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    match value {
        Value::String(content) => {
            let flags = default.cloned().unwrap_or_else(|| plain(content));
            Some(AddedToken {
                content: content.clone(),
                ..flags
            })
        }
        Value::Object(object) => Some(AddedToken {
            content: object.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word"),
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            normalized: flag("normalized"),
            special: true,
        }),
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
