//! Writing the files that either side opens.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use super::encode::failed;
use super::family::{Family, Layout};
use crate::files::write_atomically;
use crate::{Error, Result};

impl Tokenizer {
    /// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into `folder`, which is created if
    /// need be. `AutoTokenizer.from_pretrained(folder)` in Python opens it with the same ids.
    ///
    /// Each file is replaced as a whole or not at all.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        let core = self.core.whole().to_string(false).map_err(failed)?;
        let mut core: Value = serde_json::from_str(&core)?;
        merges_as_strings(&mut core);
        for part in ["pre_tokenizer", "decoder"] {
            metaspace_prefix(&mut core[part]);
        }
        if Family::of_class(&self.class_name()).is_some_and(|f| f.layout == Layout::Letters) {
            // The reference has no other class for it than the one that reads this file.
            let ids = 0..self.vocab_size() as u32;
            let lines: Vec<String> = ids.filter_map(|id| self.id_to_token(id)).collect();
            write_atomically(&folder.join("vocab.txt"), lines.join("\n").as_bytes())?;
        }
        write(folder, "tokenizer.json", &core)?;
        let special = Value::Object(self.special.to_json());
        write(folder, "special_tokens_map.json", &special)?;
        write(folder, "tokenizer_config.json", &self.config_json())
    }

    fn config_json(&self) -> Value {
        let mut config: Map<String, Value> = self.settings.config.clone();
        let settings = &self.settings;
        let mut added = Map::new();
        let mut tokens: Vec<_> = self
            .core
            .tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .collect();
        tokens.sort_by_key(|(id, _)| *id);
        for (id, token) in tokens {
            added.insert(
                id.to_string(),
                json!({
                    "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
                    "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special,
                }),
            );
        }
        config.insert("added_tokens_decoder".to_owned(), Value::Object(added));
        for (role, token) in self.special.to_json() {
            let content = match &token {
                Value::Object(token) => token["content"].clone(),
                Value::Array(tokens) => tokens.iter().map(|t| t["content"].clone()).collect(),
                _ => continue,
            };
            config.insert(role, content);
        }
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        set("tokenizer_class", self.class_name().into());
        set("clean_up_tokenization_spaces", settings.clean_up.into());
        if let Some(length) = settings.model_max_length {
            set("model_max_length", length.into());
        }
        Value::Object(config)
    }
}

/// Older versions of the reference read a merge only as one string, newer ones as either; a pair stays a pair where
/// a piece has a space in it.
fn merges_as_strings(core: &mut Value) {
    let Some(Value::Array(merges)) = core.pointer_mut("/model/merges") else {
        return;
    };
    let joined = |merge: &Value| {
        let (left, right) = (merge.get(0)?.as_str()?, merge.get(1)?.as_str()?);
        let plain = !left.contains(' ') && !right.contains(' ');
        plain.then(|| Value::String(format!("{left} {right}")))
    };
    if let Some(strings) = merges.iter().map(joined).collect::<Option<Vec<_>>>() {
        *merges = strings;
    }
}

/// Before version 0.19 of the `tokenizers` library `Metaspace` was written with `add_prefix_space`; all versions read it.
fn metaspace_prefix(part: &mut Value) {
    match part {
        Value::Object(object) => {
            if object.get("type") == Some(&Value::from("Metaspace")) {
                let prefix = object.get("prepend_scheme") != Some(&Value::from("never"));
                object.insert("add_prefix_space".to_owned(), prefix.into());
                return;
            }
            object.values_mut().for_each(metaspace_prefix);
        }
        Value::Array(parts) => parts.iter_mut().for_each(metaspace_prefix),
        _ => {}
    }
}

fn write(folder: &Path, name: &str, json: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(json)?;
    text.push('\n');
    write_atomically(&folder.join(name), text.as_bytes())
}
