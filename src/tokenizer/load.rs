//! From a folder to a tokenizer.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, NormalizerWrapper, PostProcessor, PostProcessorWrapper, PreTokenizerWrapper,
};

use super::byte_words::ByteWords;
use super::encode::failed;
use super::family::Family;
use super::special::{Role, SpecialTokens};
use super::{Core, Settings, Tokenizer, legacy};
use crate::{Error, Result};

/// The JSON files around a tokenizer's own, each empty when it is not there.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// `tokenizer_config.json`.
    pub(super) config: Map<String, Value>,
    /// `special_tokens_map.json`.
    special: Map<String, Value>,
    /// The model's `config.json`.
    model: Map<String, Value>,
    /// `added_tokens.json`: token to id.
    added: Map<String, Value>,
}

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            config: read_object(&path.join("tokenizer_config.json"))?,
            special: read_object(&path.join("special_tokens_map.json"))?,
            model: read_object(&path.join("config.json"))?,
            added: read_object(&path.join("added_tokens.json"))?,
        })
    }

    /// The file of that name, if it is there.
    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.path.join(name)).filter(|file| file.is_file())
    }

    /// A yes or no from `tokenizer_config.json`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.config.get(key).and_then(Value::as_bool)
    }

    /// The special tokens: what the two files say, over `defaults`.
    pub(super) fn special_tokens(&self, defaults: SpecialTokens) -> SpecialTokens {
        let mut special = defaults.clone();
        special.update_from(&self.config, &defaults);
        special.update_from(&self.special, &defaults);
        special
    }

    /// The tokens that the files add to the vocabulary, in the order of their ids.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let mut tokens: Vec<(u64, AddedToken)> = Vec::new();
        for (content, id) in &self.added {
            if let Some(id) = id.as_u64() {
                tokens.push((id, AddedToken::from(content.as_str(), false)));
            }
        }
        if let Some(Value::Object(decoder)) = self.config.get("added_tokens_decoder") {
            for (id, token) in decoder {
                if let (Ok(id), Ok(token)) = (id.parse(), serde_json::from_value(token.clone())) {
                    tokens.push((id, token));
                }
            }
        }
        tokens.sort_by_key(|(id, _)| *id);
        tokens.into_iter().map(|(_, token)| token).collect()
    }
}

pub(super) fn from_path(path: &Path) -> Result<Tokenizer> {
    let (folder, file) = if path.is_file() {
        (path.parent().unwrap_or(Path::new("")), path.to_path_buf())
    } else {
        (path, path.join("tokenizer.json"))
    };
    let folder = Folder::open(folder)?;
    let family = Family::of_folder(&folder.config, &folder.model);
    if file.is_file() {
        from_tokenizer_json(&folder, &file, family)
    } else {
        from_older_files(&folder, family)
    }
}

fn from_tokenizer_json(
    folder: &Folder,
    file: &Path,
    family: Option<&'static Family>,
) -> Result<Tokenizer> {
    let bytes = std::fs::read(file).map_err(|error| Error::io("read", file, error))?;
    let mut core = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| {
        Error::format(
            file,
            format!(
                "not a tokenizer that can be read: {error}; is the file complete, and not an LFS pointer?"
            ),
        )
    })?;
    // Whoever saved the file may have left truncation or padding on; here they are options of each call.
    core.with_padding(None);
    core.with_truncation(None).map_err(failed)?;
    apply_config(&mut core, folder)?;

    let family = family.or_else(|| {
        let silent = folder.special.is_empty() && !folder.config.contains_key("mask_token");
        silent
            .then(|| Family::of_vocabulary(|token| core.token_to_id(token).is_some()))
            .flatten()
    });
    // What a class takes for granted counts only if this vocabulary has it.
    let mut defaults = family.map(Family::special_tokens).unwrap_or_default();
    for role in Role::ALL {
        let known = |token: &AddedToken| core.token_to_id(&token.content).is_some();
        let token = defaults.get(role).filter(|token| known(token)).cloned();
        defaults.set(role, token);
    }
    let mut special = folder.special_tokens(defaults);
    // How a token matches is what the file does.
    let matching = core.get_added_tokens_decoder();
    for role in Role::ALL {
        let token = special.get(role).map(|token| {
            let same = matching
                .values()
                .find(|known| known.content == token.content);
            same.unwrap_or(token).clone()
        });
        special.set(role, token);
    }
    assemble(core, folder, family, special, false)
}

fn from_older_files(folder: &Folder, family: Option<&'static Family>) -> Result<Tokenizer> {
    let family = match family {
        Some(family) => family,
        None => legacy::guess(folder)?,
    };
    let special = folder.special_tokens(family.special_tokens());
    let core = legacy::build(folder, family, &special)?;
    let mut tokenizer = assemble(core, folder, Some(family), special.clone(), true)?;
    // The special tokens may have got their ids only now.
    let core = Arc::get_mut(&mut tokenizer.core).expect("just built");
    let id = |token: &str| core.tokenizer.token_to_id(token);
    let post = legacy::post_processor(family, &special, folder, id)?;
    core.around = around(&post)?;
    core.post = Some(post);
    Ok(tokenizer)
}

/// Adds the tokens that the JSON files name and collects the settings.
fn assemble(
    mut core: tokenizers::Tokenizer,
    folder: &Folder,
    family: Option<&'static Family>,
    special: SpecialTokens,
    legacy: bool,
) -> Result<Tokenizer> {
    let known = core.get_added_tokens_decoder();
    let missing = |token: &AddedToken| known.values().all(|k| k.content != token.content);
    for token in folder.added_tokens().into_iter().filter(missing) {
        let added = if token.special || special.all().iter().any(|s| s.content == token.content) {
            core.add_special_tokens([token])
        } else {
            core.add_tokens([token])
        };
        added.map_err(failed)?;
    }
    let known = core.get_added_tokens_decoder();
    for token in special.all() {
        let as_special = known
            .values()
            .any(|known| known.content == token.content && known.special);
        if !as_special {
            core.add_special_tokens([token.clone()]).map_err(failed)?;
        }
    }
    let post = core.get_post_processor().cloned();
    core.with_post_processor(None::<PostProcessorWrapper>);
    let around = post
        .as_ref()
        .map_or_else(|| Ok(Default::default()), around)?;
    let config = &folder.config;
    let side = |key| config.get(key).and_then(Value::as_str) == Some("left");
    let class = config.get("tokenizer_class").and_then(Value::as_str);
    let class = class.map(|class| class.strip_suffix("Fast").unwrap_or(class));
    let class = class.map(|class| class.strip_suffix("Tokenizer").unwrap_or(class));
    let type_ids = match config.get("model_input_names").and_then(Value::as_array) {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => family.is_none_or(|family| family.type_ids),
    };
    Ok(Tokenizer {
        core: Arc::new(Core {
            byte_words: ByteWords::new(&core),
            tokenizer: core,
            post,
            around,
            hash: OnceLock::new(),
            continues: OnceLock::new(),
        }),
        special: Arc::new(special),
        settings: Arc::new(Settings {
            class: class
                .or(family.map(|f| f.stem))
                .unwrap_or("PreTrained")
                .to_owned(),
            model_max_length: config.get("model_max_length").and_then(length),
            pad_left: side("padding_side"),
            truncate_left: side("truncation_side"),
            clean_up: folder.flag("clean_up_tokenization_spaces").unwrap_or(true),
            type_ids,
            legacy,
            config: config.clone(),
        }),
    })
}

impl Tokenizer {
    /// A tokenizer made here rather than read.
    pub(super) fn made(
        core: tokenizers::Tokenizer,
        class: &'static str,
        special: SpecialTokens,
    ) -> Result<Self> {
        let folder = Folder {
            path: PathBuf::new(),
            config: Map::new(),
            special: Map::new(),
            model: Map::new(),
            added: Map::new(),
        };
        assemble(core, &folder, Family::of_class(class), special, false)
    }
}

/// What `tokenizer_config.json` says wins over what `tokenizer.json` was built with, as in the reference's classes.
fn apply_config(core: &mut tokenizers::Tokenizer, folder: &Folder) -> Result<()> {
    if let Some(NormalizerWrapper::BertNormalizer(found)) = core.get_normalizer() {
        let mut bert = *found;
        if let Some(lowercase) = folder.flag("do_lower_case") {
            bert.lowercase = lowercase;
        }
        if let Some(strip) = folder.config.get("strip_accents") {
            bert.strip_accents = strip.as_bool();
        }
        if let Some(chinese) = folder.flag("tokenize_chinese_chars") {
            bert.handle_chinese_chars = chinese;
        }
        core.with_normalizer(Some(bert)).map_err(failed)?;
    }
    if let (Some(PreTokenizerWrapper::ByteLevel(found)), Some(prefix)) =
        (core.get_pre_tokenizer(), folder.flag("add_prefix_space"))
    {
        let mut bytes = *found;
        bytes.add_prefix_space = prefix;
        core.with_pre_tokenizer(Some(bytes));
        if let Some(PostProcessorWrapper::Roberta(found)) = core.get_post_processor() {
            let roberta = found.clone().add_prefix_space(prefix);
            core.with_post_processor(Some(roberta));
        }
    }
    Ok(())
}

/// The special ids that the post-processor puts before and after a single text.
fn around(post: &PostProcessorWrapper) -> Result<(Vec<u32>, Vec<u32>)> {
    const TEXT: u32 = u32::MAX;
    let token = tokenizers::Token::new(TEXT, "x".to_owned(), (0, 1));
    let text = tokenizers::Encoding::from_tokens(vec![token], 0);
    let whole = post.process(text, None, true).map_err(failed)?;
    let ids = whole.get_ids();
    let at = ids.iter().position(|&id| id == TEXT).ok_or_else(|| {
        Error::Tokenizer("the post-processor's template leaves the text out".to_owned())
    })?;
    Ok((ids[..at].to_vec(), ids[at + 1..].to_vec()))
}

/// A length; the reference writes 1e30 for "no limit".
fn length(value: &Value) -> Option<usize> {
    let length = value
        .as_u64()
        .or_else(|| value.as_f64().map(|f| f as u64))?;
    (1..1 << 40).contains(&length).then_some(length as usize)
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    serde_json::from_str(&text).map_err(|error| {
        Error::format(path, format!("not a JSON object that can be read: {error}"))
    })
}
