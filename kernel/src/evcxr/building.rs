//! The progress of building the crates that a cell adds: recorded by the stand-in cargo, for the session to show.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// The progress that cargo reports while it works.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// For example `Building` or `Downloading`.
    pub doing: String,
    pub done: usize,
    /// The number of crates; 0 until cargo knows it.
    pub total: usize,
    /// The crates that are being compiled.
    pub names: String,
}

impl Progress {
    /// Parses a line such as `Building [=====>     ] 12/34: syn, quote`, without its colours.
    fn read(line: &str) -> Option<Self> {
        let (doing, rest) = line.trim().split_once(" [")?;
        let (_, rest) = rest.split_once("] ")?;
        let (numbers, names) = rest.split_once(": ").unwrap_or((rest, ""));
        let (done, total) = numbers.trim().split_once('/')?;
        Some(Self {
            doing: doing.trim().to_owned(),
            done: done.trim().parse().ok()?,
            total: total.trim().parse().ok()?,
            names: names.trim().to_owned(),
        })
    }

    fn write(&self, folder: &Path) {
        let text = format!(
            "{} [] {}/{}: {}",
            self.doing, self.done, self.total, self.names
        );
        // If the file can't be written, only the progress bar is missing.
        let unfinished = place(folder).with_extension("unfinished");
        let _ = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, place(folder)));
    }

    /// Returns the last progress that the stand-in recorded in this folder.
    pub fn of(folder: &Path) -> Option<Self> {
        Self::read(&fs::read_to_string(place(folder)).ok()?)
    }

    /// Deletes the record.
    pub fn forget(folder: &Path) {
        let _ = fs::remove_file(place(folder));
    }
}

fn place(folder: &Path) -> PathBuf {
    folder.join("building")
}

/// Environment variables that make cargo report its progress although stderr is no terminal.
pub const PROGRESS_VARIABLES: [(&str, &str); 2] = [
    ("CARGO_TERM_PROGRESS_WHEN", "always"),
    ("CARGO_TERM_PROGRESS_WIDTH", "100"),
];

/// Forwards cargo's stderr, except for its progress, which is recorded in the session's folder.
pub fn listen(folder: &Path, said: impl Read, mut pass_on: impl Write) {
    let mut line = Vec::new();
    for byte in BufReader::new(said).bytes().map_while(Result::ok) {
        if byte != b'\r' && byte != b'\n' {
            line.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(&line).replace("\u{1b}[K", "");
        match Progress::read(&text) {
            Some(progress) => progress.write(folder),
            None if byte == b'\n' || !text.trim().is_empty() => {
                let _ = writeln!(pass_on, "{text}");
            }
            None => {}
        }
        line.clear();
    }
    let _ = pass_on.write_all(&line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_progress_is_recorded_and_its_other_output_forwarded() {
        let folder = tempfile::tempdir().expect("a folder");
        let said = "   Compiling syn v2.0.1\n    Building [=====>    ] 12/34: syn, quote(build)\r\u{1b}[K   Compiling regex v1.0.0\n\
                    error: no such crate\n";
        let mut rest = Vec::new();
        listen(folder.path(), said.as_bytes(), &mut rest);
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(
            rest.contains("Compiling regex") && rest.contains("no such crate"),
            "{rest}"
        );
        assert!(!rest.contains("12/34"), "{rest}");
        let progress = Progress::of(folder.path()).expect("progress");
        assert_eq!((progress.done, progress.total), (12, 34));
        assert_eq!(progress.names, "syn, quote(build)");
        Progress::forget(folder.path());
        assert_eq!(Progress::of(folder.path()), None);
    }
}
