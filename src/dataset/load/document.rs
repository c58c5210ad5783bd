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
    /// The position of each object in `bytes`, and its line in the file.
    pub(super) places: Vec<(Range<usize>, usize)>,
    pub(super) file_bytes: usize,
}

/// Reads the records of a JSON document: the elements of its array, the elements of an object's field, or objects that follow
/// each other, each over several lines.
pub(super) fn records(path: &Path, options: &Options) -> Result<Vec<Records>> {
    let mut bytes = Vec::new();
    source::open(path, options.encoding)?
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", path, error))?;
    let document = Document {
        path,
        bytes: &bytes,
    };
    let mut scanner = document.scanner(0);
    scanner.skip_space();
    let elements = match (scanner.peek(), &options.field) {
        (Some(b'['), None) => scanner.array().ok_or_else(|| document.broken(0))?,
        (Some(b'['), Some(field)) => {
            let message = format!(
                "the field {field:?} was requested, but the file is an array and not an object"
            );
            return Err(document.malformed(0, message));
        }
        _ => document.elements_of_object(&mut scanner, options.field.as_deref())?,
    };
    scanner.skip_space();
    if scanner.peek().is_some() {
        return Err(document.malformed(
            scanner.at,
            "something follows after the end of the JSON document".to_owned(),
        ));
    }
    Ok(pack(&bytes, elements))
}

/// A document and its position.
struct Document<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

/// A field of an object: its name, and the position of its value.
type Field = (String, Range<usize>);

impl Document<'_> {
    fn scanner(&self, at: usize) -> Scanner<'_> {
        Scanner {
            bytes: self.bytes,
            at,
        }
    }

    fn malformed(&self, at: usize, message: String) -> Error {
        Error::Format {
            path: self.path.to_owned(),
            line: Some(line_of(self.bytes, at)),
            message,
        }
    }

    /// Returns the error of a document whose end the scanner did not find: the scanner only looks for ends, and serde
    /// explains the fault.
    fn broken(&self, at: usize) -> Error {
        match serde_json::from_slice::<serde::de::IgnoredAny>(&special::as_numbers(self.bytes)) {
            Err(error) => Error::Format {
                path: self.path.to_owned(),
                line: Some(error.line()),
                message: format!("malformed JSON: {error}"),
            },
            Ok(_) => self.malformed(at, "malformed JSON".to_owned()),
        }
    }

    /// Reads the object at the scanner, and returns the records in its field, or the object and those that follow it where it
    /// is a record itself.
    fn elements_of_object(
        &self,
        scanner: &mut Scanner,
        field: Option<&str>,
    ) -> Result<Vec<Range<usize>>> {
        let object = scanner.at;
        let fields = scanner.object().ok_or_else(|| self.broken(object))?;
        let end = scanner.at;
        match self.field_with_records(object, &fields, field)? {
            None => {
                let mut elements: Vec<_> = std::iter::once(object..end).collect();
                scanner.skip_space();
                while scanner.peek().is_some() {
                    let from = scanner.at;
                    scanner.object().ok_or_else(|| self.broken(from))?;
                    elements.push(from..scanner.at);
                    scanner.skip_space();
                }
                Ok(elements)
            }
            Some((_, range)) if self.bytes[range.start] == b'[' => {
                let mut inner = self.scanner(range.start);
                inner.array().ok_or_else(|| self.broken(range.start))
            }
            Some((_, range)) => Ok(Vec::from([range.clone()])),
        }
    }

    /// Returns the field that holds the records: the one that was asked for, or the only one with an array of objects; `None`
    /// where the object, which begins at `object`, is a record itself.
    fn field_with_records<'a>(
        &self,
        object: usize,
        fields: &'a [Field],
        asked: Option<&str>,
    ) -> Result<Option<&'a Field>> {
        let names = |fields: &[&Field]| {
            let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
            names.join(", ")
        };
        if let Some(asked) = asked {
            let found = fields.iter().find(|(name, _)| name == asked);
            return found.map(Some).ok_or_else(|| {
                let all: Vec<&Field> = fields.iter().collect();
                let message = format!(
                    "there is no field {asked:?}; the fields are {}",
                    names(&all)
                );
                self.malformed(object, message)
            });
        }
        let holds_objects = |(_, range): &&Field| {
            let inner = self.bytes[range.clone()].strip_prefix(b"[");
            inner.is_some_and(|inner| inner.trim_ascii_start().starts_with(b"{"))
        };
        let arrays: Vec<&Field> = fields.iter().filter(holds_objects).collect();
        match arrays[..] {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            _ => {
                let message = format!(
                    "the object has several fields with records ({}); choose one with Loader::field",
                    names(&arrays)
                );
                Err(self.malformed(object, message))
            }
        }
    }
}

/// Returns the elements in chunks; texts become objects with the one field `text`, as in datasets.
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

    /// Returns the elements of the array that starts here.
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

    /// Returns the fields of the object that starts here.
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
