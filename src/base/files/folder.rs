//! Folders that appear whole or not at all, are replaced in one step, and go in one step.
//!
//! A folder is filled next to its final place under a hidden name, and then exchanged with the existing one. Hidden
//! names tell their purpose: `.NAME.new-XXXXXX` is being filled, `.NAME.old-XXXXXX` is the previous folder,
//! `.NAME.gone-XXXXXX` is being removed. The process that fills a folder holds a lock on it, which the system releases
//! when the process dies: an unlocked folder was left by a killed process and may be removed.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Lets `write` fill a new folder, then makes it the folder `path` in one step; what stood there before goes after that.
///
/// If anything fails, the content of `path` is unchanged. A crash leaves the old or the new folder; on file systems
/// that cannot exchange two names, [`recover_folder`] restores a folder that a crash between two renames left under a
/// hidden name.
pub fn replace_folder(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let io = |e| Error::io("write", path, e);
    // Through a link, the folder that it leads to is replaced and not the link.
    let target = match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => path.canonicalize().map_err(io)?,
        _ => path.to_path_buf(),
    };
    let (parent, name) = place(&target)?;
    std::fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    recover_folder(&target);
    sweep_folders(parent, &format!(".{name}."));
    let mut new = Hidden::create(parent, &name)?;
    write(&new.path)?;
    if let Ok(old) = target.metadata() {
        std::fs::set_permissions(&new.path, old.permissions()).map_err(io)?;
    }
    sync_tree(&new.path).map_err(io)?;
    if target.symlink_metadata().is_err() {
        std::fs::rename(&new.path, &target).map_err(io)?;
        new.has_left = true;
    } else if exchange(&new.path, &target).is_ok() {
        // The hidden name now means the old folder.
        new.remove();
    } else {
        let old = new.sibling("old");
        std::fs::rename(&target, &old).map_err(io)?;
        if let Err(error) = std::fs::rename(&new.path, &target) {
            // What was there comes back; if even that fails, both stay for recovery.
            new.has_left = std::fs::rename(&old, &target).is_err();
            return Err(io(error));
        }
        new.has_left = true;
        let _ = std::fs::remove_dir_all(&old);
    }
    sync_folder(parent);
    Ok(())
}

/// Puts a folder back that a crash in the middle of [`replace_folder`] left under hidden names; without such names, or
/// if there is something at `path`, nothing happens.
pub fn recover_folder(path: &Path) {
    if path.symlink_metadata().is_ok() {
        return;
    }
    let Ok((parent, name)) = place(path) else {
        return;
    };
    let prefix = format!(".{name}.old-");
    for (found, old) in hidden_in(parent, &prefix) {
        // The old folder was moved away only when the new one was complete.
        let new = parent.join(format!(".{name}.new-{}", &found[prefix.len()..]));
        if std::fs::rename(new, path).is_ok() || std::fs::rename(old, path).is_ok() {
            sync_folder(parent);
            return;
        }
    }
}

/// Removes the folder `path`: it is gone at once, and its files after that.
pub fn remove_folder(path: &Path) -> std::io::Result<()> {
    let Ok((parent, name)) = place(path) else {
        return std::fs::remove_dir_all(path);
    };
    let gone = tempfile::Builder::new()
        .prefix(&format!(".{name}.gone-"))
        .make_in(parent, |gone| std::fs::rename(path, gone))?;
    // It is a folder, so it is removed as one.
    let ((), gone) = gone.keep().map_err(|e| e.error)?;
    sync_folder(parent);
    std::fs::remove_dir_all(gone)
}

/// Removes the hidden folders in `parent` whose names begin with `prefix` and that no process holds: killed runs left
/// them. Folders that [`recover_folder`] needs are put back before.
pub fn sweep_folders(parent: &Path, prefix: &str) {
    for (name, _) in hidden_in(parent, prefix) {
        if let Some(at) = name.find(".old-") {
            recover_folder(&parent.join(&name[1..at]));
        }
    }
    for (_, path) in hidden_in(parent, prefix) {
        // Held while it is removed, so that nobody takes it for theirs.
        if let Ok(Some(_lock)) = lock(&path) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Returns whether a name is one that this module gives: `.NAME.new-XXXXXX`, `.NAME.old-XXXXXX`, `.NAME.gone-XXXXXX`.
fn is_hidden_name(name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(before, letters)| {
        letters.len() == 6
            && letters.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && [".new", ".old", ".gone"]
                .iter()
                .any(|purpose| before.ends_with(purpose))
    })
}

/// Returns the folders in `parent` whose names begin with `prefix`, which begins with a dot; where it is no more than that dot,
/// those that have names of this module's.
fn hidden_in(parent: &Path, prefix: &str) -> Vec<(String, PathBuf)> {
    debug_assert!(prefix.starts_with('.'));
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| name.starts_with(prefix) && (prefix != "." || is_hidden_name(name)))
        .collect()
}

/// A folder in the making under a hidden name, locked, and removed unless it has left that name.
pub(crate) struct Hidden {
    pub(crate) path: PathBuf,
    pub(super) has_left: bool,
    _lock: Option<File>,
}

impl Hidden {
    /// Creates the folder `.NAME.new-XXXXXX` in `parent`.
    pub(crate) fn create(parent: &Path, name: &str) -> Result<Self> {
        let io = |e| Error::io("create", parent, e);
        loop {
            let prefix = format!(".{name}.new-");
            let mut builder = tempfile::Builder::new();
            builder.prefix(&prefix);
            // By themselves temporary folders are their owner's only; this one is to be a folder like any other.
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
            let path = builder.tempdir_in(parent).map_err(io)?.keep();
            match lock(&path) {
                // A process that sweeps took the folder for a left-over before it was locked.
                Err(_) => continue,
                Ok(Some(_)) if !path.is_dir() => continue,
                Ok(lock) => {
                    return Ok(Self {
                        path,
                        has_left: false,
                        _lock: lock,
                    });
                }
            }
        }
    }

    /// Returns the hidden name for another purpose, with the same random letters.
    fn sibling(&self, purpose: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let other = name.replacen(".new-", &format!(".{purpose}-"), 1);
        self.path.with_file_name(other)
    }

    fn remove(&mut self) {
        self.has_left = true;
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if !self.has_left {
            self.remove();
        }
    }
}

/// Locks a folder; `None` where the system can't lock folders.
///
/// # Errors
/// When another process holds it, or it is gone.
pub(super) fn lock(path: &Path) -> std::io::Result<Option<File>> {
    let folder = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(e),
        Err(_) => return Ok(None),
        Ok(folder) => folder,
    };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Returns the parent of a folder, and its name.
fn place(path: &Path) -> Result<(&Path, String)> {
    let name = path.file_name().ok_or_else(|| {
        Error::argument(
            "folder",
            format!(
                "{} does not end with a name; give the name of the folder",
                path.display()
            ),
        )
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((parent, name.to_string_lossy().into_owned()))
}

/// Lets two names change places in one step.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Brings a folder with all its files to the disk.
fn sync_tree(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => sync_tree(&entry.path())?,
            kind if kind.is_file() => File::open(entry.path())?.sync_all()?,
            _ => {}
        }
    }
    sync_folder(folder);
    Ok(())
}

/// Not every file system lets a folder be synced.
pub(super) fn sync_folder(path: &Path) {
    if let Ok(folder) = File::open(path) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |folder| {
            std::fs::create_dir(folder.join("deep")).unwrap();
            std::fs::write(folder.join("deep/file"), text).unwrap();
            Ok(())
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_replaced_atomically_and_kept_on_failure() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("there/it");
        replace_folder(&path, fill("old")).unwrap();
        let failed = replace_folder(&path, |folder| {
            fill("half")(folder)?;
            Err(Error::Dataset("stopped".to_owned()))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(path.join("deep/file")).unwrap(), b"old");
        replace_folder(&path, fill("new")).unwrap();
        assert_eq!(std::fs::read(path.join("deep/file")).unwrap(), b"new");
        assert_eq!(names(path.parent().unwrap()), ["it"]);
    }

    #[cfg(unix)]
    #[test]
    fn the_target_of_a_link_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let real = home.path().join("real");
        replace_folder(&real, fill("old")).unwrap();
        let link = home.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        replace_folder(&link, fill("new")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(real.join("deep/file")).unwrap(), b"new");
    }

    #[test]
    fn a_crash_between_two_renames_is_repaired() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("it");
        for (left, expected) in [
            (vec![("old", "old"), ("new", "new")], "new"),
            (vec![("old", "old")], "old"),
        ] {
            for (purpose, text) in left {
                let hidden = home.path().join(format!(".it.{purpose}-abc123"));
                std::fs::create_dir(&hidden).unwrap();
                fill(text)(&hidden).unwrap();
            }
            recover_folder(&path);
            assert_eq!(
                std::fs::read_to_string(path.join("deep/file")).unwrap(),
                expected
            );
            sweep_folders(home.path(), ".it.");
            assert_eq!(names(home.path()), ["it"]);
            remove_folder(&path).unwrap();
        }
        // Half-filled and half-removed folders are none to come back.
        std::fs::create_dir(home.path().join(".it.new-abc123")).unwrap();
        std::fs::create_dir(home.path().join(".it.gone-abc123")).unwrap();
        recover_folder(&path);
        assert!(!path.exists());
        sweep_folders(home.path(), ".it.");
        assert!(names(home.path()).is_empty());
    }

    #[test]
    fn unrelated_hidden_folders_are_not_removed() {
        let home = tempfile::tempdir().unwrap();
        for name in [
            ".git",
            ".new-abc",
            ".it.new-abc",
            ".it.new-abcd.f",
            ".it.new-abc123",
        ] {
            std::fs::create_dir(home.path().join(name)).unwrap();
        }
        sweep_folders(home.path(), ".");
        assert_eq!(
            names(home.path()),
            [".git", ".it.new-abc", ".it.new-abcd.f", ".new-abc"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn folders_of_a_running_process_are_not_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("it");
        replace_folder(&path, |folder| {
            std::fs::write(folder.join("file"), "x").unwrap();
            sweep_folders(home.path(), ".it.");
            assert!(folder.join("file").exists());
            Ok(())
        })
        .unwrap();
        assert!(path.join("file").exists());
    }
}
