//! Perceiver: every byte of the text is a token.

use super::aligned::Aligned;
use super::vocabulary::Vocabulary;
use super::{Piece, Segmenter, Spelled, Stretches};
use crate::Result;

/// Byte `b` has the id `b + 6`, after the six special tokens.
#[derive(Debug)]
pub(crate) struct Bytes;

/// The number of special tokens before the bytes.
const SPECIAL: u32 = 6;

impl Bytes {
    /// Returns the bytes as the characters U+0000 to U+00FF.
    pub(crate) fn vocabulary() -> Vocabulary {
        let bytes = (0..=255u8).map(|byte| (char::from(byte).to_string(), byte));
        Vocabulary::new(bytes.map(|(token, byte)| (token, u32::from(byte) + SPECIAL)))
    }
}

impl Segmenter for Bytes {
    fn segment(&self, text: &Aligned, _: Option<&Aligned>, pieces: &mut Vec<Piece>) -> Result<()> {
        let mut after_space = true;
        for (range, c) in text.chars() {
            let span = text.span(range.clone());
            let space = super::is_space(c);
            for (at, byte) in text.as_str()[range].bytes().enumerate() {
                pieces.push(Piece {
                    id: u32::from(byte) + SPECIAL,
                    span,
                    begins_word: at == 0 && (space || after_space),
                });
            }
            after_space = space;
        }
        Ok(())
    }

    fn join(&self, tokens: &[Spelled<'_>]) -> String {
        let mut bytes = Vec::new();
        for token in tokens {
            let mut chars = token.text.chars();
            match (chars.next().map(u8::try_from), chars.next()) {
                (Some(Ok(byte)), None) if !token.added => bytes.push(byte),
                _ => bytes.extend_from_slice(token.text.as_bytes()),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn stretches(&self) -> Stretches {
        Stretches::Spaced
    }

    fn continues_word(&self, token: &str) -> bool {
        !token.starts_with(super::is_space)
    }
}
