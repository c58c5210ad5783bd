//! Tokenizers from the files that came before `tokenizer.json`, put together so that they give what the reference's
//! Python classes for those files give.

mod byte_bpe;
mod letters;
mod sentence_piece;
mod wordpiece;

use std::path::Path;

use tokenizers::PostProcessorWrapper;
use tokenizers::models::bpe::Vocab;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;

use super::family::{Family, Layout, Template};
use super::load::Folder;
use super::special::{Role, SpecialTokens};
use crate::{Error, Result};

/// The family that the file names alone suggest.
pub(super) fn guess(folder: &Folder) -> Result<&'static Family> {
    let class = if folder.file("vocab.txt").is_some() {
        "BertTokenizer"
    } else if folder.file("vocab.json").is_some() && folder.file("merges.txt").is_some() {
        "RobertaTokenizer"
    } else if folder.file("sentencepiece.bpe.model").is_some() {
        "XLMRobertaTokenizer"
    } else {
        return Err(missing(
            folder,
            "tokenizer.json, vocab.txt, vocab.json with merges.txt, or sentencepiece.bpe.model",
        ));
    };
    Ok(Family::of_class(class).expect("a class of the table"))
}

/// Vocabulary, normalizer, pre-tokenizer and decoder, without special tokens and post-processor.
pub(super) fn build(
    folder: &Folder,
    family: &Family,
    special: &SpecialTokens,
) -> Result<tokenizers::Tokenizer> {
    let unk = special.get(Role::Unk).map(|token| token.content.as_str());
    match family.layout {
        Layout::WordPiece => wordpiece::build(folder, unk.unwrap_or("[UNK]")),
        Layout::ByteBpe => byte_bpe::build(folder, unk),
        Layout::Letters => letters::build(folder, unk.unwrap_or("<unk>")),
        Layout::SentencePiece => sentence_piece::build(folder, family),
        Layout::Moses => Err(Error::Tokenizer(format!(
            "{}: a {}Tokenizer splits text by the Moses rules, which are not supported; a folder with a tokenizer.json \
             is needed",
            folder.path.display(),
            family.stem
        ))),
    }
}

/// Special tokens around one text and around two.
pub(super) fn post_processor(
    family: &Family,
    special: &SpecialTokens,
    folder: &Folder,
    id: impl Fn(&str) -> Option<u32>,
) -> Result<PostProcessorWrapper> {
    let token = |role: Role| {
        let content = special.get(role).map(|token| token.content.clone());
        let found = content.and_then(|content| Some((id(&content)?, content)));
        found.map(|(id, content)| (content, id)).ok_or_else(|| {
            Error::Tokenizer(format!(
                "{}: a {}Tokenizer needs a {}, but neither the vocabulary nor tokenizer_config.json has it",
                folder.path.display(),
                family.stem,
                role.key()
            ))
        })
    };
    let cls = token(Role::Cls)?;
    let end = token(if family.template == Template::Esm {
        Role::Eos
    } else {
        Role::Sep
    })?;
    let (c, e) = (cls.0.clone(), end.0.clone());
    let (single, pair) = match family.template {
        // Without trimmed offsets: a word's space is its own.
        Template::DoubleSep if family.layout == Layout::SentencePiece => {
            (vec![(&c, 0)], format!("{e}:0 {e}:0 $B:0 {e}:0"))
        }
        Template::DoubleSep => {
            let prefix = folder.flag("add_prefix_space").unwrap_or(false);
            return Ok(RobertaProcessing::new(end, cls)
                .add_prefix_space(prefix)
                .trim_offsets(true)
                .into());
        }
        Template::Bert => (vec![(&c, 0)], format!("{e}:0 $B:1 {e}:1")),
        Template::Funnel => (vec![(&c, 2)], format!("{e}:0 $B:1 {e}:1")),
        Template::MpNet => (vec![(&c, 0)], format!("{e}:0 {e}:0 $B:1 {e}:1")),
        Template::Esm => (vec![(&c, 0)], format!("{e}:0 $B:0 {e}:0")),
    };
    let (c, type_id) = single[0];
    let template = TemplateProcessing::builder()
        .try_single(format!("{c}:{type_id} $A:0 {e}:0"))
        .and_then(|builder| builder.try_pair(format!("{c}:{type_id} $A:0 {pair}")))
        .map_err(Error::Tokenizer)?
        .special_tokens(vec![cls, end])
        .build();
    Ok(template
        .map_err(|error| Error::Tokenizer(error.to_string()))?
        .into())
}

/// A text file that must be there.
fn read(folder: &Folder, name: &str) -> Result<String> {
    let path = folder.file(name).ok_or_else(|| missing(folder, name))?;
    std::fs::read_to_string(&path).map_err(|error| Error::io("read", path, error))
}

/// A vocabulary with one token a line; a token's id is the number of its (last) line, from 0.
fn read_lines(folder: &Folder, name: &str) -> Result<Vocab> {
    let text = read(folder, name)?;
    let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
    let lines = lines.map(|line| line.strip_suffix('\r').unwrap_or(line).to_owned());
    Ok(lines.zip(0..).collect())
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
            "the folder needs {files}, but it holds {}",
            if found.is_empty() {
                "nothing".to_owned()
            } else {
                found.join(", ")
            }
        ),
    }
}
