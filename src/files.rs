//! Writing files so that a reader never sees half of one.

use std::path::Path;

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Writes `bytes` to `path`: complete, or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_atomically(path, |temporary| {
        std::fs::write(temporary, bytes).map_err(|e| Error::io("write", path, e))
    })
}

/// Lets `write` fill a temporary file beside `path`, then syncs it and renames it into place.
///
/// When anything fails, what was at `path` before stays and the temporary file is removed.
pub fn replace_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let io = |e| Error::io("write", path, e);
    let temporary = NamedTempFile::new_in(folder).map_err(io)?;
    write(temporary.path())?;
    // `write` may have replaced the file behind the name, so sync what the name now means.
    let written = std::fs::File::open(temporary.path()).map_err(io)?;
    written.sync_all().map_err(io)?;
    set_usual_permissions(temporary.path()).map_err(io)?;
    temporary.persist(path).map_err(|e| io(e.error))?;
    // The rename itself must survive a crash; not every file system lets a folder be synced.
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Temporary files are private to their owner; a finished one is readable like any other.
#[cfg(unix)]
fn set_usual_permissions(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_usual_permissions(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_atomically(&path, b"old").unwrap();
        let failed = replace_atomically(&path, |temporary| {
            std::fs::write(temporary, b"half").unwrap();
            Err(Error::Dataset("stopped".to_owned()))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
