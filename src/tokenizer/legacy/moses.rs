//! XLM and FlauBERT from `vocab.json` and `merges.txt`.

use std::sync::Arc;

use super::super::family::Moses;
use super::super::folder::Folder;
use super::super::rules::Rules;
use super::super::rules::moses::{Letters, Merges, MosesBpe, Prefixes};
use super::super::rules::vocabulary::Vocabulary;
use crate::{Error, Result};

pub(super) fn build(folder: &Folder, moses: Moses, unk: Option<&str>) -> Result<Rules> {
    let ids = super::read_json_vocabulary(folder)?;
    super::super::checks::ids(ids.iter().map(|(token, id)| (token.as_str(), *id)))
        .map_err(|what| Error::format(folder.path.join("vocab.json"), what))?;
    let vocabulary = Vocabulary::new(ids);
    let unk = unk.unwrap_or("<unk>");
    let unk = vocabulary.id(unk).ok_or_else(|| {
        let what = format!("the unknown token {unk:?} is not in the vocabulary");
        Error::format(folder.path.join("vocab.json"), what)
    })?;
    let text = super::read(folder, "merges.txt")?;
    let merges = Merges::read(&folder.path.join("merges.txt"), &text)?;
    let mut files = vec![
        super::read_bytes(folder, "vocab.json")?,
        super::read_bytes(folder, "merges.txt")?,
    ];
    let list = prefix_file(moses.language);
    let prefixes = if folder.file(list).is_some() {
        let (name, bytes) = super::read_bytes(folder, list)?;
        let prefixes = Prefixes::read(&String::from_utf8_lossy(&bytes));
        files.push((name, Arc::clone(&bytes)));
        prefixes
    } else {
        Prefixes::of(moses.language)
    };
    let (letters, lowercase) = if moses.composes {
        let lowercase = folder.flag("do_lowercase").unwrap_or(false);
        (Letters::Composed { lowercase }, false)
    } else {
        let bare = folder
            .flag("do_lowercase_and_remove_accent")
            .unwrap_or(true);
        (Letters::WithoutAccents(bare), bare)
    };
    let words = MosesBpe::new(
        moses.language,
        letters,
        prefixes,
        merges,
        vocabulary.clone(),
        unk,
    );
    Ok(Rules::new(words, vocabulary, files).lowercase(lowercase))
}

/// Returns the file in which a folder may hold the Moses list of its language.
fn prefix_file(language: &str) -> &'static str {
    match language {
        "fr" => "nonbreaking_prefix.fr",
        _ => "nonbreaking_prefix.en",
    }
}
