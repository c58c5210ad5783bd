//! From ids back to text.

use super::Tokenizer;
use crate::Result;

impl Tokenizer {
    /// Returns the text of `ids`, with or without the special tokens in it.
    ///
    /// Spaces before punctuation and inside English contractions are cleaned up unless the tokenizer's
    /// `clean_up_tokenization_spaces` is off (it is on by default, as in transformers);
    /// [`decode_with`](Self::decode_with) leaves no choice to the files.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.decode_with(ids, skip_special_tokens, self.settings.clean_up)
    }

    /// Does what [`decode`](Self::decode) does, with or without the clean-up of spaces.
    pub fn decode_with(
        &self,
        ids: &[u32],
        skip_special_tokens: bool,
        clean_up_spaces: bool,
    ) -> Result<String> {
        let text = self.join(ids, skip_special_tokens)?;
        Ok(self.cleaned(text, clean_up_spaces))
    }

    /// Cleans a text up if that is asked for and the family does it.
    pub(super) fn cleaned(&self, text: String, clean_up_spaces: bool) -> String {
        match clean_up_spaces && self.settings.cleans_up {
            true => clean_up(text),
            false => text,
        }
    }
}

impl Tokenizer {
    /// Returns the text of `ids` before it is cleaned up.
    fn join(&self, ids: &[u32], skip: bool) -> Result<String> {
        let special = self.all_special_ids();
        let engine = &self.core.engine;
        if !self.settings.legacy {
            return engine.decode(ids, skip, &special, &|_| false);
        }
        // With the older files added tokens stand for themselves, and so do special ones without a part to play that were
        // put behind the vocabulary.
        let own = engine.vocab_size(false) as u32;
        let additional = self.special.additional.iter();
        let behind: Vec<u32> = additional
            .filter_map(|token| self.token_to_id(&token.content))
            .filter(|id| *id >= own)
            .collect();
        let added: Vec<u32> = engine.added_tokens().iter().map(|(id, _)| *id).collect();
        let alone = |id: u32| {
            behind.contains(&id) || added.binary_search(&id).is_ok() && !special.contains(&id)
        };
        engine.decode(ids, skip, &special, &alone)
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
