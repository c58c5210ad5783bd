//! Byte-level BPE from `vocab.json` and `merges.txt`: RoBERTa, Longformer, BART, DeBERTa.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::super::engine::Engine;
use super::super::folder::Folder;
use super::super::guard::failed;
use crate::{Error, Result};

pub(super) fn build(folder: &Folder, unk: Option<&str>) -> Result<Engine> {
    let vocab = super::read_json_vocabulary(folder)?;
    let merges_file = folder.path.join("merges.txt");
    let text = super::read(folder, "merges.txt")?;
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        // Only a version line is none of the merges: files without one begin with a merge.
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        let broken = |message: String| Error::Format {
            path: merges_file.clone(),
            line: Some(i + 1),
            message,
        };
        let (left, right) = line.split_once(' ').ok_or_else(|| {
            broken(format!(
                "{line:?} is not a merge, which is two pieces with a space between"
            ))
        })?;
        for piece in [left, right, &format!("{left}{right}")] {
            if !vocab.contains_key(piece) {
                let message =
                    format!("{piece:?} is not in vocab.json; do the two files belong together?");
                return Err(broken(message));
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let vocab: Vocab = vocab.into_iter().collect();
    let mut model = BPE::builder().vocab_and_merges(vocab, merges);
    if let Some(unk) = unk {
        model = model.unk_token(unk.to_owned());
    }
    let mut core = tokenizers::Tokenizer::new(model.build().map_err(failed)?);
    core.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    core.with_decoder(Some(ByteLevel::default()));
    Ok(match folder.flag("add_prefix_space") {
        Some(true) => Engine::with_leading_space(core),
        _ => Engine::library(core).0,
    })
}
