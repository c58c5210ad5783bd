//! Writing the files that either side opens.

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use super::encode::failed;
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

/// Writes beside the file, then puts it in its place.
fn write(folder: &Path, name: &str, json: &Value) -> Result<()> {
    let path = folder.join(name);
    let failed = |error| Error::io("write", &path, error);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let text = serde_json::to_string_pretty(json)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.write_all(b"\n").map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(())
}
