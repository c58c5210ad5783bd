//! The files of a split in shards that are read one by one, batch by batch: for data that do not fit in memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;

use super::chunks::LineChunks;
use super::from_row::ShardBatches;
use super::{FileFormat, Options, SampleBy, json, parquet, source, text};
use crate::dataset::fingerprint::{Fingerprint, Hashing};
use crate::{Error, Result};

/// The bytes of a file of lines that are a shard, at most and at least; between them a split has about [`MANY`] shards.
const LONGEST: u64 = 32 << 20;
const SHORTEST: u64 = 256 << 10;
const MANY: u64 = 64;

/// A part of a file.
#[derive(Clone, Debug)]
enum Part {
    /// A whole file: compressed files can only be read from the beginning.
    Whole,
    /// The lines that begin within these bytes.
    Lines(Range<u64>),
    /// A row group of a Parquet file.
    Group(usize),
}

/// The shards of a split. They depend only on the files, not on the reader.
pub(in crate::dataset) struct Shards {
    format: FileFormat,
    options: Options,
    schema: SchemaRef,
    list: Vec<(PathBuf, Part)>,
    fingerprint: Fingerprint,
}

impl Shards {
    pub(super) fn find(format: FileFormat, paths: &[PathBuf], options: Options) -> Result<Self> {
        let refuse = |message: &str| match paths.first() {
            Some(path) => Error::format(path, message),
            None => Error::Dataset("the split has no files".to_owned()),
        };
        let schema = match format {
            FileFormat::Json => json::beginning(paths, &options)?,
            FileFormat::Text => text::schema(),
            FileFormat::Parquet => parquet::schema(paths)?,
            FileFormat::Arrow => {
                return Err(refuse(
                    "Arrow files are memory-mapped and need no streaming: load them with load_dataset",
                ));
            }
            _ => {
                return Err(refuse(
                    "only JSON lines, text and Parquet can be streamed; use load_dataset, or convert the file to one of these",
                ));
            }
        };
        if schema.fields().is_empty() {
            return Err(refuse("the file has no rows"));
        }
        let mut shards = Self {
            format,
            options,
            schema,
            list: Vec::new(),
            fingerprint: Hashing::new("no shards").finish(),
        };
        shards.divide(paths)?;
        Ok(shards)
    }

    /// Divides the files into shards.
    fn divide(&mut self, paths: &[PathBuf]) -> Result<()> {
        let mut sizes = Vec::with_capacity(paths.len());
        for path in paths {
            let metadata = path
                .metadata()
                .map_err(|error| Error::io("read", path, error))?;
            sizes.push(metadata.len());
        }
        let length = (sizes.iter().sum::<u64>() / MANY).clamp(SHORTEST, LONGEST);
        let mut hashing = Hashing::new("shards");
        hashing.part(format!("{:?} {:?}", self.format, self.options).as_bytes());
        for (path, size) in paths.iter().zip(sizes) {
            // The same files may lie elsewhere on another machine.
            let name = path.file_name().unwrap_or_default();
            hashing.part(name.as_encoded_bytes());
            hashing.part(&size.to_le_bytes());
            let parts: Vec<Part> = match self.format {
                FileFormat::Parquet => (0..parquet::groups(path)?).map(Part::Group).collect(),
                _ if self.can_begin_within(path)? => {
                    let parts = size.div_ceil(length);
                    let bounds = |part: u64| size * part / parts..size * (part + 1) / parts;
                    (0..parts).map(|part| Part::Lines(bounds(part))).collect()
                }
                _ => vec![Part::Whole],
            };
            self.list
                .extend(parts.into_iter().map(|part| (path.clone(), part)));
        }
        self.fingerprint = hashing.finish();
        Ok(())
    }

    /// Returns whether a file can be read from any of its lines on.
    fn can_begin_within(&self, path: &Path) -> Result<bool> {
        Ok(match self.format {
            FileFormat::Text => self.options.sample_by == SampleBy::Line,
            _ => !json::is_document(path, &self.options)?,
        } && source::is_plain(path, self.options.encoding)?)
    }

    pub(in crate::dataset) fn len(&self) -> usize {
        self.list.len()
    }

    pub(in crate::dataset) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns what the files are known by: their names, sizes and format.
    pub(in crate::dataset) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns the file that a shard is in.
    pub(in crate::dataset) fn path(&self, shard: usize) -> &Path {
        &self.list[shard].0
    }

    /// Returns the batches of a shard from its row `skip` on. Earlier rows are skipped without reading them if
    /// possible.
    pub(in crate::dataset) fn open(&self, shard: usize, skip: usize) -> Result<ShardBatches> {
        let (path, part) = &self.list[shard];
        let lines = match part {
            Part::Group(group) => return parquet::group(path, *group, &self.schema, skip),
            Part::Lines(bytes) => Some(LineChunks::open_within(path, bytes.clone())?),
            Part::Whole => None,
        };
        let batches = match self.format {
            FileFormat::Text => {
                let lines = match lines {
                    Some(lines) => lines,
                    None => LineChunks::open(path, self.options.encoding)?,
                };
                text::batches(path, lines, self.options.sample_by, skip)
            }
            _ => json::batches(path, lines, &self.options, &self.schema, skip)?,
        };
        let (path, begin) = match part {
            Part::Lines(bytes) => (path.clone(), bytes.start),
            _ => return Ok(batches),
        };
        Ok(Box::new(batches.map(move |batch| {
            batch.map_err(|error| in_whole_file(error, &path, begin))
        })))
    }
}

/// Makes the number of a line that counts from byte `begin` on one that counts from the file's beginning.
fn in_whole_file(error: Error, path: &Path, begin: u64) -> Error {
    let Error::Format {
        path: of,
        line: Some(line),
        message,
    } = error
    else {
        return error;
    };
    let before = || -> std::io::Result<usize> {
        let start = source::line_start(&mut File::open(path)?, begin)?;
        let mut lines = 0;
        let mut file = std::io::Read::take(File::open(path)?, start);
        let mut buffer = vec![0; 1 << 16];
        loop {
            match std::io::Read::read(&mut file, &mut buffer)? {
                0 => return Ok(lines),
                read => lines += memchr::memchr_iter(b'\n', &buffer[..read]).count(),
            }
        }
    };
    Error::Format {
        path: of,
        line: before().ok().map(|lines| lines + line),
        message,
    }
}
