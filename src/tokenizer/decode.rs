//! From ids back to text.

use super::Tokenizer;
use super::encode::failed;
use crate::Result;

impl Tokenizer {
    /// The text of `ids`, with or without the special tokens in it.
    ///
    /// Spaces before punctuation and inside English contractions are cleaned up unless the tokenizer's
    /// `clean_up_tokenization_spaces` is off (it is on by default, as in the reference);
    /// [`decode_with`](Self::decode_with) leaves no choice to the files.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.decode_with(ids, skip_special_tokens, self.settings.clean_up)
    }

    /// [`decode`](Self::decode) with the clean-up of spaces said explicitly.
    pub fn decode_with(
        &self,
        ids: &[u32],
        skip_special_tokens: bool,
        clean_up_spaces: bool,
    ) -> Result<String> {
        let text = match self.settings.class.as_str() {
            "Camembert" | "XLMRoberta" if self.settings.legacy => {
                self.join_pieces(ids, skip_special_tokens)
            }
            _ => {
                let text = self.core.tokenizer.decode(ids, skip_special_tokens);
                text.map_err(failed)?
            }
        };
        Ok(if clean_up_spaces {
            clean_up(text)
        } else {
            text
        })
    }
}

impl Tokenizer {
    /// How the reference's classes for `SentencePiece` files put pieces together. CamemBERT's sets every stretch of text
    /// before a special token off with a space.
    fn join_pieces(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let special = self.all_special_ids();
        let spaced = self.settings.class == "Camembert";
        let (mut text, mut stretch, mut after_special) = (String::new(), String::new(), false);
        for &id in ids {
            let Some(token) = self.id_to_token(id) else {
                continue;
            };
            if !special.contains(&id) {
                stretch.push_str(&token.replace('\u{2581}', " "));
                after_special = false;
            } else if !skip_special_tokens {
                if spaced && !after_special {
                    text.push(' ');
                    stretch = stretch.trim_start_matches(' ').to_owned();
                }
                text.push_str(&stretch);
                text.push_str(&token);
                stretch.clear();
                after_special = true;
            }
        }
        if spaced {
            stretch = stretch.trim_start_matches(' ').to_owned();
        }
        text.push_str(&stretch);
        text.trim().to_owned()
    }
}

/// Removes the space before `. ? ! ,` and around apostrophes in English contractions, one rule after the other.
fn clean_up(mut text: String) -> String {
    const RULES: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    for (spaced, tight) in RULES {
        if text.contains(spaced) {
            text = text.replace(spaced, tight);
        }
    }
    text
}
