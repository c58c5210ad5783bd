//! Where the Hub is and where its files lie on this machine, read from the variables that the Python library reads.

use std::path::PathBuf;
use std::time::Duration;

use super::token::Token;
use crate::{Error, Result};

/// The public Hub.
const ENDPOINT: &str = "https://huggingface.co";

/// How to reach the Hub and where to keep its files.
///
/// [`Settings::from_env`] follows the Python library, so that both share one cache and one login:
///
/// | variable | meaning | default |
/// |---|---|---|
/// | `HF_ENDPOINT` | the server | `https://huggingface.co` |
/// | `HF_HOME` | the folder of everything | `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface` |
/// | `HF_HUB_CACHE` (older: `HUGGINGFACE_HUB_CACHE`) | downloads | `$HF_HOME/hub` |
/// | `HF_TOKEN` (older: `HUGGING_FACE_HUB_TOKEN`) | the access token | the file below |
/// | `HF_TOKEN_PATH` | the file with the token | `$HF_HOME/token` |
/// | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | `1`: no request is made | off |
/// | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | `1`: downloads go without the token | off |
/// | `HF_HUB_ETAG_TIMEOUT` | seconds to wait for a connection | 10 |
/// | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds without a byte before a connection counts as dead | 30 |
/// | `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` | the proxy, and the hosts that are reached without it | none |
/// | `SSL_CERT_FILE` (or `REQUESTS_CA_BUNDLE`) | certificates to trust in place of the usual ones | Mozilla's |
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// The server, without a slash at the end.
    pub endpoint: String,
    /// The folder of downloads, laid out as the Python library lays it out.
    pub cache_dir: PathBuf,
    /// The access token, if there is one.
    pub token: Option<Token>,
    /// The file in which [`login`](super::login) stores the token.
    pub token_path: PathBuf,
    /// Whether downloads of public files carry the token too.
    pub token_on_reads: bool,
    /// Whether requests are forbidden.
    pub offline: bool,
    /// How often a request is tried before it fails. Progress resets the count.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles with each further one.
    pub first_delay: Duration,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait for the next bytes.
    pub read_timeout: Duration,
    /// The longest wait for a whole answer about a repository, or for the headers of a file, however the bytes trickle.
    pub answer_timeout: Duration,
    /// The longest that a file may take beside the time that its bytes take at 10 kB/s.
    pub transfer_timeout: Duration,
}

impl Settings {
    /// Returns the settings of the environment's variables.
    ///
    /// # Errors
    /// When `HF_ENDPOINT` is no `http://` or `https://` address, or the token can't be one.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    pub(crate) fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let places = Places::from_variables(get);
        let seconds = |name: &str, default: u64| {
            let given = variable(get, name).and_then(|text| text.parse().ok());
            Duration::from_secs(given.filter(|&seconds| seconds > 0).unwrap_or(default))
        };
        let settings = Self {
            endpoint: variable(get, "HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: Token::find(get, &places.token_path)?,
            token_on_reads: !is_true(get, "HF_HUB_DISABLE_IMPLICIT_TOKEN"),
            offline: is_offline(get),
            attempts: 5,
            first_delay: Duration::from_millis(500),
            connect_timeout: seconds("HF_HUB_ETAG_TIMEOUT", 10),
            read_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", 30),
            answer_timeout: Duration::from_secs(120),
            transfer_timeout: Duration::from_secs(3600),
            cache_dir: places.cache_dir,
            token_path: places.token_path,
        };
        settings.endpoint("HF_ENDPOINT")
    }

    /// Returns the longest that `bytes` bytes may take.
    pub(crate) fn time_for(&self, bytes: u64) -> Duration {
        time_for(self.transfer_timeout, bytes)
    }

    /// Checks the endpoint that `source` gave and takes the slash off its end.
    fn endpoint(mut self, source: &'static str) -> Result<Self> {
        let trimmed = self.endpoint.trim().trim_end_matches('/').to_owned();
        let host = trimmed
            .strip_prefix("https://")
            .or_else(|| trimmed.strip_prefix("http://"));
        if host.is_none_or(str::is_empty) {
            return Err(Error::Argument {
                name: source,
                message: format!(
                    "{:?} is not the URL of a Hub; write it like {ENDPOINT}",
                    self.endpoint
                ),
            });
        }
        self.endpoint = trimmed;
        Ok(self)
    }

    /// Returns the same settings for the server at `endpoint`.
    ///
    /// # Errors
    /// When `endpoint` is no `http://` or `https://` address.
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Result<Self> {
        self.endpoint = endpoint.into();
        self.endpoint("endpoint")
    }

    /// Returns the same settings with another access token, or none.
    pub fn with_token(mut self, token: Option<Token>) -> Self {
        self.token = token;
        self
    }
}

/// The slowest line on which files are waited for, in bytes a second.
const SLOWEST: u64 = 10_000;

/// Returns the longest that `bytes` bytes may take, with `beside` for everything but the bytes themselves.
pub(super) fn time_for(beside: Duration, bytes: u64) -> Duration {
    beside.saturating_add(Duration::from_secs(bytes / SLOWEST))
}

/// The folders and files of the Hub on this machine.
pub(crate) struct Places {
    pub(crate) cache_dir: PathBuf,
    pub(crate) token_path: PathBuf,
}

impl Places {
    pub(crate) fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| variable(get, name).map(|text| expand(&text, get));
        let home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME")
                .unwrap_or_else(|| expand("~/.cache", get))
                .join("huggingface")
        });
        Self {
            cache_dir: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            token_path: path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token")),
        }
    }
}

/// Returns where the Python library keeps downloads: `HF_HUB_CACHE`, else `HF_HOME/hub`, else
/// `~/.cache/huggingface/hub`.
pub fn cache_dir() -> PathBuf {
    Places::from_variables(&|name| std::env::var(name).ok()).cache_dir
}

fn is_offline(get: &dyn Fn(&str) -> Option<String>) -> bool {
    // The first of the two that is set decides.
    match variable(get, "HF_HUB_OFFLINE") {
        Some(_) => is_true(get, "HF_HUB_OFFLINE"),
        None => is_true(get, "TRANSFORMERS_OFFLINE"),
    }
}

/// A variable that is set to nothing counts as not set.
fn variable(get: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    get(name).filter(|text| !text.trim().is_empty())
}

fn is_true(get: &dyn Fn(&str) -> Option<String>, name: &str) -> bool {
    variable(get, name)
        .is_some_and(|text| matches!(text.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// Replaces `~` at the beginning and `$NAME` or `${NAME}` anywhere; an unknown name stays as it is written.
fn expand(text: &str, get: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let system = || std::env::home_dir().map(|home| home.to_string_lossy().into_owned());
    let given = |home: &String| !home.is_empty();
    let home = || {
        let home = get("HOME").or_else(|| get("USERPROFILE"));
        home.filter(given).or_else(|| system().filter(given))
    };
    let text = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with(['/', '\\']) => {
            format!("{}{rest}", home().unwrap_or_default())
        }
        _ => text.to_owned(),
    };
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let (name, len) = match after.strip_prefix('{') {
            Some(braced) => match braced.find('}') {
                Some(end) => (&braced[..end], end + 2),
                None => ("", 0),
            },
            None => {
                let end = after
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match get(name).filter(|_| !name.is_empty()) {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&rest[dollar..=dollar + len]),
        }
        rest = &after[len..];
    }
    expanded.push_str(rest);
    PathBuf::from(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn with<'a>(variables: Variables<'a>) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn folders_follow_the_variables_of_huggingface_hub() {
        let cases: [(Variables, &str, &str); 6] = [
            (
                &[("HOME", "/h")],
                "/h/.cache/huggingface/hub",
                "/h/.cache/huggingface/token",
            ),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
                "/x/huggingface/token",
            ),
            (
                &[
                    ("HOME", "/h"),
                    ("XDG_CACHE_HOME", "/x"),
                    ("HF_HOME", "~/hf"),
                ],
                "/h/hf/hub",
                "/h/hf/token",
            ),
            (
                &[
                    ("HF_HOME", "/hf"),
                    ("HUGGINGFACE_HUB_CACHE", "/old"),
                    ("HF_TOKEN_PATH", "/t"),
                ],
                "/old",
                "/t",
            ),
            (
                &[
                    ("HF_HOME", "/hf"),
                    ("HUGGINGFACE_HUB_CACHE", "/old"),
                    ("HF_HUB_CACHE", "/new"),
                ],
                "/new",
                "/hf/token",
            ),
            (
                &[
                    ("HOME", "/h"),
                    ("BIG", "/disk"),
                    ("HF_HOME", "$BIG/${BIG}x/$NOT"),
                ],
                "/disk//diskx/$NOT/hub",
                "/disk//diskx/$NOT/token",
            ),
        ];
        for (variables, cache, token) in cases {
            let places = Places::from_variables(&with(variables));
            assert_eq!(places.cache_dir, PathBuf::from(cache), "{variables:?}");
            assert_eq!(places.token_path, PathBuf::from(token), "{variables:?}");
        }
    }

    #[test]
    fn offline_mode_is_set_by_either_variable_and_the_newer_one_wins() {
        let offline =
            |variables: Variables| Settings::from_variables(&with(variables)).unwrap().offline;
        assert!(offline(&[("HF_HUB_OFFLINE", "1")]));
        assert!(offline(&[("HF_HUB_OFFLINE", "true")]));
        assert!(offline(&[("TRANSFORMERS_OFFLINE", "yes")]));
        assert!(!offline(&[
            ("HF_HUB_OFFLINE", "0"),
            ("TRANSFORMERS_OFFLINE", "1")
        ]));
        assert!(!offline(&[("HF_HUB_OFFLINE", "")]));
        assert!(!offline(&[]));
    }

    #[test]
    fn the_endpoint_must_be_a_url() {
        let endpoint = |text: &str| Settings::from_variables(&with(&[("HF_ENDPOINT", text)]));
        assert_eq!(
            endpoint("https://mirror.example/hub/").unwrap().endpoint,
            "https://mirror.example/hub"
        );
        for wrong in ["mirror.example", "ftp://mirror.example", "https://"] {
            let text = endpoint(wrong).unwrap_err().to_string();
            assert!(
                text.starts_with("HF_ENDPOINT: ") && text.contains(wrong),
                "{text}"
            );
        }
    }
}
