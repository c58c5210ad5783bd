//! Errors of the kernel itself, as opposed to those of a cell.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the kernel or of one of its commands.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        what: &'static str,
        source: io::Error,
    },
    /// A file is not a notebook that this program can run.
    #[error("{} is not a notebook that Cloze can run: {problem}", path.display())]
    Notebook { path: PathBuf, problem: String },
    /// Any other error, as a sentence.
    #[error("{0}")]
    Message(String),
    /// The user stopped the kernel's own work.
    #[error(
        "interrupted while {during}; what is finished is kept, and the next start continues from there"
    )]
    Interrupted { during: &'static str },
    /// A cell of a notebook failed; its error has already been shown.
    #[error("{} failed at cell {cell}", path.display())]
    CellFailed { path: PathBuf, cell: usize },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns a function for `map_err` that adds the path to an I/O error.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    /// Says what was being done, if this is an interruption.
    pub fn during(self, during: &'static str) -> Self {
        match self {
            Self::Interrupted { .. } => Self::Interrupted { during },
            other => other,
        }
    }

    /// Returns a function for `map_err` that names the failed system call.
    pub fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self::Message(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Self::Message(message.to_owned())
    }
}
