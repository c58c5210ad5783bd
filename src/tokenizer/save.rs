//! Writing the files that either side opens.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokenizers::PostProcessorWrapper;

use super::Tokenizer;
use super::engine::Engine;
use super::guard::failed;
use super::guard::guarded;
use crate::Result;
use crate::base::files::{replace_files_without, write_atomically};

impl Tokenizer {
    /// Writes the tokenizer's files into `folder`, which is created if need be: `tokenizer.json`, or the family's own older
    /// files where it was opened from these and no `tokenizer.json` can hold its rules; `tokenizer_config.json` and
    /// `special_tokens_map.json`. `AutoTokenizer.from_pretrained(folder)` in Python opens it with the same ids.
    ///
    /// The files are replaced together or not at all.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        let own = &self.core.own_files;
        let mut files = match &self.core.engine {
            Engine::Library(_) if !own.is_empty() => Vec::new(),
            engine => files(engine, self.post.processor.as_ref())?,
        };
        files.extend(own.iter().cloned());
        // Another tokenizer's would be opened instead.
        let other = match files.iter().any(|(name, _)| *name == TOKENIZER_JSON) {
            true => &[][..],
            false => &[TOKENIZER_JSON],
        };
        replace_files_without(folder.as_ref(), other, |folder| {
            for (name, bytes) in &files {
                write_atomically(&folder.join(name), bytes)?;
            }
            let special = Value::Object(self.special.to_json());
            write(folder, "special_tokens_map.json", &special)?;
            write(folder, "tokenizer_config.json", &self.config_json())
        })
    }

    fn config_json(&self) -> Value {
        let mut config: Map<String, Value> = self.settings.config.clone();
        let settings = &self.settings;
        let mut added = Map::new();
        for (id, token) in self.core.engine.added_tokens() {
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
        // A list under this name is what version 5 writes and versions from 4.46 to 4.57 fail on; all read the older name.
        if config
            .get("extra_special_tokens")
            .is_some_and(Value::is_array)
        {
            config.remove("extra_special_tokens");
        }
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        set("tokenizer_class", self.class_name().into());
        let clean_up = settings.clean_up && settings.cleans_up;
        set("clean_up_tokenization_spaces", clean_up.into());
        if let Some(languages) = &self.languages {
            set("src_lang", languages.source.clone().into());
            set("tgt_lang", languages.target.clone().into());
        }
        if let Some(length) = settings.model_max_length {
            set("model_max_length", length.into());
        }
        Value::Object(config)
    }
}

const TOKENIZER_JSON: &str = "tokenizer.json";

/// Files by name.
pub(super) type Files = Vec<(&'static str, Arc<[u8]>)>;

/// Returns the files that hold vocabulary and rules, by name.
pub(super) fn files(engine: &Engine, post: Option<&PostProcessorWrapper>) -> Result<Files> {
    let library = match engine {
        Engine::Library(library) => library,
        Engine::Rules(rules) => return Ok(rules.files().to_vec()),
    };
    let mut whole: tokenizers::Tokenizer = (***library).clone();
    whole.with_post_processor(post.cloned());
    let json = guarded("saving", || whole.to_string(false).map_err(failed))?;
    let mut json: Value = serde_json::from_str(&json)?;
    merges_as_strings(&mut json);
    for part in ["pre_tokenizer", "decoder"] {
        metaspace_prefix(&mut json[part]);
    }
    let mut text = serde_json::to_string_pretty(&json)?;
    text.push('\n');
    Ok(vec![(TOKENIZER_JSON, text.into_bytes().into())])
}

/// Older versions of transformers read a merge only as one string, newer ones as either; a pair stays a pair where
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
