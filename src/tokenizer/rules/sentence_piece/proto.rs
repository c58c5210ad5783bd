//! The file of a `SentencePiece` model: a protocol buffer, of which the fields read here are those of the library's
//! `sentencepiece_model.proto`.

use std::path::Path;

use prost::Message;

use crate::tokenizer::checks;
use crate::{Error, Result};

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<RawPiece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct RawPiece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    /// 1: unigram, 2: byte-pair encoding, 3: words, 4: characters.
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(string, optional, tag = "44")]
    unk_surface: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// The type of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// Used where no piece matches.
    Unknown,
    /// Never found in a text: `<s>`, `</s>`.
    Control,
    /// Always found whole, whatever its score.
    UserDefined,
    /// Never chosen.
    Unused,
    /// A byte of a character that no piece has.
    Byte(u8),
}

#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// How the model cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
}

/// A model file that has been checked.
#[derive(Clone, Debug)]
pub(super) struct Proto {
    pub(super) pieces: Vec<Piece>,
    pub(super) unk: usize,
    pub(super) algorithm: Algorithm,
    pub(super) byte_fallback: bool,
    pub(super) unk_surface: String,
    pub(super) charsmap: Vec<u8>,
    /// Whether the text gets a space before it, or after it.
    pub(super) add_dummy_prefix: bool,
    pub(super) whitespace_as_suffix: bool,
    /// Whether spaces at the ends are dropped and others made single.
    pub(super) remove_extra_whitespaces: bool,
    pub(super) escape_whitespaces: bool,
}

impl Proto {
    pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::format(path, what);
        let model = Model::decode(bytes).map_err(|error| {
            damaged(format!(
                "not a SentencePiece model that can be read: {error}; is the file complete?"
            ))
        })?;
        if model.pieces.is_empty() {
            return Err(damaged("the SentencePiece model has no pieces".to_owned()));
        }
        let mut pieces = Vec::with_capacity(model.pieces.len());
        for (id, raw) in model.pieces.into_iter().enumerate() {
            let text = raw.text.unwrap_or_default();
            let kind = match raw.kind.unwrap_or(1) {
                1 => Kind::Normal,
                2 => Kind::Unknown,
                3 => Kind::Control,
                4 => Kind::UserDefined,
                5 => Kind::Unused,
                6 => Kind::Byte(byte(&text).ok_or_else(|| {
                    damaged(format!(
                        "piece {id} is to be a byte, but it is spelled {text:?}"
                    ))
                })?),
                other => {
                    return Err(damaged(format!(
                        "piece {id} ({text:?}) has the unknown type {other}"
                    )));
                }
            };
            if text.is_empty() {
                return Err(damaged(format!("piece {id} is empty")));
            }
            let score = raw.score.unwrap_or(0.0);
            if !score.is_finite() {
                return Err(damaged(format!(
                    "piece {id} ({text:?}) has the score {score}"
                )));
            }
            pieces.push(Piece { text, score, kind });
        }
        let mut unknown = (0..pieces.len()).filter(|&id| pieces[id].kind == Kind::Unknown);
        let (Some(unk), None) = (unknown.next(), unknown.next()) else {
            let what = "exactly one piece must be of the unknown type";
            return Err(damaged(what.to_owned()));
        };
        let trainer = model.trainer.unwrap_or_default();
        let normalizer = model.normalizer.unwrap_or_default();
        let algorithm = match trainer.kind.unwrap_or(1) {
            1 => Algorithm::Unigram,
            2 => Algorithm::Bpe,
            other => {
                let what = format!(
                    "a SentencePiece model must be of the type unigram or BPE (1 or 2), but this one has the type {other}"
                );
                return Err(damaged(what));
            }
        };
        let charsmap = normalizer.charsmap.unwrap_or_default();
        if !charsmap.is_empty() {
            checks::charsmap(&charsmap, charsmap.len()).map_err(damaged)?;
        }
        let byte_fallback = trainer.byte_fallback.unwrap_or(false);
        let bytes = pieces
            .iter()
            .filter(|piece| matches!(piece.kind, Kind::Byte(_)));
        if byte_fallback && bytes.count() != 256 {
            let what = "the model falls back to bytes, but it does not have 256 pieces for them";
            return Err(damaged(what.to_owned()));
        }
        Ok(Self {
            pieces,
            unk,
            algorithm,
            byte_fallback,
            unk_surface: trainer.unk_surface.unwrap_or(" \u{2047} ".to_owned()),
            charsmap,
            add_dummy_prefix: normalizer.add_dummy_prefix.unwrap_or(true),
            whitespace_as_suffix: trainer.whitespace_as_suffix.unwrap_or(false),
            remove_extra_whitespaces: normalizer.remove_extra_whitespaces.unwrap_or(true),
            escape_whitespaces: normalizer.escape_whitespaces.unwrap_or(true),
        })
    }
}

/// Returns the byte that a piece such as `<0x0A>` represents.
fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}
