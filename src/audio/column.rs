//! A dataset's column of recordings: files by their paths, or their bytes.

use std::path::PathBuf;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;

use super::Audio;
use crate::dataset::{Batch, type_name};
use crate::{Error, Result};

/// The recordings of one column of a batch.
pub(super) struct Recordings<'a> {
    name: &'a str,
    array: &'a ArrayRef,
    first: usize,
}

/// Where one recording is.
enum Source<'a> {
    Path(&'a str),
    Bytes(&'a [u8], Option<&'a str>),
}

impl<'a> Recordings<'a> {
    /// Returns the column `name` of `batch`: text (paths), binary (files' bytes), or records of `bytes` and `path` as
    /// datasets on the Hub have.
    pub(super) fn new(batch: &'a Batch, name: &'a str) -> Result<Self> {
        let array = batch.array(name)?;
        let fits = match array.data_type() {
            DataType::Utf8 | DataType::Binary => true,
            DataType::Struct(fields) => {
                let has = |name: &str, data_type: DataType| {
                    fields.iter().any(|f| {
                        f.name() == name && [&data_type, &DataType::Null].contains(&f.data_type())
                    })
                };
                has("bytes", DataType::Binary) || has("path", DataType::Utf8)
            }
            _ => false,
        };
        let recordings = Self {
            name,
            array,
            first: batch.rows().start,
        };
        match fits {
            true => Ok(recordings),
            false => Err(recordings.unsuitable(type_name(array.data_type()))),
        }
    }

    /// Reads the recording in `row`.
    pub(super) fn read(&self, row: usize) -> Result<Audio> {
        let number = self.first + row;
        match self.source(row) {
            Some(Source::Path(path)) => Audio::open(path),
            Some(Source::Bytes(bytes, path)) => {
                let name = match path {
                    Some(path) => PathBuf::from(path),
                    None => PathBuf::from(format!("column {:?}, row {number}", self.name)),
                };
                Audio::decode(bytes, name)
            }
            None => Err(self.unsuitable(format!(
                "no recording in row {number} (filter such rows out)"
            ))),
        }
    }

    fn source(&self, row: usize) -> Option<Source<'_>> {
        if self.array.is_null(row) {
            return None;
        }
        if let Some(paths) = self.array.as_string_opt::<i32>() {
            return Some(Source::Path(paths.value(row)));
        }
        if let Some(files) = self.array.as_binary_opt::<i32>() {
            return Some(Source::Bytes(files.value(row), None));
        }
        let records = self.array.as_struct_opt()?;
        let path = records
            .column_by_name("path")
            .and_then(|paths| paths.as_string_opt::<i32>())
            .filter(|paths| !paths.is_null(row))
            .map(|paths| paths.value(row));
        let bytes = records
            .column_by_name("bytes")
            .and_then(|files| files.as_binary_opt::<i32>())
            .filter(|files| !files.is_null(row));
        match (bytes, path) {
            (Some(bytes), path) => Some(Source::Bytes(bytes.value(row), path)),
            (None, Some(path)) if !path.is_empty() => Some(Source::Path(path)),
            _ => None,
        }
    }

    fn unsuitable(&self, found: String) -> Error {
        Error::ColumnType {
            name: self.name.to_owned(),
            operation: "reading recordings".to_owned(),
            expected: "paths (string), files (binary) or records of both (struct<bytes: binary, path: string>)".to_owned(),
            found,
        }
    }
}
