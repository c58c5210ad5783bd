//! From a folder to a tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::checks::{self, Outline};
use super::columns::Ids;
use super::engine::Engine;
use super::entities::Entities;
use super::family::{DEFAULT_LANGUAGE, Family, Layout};
use super::folder::{Folder, post};
use super::guard::failed;
use super::guard::guarded;
use super::languages::Languages;
use super::special::{Role, SpecialTokens, plain};
use super::{Core, Post, Settings, Tokenizer, legacy};
use crate::{Error, Result};

pub(super) fn from_path(path: &Path) -> Result<Tokenizer> {
    let (folder, file) = if path.is_file() {
        (path.parent().unwrap_or(Path::new("")), path.to_path_buf())
    } else {
        (path, path.join("tokenizer.json"))
    };
    crate::base::files::finish_replacing(folder)?;
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
    let mut bytes = crate::base::files::read(file)?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        // A byte order mark, with which some editors begin a file.
        bytes.drain(..3);
    }
    let unreadable = |error: String| {
        let what = format!("not a tokenizer that can be read: {error}; is the file complete?");
        checks::damaged(file, what)
    };
    let outline = Outline::read(&bytes).map_err(unreadable)?;
    let core = guarded("opening", || Ok(tokenizers::Tokenizer::from_bytes(&bytes)));
    let core = core.map_err(|error| unreadable(error.to_string()))?;
    let mut core = core.map_err(|error| unreadable(error.to_string()))?;
    let vocabulary = core.get_vocab(true);
    checks::ids(vocabulary.iter().map(|(token, id)| (token.as_str(), *id)))
        .and_then(|()| outline.agrees(|token| core.token_to_id(token)))
        .map_err(|what| checks::damaged(file, what))?;
    drop(vocabulary);
    // Whoever saved the file may have left truncation or padding on; here they are options of each call.
    core.with_padding(None);
    core.with_truncation(None).map_err(failed)?;
    apply_config(&mut core, folder, family)?;

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
    let mut special = folder.special_tokens(defaults)?;
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
    let (mut engine, post) = Engine::library(core);
    // The class that opens any file knows of no words that the file does not name.
    let class = folder.config.get("tokenizer_class").and_then(Value::as_str);
    let any = matches!(class, Some("PreTrainedTokenizerFast" | "TokenizersBackend"));
    if family.is_some_and(|family| family.layout == Layout::ChineseWords && !any)
        && let Engine::Library(library) = engine
    {
        let rules = legacy::chinese_words::from_library(file, bytes, library.into_tokenizer())?;
        engine = Engine::rules(rules);
    }
    let mut tokenizer = assemble(engine, post, folder, family, special, false)?;
    if tokenizer.languages.is_some() {
        rebuild_post(&mut tokenizer, folder, family)?;
    }
    Ok(tokenizer)
}

fn from_older_files(folder: &Folder, family: Option<&'static Family>) -> Result<Tokenizer> {
    let family = match family {
        Some(family) => family,
        None => legacy::guess(folder)?,
    };
    let mut special = folder.special_tokens(family.special_tokens())?;
    // Whatever the files list, a tokenizer of several languages has their tokens.
    let mut codes: Vec<AddedToken> = family.language_codes().map(plain).collect();
    if !codes.is_empty() {
        let listed = |token: &AddedToken| codes.iter().any(|code| code.content == token.content);
        special.additional.retain(|token| !listed(token));
        codes.append(&mut special.additional);
        special.additional = codes;
    }
    let engine = guarded("opening", || legacy::build(folder, family, &special))?;
    engine
        .check_ids()
        .map_err(|what| checks::damaged(&folder.path, what))?;
    let mut tokenizer = assemble(engine, None, folder, Some(family), special, true)?;
    rebuild_post(&mut tokenizer, folder, Some(family))?;
    Ok(tokenizer)
}

/// Puts the family's own special tokens around texts.
fn rebuild_post(
    tokenizer: &mut Tokenizer,
    folder: &Folder,
    family: Option<&'static Family>,
) -> Result<()> {
    let Some(family) = family else {
        return Ok(());
    };
    let processor = legacy::post_processor(
        family,
        &tokenizer.special,
        &folder.path.display().to_string(),
        folder.flag("add_prefix_space").unwrap_or(false),
        tokenizer.source_language(),
        |token| tokenizer.token_to_id(token),
    )?;
    tokenizer.post = Arc::new(post(processor)?);
    Ok(())
}

/// Adds the tokens that the JSON files name and collects the settings.
fn assemble(
    mut engine: Engine,
    post: Option<PostProcessorWrapper>,
    folder: &Folder,
    family: Option<&'static Family>,
    special: SpecialTokens,
    legacy: bool,
) -> Result<Tokenizer> {
    let in_folder = |error: Error| match error {
        Error::Tokenizer(what) => {
            let line = legacy::repeated_line(folder).filter(|_| legacy);
            let line = line.map(|line| format!("; {line}")).unwrap_or_default();
            checks::damaged(&folder.path, format!("{what}{line}"))
        }
        other => other,
    };
    // The Python classes lowercase a text before they look for special tokens: <MASK> is <mask> to them.
    let lowercase = legacy
        && family.is_some_and(|family| family.layout == Layout::WordPiece)
        && folder.flag("do_lower_case").unwrap_or(true);
    let named = folder.added_tokens()?;
    add_tokens(&mut engine, named, &special, lowercase).map_err(in_folder)?;
    let post = post.map_or_else(|| Ok(Post::default()), self::post);
    let post = post.map_err(in_folder)?;
    let unk = special.get(Role::Unk).map_or("[UNK]", |unk| &unk.content);
    let columns = family.map_or_else(
        || Ok(Vec::new()),
        |family| Ids::read_all(folder, family, unk),
    )?;
    let entities = match family {
        Some(family) if family.entities => Entities::read(folder)?,
        _ => None,
    };
    let mut own_files = Vec::new();
    let mut own_names = family.map_or(&[][..], |family| family.own_files);
    if own_names.is_empty() && engine.has_leading_space() {
        // In a tokenizer.json the space would go before more than the text.
        own_names = &["vocab.json", "merges.txt"];
    }
    for name in own_names {
        if let Some(path) = folder.file(name) {
            let bytes = crate::base::files::read(&path)?;
            own_files.push((*name, bytes.into()));
        }
    }
    let text = |key| folder.config.get(key).and_then(Value::as_str);
    Ok(Tokenizer {
        core: Arc::new(Core {
            columns: columns.into(),
            entities: entities.map(Arc::new),
            own_files,
            ..Core::new(engine)
        }),
        post: Arc::new(post),
        special: Arc::new(special),
        languages: family
            .filter(|family| !family.languages.is_empty())
            .map(|_| Languages {
                source: text("src_lang").unwrap_or(DEFAULT_LANGUAGE).to_owned(),
                target: text("tgt_lang").map(str::to_owned),
            }),
        settings: Arc::new(settings(folder, family, legacy)),
    })
}

/// Adds the `named` tokens that the engine lacks, and marks the special tokens as special.
fn add_tokens(
    engine: &mut Engine,
    mut named: Vec<(Option<u32>, AddedToken)>,
    special: &SpecialTokens,
    lowercase: bool,
) -> Result<()> {
    let in_lowercase = |token: &mut AddedToken| {
        token.normalized |= lowercase && token.content == token.content.to_lowercase();
    };
    let known = engine.added_tokens();
    named.retain(|(_, token)| known.iter().all(|(_, k)| k.content != token.content));
    for (_, token) in &mut named {
        token.special |= special.all().iter().any(|s| s.content == token.content);
        in_lowercase(token);
    }
    engine.add(named)?;
    let known = engine.added_tokens();
    let is_marked = |token: &AddedToken| {
        known
            .iter()
            .any(|(_, known)| known.content == token.content && known.special)
    };
    let unmarked = special.all().into_iter().filter(|token| !is_marked(token));
    let unmarked = unmarked.map(|token| {
        let mut token = token.clone();
        in_lowercase(&mut token);
        (None, token)
    });
    engine.add(unmarked.collect())
}

/// Returns the settings in `tokenizer_config.json`, or else the family's.
fn settings(folder: &Folder, family: Option<&'static Family>, legacy: bool) -> Settings {
    let config = &folder.config;
    let is_left = |key| config.get(key).and_then(Value::as_str) == Some("left");
    let class = config.get("tokenizer_class").and_then(Value::as_str);
    let class = class.map(|class| class.strip_suffix("Fast").unwrap_or(class));
    let class = class.map(|class| class.strip_suffix("Tokenizer").unwrap_or(class));
    let inputs = config.get("model_input_names").and_then(Value::as_array);
    let has_input = |name: &str, default: fn(&Family) -> bool| match inputs {
        Some(names) => names.iter().any(|known| known == name),
        None => family.is_none_or(default),
    };
    Settings {
        class: class
            .or(family.map(|f| f.stem))
            .unwrap_or("PreTrained")
            .to_owned(),
        model_max_length: config.get("model_max_length").and_then(length),
        pad_left: is_left("padding_side"),
        truncate_left: is_left("truncation_side"),
        clean_up: folder.flag("clean_up_tokenization_spaces").unwrap_or(true),
        type_ids: has_input("token_type_ids", |family| family.type_ids),
        attention_mask: has_input("attention_mask", |family| family.attention_mask),
        tables: family.is_some_and(|family| family.layout == Layout::TableWords),
        cleans_up: family.is_none_or(|family| family.cleans_up),
        legacy,
        config: config.clone(),
    }
}

impl Tokenizer {
    /// Returns a tokenizer made here rather than read.
    pub(super) fn made(
        core: tokenizers::Tokenizer,
        family: &'static Family,
        special: SpecialTokens,
    ) -> Result<Self> {
        let folder = Folder {
            path: PathBuf::new(),
            config: Map::new(),
            special: Map::new(),
            model: Map::new(),
            added: Map::new(),
        };
        let (engine, post) = Engine::library(core);
        assemble(engine, post, &folder, Some(family), special, false)
    }
}

impl Tokenizer {
    /// Notes a setting that is to be saved.
    pub(super) fn set_config(&mut self, key: &str, value: Value) {
        let settings = Arc::make_mut(&mut self.settings);
        settings.config.insert(key.to_owned(), value);
    }
}

/// `tokenizer_config.json` takes precedence over `tokenizer.json`, as in transformers' classes.
fn apply_config(
    core: &mut tokenizers::Tokenizer,
    folder: &Folder,
    family: Option<&Family>,
) -> Result<()> {
    if let Some(NormalizerWrapper::BertNormalizer(found)) = core.get_normalizer() {
        let mut bert = *found;
        if let Some(lowercase) = folder.flag("do_lower_case") {
            bert.lowercase = lowercase;
        }
        if let Some(strip) = folder.config.get("strip_accents") {
            bert.strip_accents = strip.as_bool();
        }
        // Chinese words must not be taken apart before they are looked for.
        let whole = family.is_some_and(|family| family.layout == Layout::ChineseWords);
        if let Some(chinese) = folder.flag("tokenize_chinese_chars").filter(|_| !whole) {
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

/// Returns a length; transformers writes 1e30 for "no limit".
fn length(value: &Value) -> Option<usize> {
    let length = value
        .as_u64()
        .or_else(|| value.as_f64().map(|f| f as u64))?;
    (1..1 << 40).contains(&length).then_some(length as usize)
}
