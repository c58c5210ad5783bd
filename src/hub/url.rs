//! Files by their addresses: fetched once, and again only when the server says that they have changed.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, Method};

use super::Hub;
use super::failure::{Failure, FailureKind};
use super::http::{Pauses, Request, place};
use super::remote::text;
use crate::notebook::progress::Progress;
use crate::{Error, Result, interrupt};

const BUFFER: usize = 256 << 10;
/// The file beside a fetched one that says which state of it was fetched.
const STATE: &str = ".state.json";

/// Returns whether `name` is the address of a file.
pub fn is_url(name: &str) -> bool {
    let starts = |scheme: &str| {
        let start = name.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    starts("https://") || starts("http://")
}

/// What tells one state of a file from another.
#[derive(Default, PartialEq, Serialize, Deserialize)]
struct State {
    etag: Option<String>,
    modified: Option<String>,
    size: Option<u64>,
}

impl State {
    fn of(headers: &HeaderMap) -> Self {
        let owned = |name| text(headers, name).map(str::to_owned);
        Self {
            etag: owned("etag"),
            modified: owned("last-modified"),
            size: text(headers, "content-length").and_then(|size| size.trim().parse().ok()),
        }
    }

    /// Returns whether a file of this state need not be fetched for one of `other`.
    fn is_same(&self, other: &Self) -> bool {
        self == other && (self.etag.is_some() || self.modified.is_some())
    }
}

impl Hub {
    /// Returns the file at the address `url`, in the cache. It is fetched if it is not there or the server has another; without a
    /// network the one from the cache serves, and a note says so. The token goes to no host but the Hub's.
    ///
    /// # Errors
    /// When the server refuses or can't be reached and the cache does not have it; when the address gives a web page.
    pub fn fetch(&self, url: &str) -> Result<PathBuf> {
        let settings = self.settings();
        let key = blake3::hash(url.as_bytes()).to_hex();
        let folder = settings.cache_dir.join("addresses").join(&key[..32]);
        let path = folder.join(file_name(url));
        let known = || -> Option<State> {
            let state = serde_json::from_slice(&std::fs::read(folder.join(STATE)).ok()?).ok()?;
            path.is_file().then_some(state)
        };
        if settings.offline {
            return match known() {
                Some(_) => Ok(path),
                None => Err(Error::Hub(format!(
                    "HF_HUB_OFFLINE forbids downloads, and the cache does not hold {url}"
                ))),
            };
        }
        std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
        let purpose = format!("download {}", shown(url));
        if let Some(known) = known() {
            let head = Request::new(Method::HEAD, url, purpose.as_str());
            match self.client.headers(&head) {
                Ok((_, headers)) if State::of(&headers).is_same(&known) => return Ok(path),
                Err(failure) if matches!(failure.kind, FailureKind::Unreachable) => {
                    eprintln!("note: {}; using the file in the cache", failure.message);
                    return Ok(path);
                }
                // Some servers know no HEAD.
                _ => {}
            }
        }
        let mut pauses = Pauses::new(settings);
        loop {
            match self.fetch_once(&Request::get(url, purpose.as_str()), &folder, &path) {
                Ok(()) => return Ok(path),
                Err(failure) => pauses.after(failure)?,
            }
        }
    }

    /// Makes one attempt, after which the file is there whole.
    fn fetch_once(&self, request: &Request, folder: &Path, path: &Path) -> Result<(), Failure> {
        let mut response = self.client.send(request)?;
        let state = State::of(response.headers());
        if text(response.headers(), "content-type").is_some_and(|kind| kind.contains("text/html")) {
            let message = "the URL leads to a web page instead of data; on the Hub, URLs of files contain /resolve/"
                .to_owned();
            return Err(self.client.failure(FailureKind::Refused, request, message));
        }
        let io = |error| Error::io("write", path, error);
        let temporary = crate::files::Temporary::beside(path)?;
        let mut file = File::create(temporary.path()).map_err(io)?;
        let progress = Progress::bytes("Downloading", state.size.unwrap_or_default());
        let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
        let (mut buffer, mut arrived) = (vec![0; BUFFER], 0u64);
        let started = Instant::now();
        loop {
            let read = body.read(&mut buffer);
            if interrupt::is_requested() {
                return Err(Error::Interrupted(format!("downloading {}", path.display())).into());
            }
            if started.elapsed() > self.settings().time_for(arrived) {
                let message = format!("the server is too slow: only {arrived} bytes have come");
                return Err(self.client.failure(FailureKind::Refused, request, message));
            }
            match read {
                Ok(0) => break,
                Ok(count) => {
                    file.write_all(&buffer[..count]).map_err(io)?;
                    arrived += count as u64;
                    progress.inc(count as u64);
                }
                Err(error) => return Err(self.client.broken(request, &ureq::Error::from(error))),
            }
        }
        if let Some(size) = state.size.filter(|&size| size != arrived) {
            let message = format!("the answer ended after {arrived} of {size} bytes");
            return Err(self
                .client
                .failure(FailureKind::Transient, request, message));
        }
        progress.finish();
        // Until the new state is written, none is known.
        let noted = folder.join(STATE);
        let _ = std::fs::remove_file(&noted);
        temporary.put(path).map_err(io)?;
        let state = serde_json::to_vec(&state).map_err(Error::from)?;
        Ok(crate::files::write_atomically(&noted, &state)?)
    }
}

/// Returns the name that the file at an address has, of which its ending tells the format.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let after_host = path.splitn(4, '/').nth(3).unwrap_or_default();
    let name = after_host.rsplit('/').find(|part| !part.is_empty());
    let name = percent_encoding::percent_decode_str(name.unwrap_or("file")).decode_utf8_lossy();
    let plain = |c: char| {
        if c.is_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = name.chars().map(plain).collect();
    // The ending counts, so what is too long loses its beginning.
    let skipped = name.chars().count().saturating_sub(100);
    let name: String = name.chars().skip(skipped).collect();
    match name.trim_start_matches('.') {
        "" => "file".to_owned(),
        name => name.to_owned(),
    }
}

/// Returns an address without what may be a secret in it.
fn shown(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let after_host = path.splitn(4, '/').nth(3).unwrap_or_default();
    format!("{}/{after_host}", place(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_extensions_and_never_leave_the_folder() {
        for (url, name) in [
            (
                "https://example.org/a/train.jsonl.gz?token=x#y",
                "train.jsonl.gz",
            ),
            ("https://example.org/a%20b.csv", "a_b.csv"),
            ("https://example.org", "file"),
            ("https://example.org/", "file"),
            ("https://example.org/%2e%2e%2f%2e%2e%2fpasswd", "_.._passwd"),
            ("https://example.org/.state.json", "state.json"),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
        assert!(file_name(&format!("https://e.org/{}.csv", "a".repeat(500))).len() <= 100);
        assert!(is_url("HTTPS://e.org") && is_url("http://e") && !is_url("httpd/a.csv"));
        let shown = shown("https://user:secret@example.org/a.csv?key=secret");
        assert!(
            !shown.contains("secret") && shown.ends_with("/a.csv"),
            "{shown}"
        );
    }
}
