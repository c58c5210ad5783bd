//! The access token: a word that is stored, sent to the Hub's own host, and shown nowhere.

use std::fmt;
use std::path::Path;

use crate::{Error, Result};

/// An access token. Its `Debug` shows stars and there is no `Display`: it can't slip into a log or a notebook.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes `text` as a token, without the spaces and line ends around it.
    ///
    /// # Errors
    /// When `text` is empty or holds characters that no token has. The text itself is not repeated in the error.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Error::argument(
                "token",
                "it is empty; create one at https://huggingface.co/settings/tokens",
            ));
        }
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Error::argument(
                "token",
                "it contains spaces or other invalid characters; copy the token again, and nothing else",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the token that the environment or the file at `path` holds; the environment wins.
    pub(crate) fn find(get: &dyn Fn(&str) -> Option<String>, path: &Path) -> Result<Option<Self>> {
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if let Some(text) = get(name).filter(|text| !text.trim().is_empty()) {
                return Self::new(&text).map(Some);
            }
        }
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => Self::new(&text).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", path, e)),
        }
    }

    /// Returns the secret itself, only for the request's header and the token file.
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }

    /// Returns `text` without the secret, should a server have repeated it.
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    pub(crate) fn hide_in(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_overrides_the_file_and_the_newer_name_the_older() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let nothing = |_: &str| None;
        assert_eq!(Token::find(&nothing, &path).unwrap(), None);
        std::fs::write(&path, "hf_file\r\n").unwrap();
        assert_eq!(
            Token::find(&nothing, &path).unwrap().unwrap().secret(),
            "hf_file"
        );
        let older = |name: &str| (name == "HUGGING_FACE_HUB_TOKEN").then(|| "hf_older".to_owned());
        assert_eq!(
            Token::find(&older, &path).unwrap().unwrap().secret(),
            "hf_older"
        );
        let both = |name: &str| match name {
            "HF_TOKEN" => Some(" hf_newer\n".to_owned()),
            _ => older(name),
        };
        assert_eq!(
            Token::find(&both, &path).unwrap().unwrap().secret(),
            "hf_newer"
        );
    }

    #[test]
    fn a_token_is_never_displayed() {
        let token = Token::new("hf_verysecret").unwrap();
        assert_eq!(
            format!("{token:?} {:?}", Some(&token)),
            "Token(***) Some(Token(***))"
        );
        assert_eq!(token.hide_in("no hf_verysecret here"), "no *** here");
        let text = format!("{:?}", Token::new("hf_very secret").unwrap_err());
        assert!(!text.contains("secret"), "{text}");
    }
}
