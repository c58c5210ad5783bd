//! Tokenizers from the files that came before `tokenizer.json`, put together so that they give what transformers'
//! Python classes for those files give.

mod byte_bpe;
pub(super) mod chinese_words;
mod letters;
mod letterwise;
mod moses;
mod table_words;
mod wordpiece;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tokenizers::PostProcessorWrapper;
use tokenizers::models::bpe::Vocab;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;

use super::engine::Engine;
use super::family::{Family, Layout, Pieces, TWO_SEPS};
use super::folder::Folder;
use super::rules::Rules;
use super::rules::bytes::Bytes;
use super::rules::sentence_piece::{Cleaning, SentencePiece};
use super::special::{Role, SpecialTokens};
use crate::{Error, Result};

/// Returns the family that the file names alone suggest.
pub(super) fn guess(folder: &Folder) -> Result<&'static Family> {
    let class = if folder.file("vocab.txt").is_some() {
        "BertTokenizer"
    } else if folder.file("vocab.json").is_some() && folder.file("merges.txt").is_some() {
        "RobertaTokenizer"
    } else if folder.file("sentencepiece.bpe.model").is_some() {
        "XLMRobertaTokenizer"
    } else if folder.file("spm.model").is_some() {
        "DebertaV2Tokenizer"
    } else if folder.file("spiece.model").is_some() {
        "AlbertTokenizer"
    } else if folder.file("sentencepiece.model").is_some() {
        "RemBertTokenizer"
    } else {
        return Err(missing(
            folder,
            "tokenizer.json, vocab.txt, vocab.json with merges.txt, or a SentencePiece model (spiece.model, spm.model, \
             sentencepiece.model, sentencepiece.bpe.model)",
        ));
    };
    Ok(Family::of_class(class).expect("a class of the table"))
}

/// Vocabulary, rules and decoder, without special tokens and post-processor.
pub(super) fn build(folder: &Folder, family: &Family, special: &SpecialTokens) -> Result<Engine> {
    let unk = special.get(Role::Unk).map(|token| token.content.as_str());
    let library = match family.layout {
        Layout::WordPiece => wordpiece::build(folder, unk.unwrap_or("[UNK]"))?,
        Layout::ByteBpe => return byte_bpe::build(folder, unk),
        Layout::Letters => letters::build(folder, unk.unwrap_or("<unk>"))?,
        Layout::SentencePiece(pieces) => return sentence_piece(folder, &pieces).map(Engine::rules),
        Layout::Bytes => return Ok(Engine::rules(bytes(special)?)),
        Layout::Moses(moses) => return moses::build(folder, moses, unk).map(Engine::rules),
        Layout::Letterwise => return letterwise::build(folder, special).map(Engine::rules),
        Layout::TableWords => {
            let rules = table_words::build(folder, special, unk.unwrap_or("[UNK]"));
            return rules.map(Engine::rules);
        }
        Layout::ChineseWords => {
            let rules = chinese_words::from_vocabulary(folder, unk.unwrap_or("[UNK]"));
            return rules.map(Engine::rules);
        }
    };
    Ok(Engine::library(library).0)
}

/// Returns a tokenizer from a `SentencePiece` model.
fn sentence_piece(folder: &Folder, pieces: &Pieces) -> Result<Rules> {
    const OTHERS: [&str; 5] = [
        "spm.model",
        "spiece.model",
        "sentencepiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model",
    ];
    let found = folder.file(pieces.file);
    let found = found.or_else(|| OTHERS.iter().find_map(|name| folder.file(name)));
    let path = found.ok_or_else(|| missing(folder, pieces.file))?;
    let bytes = crate::base::files::read(&path)?;
    let lowercase = pieces
        .lowercase
        .map(|by_default| folder.flag("do_lower_case").unwrap_or(by_default));
    let mut cleaning = Cleaning {
        split_by_punct: pieces.splits_punctuation && folder.flag("split_by_punct").unwrap_or(false),
        strips: pieces.strips,
        fast_quotes: pieces.fast_quotes,
        lowercase: lowercase == Some(true),
        ..Cleaning::default()
    };
    if let Some(keep_accents) = pieces.cleans {
        cleaning = Cleaning {
            remove_space: folder.flag("remove_space").unwrap_or(true),
            quotes: true,
            strip_accents: !folder.flag("keep_accents").unwrap_or(keep_accents),
            comma_after_digits: true,
            ..cleaning
        };
    }
    let (model, vocabulary) =
        SentencePiece::read(&path, &bytes, pieces.ids, cleaning, pieces.joining)?;
    let rules = Rules::new(model, vocabulary, vec![(pieces.file, bytes.into())]);
    Ok(rules.lowercase(lowercase == Some(true)))
}

/// Returns a tokenizer of bytes, whose special tokens have the ids before them.
fn bytes(special: &SpecialTokens) -> Result<Rules> {
    const ROLES: [Role; 6] = [
        Role::Pad,
        Role::Bos,
        Role::Eos,
        Role::Mask,
        Role::Cls,
        Role::Sep,
    ];
    let mut rules = Rules::new(Bytes, Bytes::vocabulary(), Vec::new());
    let tokens = ROLES.iter().zip(0..);
    let tokens = tokens.filter_map(|(role, id)| Some((Some(id), special.get(*role)?.clone())));
    rules.add(tokens.collect())?;
    Ok(rules)
}

/// Special tokens around one text and around two; `language` is the token for `lang`, `place` is named in errors.
pub(super) fn post_processor(
    family: &Family,
    special: &SpecialTokens,
    place: &str,
    add_prefix_space: bool,
    language: Option<&str>,
    id: impl Fn(&str) -> Option<u32>,
) -> Result<PostProcessorWrapper> {
    let token = |part: &str| -> Result<(String, u32)> {
        let role = Role::ALL
            .into_iter()
            .find(|role| role.key().strip_suffix("_token") == Some(part));
        let content = match role {
            Some(role) => special.get(role).map(|token| token.content.as_str()),
            None => language,
        };
        let found = content.and_then(|content| Some((content.to_owned(), id(content)?)));
        found.ok_or_else(|| {
            Error::Tokenizer(format!(
                "{place}: a {}Tokenizer needs a {part}_token, but neither the vocabulary nor tokenizer_config.json has it",
                family.stem
            ))
        })
    };
    if family.layout == Layout::ByteBpe && family.template == TWO_SEPS {
        return Ok(RobertaProcessing::new(token("sep")?, token("cls")?)
            .add_prefix_space(add_prefix_space)
            .trim_offsets(true)
            .into());
    }
    let mut tokens: Vec<(String, u32)> = Vec::new();
    let mut spell = |template: &str| -> Result<String> {
        let parts = template.split(' ').map(|part| match part.split_once(':') {
            Some((name, kind)) if !name.starts_with('$') => {
                let token = token(name)?;
                let spelled = format!("{}:{kind}", token.0);
                if !tokens.contains(&token) {
                    tokens.push(token);
                }
                Ok(spelled)
            }
            _ => Ok(part.to_owned()),
        });
        Ok(parts.collect::<Result<Vec<String>>>()?.join(" "))
    };
    let (single, pair) = (spell(family.template.single)?, spell(family.template.pair)?);
    let template = TemplateProcessing::builder()
        .try_single(single)
        .and_then(|builder| builder.try_pair(pair))
        .map_err(Error::Tokenizer)?
        .special_tokens(tokens)
        .build();
    Ok(template
        .map_err(|error| Error::Tokenizer(error.to_string()))?
        .into())
}

/// Returns a text file that must be there, without a byte order mark. All of its lines end in `\n`, as Python reads them.
fn read(folder: &Folder, name: &str) -> Result<String> {
    let path = folder.file(name).ok_or_else(|| missing(folder, name))?;
    let text = String::from_utf8(crate::base::files::read(&path)?)
        .map_err(|error| Error::format(&path, format!("the text is not valid UTF-8 ({error})")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}

/// Returns a file that must be there, as it is.
fn read_bytes(folder: &Folder, name: &'static str) -> Result<(&'static str, Arc<[u8]>)> {
    let path = folder.file(name).ok_or_else(|| missing(folder, name))?;
    let bytes = crate::base::files::read(&path)?;
    Ok((name, bytes.into()))
}

/// Returns the tokens and ids of `vocab.json`.
fn read_json_vocabulary(folder: &Folder) -> Result<HashMap<String, u32>> {
    crate::base::json::from_slice(read(folder, "vocab.json")?.as_bytes()).map_err(|error| {
        let message = format!("not a JSON object of tokens and ids: {error}");
        Error::format(folder.path.join("vocab.json"), message)
    })
}

/// Returns a vocabulary with one token a line; a token's id is the number of its (last) line, from 0.
fn read_lines(folder: &Folder, name: &str) -> Result<Vocab> {
    let text = read(folder, name)?;
    let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
    Ok(lines.map(str::to_owned).zip(0..).collect())
}

/// Returns which line of `vocab.txt` repeats an earlier one, in words.
pub(super) fn repeated_line(folder: &Folder) -> Option<String> {
    let text = read(folder, "vocab.txt").ok()?;
    let mut seen = HashMap::new();
    let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
    (1..).zip(lines).find_map(|(number, line)| {
        let first = seen.insert(line, number)?;
        Some(format!(
            "line {number} of vocab.txt repeats {line:?} from line {first}"
        ))
    })
}

fn missing(folder: &Folder, files: &str) -> Error {
    let mut found: Vec<String> = std::fs::read_dir(&folder.path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let path: &Path = &folder.path;
    Error::NotFound {
        kind: "tokenizer",
        name: path.display().to_string(),
        message: format!(
            "the folder needs {files}, but it contains {}",
            if found.is_empty() {
                "nothing".to_owned()
            } else {
                found.join(", ")
            }
        ),
    }
}
