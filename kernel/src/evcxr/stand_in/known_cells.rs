//! Cells that every session begins with, compiled once.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use super::done;
use crate::evcxr::failed::{Failed, for_evcxr};
use crate::{Error, Result};

/// Where the result of compiling a cell is kept: its library, or the errors.
pub struct Known(pub PathBuf);

impl Known {
    fn errors(&self) -> PathBuf {
        self.0.with_extension("errors")
    }

    /// Repeats the kept result, if there is one.
    pub fn recall(&self, library: &Path, folder: &Path, code: &str) -> Option<Result<ExitCode>> {
        // Mark it as used: the most recently used results are kept.
        let touch = |path| File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Ok(errors) = fs::read(self.errors()) {
            let _ = touch(self.errors());
            Failed::write(folder, code, &errors);
            let said = std::io::stderr().write_all(&for_evcxr(&errors));
            return Some(
                said.map_err(Error::system("writing to stderr"))
                    .map(|()| ExitCode::FAILURE),
            );
        }
        fs::copy(&self.0, library).ok()?;
        let _ = touch(self.0.clone());
        Some(done(library))
    }

    /// Keeps the result of a compilation, atomically. Of errors, keeps only those that evcxr provokes to learn whether
    /// cells use `?`: others may depend on more than the text.
    pub fn remember(&self, library: &Path, built: bool, said: &[u8]) -> Result<()> {
        let unfinished = self.0.with_extension("unfinished");
        let folder = self.0.parent().unwrap_or(Path::new(""));
        let kept = if built {
            fs::create_dir_all(folder)
                .and_then(|()| fs::copy(library, &unfinished))
                .and_then(|_| fs::rename(&unfinished, &self.0))
        } else if String::from_utf8_lossy(said).contains("E0277") {
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&unfinished, said))
                .and_then(|()| fs::rename(&unfinished, self.errors()))
        } else {
            return Ok(());
        };
        kept.map_err(Error::file(&self.0))
    }
}
