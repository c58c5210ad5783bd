//! A file of lines in pieces that end with a line, read one after the other.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use encoding_rs::Encoding;

use super::source::{self, Source};
use crate::{Error, Result};

/// Enough to keep a core busy for a while, and little enough for some of them per core to fit memory.
pub(crate) const CHUNK: usize = 1 << 20;

/// Whole lines of a file.
pub(crate) struct Chunk {
    pub(crate) bytes: Vec<u8>,
    /// The number of the first line, counted from 1.
    pub(crate) first_line: usize,
}

/// The chunks of a file. Lines may end in `\n`, `\r\n` or `\r`; in the chunks all of them end in `\n`.
pub(crate) struct LineChunks {
    source: Source,
    path: PathBuf,
    /// The bytes read beyond the last whole line.
    rest: Vec<u8>,
    line: usize,
    done: bool,
    /// Whether the bytes read last ended in a carriage return, which a line feed may follow.
    after_return: bool,
}

impl LineChunks {
    pub(crate) fn open(path: &Path, encoding: Option<&'static Encoding>) -> Result<Self> {
        Ok(Self::of(source::open(path, encoding)?, path))
    }

    /// Opens the lines of a plain file that begin within `bytes`; their numbers count from 1.
    pub(crate) fn open_within(path: &Path, bytes: Range<u64>) -> Result<Self> {
        Ok(Self::of(source::open_within(path, bytes)?, path))
    }

    fn of(source: Source, path: &Path) -> Self {
        Self {
            source,
            path: path.to_owned(),
            rest: Vec::new(),
            line: 1,
            done: false,
            after_return: false,
        }
    }

    fn read(&mut self) -> std::io::Result<Option<Chunk>> {
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
            let read = (&mut self.source)
                .take(CHUNK as u64)
                .read_to_end(&mut bytes)?;
            self.done = read < CHUNK;
            self.plain_ends(&mut bytes, searched);
        };
        self.rest = bytes.split_off(end);
        if bytes.is_empty() {
            return Ok(None);
        }
        let chunk = Chunk {
            first_line: self.line,
            bytes,
        };
        self.line += memchr::memchr_iter(b'\n', &chunk.bytes).count();
        Ok(Some(chunk))
    }

    /// Turns every line ending from `from` on into a line feed.
    fn plain_ends(&mut self, bytes: &mut Vec<u8>, from: usize) {
        if self.after_return && bytes.get(from) == Some(&b'\n') {
            bytes.remove(from);
            self.after_return = false;
        }
        if bytes.len() > from {
            self.after_return = bytes.ends_with(b"\r");
        }
        let Some(first) = memchr::memchr(b'\r', &bytes[from..]) else {
            return;
        };
        let (mut to, mut before) = (from + first, 0);
        for at in from + first..bytes.len() {
            let byte = bytes[at];
            // The return before a line feed has become the end of the line already.
            if (before, byte) != (b'\r', b'\n') {
                bytes[to] = if byte == b'\r' { b'\n' } else { byte };
                to += 1;
            }
            before = byte;
        }
        bytes.truncate(to);
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
    fn every_line_is_in_exactly_one_part() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.txt");
        let long = "x".repeat(50);
        for text in [
            format!("a\nbb\n\n{long}\nccc\n\n\nd\n"),
            format!("{long}\n{long}"),
            "one\r\ntwo\r\n".to_owned(),
            "no end at all".to_owned(),
        ] {
            std::fs::write(&path, &text).unwrap();
            let whole: Vec<u8> = LineChunks::open(&path, None)
                .unwrap()
                .flat_map(|chunk| chunk.unwrap().bytes)
                .collect();
            let size = text.len() as u64;
            for parts in 1..=size + 3 {
                let part = |number: u64| {
                    let bytes = size * number / parts..size * (number + 1) / parts;
                    LineChunks::open_within(&path, bytes).unwrap()
                };
                let joined = (0..parts).flat_map(part);
                let joined: Vec<u8> = joined.flat_map(|chunk| chunk.unwrap().bytes).collect();
                assert_eq!(joined, whole, "{parts} parts of {text:?}");
            }
        }
    }

    #[test]
    fn chunks_contain_whole_lines_with_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.txt");
        let long = "x".repeat(CHUNK + CHUNK / 2);
        let text = format!(
            "\u{feff}first\nsecond\n{long}\n{}last without an end",
            "short\n".repeat(1_000_000)
        );
        std::fs::write(&path, &text).unwrap();
        let mut whole = Vec::new();
        for chunk in LineChunks::open(&path, None).unwrap() {
            let chunk = chunk.unwrap();
            let before = whole.iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(chunk.first_line, before + 1);
            whole.extend(chunk.bytes);
        }
        assert_eq!(whole, text.as_bytes()[3..]);
        for (text, expected) in [
            ("one\rtwo\rthree", "one\ntwo\nthree"),
            ("one\r\r\ntwo\r\n", "one\n\ntwo\n"),
            ("\r\n\n\r", "\n\n\n"),
        ] {
            // Also where a block ends between the two.
            for fill in [0, CHUNK - 1, CHUNK - 4, CHUNK - 5] {
                let fill = "x".repeat(fill);
                std::fs::write(&path, format!("{fill}{text}")).unwrap();
                let chunks = LineChunks::open(&path, None).unwrap();
                let whole: Vec<u8> = chunks.flat_map(|chunk| chunk.unwrap().bytes).collect();
                assert!(
                    whole == format!("{fill}{expected}").into_bytes(),
                    "{text:?}"
                );
            }
        }
        std::fs::write(&path, "").unwrap();
        assert_eq!(LineChunks::open(&path, None).unwrap().count(), 0);
    }
}
