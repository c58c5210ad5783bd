//! The preludes in the cache: which of them are in use, and which have had their time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::{Error, Result};

/// How the folder of a prelude begins.
pub const PREFIX: &str = "prelude-";
/// How folders begin that are being filled or removed.
pub const UNFINISHED: &str = "unfinished-";
/// So many of each set of features stay: one may still be wanted by another checkout, or after a step back.
const KEPT: usize = 3;

/// In a prelude's folder: locked by who uses it, and last written to when somebody began to.
const IN_USE: &str = "in-use";
/// In a prelude's folder: the features that it was built with.
const FEATURES: &str = "features";

/// A prelude that is not removed as long as this lives.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "held, not read")] File);

/// Holds on to the prelude in `folder`; `None` if there is none.
pub fn take(folder: &Path) -> Result<Option<Hold>> {
    if !folder.exists() {
        return Ok(None);
    }
    let Ok(mark) = open_mark(folder) else {
        return Ok(None);
    };
    mark.lock_shared().map_err(Error::file(folder))?;
    // It may have been removed between the two.
    if !folder.join(IN_USE).exists() {
        return Ok(None);
    }
    let _ = mark.set_modified(SystemTime::now());
    Ok(Some(Hold(mark)))
}

/// Writes down what the prelude in `folder` was built with.
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

/// All preludes in the cache, those that were used last first.
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

/// Removes the preludes that nobody uses, but for the last few of each set of features, and what builds that broke off
/// have left. Called by who holds the lock of the builds.
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
        // Who wants it at this very moment waits for the lock, and then finds that it is gone.
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

    /// A prelude of these features that was last used so many days ago.
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
    fn the_last_of_each_set_of_features_and_those_in_use_stay() {
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
        // Whoever takes one uses it: another is the oldest now.
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
    fn what_is_used_again_counts_as_new() {
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
    fn there_is_nothing_to_take_where_no_prelude_is() {
        let cache = tempfile::tempdir().expect("a folder");
        assert!(
            take(&cache.path().join("prelude-x"))
                .expect("looked")
                .is_none()
        );
        assert!(list(cache.path()).is_empty());
    }
}
