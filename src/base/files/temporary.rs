//! Temporary files: each in its own hidden folder next to its final place.
//!
//! The folder is locked while the file is being made ([`Hidden`]), so files left by a killed process can be told from
//! those of a running one, and are removed when a file of that name is made the next time. A folder is used because
//! some writers replace the file under its name, and leave additional files next to it.

use std::fs::{File, Permissions};
use std::path::{Path, PathBuf};

use super::folder::{Hidden, sweep_folders, sync_folder};
use super::folder_of;
use crate::{Error, Result};

/// The length to which a file's name is cut in that of its hidden folder: a name has 255 bytes at most.
const NAME: usize = 200;

/// A file in the making, gone when dropped unless it was put into its place.
pub(crate) struct Temporary {
    path: PathBuf,
    permissions: Permissions,
    /// Whether the permissions hold whatever the file has that is replaced.
    private: bool,
    hidden: Hidden,
}

impl Temporary {
    /// Creates an empty file for `place`, and removes temporary files for it that killed processes left behind.
    pub(crate) fn beside(place: &Path) -> Result<Self> {
        let folder = folder_of(place);
        let name = place.file_name().ok_or_else(|| {
            let words = format!("{} is not a file name", place.display());
            Error::argument("path", words)
        })?;
        let text = name.to_string_lossy();
        let part = &text[..text.floor_char_boundary(NAME)];
        sweep_folders(folder, &format!(".{part}.new-"));
        let hidden = Hidden::create(folder, part)?;
        let path = hidden.path.join(name);
        let io = |error| Error::io("create", &path, error);
        let file = File::create(&path).map_err(io)?;
        let permissions = file.metadata().map_err(io)?.permissions();
        Ok(Self {
            path,
            permissions,
            private: false,
            hidden,
        })
    }

    /// Lets nobody but its owner read the file, now and in its place.
    #[cfg(feature = "hub")]
    pub(crate) fn keep_private(&mut self) -> std::io::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            self.permissions = Permissions::from_mode(0o600);
            std::fs::set_permissions(&self.path, self.permissions.clone())?;
        }
        self.private = true;
        Ok(())
    }

    /// Returns where it is made.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the file into its place, with the permissions of the file that it replaces. If that fails, the old file
    /// stays.
    pub(crate) fn put(self, place: &Path) -> std::io::Result<()> {
        let permissions = match std::fs::metadata(place) {
            Ok(old) if !self.private => old.permissions(),
            _ => self.permissions.clone(),
        };
        // Whoever wrote it may have made another file under the name, so what the name means now counts.
        File::open(&self.path)?.sync_all()?;
        std::fs::set_permissions(&self.path, permissions)?;
        std::fs::rename(&self.path, place)?;
        // The rename itself must survive a crash.
        sync_folder(folder_of(place));
        drop(self.hidden);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_killed_process_are_removed_and_those_of_a_running_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("rows.parquet");
        let litter = folder.path().join(".rows.parquet.new-abc123");
        std::fs::create_dir(&litter).unwrap();
        std::fs::write(litter.join("rows.parquet"), "half").unwrap();
        std::fs::write(litter.join(".tmpXYZ"), "a library's own").unwrap();
        let other = folder.path().join(".rows.csv.new-abc123");
        std::fs::create_dir(&other).unwrap();
        let first = Temporary::beside(&place).unwrap();
        assert!(!litter.exists() && other.exists());
        let second = Temporary::beside(&place).unwrap();
        assert!(first.path().exists() && second.path().exists());
        std::fs::write(first.path(), "first").unwrap();
        first.put(&place).unwrap();
        drop(second);
        assert_eq!(std::fs::read(&place).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_longest_possible_name_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x".repeat(255), "\u{e9}".repeat(127)] {
            let place = folder.path().join(name);
            Temporary::beside(&place).unwrap().put(&place).unwrap();
            assert!(place.is_file());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
