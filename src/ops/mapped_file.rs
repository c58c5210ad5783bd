//! A read-only file mapped into memory.

use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// The bytes of a file, mapped rather than read: pages arrive when they are touched and are shared between processes.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
        // SAFETY: the map is read-only and private to this value. Weight and cache files are written under another name
        // and renamed into place, never changed afterwards; a foreign program that shortens a file while it is mapped
        // would end this process with SIGBUS, which is the accepted contract of every reader of mapped weights.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(Self { map })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_equals_the_file() {
        let path = std::env::temp_dir().join(format!("cloze-mapped-{}", std::process::id()));
        std::fs::write(&path, b"words").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"words");
        std::fs::remove_file(&path).unwrap();
        let error = MappedFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("could not read"), "{error}");
    }
}
