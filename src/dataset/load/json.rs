//! JSON lines and JSON documents.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use serde::de::DeserializeSeed;

use super::chunks::LineChunks;
use super::document::{self, Records};
use super::from_row::{ShardBatches, from_row};
use super::infer::{Inferred, Path as Place, Seed};
use super::{Options, Rows, special};
use crate::dataset::parallel;
use crate::dataset::table::check_unique;
use crate::{Error, Result};

/// Reads the files twice: for the types of all their values, and for the values. Neither time is more of them in
/// memory than a few chunks (a JSON document, which is no lines, is in memory while it is read).
pub(super) fn load(paths: &[PathBuf], options: &Options, rows: &mut Rows) -> Result<SchemaRef> {
    let mut all = Inferred::Null;
    let mut read = Read::default();
    let mut first: Option<(&Path, HashSet<String>)> = None;
    for path in paths {
        let seen = infer(path, options, &mut all, &mut read)?;
        match &first {
            Some((first, expected)) if !seen.is_empty() => {
                same_columns(&all, path, &seen, first, expected)?;
            }
            None if !seen.is_empty() => first = Some((path, seen)),
            _ => {}
        }
    }
    // Every value that is there takes bytes of the file, but fields that a record lacks take none.
    if all.cells(read.records) > 32 * read.bytes + (1 << 20) {
        return Err(Error::format(
            &paths[0],
            format!(
                "its {} records share so few of their {} fields that a table of them would be many times the size of the file; store the varying fields as a list of names and values",
                read.records,
                all.fields().len()
            ),
        ));
    }
    let schema = Arc::new(Schema::new(all.fields()));
    check_unique(&schema)?;
    for path in paths {
        rows.fill(records(path, options)?, |records| {
            let bytes = records.file_bytes;
            Ok((
                decode(path, &schema, &records)?.into_iter().collect(),
                bytes,
            ))
        })?;
    }
    Ok(schema)
}

/// The contents of files.
#[derive(Default)]
struct Read {
    records: u64,
    bytes: u64,
}

/// Checks that a file has the columns of the first one, whichever of the two has more.
fn same_columns(
    all: &Inferred,
    path: &Path,
    seen: &HashSet<String>,
    first: &Path,
    expected: &HashSet<String>,
) -> Result<()> {
    // What is new in a file is named before what it lacks.
    let fields = all.fields();
    let is_new =
        |field: &&Arc<Field>| seen.contains(field.name()) && !expected.contains(field.name());
    let is_lacking =
        |field: &&Arc<Field>| !seen.contains(field.name()) && expected.contains(field.name());
    let found = fields.iter().find(is_new);
    let Some(field) = found.or_else(|| fields.iter().find(is_lacking)) else {
        return Ok(());
    };
    let (name, first) = (field.name(), first.display());
    let problem = match seen.contains(name) {
        true => format!("it has the column {name:?}, which {first} does not have"),
        false => format!("it does not have the column {name:?}, which {first} has"),
    };
    Err(Error::format(
        path,
        format!("{problem}; load them separately and combine them with concatenate"),
    ))
}

/// Takes in the types of all values of a file, and returns the columns that it has.
fn infer(
    path: &Path,
    options: &Options,
    all: &mut Inferred,
    read: &mut Read,
) -> Result<HashSet<String>> {
    let mut seen = HashSet::new();
    // How many items lists have had is counted anew in every chunk.
    let start = all.without_counts();
    parallel::ordered(
        "reading JSON",
        parallel::default_threads(),
        records(path, options)?,
        |records| {
            // Known fields keep their order, and conflicts with other files are found where they are.
            let mut inferred = start.clone();
            infer_records(path, &records, &mut inferred)?;
            Ok((records, inferred))
        },
        |(records, inferred)| {
            read.records += records.places.len() as u64;
            read.bytes += records.bytes.len() as u64;
            for name in inferred.seen() {
                if !seen.contains(name) {
                    seen.insert(name.to_owned());
                }
            }
            match all.merge(inferred) {
                Ok(()) => Ok(()),
                // Two chunks disagree: the second one, read on top of the first, says where.
                Err(()) => infer_records(path, &records, &mut all.clone()),
            }
        },
    )?;
    Ok(seen)
}

fn infer_records(path: &Path, records: &Records, inferred: &mut Inferred) -> Result<()> {
    for (range, line) in &records.places {
        let bytes = &records.bytes[range.clone()];
        let malformed = |message: String, within: usize| Error::Format {
            path: path.to_owned(),
            line: Some(line + within),
            message,
        };
        if bytes.first() != Some(&b'{') {
            let start: String = String::from_utf8_lossy(bytes).chars().take(30).collect();
            return Err(malformed(
                format!("each record must be a JSON object, and this starts with {start:?}"),
                0,
            ));
        }
        let bytes = special::as_numbers(bytes);
        let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
        let seed = Seed {
            inferred: &mut *inferred,
            path: Place::Root,
        };
        seed.deserialize(&mut deserializer)
            .and_then(|()| deserializer.end())
            .map_err(|error| {
                let text = error.to_string();
                let text = text
                    .rsplit_once(" at line ")
                    .map_or(text.as_str(), |(text, _)| text);
                let message = match error.is_data() {
                    true => text.to_owned(),
                    false => format!("malformed JSON at column {}: {text}", error.column()),
                };
                malformed(message, error.line().saturating_sub(1))
            })?;
    }
    Ok(())
}

fn decode(path: &Path, schema: &SchemaRef, records: &Records) -> Result<Option<RecordBatch>> {
    let failed = |message: String| {
        let line = records.places.first().map(|(_, line)| *line);
        Error::Format {
            path: path.to_owned(),
            line,
            message: format!("from this line on, {message}"),
        }
    };
    let mut decoder = ReaderBuilder::new(schema.clone())
        .with_batch_size(records.places.len() + 1)
        // Of a stream, the schema knows only the beginning.
        .with_strict_mode(true)
        .build_decoder()?;
    let bytes = special::as_strings(&records.bytes);
    let read = decoder
        .decode(&bytes)
        .map_err(|error| failed(error.to_string()))?;
    if read != bytes.len() {
        return Err(failed("the file changed while it was read".to_owned()));
    }
    decoder.flush().map_err(|error| failed(error.to_string()))
}

/// Returns the records of a file: streamed if they are lines, from memory if the file is one JSON document.
fn records(path: &Path, options: &Options) -> Result<Box<dyn Iterator<Item = Result<Records>>>> {
    Ok(match is_document(path, options)? {
        true => Box::new(document::records(path, options)?.into_iter().map(Ok)),
        false => Box::new(in_lines(LineChunks::open(path, options.encoding)?)),
    })
}

/// Returns the records, one per line.
fn in_lines(lines: LineChunks) -> impl Iterator<Item = Result<Records>> {
    lines.map(|chunk| {
        let chunk = chunk?;
        let mut places = Vec::new();
        let (mut start, mut line) = (0, chunk.first_line);
        for part in chunk.bytes.split(|&byte| byte == b'\n') {
            let trimmed = part.trim_ascii_start();
            if !trimmed.is_empty() {
                let from = start + part.len() - trimmed.len();
                places.push((from..start + part.trim_ascii_end().len(), line));
            }
            start += part.len() + 1;
            line += 1;
        }
        Ok(Records {
            file_bytes: chunk.bytes.len(),
            bytes: chunk.bytes,
            places,
        })
    })
}

/// Returns whether a file is one JSON document and not a record in every line.
pub(super) fn is_document(path: &Path, options: &Options) -> Result<bool> {
    let start = match LineChunks::open(path, options.encoding)?
        .next()
        .transpose()?
    {
        Some(chunk) => chunk.bytes,
        None => return Ok(false),
    };
    let start = start.trim_ascii_start();
    let first_line = start
        .split(|&byte| byte == b'\n')
        .next()
        .unwrap_or(start)
        .trim_ascii_end();
    // An object over several lines breaks its first one after a bracket or a comma, where a record on one line does not.
    Ok(start.starts_with(b"[")
        || options.field.is_some()
        || first_line.ends_with(b"{")
        || first_line.ends_with(b"[")
        || first_line.ends_with(b","))
}

/// The number of files from which a stream's types are inferred.
const TELLING: usize = 32;

/// Returns the columns and types that the beginnings of the files have.
pub(super) fn beginning(paths: &[PathBuf], options: &Options) -> Result<SchemaRef> {
    let mut all = Inferred::Null;
    for path in paths.iter().take(TELLING) {
        if let Some(first) = records(path, options)?.next() {
            infer_records(path, &first?, &mut all)?;
        }
    }
    let schema = Arc::new(Schema::new(all.fields()));
    check_unique(&schema)?;
    Ok(schema)
}

/// Returns the batches of `lines` (of all of the file if there are none) from row `skip` on, with the columns of `schema`.
pub(super) fn batches(
    path: &Path,
    lines: Option<LineChunks>,
    options: &Options,
    schema: &SchemaRef,
    skip: usize,
) -> Result<ShardBatches> {
    let records: Box<dyn Iterator<Item = Result<Records>>> = match lines {
        Some(lines) => Box::new(in_lines(lines)),
        None => records(path, options)?,
    };
    let (path, schema) = (path.to_owned(), schema.clone());
    let read = move |records: Records| match decode(&path, &schema, &records) {
        Ok(batch) => Ok(batch.unwrap_or_else(|| RecordBatch::new_empty(schema.clone()))),
        Err(Error::Format {
            path,
            line,
            message,
        }) => Err(Error::Format {
            path,
            line,
            message: format!(
                "{message}; a stream takes its columns and types from the first megabyte of its files: adapt the line, or use load_dataset, which reads all of the data first"
            ),
        }),
        Err(error) => Err(error),
    };
    Ok(Box::new(from_row(
        records,
        skip,
        |records| records.places.len(),
        read,
    )))
}
