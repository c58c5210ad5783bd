//! Speech: decoding the ids that a model predicts frame by frame.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use super::engine::Engine;
use super::rules::is_space;
use super::rules::letterwise::{Letterwise, Said};
use crate::{Error, Result};

/// A letter or word in the transcript of a speech model, and its range of frames.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_letters(["one two"])?;
/// let ids = |text: &str| text.chars().map(|c| tokenizer.token_to_id(&c.to_string()).unwrap_or(0)).collect::<Vec<u32>>();
/// // One id a step; a blank between two equal letters.
/// let said = tokenizer.spoken_words(&ids("oonne|two_o"))?;
/// assert_eq!((said[0].text.as_str(), said[0].start, said[0].end), ("one", 0, 5));
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// The letter or word.
    pub text: String,
    /// The first step.
    pub start: usize,
    /// The frame after the last one.
    pub end: usize,
}

impl From<Said> for Spoken {
    fn from(said: Said) -> Self {
        Self {
            text: said.text,
            start: said.start,
            end: said.end,
        }
    }
}

impl Tokenizer {
    /// Creates the tokenizer of a speech model that transcribes into the letters of `texts`: `<pad>` `<s>` `</s>`
    /// `<unk>` `|` with the ids 0 to 4, then every letter, ordered by code point. `<pad>` is the blank of CTC, `|` the
    /// space.
    ///
    /// Letters are used unchanged: lowercase the texts first if case should not matter.
    ///
    /// # Errors
    ///
    /// If the texts have no letters.
    ///
    /// ```
    /// use cloze::tokenizer::Tokenizer;
    /// let tokenizer = Tokenizer::train_letters(["one two", "three"])?;
    /// assert_eq!(tokenizer.tokenize("two one")?.concat(), "two|one");
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn train_letters<I>(texts: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut letters = BTreeSet::new();
        for text in texts {
            letters.extend(text.as_ref().chars().filter(|&c| !is_space(c) && c != '|'));
        }
        if letters.is_empty() {
            let message = "the texts have no letters to make a vocabulary of";
            return Err(Error::argument("texts", message));
        }
        let special = ["<pad>", "<s>", "</s>", "<unk>", "|"].map(str::to_owned);
        let tokens = special
            .into_iter()
            .chain(letters.iter().map(char::to_string));
        let vocabulary: Map<String, Value> = tokens.zip((0u32..).map(Value::from)).collect();
        let config = json!({
            "tokenizer_class": "Wav2Vec2CTCTokenizer", "do_lower_case": false, "word_delimiter_token": "|",
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
        });
        let folder = tempfile::tempdir()
            .map_err(|error| Error::io("create", std::env::temp_dir(), error))?;
        for (name, json) in [
            ("vocab.json", Value::Object(vocabulary)),
            ("tokenizer_config.json", config),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, json.to_string())
                .map_err(|error| Error::io("write", &path, error))?;
        }
        Self::from_path(folder.path())
    }

    /// Decodes `ids` without merging equal ones in a row, for ids of a text rather than of a speech model;
    /// [`decode`](Self::decode) merges them. For tokenizers that are not for speech the two are the same.
    pub fn decode_unfolded(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let Ok(letters) = self.letters() else {
            return self.decode(ids, skip_special_tokens);
        };
        let tokens = self.spelled(ids, skip_special_tokens);
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let text = letters.text(&letters.read(&tokens, false));
        Ok(self.cleaned(text, self.settings.clean_up))
    }

    /// Returns the letters that a speech model said and when, one id a step.
    ///
    /// # Errors
    ///
    /// If the tokenizer is not one for speech (`Wav2Vec2CTCTokenizer`).
    pub fn spoken_letters(&self, ids: &[u32]) -> Result<Vec<Spoken>> {
        let letters = self.letters()?;
        let tokens = self.spelled(ids, false);
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let said = letters.read(&tokens, true);
        Ok(said.into_iter().map(Spoken::from).collect())
    }

    /// Returns the words that a speech model said and when, one id a step.
    ///
    /// # Errors
    ///
    /// Like [`spoken_letters`](Self::spoken_letters).
    pub fn spoken_words(&self, ids: &[u32]) -> Result<Vec<Spoken>> {
        let letters = self.letters()?;
        let tokens = self.spelled(ids, false);
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let words = letters.words(&letters.read(&tokens, true));
        Ok(words.into_iter().map(Spoken::from).collect())
    }

    fn letters(&self) -> Result<&Letterwise> {
        let letters = match &self.core.engine {
            Engine::Rules(rules) => rules.letterwise(),
            Engine::Library(_) => None,
        };
        letters.ok_or_else(|| {
            Error::Tokenizer(format!(
                "a {} is not a tokenizer for speech",
                self.class_name()
            ))
        })
    }

    fn spelled(&self, ids: &[u32], skip_special_tokens: bool) -> Vec<String> {
        let special = self.all_special_ids();
        let kept = ids
            .iter()
            .filter(|id| !(skip_special_tokens && special.contains(id)));
        // A model may have more letters than the vocabulary; each is a step all the same.
        let unknown = self.unk_token().unwrap_or_default();
        kept.map(|&id| self.id_to_token(id).unwrap_or_else(|| unknown.to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_of_letters_round_trips() {
        let tokenizer = Tokenizer::train_letters(["seven one", "two-ß", "one|two"]).unwrap();
        let letters = "-enostvwß";
        assert_eq!(tokenizer.len(), 5 + letters.chars().count());
        assert_eq!(tokenizer.pad_token_id(), Some(0));
        let ids = tokenizer.encode("two one").unwrap().ids;
        assert_eq!(ids.len(), 7);
        assert_eq!(ids[3], tokenizer.token_to_id("|").unwrap());
        assert_eq!(tokenizer.decode_unfolded(&ids, true).unwrap(), "two one");
        assert_eq!(tokenizer.class_name(), "Wav2Vec2CTCTokenizer");
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save_pretrained(folder.path()).unwrap();
        let again = Tokenizer::from_path(folder.path()).unwrap();
        assert_eq!(again.encode("two one").unwrap().ids, ids);
        assert!(Tokenizer::train_letters([""; 0]).is_err());
    }

    #[test]
    fn words_have_the_frames_in_which_they_were_said() {
        let tokenizer = Tokenizer::train_letters(["ab"]).unwrap();
        let id = |token: &str| tokenizer.token_to_id(token).unwrap();
        let (blank, space, a, b) = (id("<pad>"), id("|"), id("a"), id("b"));
        // An id beyond the vocabulary is unknown, and takes its step.
        let said = [
            space, blank, a, a, blank, a, blank, space, space, 99, b, b, blank, space,
        ];
        let words = tokenizer.spoken_words(&said).unwrap();
        let words: Vec<_> = words
            .iter()
            .map(|word| (word.text.as_str(), word.start, word.end))
            .collect();
        assert_eq!(words, [("aa", 2, 6), ("<unk>b", 9, 12)]);
        let letters = tokenizer.spoken_letters(&[a, blank, blank, a]).unwrap();
        let letters: Vec<_> = letters
            .iter()
            .map(|letter| (letter.start, letter.end))
            .collect();
        assert_eq!(letters, [(0, 1), (3, 4)]);
        assert!(tokenizer.spoken_words(&[]).unwrap().is_empty());
        assert!(
            tokenizer
                .spoken_words(&[blank, space, blank])
                .unwrap()
                .is_empty()
        );
    }
}
