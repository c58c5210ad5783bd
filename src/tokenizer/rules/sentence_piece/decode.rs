//! From pieces back to a text, as the `SentencePiece` library does it.

use super::normalize::without_space;
use super::proto::Kind;
use super::{SPACE, SentencePiece};

impl SentencePiece {
    /// Returns the text of pieces in a row: the space before the first is the model's own, control pieces say nothing,
    /// bytes in a row are put together, and those that are no UTF-8 become replacement characters.
    pub(super) fn decode<'a>(&self, pieces: impl Iterator<Item = &'a str>) -> String {
        let mut text = String::new();
        let mut bytes: Vec<u8> = Vec::new();
        let mut at_start = true;
        let mut space_taken = false;
        for piece in pieces {
            let place = self.place(piece);
            let kind = self.proto.pieces[place].kind;
            if let Kind::Byte(byte) = kind {
                bytes.push(byte);
                continue;
            }
            text.push_str(&utf8(&std::mem::take(&mut bytes)));
            if space_taken || !text.is_empty() {
                at_start = false;
            }
            space_taken = false;
            match kind {
                Kind::Control => {}
                Kind::Unknown if self.proto.pieces[place].text == piece => {
                    text.push_str(&self.proto.unk_surface);
                }
                Kind::Unknown => text.push_str(piece),
                _ => {
                    let own = at_start && self.normalizer.owns_first_space();
                    let rest = own.then(|| without_space(piece)).flatten();
                    // Where spaces are made single, those at the beginning all go.
                    space_taken = rest.is_some() && !self.normalizer.removes_extra_spaces();
                    text.push_str(&rest.unwrap_or(piece).replace(SPACE, " "));
                }
            }
        }
        text.push_str(&utf8(&bytes));
        text
    }
}

/// Returns `bytes` as text, a replacement character for each byte that is not UTF-8.
fn utf8(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
    }
    text
}
