//! A file of lines in pieces that end with a line, read one after the other.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Enough to keep a core busy for a while, and little enough for some of them per core to fit memory.
pub(crate) const CHUNK: usize = 1 << 20;

/// Whole lines of a file.
pub(crate) struct Chunk {
    pub(crate) bytes: Vec<u8>,
    /// The number of the first line, counted from 1.
    pub(crate) first_line: usize,
}

/// The chunks of a file; a byte order mark at its start is left out.
pub(crate) struct LineChunks {
    file: File,
    path: PathBuf,
    /// What was read beyond the last whole line.
    rest: Vec<u8>,
    line: usize,
    done: bool,
}

impl LineChunks {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            file: File::open(path).map_err(|error| Error::io("read", path, error))?,
            path: path.to_owned(),
            rest: Vec::new(),
            line: 1,
            done: false,
        })
    }

    fn read(&mut self) -> std::io::Result<Option<Chunk>> {
        let at_start = self.line == 1;
        let mut bytes = std::mem::take(&mut self.rest);
        // The rest of a long line may have no end yet: read until there is one.
        let mut searched = 0;
        let end = loop {
            if let Some(end) = bytes[searched..].iter().rposition(|&byte| byte == b'\n') {
                break searched + end + 1;
            }
            if self.done {
                break bytes.len();
            }
            searched = bytes.len();
            let read = (&mut self.file)
                .take(CHUNK as u64)
                .read_to_end(&mut bytes)?;
            self.done = read < CHUNK;
        };
        self.rest = bytes.split_off(end);
        if bytes.is_empty() {
            return Ok(None);
        }
        let chunk = Chunk {
            first_line: self.line,
            bytes: match at_start && bytes.starts_with(b"\xef\xbb\xbf") {
                true => bytes.split_off(3),
                false => bytes,
            },
        };
        self.line += chunk.bytes.iter().filter(|&&byte| byte == b'\n').count();
        Ok(Some(chunk))
    }
}

impl Iterator for LineChunks {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read()
            .map_err(|error| Error::io("read", &self.path, error))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_whole_lines_and_know_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.txt");
        let long = "x".repeat(CHUNK + CHUNK / 2);
        let text = format!(
            "\u{feff}first\nsecond\n{long}\n{}last without an end",
            "short\n".repeat(1_000_000)
        );
        std::fs::write(&path, &text).unwrap();
        let mut whole = Vec::new();
        for chunk in LineChunks::open(&path).unwrap() {
            let chunk = chunk.unwrap();
            let before = whole.iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(chunk.first_line, before + 1);
            whole.extend(chunk.bytes);
        }
        assert_eq!(whole, text.as_bytes()[3..]);
        std::fs::write(&path, "").unwrap();
        assert_eq!(LineChunks::open(&path).unwrap().count(), 0);
    }
}
