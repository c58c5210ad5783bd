//! How far the crates are that a cell adds: written down by the stand-in cargo, for the session to show.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// What cargo says of itself while it works.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// `Building`, `Downloading`.
    pub doing: String,
    pub done: usize,
    /// 0 while nobody knows.
    pub total: usize,
    /// The crates that are compiled at present.
    pub names: String,
}

impl Progress {
    /// Reads a line like `Building [=====>     ] 12/34: syn, quote`, without its colours.
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
        // Nothing is lost where it can not be written but the bar.
        let unfinished = place(folder).with_extension("unfinished");
        let _ = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, place(folder)));
    }

    /// What the stand-in in this folder has written down last.
    pub fn of(folder: &Path) -> Option<Self> {
        Self::read(&fs::read_to_string(place(folder)).ok()?)
    }

    /// Forgets what was written down.
    pub fn forget(folder: &Path) {
        let _ = fs::remove_file(place(folder));
    }
}

fn place(folder: &Path) -> PathBuf {
    folder.join("building")
}

/// The variables by which cargo tells its progress to what is no terminal.
pub const TELLING: [(&str, &str); 2] = [
    ("CARGO_TERM_PROGRESS_WHEN", "always"),
    ("CARGO_TERM_PROGRESS_WIDTH", "100"),
];

/// Passes on what cargo says on stderr, but for its progress, which is written down in the session's folder.
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
    fn what_cargo_tells_of_its_progress_is_written_down_and_the_rest_passed_on() {
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
