//! Describes how a cell failed, in terms of the cell's lines.

use std::ops::Range;

use super::places::Places;
use super::report::{Panic, ReturnedError};
use crate::evcxr::CompileError;
use crate::evcxr::source_map::Spot;

/// A cell's failure, as in the protocol and the notebook format.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The kind: `error[E0308]`, `panic`, the type of a returned error, ...
    pub name: String,
    pub value: String,
    /// Lines, with terminal colours.
    pub traceback: Vec<String>,
}

// Symbols are coloured, and text has the page's own colour: on the red background of JupyterLab's dark theme other
// colours have little contrast. Nothing is both bold and coloured: those are rendered as the dark colours there.
pub const BOLD: &str = "\u{1b}[1m";
pub const RED: &str = "\u{1b}[31m";
pub const BLUE: &str = "\u{1b}[34m";
pub const CYAN: &str = "\u{1b}[36m";
pub const PLAIN: &str = "\u{1b}[0m";

impl Failure {
    /// Builds a failure with a single message.
    pub fn new(name: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        let mut lines = value.lines();
        let mut traceback = vec![format!(
            "{BOLD}{name}{PLAIN}: {}",
            lines.next().unwrap_or_default()
        )];
        traceback.extend(lines.map(str::to_owned));
        Self {
            name: name.to_owned(),
            value,
            traceback,
        }
    }

    /// Builds a failure from evcxr's errors, each with the lines of the cell that it marks.
    pub fn compilation(errors: &[CompileError], code: &str) -> Self {
        let first = errors.first();
        Self {
            name: first.map_or_else(|| "error".into(), title),
            value: first.map(|error| error.message.clone()).unwrap_or_default(),
            traceback: errors
                .iter()
                .flat_map(|error| compilation_error(error, code))
                .collect(),
        }
    }

    /// Builds a failure from a panic, with the places in cells through which it was reached.
    pub fn panic(panic: &Panic, places: &Places, number: usize) -> Self {
        let mut failure = Self::new("panic", panic.message.clone());
        failure.traceback.extend(ways(panic, places, Some(number)));
        failure
    }

    /// Builds a failure from an error that `?` returned.
    pub fn returned(error: &ReturnedError) -> Self {
        let mut failure = Self::new(&error.type_name, error.message.clone());
        // Some errors already include their cause in their message.
        for cause in error
            .causes
            .iter()
            .filter(|cause| !error.message.contains(cause.as_str()))
        {
            failure
                .traceback
                .push(format!("{CYAN}caused by{PLAIN}: {cause}"));
        }
        failure
    }
}

fn title(error: &CompileError) -> String {
    let code = error.code.as_ref();
    code.map_or_else(|| "error".into(), |code| format!("error[{code}]"))
}

fn compilation_error(error: &CompileError, code: &str) -> Vec<String> {
    let mut message = error.message.lines();
    let first = message.next().unwrap_or_default();
    let mut lines = vec![format!("{BOLD}{}{PLAIN}: {first}", title(error))];
    lines.extend(message.map(str::to_owned));
    let mut marks = Vec::new();
    let mut notes = Vec::new();
    for label in &error.labels {
        if let Some(((line, column), (last, end))) = label.span {
            // A span of several lines is marked up to the end of its first line.
            let first = code.lines().nth(line - 1).unwrap_or_default();
            let end = if last == line {
                end
            } else {
                first.chars().count() + 1
            };
            marks.push(Mark {
                line,
                columns: column..end,
                label: &label.text,
                primary: label.primary,
            });
        } else if !label.text.is_empty() && label.text != error.message {
            notes.push(format!("  {BLUE}={PLAIN} {}", label.text));
        }
    }
    lines.extend(excerpt(code, marks));
    lines.extend(notes);
    for help in &error.help {
        let mut help = help.lines().filter(|line| !line.trim().is_empty());
        lines.push(format!(
            "{CYAN}help{PLAIN}: {}",
            help.next().unwrap_or_default()
        ));
        lines.extend(help.map(|line| format!("      {}", line.trim_end())));
    }
    if let Some(hint) = &error.hint {
        lines.push(format!("{CYAN}note{PLAIN}: {hint}"));
    }
    lines
}

/// A labelled range of columns in a line of the cell; lines and columns count from 1.
pub struct Mark<'a> {
    pub line: usize,
    pub columns: Range<usize>,
    pub label: &'a str,
    /// Whether it marks the fault itself, as opposed to its cause.
    pub primary: bool,
}

/// The number of characters shown of a line.
const LONG: usize = 200;

/// Formats lines of the cell, each once, with carets under the marked columns.
pub fn excerpt(code: &str, mut marks: Vec<Mark>) -> Vec<String> {
    marks.retain(|mark| (1..=code.lines().count()).contains(&mark.line));
    marks.sort_by_key(|mark| (mark.line, !mark.primary));
    let width = marks.last().map_or(0, |mark| mark.line.to_string().len());
    let margin = format!("{BLUE}{:width$} |{PLAIN}", "");
    let mut lines = Vec::new();
    for same in marks.chunk_by(|one, other| one.line == other.line) {
        let number = same[0].line;
        let text = code.lines().nth(number - 1).unwrap_or_default();
        // Of a line that is too long, show the part around the first mark.
        let (skipped, text) = match text.chars().count() > LONG {
            true => {
                let skipped = same[0].columns.start.saturating_sub(LONG / 2);
                let text: String = text.chars().skip(skipped).take(LONG).collect();
                (skipped, text)
            }
            false => (0, text.to_owned()),
        };
        lines.push(margin.clone());
        lines.push(format!("{BLUE}{number:width$} |{PLAIN} {text}"));
        for mark in same {
            let indent: String = text
                .chars()
                .take(mark.columns.start.saturating_sub(1 + skipped))
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let (colour, sign) = if mark.primary {
                (RED, "^")
            } else {
                (BLUE, "-")
            };
            let signs = sign.repeat(mark.columns.len().clamp(1, LONG));
            let mut label = mark.label.lines();
            let first = format!(
                "{colour}{signs}{PLAIN} {}",
                label.next().unwrap_or_default()
            );
            lines.push(format!("{margin} {indent}{}", first.trim_end()));
            lines.extend(label.map(|more| format!("{margin} {indent}{more}")));
        }
    }
    lines
}

/// "in `f` of cell 3".
pub fn in_cell(within: Option<&str>, number: usize) -> String {
    let cell = match number {
        0 => "an earlier cell".to_owned(),
        number => format!("cell {number}"),
    };
    match within {
        Some(name) => format!("in `{name}` of {cell}"),
        None => format!("in {cell}"),
    }
}

/// Formats the message that a panic in a thread of a cell prints on stderr.
pub fn panic_of_thread(name: &str, panic: &Panic, places: &Places) -> String {
    let name = match name {
        "" => String::new(),
        name => format!(" `{name}`"),
    };
    let mut told = format!("panic in a thread{name}: {}\n", panic.message);
    for line in ways(panic, places, None) {
        told += &line;
        told.push('\n');
    }
    told
}

/// Returns where a panic was raised, and the call in this cell that led to it.
fn ways(panic: &Panic, places: &Places, number: Option<usize>) -> Vec<String> {
    let (spots, is_own) = places.of_panic(panic);
    let show = |spot: &Spot, label: &'static str| {
        let mark = Mark {
            line: spot.line,
            columns: spot.column..spot.column + 1,
            label,
            primary: true,
        };
        excerpt(&spot.cell.original, vec![mark])
    };
    let in_running = |spot: &Spot| number.is_some_and(|number| spot.cell.number == number);
    let mut lines = Vec::new();
    if !is_own && !panic.file.is_empty() {
        let file = short_path(&panic.file);
        if !file.ends_with("cell/lib.rs") {
            lines.push(format!("{BLUE}  -->{PLAIN} {file}:{}", panic.line));
        }
    }
    if let Some(first) = spots.first() {
        let label = if is_own {
            "panicked here"
        } else {
            "panicked in this call"
        };
        if !in_running(first) || first.within.is_some() {
            let place = in_cell(first.within.as_deref(), first.cell.number);
            lines.push(format!("{BLUE}  -->{PLAIN} {place}, line {}", first.line));
        }
        lines.extend(show(first, label));
        // The call in the running cell, if the panic was raised elsewhere.
        let from = spots[1..]
            .iter()
            .find(|spot| in_running(spot) && spot.within.is_none());
        if let Some(from) = from
            && (!in_running(first) || first.within.is_some())
        {
            lines.push(format!("{BLUE}  -->{PLAIN} called from this cell"));
            lines.extend(show(from, "panicked in this call"));
        }
    }
    lines
}

/// `.../registry/src/INDEX/candle-core-0.11.0/src/tensor.rs` → `candle-core-0.11.0/src/tensor.rs`.
fn short_path(path: &str) -> &str {
    if let Some((_, rest)) = path.split_once("/registry/src/") {
        return rest.split_once('/').map_or(rest, |(_, rest)| rest);
    }
    // `/rustc/HASH/library/std/src/...`
    match path
        .strip_prefix("/rustc/")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((_, rest)) => rest,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_that_the_message_includes_are_not_repeated() {
        let error = ReturnedError {
            type_name: "Error".into(),
            message: "reading a.json: not found".into(),
            causes: vec!["not found".into(), "os error 2".into()],
            interrupted: false,
        };
        let failure = Failure::returned(&error);
        assert_eq!(failure.traceback.len(), 2);
        assert!(failure.traceback[1].ends_with("os error 2"));
    }

    #[test]
    fn a_long_line_is_shown_around_its_mark() {
        let code = format!("{}X{}", "a".repeat(5000), "b".repeat(5000));
        let mark = Mark {
            line: 1,
            columns: 5001..5002,
            label: "here",
            primary: true,
        };
        let lines = excerpt(&code, vec![mark]);
        assert!(lines.iter().all(|line| line.len() < 300), "{lines:?}");
        let at = |line: &str, what: char| {
            line.replace(BLUE, "")
                .replace(RED, "")
                .replace(PLAIN, "")
                .find(what)
        };
        assert_eq!(at(&lines[1], 'X'), at(&lines[2], '^'));
    }

    #[test]
    fn a_line_is_shown_once_with_carets_under_its_columns() {
        let mark = |line, columns, label, primary| Mark {
            line,
            columns,
            label,
            primary,
        };
        let code = "let a = 1;\nlet x: u32 = \"a\";";
        let lines = excerpt(
            code,
            vec![
                mark(2, 8..11, "expected due to this", false),
                mark(2, 14..17, "expected `u32`", true),
                mark(9, 1..2, "not in the cell", true),
            ],
        );
        let plain: Vec<String> = lines
            .iter()
            .map(|line| line.replace(BLUE, "").replace(RED, "").replace(PLAIN, ""))
            .collect();
        assert_eq!(
            plain,
            [
                "  |",
                "2 | let x: u32 = \"a\";",
                "  |              ^^^ expected `u32`",
                "  |        --- expected due to this",
            ]
        );
    }
}
