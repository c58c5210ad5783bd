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
        let text = self.core.tokenizer.decode(ids, skip_special_tokens);
        let text = text.map_err(failed)?;
        Ok(if clean_up_spaces {
            clean_up(text)
        } else {
            text
        })
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
