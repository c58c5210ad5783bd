//! The preludes in the cache: tracks which are in use, and removes old ones.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::{Error, Result};

/// The prefix of a prelude's folder.
pub const PREFIX: &str = "prelude-";
/// The prefix of folders that are being filled or removed.
pub const UNFINISHED: &str = "unfinished-";
/// The number of preludes kept for each set of features: another checkout, or an older revision, may still need one.
const KEPT: usize = 3;

/// In a prelude's folder: locked while it is in use, and touched whenever a session starts to use it.
const IN_USE: &str = "in-use";
/// In a prelude's folder: the features that it was built with.
const FEATURES: &str = "features";

/// Keeps a prelude from being removed until this is dropped.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "held, not read")] File);

/// Takes hold of the prelude in `folder`; `None` if there is none.
pub fn take(folder: &Path) -> Result<Option<Hold>> {
    if !folder.exists() {
        return Ok(None);
    }
    let Ok(mark) = open_mark(folder) else {
        return Ok(None);
    };
    mark.lock_shared().map_err(Error::file(folder))?;
    // It may have been removed in between.
    if !folder.join(IN_USE).exists() {
        return Ok(None);
    }
    let _ = mark.set_modified(SystemTime::now());
    Ok(Some(Hold(mark)))
}

/// Records what the prelude in `folder` was built with.
pub fn label(folder: &Path, features: &[String]) -> Result<()> {
    let path = folder.join(FEATURES);
    fs::write(&path, features.join(",")).map_err(Error::file(&path))
}

/// A prelude in the cache.
#[derive(Clone, Debug)]
pub struct Cached {
    pub folder: PathBuf,
    pub in_use: bool,
    features: String,
    last_used: SystemTime,
}

/// Returns all preludes in the cache, the most recently used first.
pub fn list(cache: &Path) -> Vec<Cached> {
    let mut all: Vec<Cached> = folders(cache, PREFIX)
        .map(|folder| {
            let mark = open_mark(&folder);
            let modified = mark
                .as_ref()
                .ok()
                .and_then(|mark| mark.metadata().ok()?.modified().ok());
            Cached {
                in_use: mark.is_ok_and(|mark| mark.try_lock().is_err()),
                features: fs::read_to_string(folder.join(FEATURES)).unwrap_or_default(),
                last_used: modified.unwrap_or(SystemTime::UNIX_EPOCH),
                folder,
            }
        })
        .collect();
    all.sort_by_key(|cached| std::cmp::Reverse(cached.last_used));
    all
}

/// Removes unused preludes, except for the most recent of each set of features, and the remains of interrupted builds.
/// The caller must hold the lock for builds.
pub fn prune(cache: &Path) {
    let unfinished = folders(cache, UNFINISHED);
    unfinished.for_each(|folder| drop(fs::remove_dir_all(folder)));
    let all = list(cache);
    for (at, old) in all.iter().enumerate() {
        let newer = all[..at]
            .iter()
            .filter(|newer| newer.features == old.features);
        if newer.count() < KEPT {
            continue;
        }
        // A session that wants it at this moment waits for the lock, and then finds that it is gone.
        let Ok(mark) = open_mark(&old.folder) else {
            continue;
        };
        let name = old.folder.file_name().unwrap_or_default();
        let gone = cache.join(format!("{UNFINISHED}{}", name.display()));
        if mark.try_lock().is_ok() && fs::rename(&old.folder, &gone).is_ok() {
            let _ = fs::remove_dir_all(gone);
        }
    }
}

fn open_mark(folder: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join(IN_USE))
}

fn folders<'a>(cache: &Path, prefix: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    entries
        .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Makes a prelude with these features that was last used this many days ago.
    fn keep(cache: &Path, name: &str, features: &str, days: u64) -> PathBuf {
        let folder = cache.join(format!("{PREFIX}{name}"));
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("library"), name).expect("written");
        let features: Vec<String> = features.split_terminator(',').map(Into::into).collect();
        label(&folder, &features).expect("labelled");
        let then = SystemTime::now() - Duration::from_secs(days * 86_400);
        let mark = open_mark(&folder).expect("marked");
        mark.set_modified(then).expect("dated");
        folder
    }

    fn names(cache: &Path) -> Vec<String> {
        let mut names: Vec<String> = list(cache)
            .iter()
            .filter_map(|cached| cached.folder.file_name()?.to_str()?.strip_prefix(PREFIX))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    #[test]
    fn recent_and_used_preludes_are_kept() {
        let cache = tempfile::tempdir().expect("a folder");
        let cache = cache.path();
        for days in 0..6 {
            keep(cache, &format!("plain{days}"), "", days);
        }
        keep(cache, "cuda", "cuda", 100);
        let held = keep(cache, "held", "", 200);
        fs::create_dir(cache.join(format!("{UNFINISHED}x"))).expect("made");
        fs::create_dir(cache.join("sessions")).expect("made");
        let hold = take(&held).expect("taken").expect("there");
        // Taking a prelude counts as using it, so another one is the oldest now.
        let mark = open_mark(&held).expect("marked");
        mark.set_modified(SystemTime::UNIX_EPOCH).expect("dated");
        prune(cache);
        assert_eq!(names(cache), ["cuda", "held", "plain0", "plain1", "plain2"]);
        assert!(!cache.join(format!("{UNFINISHED}x")).exists());
        assert!(cache.join("sessions").exists());
        drop(hold);
        prune(cache);
        assert_eq!(names(cache), ["cuda", "plain0", "plain1", "plain2"]);
    }

    #[test]
    fn using_a_prelude_makes_it_recent() {
        let cache = tempfile::tempdir().expect("a folder");
        let cache = cache.path();
        let old = keep(cache, "old", "", 300);
        for days in 1..4 {
            keep(cache, &format!("plain{days}"), "", days);
        }
        drop(take(&old).expect("taken").expect("there"));
        prune(cache);
        assert_eq!(names(cache), ["old", "plain1", "plain2"]);
    }

    #[test]
    fn a_missing_prelude_cannot_be_taken() {
        let cache = tempfile::tempdir().expect("a folder");
        assert!(
            take(&cache.path().join("prelude-x"))
                .expect("looked")
                .is_none()
        );
        assert!(list(cache.path()).is_empty());
    }
}
