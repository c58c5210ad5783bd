//! Git LFS pointers: the few lines in a repository in place of a large file that was not fetched.

use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// How every pointer begins.
const START: &[u8] = b"version https://git-lfs";

/// Returns whether the file at `path` is a pointer to a large file, and not that file.
pub fn is_lfs_pointer(path: &Path) -> bool {
    let mut start = [0; START.len()];
    std::fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok())
        && start == START
}

/// Refuses a pointer by that name, before a reader calls it damaged.
pub fn refuse_lfs_pointer(path: &Path) -> Result<()> {
    match is_lfs_pointer(path) {
        false => Ok(()),
        true => Err(refused(path)),
    }
}

/// Returns the content of the file at `path`, which must not be a pointer.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let content = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    match content.starts_with(START) {
        false => Ok(content),
        true => Err(refused(path)),
    }
}

fn refused(path: &Path) -> Error {
    Error::format(
        path,
        "this is a Git LFS pointer and not the file itself: the repository was cloned without its large files. Run \
         `git lfs pull` there, or give the name on the Hub, whose files are then downloaded",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_distinguished_from_short_and_missing_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        assert!(!is_lfs_pointer(&path));
        std::fs::write(&path, "version").unwrap();
        assert!(refuse_lfs_pointer(&path).is_ok());
        let pointer = "version https://git-lfs.example/spec/v1\noid sha256:00\nsize 12345\n";
        std::fs::write(&path, pointer).unwrap();
        let error = refuse_lfs_pointer(&path).unwrap_err().to_string();
        assert!(
            error.contains("model.safetensors: this is a Git LFS pointer"),
            "{error}"
        );
        assert_eq!(read(&path).unwrap_err().to_string(), error);
    }
}
