//! What can go wrong in the kernel itself, as opposed to in a cell.

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
    /// A file is not the notebook that it should be.
    #[error("{} is not a notebook that can be run: {problem}", path.display())]
    Notebook { path: PathBuf, problem: String },
    /// Anything that is best said in a sentence.
    #[error("{0}")]
    Message(String),
    /// A notebook's cell failed; it was shown already.
    #[error("{} failed at cell {cell}", path.display())]
    CellFailed { path: PathBuf, cell: usize },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: an input or output error with the path that it is about.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    /// For `map_err`: a failed system call.
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
