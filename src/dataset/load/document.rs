//! JSON documents: one value that holds all records.

use std::io::Read;
use std::ops::Range;
use std::path::Path;

use super::chunks::CHUNK;
use super::{Options, source, special};
use crate::{Error, Result};

/// Objects, one after the other.
pub(super) struct Records {
    pub(super) bytes: Vec<u8>,
    /// Where each object lies in `bytes`, and its line in the file.
    pub(super) places: Vec<(Range<usize>, usize)>,
    pub(super) file_bytes: usize,
}

pub(super) fn records(path: &Path, options: &Options) -> Result<Vec<Records>> {
    let mut bytes = Vec::new();
    source::open(path, options.encoding)?
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", path, error))?;
    let start = 0;
    let mut scanner = Scanner {
        bytes: &bytes,
        at: start,
    };
    let malformed = |at: usize, message: String| Error::Format {
        path: path.to_owned(),
        line: Some(line_of(&bytes, at)),
        message,
    };
    let broken = |at: usize| {
        // The scanner only looks for ends; serde says what is wrong.
        match serde_json::from_slice::<serde::de::IgnoredAny>(&special::as_numbers(&bytes)) {
            Err(error) => Error::Format {
                path: path.to_owned(),
                line: Some(error.line()),
                message: format!("malformed JSON: {error}"),
            },
            Ok(_) => malformed(at, "malformed JSON".to_owned()),
        }
    };
    scanner.skip_space();
    let elements = match (scanner.peek(), &options.field) {
        (Some(b'['), None) => scanner.array().ok_or_else(|| broken(start))?,
        (Some(b'['), Some(field)) => {
            let message = format!(
                "the field {field:?} was asked for, but the file is an array and not an object"
            );
            return Err(malformed(start, message));
        }
        _ => {
            let object = scanner.at;
            let fields = scanner.object().ok_or_else(|| broken(object))?;
            let names = || {
                fields
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let arrays = |(_, range): &&(String, Range<usize>)| {
                let inner = bytes[range.clone()]
                    .strip_prefix(b"[")
                    .map(<[u8]>::trim_ascii_start);
                inner.is_some_and(|inner| inner.starts_with(b"{"))
            };
            let chosen = match &options.field {
                Some(field) => Some(fields.iter().find(|(name, _)| name == field).ok_or_else(
                    || {
                        malformed(
                            object,
                            format!("there is no field {field:?}; the fields are {}", names()),
                        )
                    },
                )?),
                None => match fields.iter().filter(arrays).collect::<Vec<_>>()[..] {
                    [] => None,
                    [only] => Some(only),
                    _ => {
                        let message = format!(
                            "the object has several fields with records ({}); choose one with Loader::field",
                            fields
                                .iter()
                                .filter(arrays)
                                .map(|(name, _)| name.as_str())
                                .collect::<Vec<_>>()
                                .join(", ")
                        );
                        return Err(malformed(object, message));
                    }
                },
            };
            let end = scanner.at;
            match chosen {
                // A record written over several lines; more of them may follow.
                None => {
                    let mut elements: Vec<_> = std::iter::once(object..end).collect();
                    scanner.skip_space();
                    while scanner.peek().is_some() {
                        let from = scanner.at;
                        scanner.object().ok_or_else(|| broken(from))?;
                        elements.push(from..scanner.at);
                        scanner.skip_space();
                    }
                    elements
                }
                Some((_, range)) if bytes[range.start] == b'[' => {
                    let mut inner = Scanner {
                        bytes: &bytes,
                        at: range.start,
                    };
                    inner.array().ok_or_else(|| broken(range.start))?
                }
                Some((_, range)) => Vec::from([range.clone()]),
            }
        }
    };
    scanner.skip_space();
    if scanner.peek().is_some() {
        return Err(malformed(
            scanner.at,
            "something follows after the end of the JSON document".to_owned(),
        ));
    }
    Ok(pack(&bytes, elements))
}

/// The elements in chunks; texts become objects with the one field `text`, as in datasets.
fn pack(bytes: &[u8], elements: Vec<Range<usize>>) -> Vec<Records> {
    let mut chunks: Vec<Records> = Vec::new();
    let (mut line, mut counted) = (1, 0);
    for range in elements {
        line += bytes[counted..range.start]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        counted = range.start;
        if chunks.last().is_none_or(|chunk| chunk.bytes.len() >= CHUNK) {
            chunks.push(Records {
                bytes: Vec::new(),
                places: Vec::new(),
                file_bytes: 0,
            });
        }
        let chunk = chunks.len() - 1;
        let chunk = &mut chunks[chunk];
        let start = chunk.bytes.len();
        let element = &bytes[range];
        if element.starts_with(b"\"") {
            chunk.bytes.extend(b"{\"text\":");
            chunk.bytes.extend(element);
            chunk.bytes.push(b'}');
        } else {
            chunk.bytes.extend(element);
        }
        chunk.places.push((start..chunk.bytes.len(), line));
        chunk.bytes.push(b'\n');
        chunk.file_bytes += element.len();
    }
    chunks
}

fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at.min(bytes.len())]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
}

/// Finds where values end, without looking into them.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.skip_space();
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Steps over a value.
    fn value(&mut self) -> Option<Range<usize>> {
        self.skip_space();
        let start = self.at;
        match self.peek()? {
            b'"' => self.string()?,
            b'{' | b'[' => {
                let mut depth = 0usize;
                loop {
                    match self.peek()? {
                        b'"' => {
                            self.string()?;
                            continue;
                        }
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => depth -= 1,
                        _ => {}
                    }
                    self.at += 1;
                    if depth == 0 {
                        break;
                    }
                }
            }
            _ => {
                while self
                    .peek()
                    .is_some_and(|byte| !byte.is_ascii_whitespace() && !b",]}".contains(&byte))
                {
                    self.at += 1;
                }
            }
        }
        (self.at > start).then_some(start..self.at)
    }

    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match self.peek()? {
                b'\\' => self.at += 2,
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                _ => self.at += 1,
            }
        }
    }

    /// The elements of the array that starts here.
    fn array(&mut self) -> Option<Vec<Range<usize>>> {
        self.take(b'[')?;
        let mut elements = Vec::new();
        if self.take(b']').is_some() {
            return Some(elements);
        }
        loop {
            elements.push(self.value()?);
            if self.take(b',').is_none() {
                self.take(b']')?;
                return Some(elements);
            }
        }
    }

    /// The fields of the object that starts here.
    fn object(&mut self) -> Option<Vec<(String, Range<usize>)>> {
        self.take(b'{')?;
        let mut fields = Vec::new();
        if self.take(b'}').is_some() {
            return Some(fields);
        }
        loop {
            let name = self.value()?;
            let name = serde_json::from_slice(&self.bytes[name]).ok()?;
            self.take(b':')?;
            fields.push((name, self.value()?));
            if self.take(b',').is_none() {
                self.take(b'}')?;
                return Some(fields);
            }
        }
    }
}
