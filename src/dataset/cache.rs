//! The cache of expensive results, keyed by everything that they depend on.

use std::fs::File;
use std::path::PathBuf;

use super::arrow_file::{self, Table};
use super::fingerprint::Fingerprint;
use crate::base::cache_dir::cache_dir;
use crate::distributed::environment;
use crate::{Error, Result};

/// Removes all cached results of datasets and returns how many bytes they took. Datasets that are in use stay intact.
pub fn clear_cache() -> Result<u64> {
    let folder = cache_dir().join("datasets");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Error::io("read", &folder, error)),
    };
    crate::base::files::sweep_folders(&folder, ".");
    let mut bytes = 0;
    for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
        bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        std::fs::remove_file(entry.path())
            .map_err(|error| Error::io("remove", entry.path(), error))?;
    }
    Ok(bytes)
}

/// The cache as one operation uses it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    off: bool,
    folder: Option<PathBuf>,
}

impl Cache {
    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.off = !enabled;
    }

    pub(crate) fn set_folder(&mut self, folder: PathBuf) {
        self.folder = Some(folder);
    }

    pub(crate) fn is_enabled(&self) -> bool {
        let forbidden = std::env::var_os("CLOZE_NO_CACHE")
            .is_some_and(|value| !value.is_empty() && value != "0");
        !self.off && !forbidden
    }

    /// Returns the folder for results and for what does not fit memory.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder
            .clone()
            .unwrap_or_else(cache_dir)
            .join("datasets")
    }

    /// Returns the file for the result known as `key`.
    pub(crate) fn path(&self, key: Fingerprint) -> PathBuf {
        self.folder().join(format!("{}.arrow", key.to_hex()))
    }

    /// Makes only one of several ranks compute the result with the key `key`: the others wait here until it is done,
    /// and then find it. Keep the returned guard until the result is in the cache. If the folder can't be locked, or
    /// the program was started alone, nobody waits.
    pub(crate) fn one_rank_at_a_time(&self, key: Fingerprint) -> Option<File> {
        if environment().size == 1 || !self.is_enabled() {
            return None;
        }
        let path = self.path(key).with_extension("lock");
        std::fs::create_dir_all(path.parent()?).ok()?;
        let file = File::create(path).ok()?;
        // It is unlocked when the file is closed, also when the program dies.
        file.lock().ok()?;
        Some(file)
    }

    /// Returns the result known as `key`, if there is one. A damaged file counts as none.
    pub(crate) fn find(&self, key: Fingerprint) -> Option<Table> {
        let path = self.path(key);
        if !self.is_enabled() || !path.exists() {
            return None;
        }
        match arrow_file::read(&path) {
            Ok(table) => Some(table),
            Err(error) => {
                tracing::warn!("a damaged file in the cache is ignored and made again: {error}");
                None
            }
        }
    }
}
