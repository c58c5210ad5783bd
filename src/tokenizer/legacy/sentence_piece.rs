//! A `SentencePiece` unigram model, as CamemBERT and XLM-RoBERTa have it.
//!
//! Kudo and Richardson 2018. The file is a protocol buffer; the fields read here are those of the library's
//! `sentencepiece_model.proto`.

use prost::Message;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{
    NormalizerWrapper, Precompiled, Replace, Sequence, Strip, replace::ReplacePattern,
};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use super::super::encode::failed;
use super::super::family::Family;
use super::super::load::Folder;
use crate::{Error, Result};

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    /// 1: unigram.
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    /// Whether spaces at the ends are dropped and others made single (default: yes).
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
}

/// The file's names, today's first.
const FILES: [&str; 2] = ["sentencepiece.bpe.model", "spiece.model"];
/// The pieces that stand first in every such file: `<unk>`, `<s>`, `</s>`.
const CONTROL: usize = 3;
/// The id of `<unk>` in both families.
const UNK: usize = 3;
const SPACE: char = '\u{2581}';

pub(super) fn build(folder: &Folder, family: &Family) -> Result<tokenizers::Tokenizer> {
    // Both families come from fairseq, which has its own first tokens in place of the file's. CamemBERT's were put
    // before the file's by mistake, so that `<s>` and `</s>` are there twice.
    let (first, pieces_from): (&[&str], usize) = match family.stem {
        "XLMRoberta" => (&["<s>", "<pad>", "</s>", "<unk>"], CONTROL),
        "Camembert" => (
            &[
                "<s>NOTUSED",
                "<pad>",
                "</s>NOTUSED",
                "<unk>",
                "<unk>NOTUSED",
            ],
            1,
        ),
        other => {
            return Err(Error::Tokenizer(format!(
                "{}: a {other}Tokenizer from its SentencePiece model alone is not supported yet; put its tokenizer.json beside it \
                 (AutoTokenizer.from_pretrained(..).save_pretrained(..) in Python writes one)",
                folder.path.display(),
            )));
        }
    };
    let found = FILES.iter().find_map(|name| folder.file(name));
    let path = found.ok_or_else(|| super::missing(folder, FILES[0]))?;
    let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    let damaged = |what: String| Error::format(&path, what);
    let model = Model::decode(bytes.as_slice()).map_err(|error| {
        damaged(format!(
            "not a SentencePiece model that can be read: {error}; is the file complete, and not an LFS pointer?"
        ))
    })?;
    if model.pieces.len() <= CONTROL {
        return Err(damaged("the SentencePiece model has no pieces".to_owned()));
    }
    if model
        .trainer
        .is_some_and(|trainer| trainer.kind.unwrap_or(1) != 1)
    {
        let what = format!(
            "a {}Tokenizer needs a SentencePiece model of the unigram kind",
            family.stem
        );
        return Err(damaged(what));
    }

    let own = first.iter().map(|&token| (token.to_owned(), 0.0));
    let pieces = model.pieces.into_iter().skip(pieces_from);
    let pieces = pieces.map(|piece| {
        (
            piece.text.unwrap_or_default(),
            f64::from(piece.score.unwrap_or(0.0)),
        )
    });
    let unigram = Unigram::from(own.chain(pieces).collect(), Some(UNK), false);
    let mut core = tokenizers::Tokenizer::new(unigram.map_err(failed)?);
    core.with_normalizer(Some(normalizer(
        model.normalizer.unwrap_or_default(),
        damaged,
    )?))
    .map_err(failed)?;
    let spaces = Metaspace::new(SPACE, PrependScheme::Always, true);
    core.with_pre_tokenizer(Some(spaces.clone()));
    core.with_decoder(Some(spaces));
    Ok(core)
}

/// The file's own map of characters, and what the library does to spaces.
fn normalizer(
    normalizer: Normalizer,
    damaged: impl Fn(String) -> Error,
) -> Result<NormalizerWrapper> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if let Some(charsmap) = normalizer.charsmap.filter(|map| !map.is_empty()) {
        let map = Precompiled::from(&charsmap)
            .map_err(|error| damaged(format!("its map of characters is damaged: {error}")))?;
        steps.push(map.into());
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        // A space before the text becomes its first piece's own.
        steps.push(Strip::new(false, true).into());
        let several = Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), " ");
        steps.push(several.map_err(failed)?.into());
    }
    Ok(Sequence::new(steps).into())
}
