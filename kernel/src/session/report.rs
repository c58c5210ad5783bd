//! What a finished cell leaves beside its output: panics and errors, as the cell library reports them.

use std::path::PathBuf;

/// A panic in a cell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Panic {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub message: String,
    /// The calls in cells that led there, the innermost first: each an address in a cell's library, and the path of that.
    pub calls: Vec<(u64, PathBuf)>,
}

impl Panic {
    /// From what the cell library tells of it.
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
    /// What caused it, the nearest first.
    pub causes: Vec<String>,
    /// Whether it says that Cloze's own work was interrupted.
    pub interrupted: bool,
}

/// What a finished cell leaves beside its output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Whether a panic ended the cell; a panic that the cell caught does not.
    pub panicked: bool,
    pub panics: Vec<Panic>,
    /// Those of threads that the cell started; one of them may have been passed on to the cell.
    pub panics_of_threads: Vec<Panic>,
    /// Whether `?` ended the cell.
    pub returned: bool,
    pub errors: Vec<ReturnedError>,
    /// Whether the process that ran the cell is gone.
    pub process_died: bool,
}
