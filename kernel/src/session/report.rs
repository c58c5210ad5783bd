//! Panics and errors of a finished cell, as the cell library reports them.

use std::path::PathBuf;

/// A panic in a cell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Panic {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub message: String,
    /// The calls in cells that led there, the innermost first: each an address in a cell's library, and that library's
    /// path.
    pub calls: Vec<(u64, PathBuf)>,
}

impl Panic {
    /// Parses a record of the cell library.
    pub fn from_fields(fields: &[&str]) -> Option<Self> {
        let [file, line, column, message, calls @ ..] = fields else {
            return None;
        };
        let call = |call: &&str| {
            let (address, path) = call.split_once(' ')?;
            Some((u64::from_str_radix(address, 16).ok()?, path.into()))
        };
        Some(Self {
            file: (*file).to_owned(),
            line: line.parse().unwrap_or(0),
            column: column.parse().unwrap_or(0),
            message: (*message).to_owned(),
            calls: calls.iter().filter_map(call).collect(),
        })
    }
}

/// An error that `?` returned from a cell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReturnedError {
    pub type_name: String,
    pub message: String,
    /// Its causes, the nearest first.
    pub causes: Vec<String>,
    /// Whether it reports that Cloze's own work was interrupted.
    pub interrupted: bool,
}

/// Everything that a finished cell reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Whether a panic ended the cell; a caught panic does not.
    pub panicked: bool,
    pub panics: Vec<Panic>,
    /// Panics of threads that the cell started; one of them may have been propagated to the cell.
    pub panics_of_threads: Vec<Panic>,
    /// Whether `?` ended the cell.
    pub returned: bool,
    pub errors: Vec<ReturnedError>,
    /// Whether the process that ran the cell has ended.
    pub process_died: bool,
}
