//! Comma- and tab-separated values.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use super::{Rows, agree};
use crate::{Error, Result};

/// Columns are whole or decimal numbers or truth values where all values of all rows are; text otherwise. An empty
/// value is null.
pub(super) fn load(paths: &[PathBuf], delimiter: u8, rows: &mut Rows) -> Result<SchemaRef> {
    let format = Format::default()
        .with_header(true)
        .with_delimiter(delimiter);
    let mut schemas = Vec::new();
    for path in paths {
        let (schema, _) = format
            .infer_schema(open(path)?, None)
            .map_err(|error| malformed(path, error))?;
        schemas.push((path.as_path(), plain(&schema)));
    }
    let schema = agree(&schemas)?;
    for (path, found) in &schemas {
        // Columns of a file may come in another order.
        let types = found
            .fields()
            .iter()
            .map(|field| schema.field_with_name(field.name()).cloned());
        let here = Arc::new(Schema::new(types.collect::<Result<Vec<Field>, _>>()?));
        let reader = ReaderBuilder::new(here)
            .with_format(format.clone())
            .with_batch_size(8192)
            .build(open(path)?)
            .map_err(|error| malformed(path, error))?;
        rows.fill(
            reader.map(|batch| batch.map_err(|error| malformed(path, error))),
            |batch| {
                let bytes = batch.get_array_memory_size();
                Ok((vec![batch], bytes))
            },
        )?;
    }
    Ok(schema)
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let io = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(io)?;
    let mut start = [0; 3];
    let read = (&mut file).take(3).read(&mut start).map_err(io)?;
    // A byte order mark is no part of the first column's name.
    if start[..read] != *b"\xef\xbb\xbf" {
        file.rewind().map_err(io)?;
    }
    Ok(BufReader::with_capacity(1 << 20, file))
}

/// Dates stay text, as in the reference; a column without values is text too.
fn plain(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let data_type = match field.data_type() {
            kept @ (DataType::Int64 | DataType::Float64 | DataType::Boolean | DataType::Null) => {
                kept.clone()
            }
            _ => DataType::Utf8,
        };
        Field::new(field.name(), data_type, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn malformed(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, source) => Error::io("read", path, source),
        ArrowError::CsvError(message) | ArrowError::ParseError(message) => {
            Error::format(path, format!("malformed values: {message}"))
        }
        error => Error::format(path, error.to_string()),
    }
}
