//! RoFormer from `vocab.txt`, or from a `tokenizer.json`, which can't hold its words.

use std::path::Path;
use std::sync::Arc;

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::super::folder::Folder;
use super::super::guard::failed;
use super::super::rules::Rules;
use super::super::rules::chinese_words::ChineseWords;
use super::super::rules::vocabulary::Vocabulary;
use crate::{Error, Result};

pub(super) fn from_vocabulary(folder: &Folder, unk: &str) -> Result<Rules> {
    let vocabulary = Vocabulary::new(super::read_lines(folder, "vocab.txt")?);
    let words = ChineseWords {
        vocabulary: Arc::new(vocabulary.clone()),
        pieces: super::wordpiece::build(folder, unk)?,
        whole: None,
    };
    let files = vec![super::read_bytes(folder, "vocab.txt")?];
    let lowercase = folder.flag("do_lower_case").unwrap_or(true);
    Ok(Rules::new(words, vocabulary, files).lowercase(lowercase))
}

/// Puts the words back that a `tokenizer.json` (`bytes`) could not hold: it names BERT's words instead.
pub(in super::super) fn from_library(
    file: &Path,
    bytes: Vec<u8>,
    library: tokenizers::Tokenizer,
) -> Result<Rules> {
    let ModelWrapper::WordPiece(model) = library.get_model() else {
        let what = "a RoFormerTokenizer needs a WordPiece model";
        return Err(Error::format(file, what));
    };
    let mut pieces = tokenizers::Tokenizer::new(model.clone());
    let spaced = BertNormalizer::new(false, true, Some(false), false);
    pieces.with_normalizer(Some(spaced)).map_err(failed)?;
    pieces.with_pre_tokenizer(Some(WhitespaceSplit));
    let vocabulary = Vocabulary::new(library.get_vocab(false));
    let mut added: Vec<_> = library.get_added_tokens_decoder().into_iter().collect();
    added.sort_by_key(|(id, _)| *id);
    let words = ChineseWords {
        vocabulary: Arc::new(Vocabulary::new(library.get_vocab(true))),
        pieces,
        whole: Some(library),
    };
    let mut rules = Rules::new(words, vocabulary, vec![("tokenizer.json", bytes.into())]);
    rules.add(
        added
            .into_iter()
            .map(|(id, token)| (Some(id), token))
            .collect(),
    )?;
    Ok(rules)
}
