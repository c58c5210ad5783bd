//! A tokenizer: its kind, its size, its special tokens.

use super::encoding::{Kind, chip};
use crate::notebook::Rich;
use crate::notebook::html::{escape, facts, frame, heading, thousands};
use crate::tokenizer::Tokenizer;

impl Rich for Tokenizer {
    fn to_html(&self) -> String {
        let mut special = String::new();
        for id in self.all_special_ids() {
            let token = self.id_to_token(id).unwrap_or_default();
            let kind = if Some(id) == self.mask_token_id() {
                Kind::Mask
            } else {
                Kind::Special
            };
            special += &chip(&token, kind, &id.to_string());
        }
        let mut rows = vec![("vocabulary", format!("{} tokens", thousands(self.len())))];
        if let Some(limit) = self.model_max_length() {
            rows.push(("longest text", format!("{} tokens", thousands(limit))));
        }
        rows.push(("special tokens", special));
        frame(&(heading(&escape(&self.class_name()), "") + &facts(&rows)))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}
