//! How far the crates are that a cell adds: written down by the stand-in cargo, shown by the session.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::event::Display;

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

/// The bar.
pub fn display(id: &str, progress: &Progress, took: Duration, state: State) -> Display {
    let seconds = took.as_secs_f64();
    let share = match (state, progress.total) {
        (State::Done, _) => 100.0,
        (_, 0) => 0.0,
        (_, total) => 100.0 * progress.done as f64 / total as f64,
    };
    let words = match state {
        State::Done => "built the crates that this cell adds".to_owned(),
        State::Failed => "the crates that this cell adds were not built".to_owned(),
        State::First | State::Working if progress.total == 0 => {
            "finding and downloading the crates that this cell adds".to_owned()
        }
        State::First | State::Working => {
            let names = match progress.names.as_str() {
                "" => String::new(),
                names => format!(": {names}"),
            };
            format!("building {} of {}{names}", progress.done, progress.total)
        }
    };
    let text = format!("{words} ({seconds:.0} s)");
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let html = format!(
        "<div style=\"margin:4px 0;font:13px/1.45 system-ui,-apple-system,'Segoe UI',sans-serif\">\
         <div style=\"display:inline-block;vertical-align:middle;width:220px;height:9px;border-radius:5px;\
         background:rgba(128,128,128,.2);overflow:hidden\"><div style=\"width:{share:.1}%;height:9px;background:#3b82f6\"></div></div> \
         <span style=\"margin-left:8px;opacity:.65\">{escaped}</span></div>"
    );
    let data: Map<String, Value> = [("text/html", html), ("text/plain", text)]
        .into_iter()
        .map(|(mime, content)| (mime.to_owned(), content.into()))
        .collect();
    Display {
        data,
        metadata: Map::new(),
        display_id: Some(id.to_owned()),
        update: state != State::First,
        is_result: false,
    }
}

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is shown for the first time.
    First,
    Working,
    Done,
    Failed,
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
        let shown = display("x", &progress, Duration::from_secs(3), State::Working);
        assert_eq!(
            shown.data["text/plain"],
            "building 12 of 34: syn, quote(build) (3 s)"
        );
        assert!(
            shown.data["text/html"]
                .as_str()
                .is_some_and(|html| html.contains("width:35.3%"))
        );
        Progress::forget(folder.path());
        assert_eq!(Progress::of(folder.path()), None);
    }
}
