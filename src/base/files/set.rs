//! Files of one folder that belong together and are replaced together; other files in the folder are unchanged.
//!
//! All new files are first written into a hidden folder inside. Once they are complete and on disk, a marker is
//! written, which commits the change. The renames follow; after a crash between them, the next process that opens or
//! writes the folder completes them.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::folder::{Hidden, lock, sync_folder};
use super::{Destination, replace_atomically};
use crate::{Error, Result};

/// The hidden folder's name.
const NAME: &str = "saving";
/// Marks the hidden folder as complete, and names the files to remove, one per line.
const COMPLETE: &str = ".complete";
/// The same before it is written to its end.
const UNFINISHED: &str = ".unfinished";

/// Lets `write` write files into a folder, then moves all of them into `folder` (made if needed), over those of the same
/// names.
///
/// # Errors
/// An error of `write`, a full disk, or a folder in place of a file: the contents of `folder` are then unchanged.
pub fn replace_files(folder: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    replace_files_without(folder, &[], write)
}

/// Like [`replace_files`], and the files called `removed`, if they are there, go in the same step.
///
/// # Errors
/// Like [`replace_files`].
pub fn replace_files_without(
    folder: &Path,
    removed: &[&str],
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let io = |e| Error::io("write", folder, e);
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    finish_replacing(folder)?;
    super::folder::sweep_folders(folder, &format!(".{NAME}."));
    let mut staged = Hidden::create(folder, NAME)?;
    write(&staged.path)?;
    for entry in std::fs::read_dir(&staged.path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let target = folder.join(entry.file_name());
        let Ok(Destination::File(place)) = Destination::of(&target) else {
            return Err(Error::argument(
                "folder",
                format!(
                    "{} is not a regular file and is not overwritten",
                    target.display()
                ),
            ));
        };
        if let Ok(old) = place.metadata() {
            std::fs::set_permissions(entry.path(), old.permissions()).map_err(io)?;
        }
        let file = std::fs::File::open(entry.path()).map_err(io)?;
        file.sync_all().map_err(io)?;
    }
    let mut marker = std::fs::File::create(staged.path.join(UNFINISHED)).map_err(io)?;
    marker
        .write_all(removed.join("\n").as_bytes())
        .and_then(|()| marker.sync_all())
        .and_then(|()| std::fs::rename(staged.path.join(UNFINISHED), staged.path.join(COMPLETE)))
        .map_err(io)?;
    sync_folder(&staged.path);
    // Decided: whatever comes now, the new files are the ones that count.
    staged.has_left = true;
    move_all(&staged.path, folder)
}

/// Carries out the renames that a crash has left to do in `folder`; nothing happens where there are none.
pub fn finish_replacing(folder: &Path) -> Result<()> {
    let prefix = format!(".{NAME}.new-");
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    let staged: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .filter(|path| path.join(COMPLETE).is_file())
        .collect();
    for path in staged {
        // A living process is just doing it: its renames take no time.
        for _ in 0..50 {
            match lock(&path) {
                Ok(_lock) => {
                    move_all(&path, folder)?;
                    break;
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => break,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
    }
    Ok(())
}

fn move_all(staged: &Path, folder: &Path) -> Result<()> {
    let io = |e| Error::io("write", folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(staged).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if name != COMPLETE {
            names.push(name);
        }
    }
    for name in names {
        let (from, target) = (staged.join(&name), folder.join(&name));
        match Destination::of(&target)? {
            Destination::File(place) if place == target => {
                std::fs::rename(from, target).map_err(io)?;
            }
            // Where a link leads may be another disk, to which nothing can be renamed.
            _ => {
                replace_atomically(&target, |temporary| {
                    std::fs::copy(&from, temporary).map(drop).map_err(io)
                })?;
                std::fs::remove_file(from).map_err(io)?;
            }
        }
    }
    let removed = std::fs::read_to_string(staged.join(COMPLETE)).map_err(io)?;
    for name in removed.lines() {
        match std::fs::remove_file(folder.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
            _ => {}
        }
    }
    sync_folder(folder);
    // Only when all is done may the marker go.
    std::fs::remove_dir_all(staged).map_err(io)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(text: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |folder| {
            for name in ["a", "b"] {
                std::fs::write(folder.join(name), text).unwrap();
            }
            Ok(())
        }
    }

    fn read(folder: &Path) -> [String; 2] {
        ["a", "b"].map(|name| std::fs::read_to_string(folder.join(name)).unwrap())
    }

    #[test]
    fn a_failure_at_any_file_keeps_all_old_files_and_their_neighbours() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("model");
        replace_files(&folder, pair("old")).unwrap();
        std::fs::write(folder.join("README.md"), "mine").unwrap();
        let failed = replace_files(&folder, |staged| {
            std::fs::write(staged.join("a"), "new").unwrap();
            Err(Error::Dataset("the disk is full".to_owned()))
        });
        assert!(failed.is_err());
        assert_eq!(read(&folder), ["old", "old"]);
        replace_files(&folder, pair("new")).unwrap();
        assert_eq!(read(&folder), ["new", "new"]);
        assert!(folder.join("README.md").exists());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
    }

    #[test]
    fn a_committed_write_is_finished_after_a_crash_and_an_uncommitted_one_dropped() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path();
        pair("old")(folder).unwrap();
        let staged = folder.join(".saving.new-x1y2z3");
        std::fs::create_dir(&staged).unwrap();
        pair("new")(&staged).unwrap();
        finish_replacing(folder).unwrap();
        assert_eq!(read(folder), ["old", "old"], "no marker, no change");
        // The crash came between the two renames.
        std::fs::write(staged.join(COMPLETE), "gone\nnever there").unwrap();
        std::fs::write(folder.join("gone"), "").unwrap();
        std::fs::rename(staged.join("a"), folder.join("a")).unwrap();
        assert_eq!(read(folder), ["new", "old"]);
        finish_replacing(folder).unwrap();
        assert_eq!(read(folder), ["new", "new"]);
        assert!(!staged.exists() && !folder.join("gone").exists());
        std::fs::create_dir(&staged).unwrap();
        pair("half")(&staged).unwrap();
        std::fs::write(folder.join("other"), "").unwrap();
        replace_files_without(folder, &["other", "absent"], pair("newest")).unwrap();
        assert_eq!(read(folder), ["newest", "newest"]);
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn the_target_of_a_link_is_written() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("model");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(home.path().join("far"), "old").unwrap();
        std::os::unix::fs::symlink("../far", folder.join("b")).unwrap();
        replace_files(&folder, pair("new")).unwrap();
        assert!(folder.join("b").is_symlink());
        assert_eq!(std::fs::read(home.path().join("far")).unwrap(), b"new");
        assert_eq!(read(&folder), ["new", "new"]);
    }

    #[test]
    fn a_folder_in_place_of_a_file_is_kept() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("b")).unwrap();
        std::fs::write(home.path().join("a"), "old").unwrap();
        let error = replace_files(home.path(), pair("new")).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        assert_eq!(
            std::fs::read_to_string(home.path().join("a")).unwrap(),
            "old"
        );
    }
}
