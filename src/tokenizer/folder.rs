//! The JSON files that lie around a tokenizer's own, and what they say.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, PostProcessor, PostProcessorWrapper};

use super::Post;
use super::checks;
use super::guard::{failed, guarded};
use super::special::SpecialTokens;
use crate::{Error, Result};

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The JSON files around a tokenizer's own, each empty when it is not there.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// `tokenizer_config.json`.
    pub(super) config: Map<String, Value>,
    /// `special_tokens_map.json`.
    pub(super) special: Map<String, Value>,
    /// The model's `config.json`.
    pub(super) model: Map<String, Value>,
    /// `added_tokens.json`: token to id.
    pub(super) added: Map<String, Value>,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let config = read_object(&path.join(CONFIG))?;
        checks::warn_of_misspelled_keys(&path.join(CONFIG), &config);
        Ok(Self {
            path: path.to_path_buf(),
            config,
            special: read_object(&path.join(SPECIAL))?,
            model: read_object(&path.join("config.json"))?,
            added: read_object(&path.join(ADDED))?,
        })
    }

    /// Returns the file of that name, if it exists.
    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.path.join(name)).filter(|file| file.is_file())
    }

    /// Returns a yes or no from `tokenizer_config.json`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.config.get(key).and_then(Value::as_bool)
    }

    /// Returns the special tokens: what the two files say, over `defaults`.
    pub(super) fn special_tokens(&self, defaults: SpecialTokens) -> Result<SpecialTokens> {
        let mut special = defaults.clone();
        special.update_from(&self.config, &defaults, &self.path.join(CONFIG))?;
        special.update_from(&self.special, &defaults, &self.path.join(SPECIAL))?;
        Ok(special)
    }

    /// Returns the tokens that the files add to the vocabulary, in the order of the ids that they want.
    pub(super) fn added_tokens(&self) -> Result<Vec<(Option<u32>, AddedToken)>> {
        let mut tokens: Vec<(u32, AddedToken)> = Vec::new();
        for (content, id) in &self.added {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| {
                let what = format!("the token {content:?} has no id that is a whole number");
                checks::damaged(&self.path.join(ADDED), what)
            })?;
            tokens.push((id, AddedToken::from(content.as_str(), false)));
        }
        match self.config.get("added_tokens_decoder") {
            None | Some(Value::Null) => {}
            Some(Value::Object(decoder)) => {
                for (id, token) in decoder {
                    let parsed = serde_json::from_value::<AddedToken>(token.clone());
                    let (Ok(id), Ok(token)) = (id.parse(), parsed) else {
                        let what = format!(
                            "added_tokens_decoder has {token} under {id:?}, but an id and an added token with its flags are \
                             needed"
                        );
                        return Err(checks::damaged(&self.path.join(CONFIG), what));
                    };
                    // What is said with flags counts more than the bare name.
                    tokens.retain(|(_, known)| known.content != token.content);
                    tokens.push((id, token));
                }
            }
            Some(other) => {
                let what = format!("added_tokens_decoder is {other}, but it must be an object");
                return Err(checks::damaged(&self.path.join(CONFIG), what));
            }
        }
        tokens.sort_by_key(|(id, _)| *id);
        Ok(tokens
            .into_iter()
            .map(|(id, token)| (Some(id), token))
            .collect())
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = crate::base::files::read(path)?;
    crate::base::json::from_slice(&text).map_err(|error| {
        Error::format(path, format!("not a JSON object that can be read: {error}"))
    })
}

/// Returns the post-processor with the ids that it puts around a single text.
pub(super) fn post(processor: PostProcessorWrapper) -> Result<Post> {
    Ok(Post {
        around: around(&processor)?,
        processor: Some(processor),
    })
}

/// Returns the special ids that the post-processor puts before and after a single text.
fn around(post: &PostProcessorWrapper) -> Result<(Vec<u32>, Vec<u32>)> {
    const TEXT: u32 = u32::MAX;
    let token = tokenizers::Token::new(TEXT, "x".to_owned(), (0, 1));
    let text = tokenizers::Encoding::from_tokens(vec![token], 0);
    let whole = guarded("opening", || post.process(text, None, true).map_err(failed))?;
    let ids = whole.get_ids();
    let places: Vec<usize> = (0..ids.len()).filter(|&at| ids[at] == TEXT).collect();
    match places[..] {
        [at] => Ok((ids[..at].to_vec(), ids[at + 1..].to_vec())),
        [] => Err(Error::Tokenizer(
            "the post-processor's template leaves the text out".to_owned(),
        )),
        _ => Err(Error::Tokenizer(format!(
            "the post-processor's template has the text {} times; it must contain it once",
            places.len()
        ))),
    }
}
