//! From names to local folders: what ships with the crate, local paths, and the Hub with its cache on this machine;
//! logging in, and sharing what was trained.
//!
//! Names, variables, cache and token file are those of the Python library `huggingface_hub`, so both share downloads
//! and the login. [`Settings`] lists the variables.
//!
//! # Why there is a client here
//! The maintained Rust client was the first choice, in both of its forms:
//! - `hf-hub` 1.0 opens a fresh file for every download, so that nothing is resumed, and compares no hash: of a plain
//!   download into its cache neither the size nor the status of the answer is looked at, of one by Xet the size; it joins the
//!   file names that a server sends to the cache's path as they are; being offline is an argument of each call, and no
//!   variable asks for it; a second process waits ten seconds for the first and gives up; what the server wants by plain
//!   LFS it puts into the commit itself. Its Xet part can't be left out: with `blocking`, any choice of features brings 235
//!   crates and a C build of its TLS (409 s of processor time in release mode).
//! - `hf-hub` 0.5 with its feature `ureq` is small (57 crates, the `ureq` below among them) and resumes, but only
//!   downloads: it checks no hash, and has no login, no repositories and no commits.
//!
//! The client here uses `ureq` with `rustls` (26 crates, 42 s; 15 of them are needed only for it).
//!
//! # Xet
//! The Hub keeps large files in Xet storage by now and goes on to speak LFS and plain HTTP with everybody else: a client
//! that does not offer `xet` in the LFS batch is given addresses to upload to, and a download redirects to an address
//! that serves the whole file or a part of it. That is what the Python library does too where `hf_xet` is missing. What
//! Xet adds is speed for a second version of a large file, of which only the chunks that have changed are sent.
//!
//! It comes with the feature `xet`, which is off by default for its 117 further crates: the LFS batch then offers `xet`,
//! and if the server picks it, the changed files go into one commit by `create_commit` of `hf-hub` 1.0, which has token,
//! endpoint and cache from [`Settings`], sends each request to the Hub once, and is dropped on an interrupt. Downloads stay
//! on the client here, for the reasons above; a file that the server gives in no other way is fetched by
//! `hf-hub` into a folder of its own and compared with its hash before it counts. Without the feature, the answer of a
//! server that accepts only Xet is recognized, and the error says what to do.
//!
//! All of it is behind the feature `hub`, which is on by default: users who type a model's name in a notebook expect it
//! to be downloaded.

mod bundled;
pub(crate) mod cache;
mod card;
mod local;
pub(crate) mod name;
mod needs;
mod settings;
mod token;
pub(crate) mod yaml;

// What talks to the network.
#[cfg(feature = "hub")]
mod background;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod digest;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
pub(crate) mod failure;
#[cfg(feature = "hub")]
pub(crate) mod http;
#[cfg(feature = "hub")]
pub(crate) mod in_parallel;
#[cfg(feature = "hub")]
mod lfs;
#[cfg(feature = "hub")]
mod login;
#[cfg(feature = "hub")]
mod proxy;
#[cfg(feature = "hub")]
mod published;
#[cfg(feature = "hub")]
mod push;
#[cfg(feature = "hub")]
pub(crate) mod remote;
#[cfg(feature = "hub")]
pub(crate) mod snapshot;
#[cfg(feature = "hub")]
mod url;
#[cfg(feature = "hub")]
mod verbs;
#[cfg(feature = "hub")]
mod wire;
#[cfg(feature = "xet")]
mod xet;

use std::path::{Path, PathBuf};

#[cfg(not(feature = "hub"))]
use cache::RepoCache;
use needs::Needs;

#[cfg(feature = "hub")]
pub use background::BackgroundPush;
pub use card::{CardResult, ModelCard};
#[cfg(feature = "hub")]
pub use client::Hub;
#[cfg(feature = "hub")]
pub(crate) use local::{after_looking_here, find as find_here};
#[cfg(feature = "hub")]
pub use login::Account;
pub use name::{Repo, RepoKind};
#[cfg(feature = "hub")]
pub use push::{PushOptions, Pushed};
pub use settings::{Settings, cache_dir};
pub use token::Token;
#[cfg(feature = "hub")]
pub use url::is_url;
#[cfg(feature = "hub")]
pub use verbs::{login, logout, notebook_login, push_folder, whoami};

use crate::{Error, Result};

/// The prefix of names of what ships with the crate.
pub const BUNDLED: &str = "bundled:";

/// Returns the local file or folder for `name`: `bundled:NAME`, a path, or `owner/name` (with an optional `@revision`)
/// on the Hub, of which the needed files are downloaded unless they are in the cache.
///
/// `kind` ("model", "tokenizer") determines which files are needed and how errors are worded.
///
/// ```
/// let folder = cloze::hub::resolve("model", "bundled:tiny_roberta")?;
/// assert!(folder.join("config.json").is_file());
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn resolve(kind: &'static str, name: &str) -> Result<PathBuf> {
    resolve_with(kind, name, |repo, needs| {
        fetch(repo, needs, Settings::from_env()?)
    })
}

fn resolve_with(
    kind: &'static str,
    name: &str,
    fetch: impl FnOnce(&Repo, Needs) -> Result<PathBuf>,
) -> Result<PathBuf> {
    if let Some(bundled) = name.strip_prefix(BUNDLED) {
        return bundled::find(kind, bundled);
    }
    if let Some(path) = local::find(kind, name)? {
        return Ok(path);
    }
    let repo_kind = match kind {
        "dataset" => RepoKind::Dataset,
        _ => RepoKind::Model,
    };
    let repo = Repo::parse(repo_kind, name).map_err(|reason| Error::NotFound {
        kind,
        name: name.to_owned(),
        message: format!(
            "{}, and it {reason}{}. Give a local path, a name that starts with {BUNDLED:?}, or owner/name on the Hub",
            local::missing(name),
            local::did_you_mean(Path::new(name)),
        ),
    })?;
    let needs = match kind {
        "dataset" => Needs::Dataset,
        "tokenizer" => Needs::Tokenizer,
        _ => Needs::Model,
    };
    fetch(&repo, needs).map_err(|error| local::after_looking_here(name, error))
}

#[cfg(feature = "hub")]
fn fetch(repo: &Repo, needs: Needs, settings: Settings) -> Result<PathBuf> {
    Hub::new(settings).snapshot(repo, needs)
}

/// Without networking the cache is all there is.
#[cfg(not(feature = "hub"))]
fn fetch(repo: &Repo, needs: Needs, settings: Settings) -> Result<PathBuf> {
    let cached = RepoCache::new(&settings.cache_dir, repo).find(repo.revision());
    cached.filter(|folder| needs.are_met_by(folder)).ok_or_else(|| Error::NotFound {
        kind: repo.kind().singular(),
        name: repo.id().to_owned(),
        message: format!(
            "the cache {} does not contain its {} at {:?}, and this build of cloze can't download: build it with the \
             feature \"hub\", or download it with `hf download {}`",
            settings.cache_dir.display(),
            needs.in_words(),
            repo.revision(),
            repo.id()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundled_names_never_leave_the_data_folder() {
        for name in [
            "bundled:../Cargo.toml",
            "bundled:..",
            "bundled:",
            "bundled:nothing",
        ] {
            assert!(
                matches!(resolve("model", name), Err(Error::NotFound { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn an_unknown_name_reports_where_it_was_searched_for() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_string_lossy().into_owned();
        let offline = |repo: &Repo, needs| {
            let variables = |name: &str| match name {
                "HF_HUB_OFFLINE" => Some("1".to_owned()),
                "HF_HOME" => Some(home.clone()),
                _ => None,
            };
            fetch(repo, needs, Settings::from_variables(&variables)?)
        };
        let text = resolve_with("model", "nobody/nothing", offline)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("model \"nobody/nothing\"") && text.contains(&home),
            "{text}"
        );
        for name in ["no/such/folder", "./nothing", "/nothing/at/all"] {
            let text = resolve_with("model", name, offline)
                .unwrap_err()
                .to_string();
            assert!(text.contains("no such file or folder"), "{text}");
        }
    }
}
