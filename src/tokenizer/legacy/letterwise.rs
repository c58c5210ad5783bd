//! Wav2Vec2 from `vocab.json`, one character a token.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::AddedToken;

use super::super::folder::Folder;
use super::super::rules::Rules;
use super::super::rules::letterwise::Letterwise;
use super::super::rules::vocabulary::Vocabulary;
use super::super::special::{Role, SpecialTokens};
use crate::{Error, Result};

pub(super) fn build(folder: &Folder, special: &SpecialTokens) -> Result<Rules> {
    let path = folder.path.join("vocab.json");
    let text = super::read(folder, "vocab.json")?;
    let damaged = |what: String| Error::format(&path, what);
    let json: Value = crate::base::json::from_slice(text.as_bytes())
        .map_err(|error| damaged(format!("not a JSON object of tokens and ids: {error}")))?;
    // A vocabulary of many languages has one for each.
    let language = folder.config.get("target_lang").and_then(Value::as_str);
    let json = match language {
        Some(language) => json.get(language).cloned().ok_or_else(|| {
            damaged(format!(
                "there is no vocabulary for the target_lang {language:?}"
            ))
        })?,
        None => json,
    };
    let ids: std::collections::HashMap<String, u32> = serde_json::from_value(json)
        .map_err(|error| damaged(format!("not a JSON object of tokens and ids: {error}")))?;
    super::super::checks::ids(ids.iter().map(|(token, id)| (token.as_str(), *id)))
        .map_err(damaged)?;
    let vocabulary = Vocabulary::new(ids);
    let text = |key: &str, default: &str| {
        let value = folder.config.get(key).and_then(Value::as_str);
        value.unwrap_or(default).to_owned()
    };
    let content = |role: Role, default: &str| {
        special
            .get(role)
            .map_or_else(|| default.to_owned(), |token| token.content.clone())
    };
    let unk = content(Role::Unk, "<unk>");
    let unk = vocabulary.id(&unk).ok_or_else(|| {
        damaged(format!(
            "the unknown token {unk:?} is not in the vocabulary"
        ))
    })?;
    // Tokens of several characters, special ones too, are found with the spaces beside them.
    let long: Vec<(Option<u32>, AddedToken)> = vocabulary
        .iter()
        .filter(|(token, _)| token.chars().nth(1).is_some())
        .map(|(token, id)| {
            let special = special.all().iter().any(|special| special.content == token);
            let token = AddedToken::from(token, special).lstrip(true).rstrip(true);
            (Some(id), token.normalized(false))
        })
        .collect();
    let capitals = folder.flag("do_lower_case").unwrap_or(false);
    let letters = Letterwise {
        vocabulary: Arc::new(vocabulary.clone()),
        unk,
        delimiter: text("word_delimiter_token", "|"),
        space: text("replace_word_delimiter_char", " "),
        blank: content(Role::Pad, "<pad>"),
        capitals,
    };
    let files = vec![super::read_bytes(folder, "vocab.json")?];
    let mut rules = Rules::new(letters, vocabulary, files).lowercase(capitals);
    rules.add(long)?;
    Ok(rules)
}
