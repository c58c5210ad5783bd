//! BERT's words and pieces as a part of other rules.

use super::aligned::Aligned;
use super::{Piece, Spelled, is_space};
use crate::Result;
use crate::tokenizer::guard::failed;

/// Appends the pieces into which `bert` cuts `text`.
pub(super) fn cut(
    bert: &tokenizers::Tokenizer,
    text: &Aligned,
    pieces: &mut Vec<Piece>,
) -> Result<()> {
    let encoding = bert.encode(text.as_str(), false).map_err(failed)?;
    let mut last = None;
    for at in 0..encoding.len() {
        let (start, end) = encoding.get_offsets()[at];
        let number = encoding.get_word_ids()[at];
        pieces.push(Piece {
            id: encoding.get_ids()[at],
            span: text.span(start..end),
            begins_word: at == 0 || number != last,
        });
        last = number;
    }
    Ok(())
}

/// Returns the words of pieces, with spaces between.
pub(super) fn join(tokens: &[Spelled<'_>]) -> String {
    let tokens: Vec<&str> = tokens.iter().map(|token| token.text).collect();
    let text = tokens.join(" ").replace(" ##", "");
    text.trim_matches(is_space).to_owned()
}
