//! The door to one Hub: every verb of this room, with your own settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::RepoCache;
use super::http::Client;
use super::name::{Repo, RepoKind, is_safe_path};
use super::needs::Needs;
use super::snapshot;
use super::{Account, PushOptions, Pushed, Settings, Token, login, push};
use crate::{Error, Result};

/// A connection to one Hub. The functions of [`crate::hub`] use the one that the environment describes; a `Hub` serves
/// where other settings are wanted, for a second account or a mirror. Clones share their connections.
///
/// ```no_run
/// use cloze::hub::{Hub, RepoKind};
///
/// let hub = Hub::from_env()?;
/// println!("{:?}", hub.list_files(RepoKind::Model, "distilbert/distilroberta-base")?);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Hub {
    pub(crate) client: Client,
}

impl Hub {
    /// Returns a connection with `settings`. Nothing is sent yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            client: Client::new(Arc::new(settings)),
        }
    }

    /// Returns a connection with the settings of the environment's variables.
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(Settings::from_env()?))
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        self.client.settings()
    }

    /// Returns the local folder with the files that a model (`kind` "model") or tokenizer ("tokenizer") called `name`
    /// consists of; see [`crate::hub::resolve`].
    pub fn resolve(&self, kind: &'static str, name: &str) -> Result<PathBuf> {
        super::resolve_with(kind, name, |repo, needs| self.snapshot(repo, needs))
    }

    pub(crate) fn snapshot(&self, repo: &Repo, needs: Needs) -> Result<PathBuf> {
        snapshot::snapshot(&self.client, repo, needs)
    }

    /// Returns the names of all files in the repository `name`, an `owner/name` with an optional `@revision`.
    pub fn list_files(&self, kind: RepoKind, name: &str) -> Result<Vec<String>> {
        let repo = self.repo(kind, name)?;
        let info = self
            .client
            .info(&repo)
            .map_err(|failure| snapshot::explain(&repo, failure))?;
        Ok(info.files.into_iter().collect())
    }

    /// Returns the licence in the card of the model `name`.
    pub(crate) fn license(&self, name: &str) -> Result<Option<String>> {
        if self.settings().offline {
            return Ok(None);
        }
        let repo = self.repo(RepoKind::Model, name)?;
        let info = self
            .client
            .info(&repo)
            .map_err(|failure| snapshot::explain(&repo, failure))?;
        Ok(info.license)
    }

    /// Downloads the files called `paths` of the repository `name` into the cache and returns the folder that they are
    /// in, under these paths.
    ///
    /// # Errors
    /// When the repository, the revision or a file does not exist, or the Hub can't be reached and the cache lacks one.
    pub fn download(&self, kind: RepoKind, name: &str, paths: &[&str]) -> Result<PathBuf> {
        let repo = self.repo(kind, name)?;
        if let Some(unsafe_path) = paths.iter().find(|path| !is_safe_path(path)) {
            return Err(Error::argument(
                "paths",
                format!("{unsafe_path:?} is not a path inside a repository"),
            ));
        }
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        snapshot::download_paths(&self.client, &repo, &paths)
    }

    /// Returns where the cache keeps the repository `name` at its revision, if it has anything of it. Makes no request.
    pub fn cached(&self, kind: RepoKind, name: &str) -> Result<Option<PathBuf>> {
        let repo = self.repo(kind, name)?;
        Ok(RepoCache::new(&self.settings().cache_dir, &repo).find(repo.revision()))
    }

    fn repo(&self, kind: RepoKind, name: &str) -> Result<Repo> {
        Repo::parse(kind, name).map_err(|reason| Error::NotFound {
            kind: kind.singular(),
            name: name.to_owned(),
            message: format!("it {reason}"),
        })
    }

    /// Returns whose token is in use; see [`crate::hub::whoami`].
    pub fn whoami(&self) -> Result<Account> {
        login::whoami(&self.client)
    }

    /// Checks `token` and stores it for this and all later programs; see [`crate::hub::login`].
    pub fn login(&self, token: &str) -> Result<Account> {
        login::login(self.settings(), Token::new(token)?)
    }

    /// Forgets the stored token; see [`crate::hub::logout`].
    pub fn logout(&self) -> Result<()> {
        login::logout(self.settings())
    }

    /// Uploads a folder as one commit; see [`crate::hub::push_folder`].
    pub fn push_folder(
        &self,
        repo: &str,
        folder: impl AsRef<Path>,
        options: &PushOptions,
    ) -> Result<Pushed> {
        push::push_folder(
            &self.client,
            repo,
            folder.as_ref(),
            folder.as_ref(),
            options,
        )
    }
}
