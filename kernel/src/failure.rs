//! How a cell failed, told in the cell's own lines.

use std::ops::Range;

use evcxr::CompilationError;

use crate::streams::{Panic, ReturnedError};

/// A cell's failure, as the protocol and the notebook format want it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What kind: `error[E0308]`, `panic`, the type of a returned error, ...
    pub name: String,
    pub value: String,
    /// Lines, with the colours of a terminal.
    pub traceback: Vec<String>,
}

const RED: &str = "\u{1b}[1;31m";
const BLUE: &str = "\u{1b}[1;34m";
const CYAN: &str = "\u{1b}[1;36m";
const PLAIN: &str = "\u{1b}[0m";

impl Failure {
    /// A failure that is best said in one message.
    pub fn new(name: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        let mut lines = value.lines();
        let mut traceback = vec![format!(
            "{RED}{name}{PLAIN}: {}",
            lines.next().unwrap_or_default()
        )];
        traceback.extend(lines.map(str::to_owned));
        Self {
            name: name.to_owned(),
            value,
            traceback,
        }
    }

    /// The compiler's errors, each with the lines of the cell that it points to.
    pub fn compilation(errors: &[CompilationError], code: &str) -> Self {
        let errors: Vec<&CompilationError> = errors
            .iter()
            .filter(|error| error.level() != "warning")
            .collect();
        let mut traceback = Vec::new();
        for error in &errors {
            traceback.extend(compilation_error(error, code));
        }
        let first = errors.first();
        Self {
            name: first.map_or_else(|| "error".into(), |error| title(error)),
            value: first.map(|error| error.message()).unwrap_or_default(),
            traceback,
        }
    }

    /// A panic, shown at the line of the cell that led to it: `places` are those in `generated`, the code that evcxr made
    /// of the cell, through which the panic was reached.
    pub fn panic(panic: &Panic, places: &[(usize, usize)], code: &str, generated: &str) -> Self {
        let mut failure = Self::new("panic", panic.message.clone());
        let of_notebook = panic.file.ends_with("cell/lib.rs") || panic.file == "lib.rs";
        let own = of_notebook.then_some((panic.line, panic.column));
        let found = own
            .into_iter()
            .chain(places.iter().copied())
            .find_map(|(at, column)| Some((at, line_in_cell(generated, at, code)?, column)));
        if let Some((at, line, column)) = found {
            failure.traceback.extend(excerpt(
                code,
                vec![Mark {
                    line,
                    columns: column..column + 1,
                    label: match own.is_some_and(|(line, _)| line == at) {
                        true => "panicked here",
                        false => "panicked in this call",
                    },
                    primary: true,
                }],
            ));
        }
        if of_notebook {
            if found.is_none_or(|(at, ..)| at != panic.line) {
                failure.traceback.push(format!(
                    "{BLUE}  -->{PLAIN} in a function of an earlier cell"
                ));
            }
        } else if !panic.file.is_empty() {
            failure.traceback.push(format!(
                "{BLUE}  -->{PLAIN} {}:{}",
                short_path(&panic.file),
                panic.line
            ));
        }
        failure
    }

    /// An error that `?` passed on.
    pub fn returned(error: &ReturnedError) -> Self {
        let mut failure = Self::new(&error.type_name, error.message.clone());
        // Some errors have their cause in their own message already.
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

fn title(error: &CompilationError) -> String {
    error
        .code()
        .map_or_else(|| "error".into(), |code| format!("error[{code}]"))
}

fn compilation_error(error: &CompilationError, code: &str) -> Vec<String> {
    let mut lines = vec![format!("{RED}{}{PLAIN}: {}", title(error), error.message())];
    let mut marks = Vec::new();
    let mut notes = Vec::new();
    for spanned in error.spanned_messages() {
        if let Some(span) = spanned.span {
            // A span of several lines is marked to the end of its first.
            let first = code.lines().nth(span.start_line - 1).unwrap_or_default();
            let end = if span.end_line == span.start_line {
                span.end_column
            } else {
                first.chars().count() + 1
            };
            marks.push(Mark {
                line: span.start_line,
                columns: span.start_column..end,
                label: &spanned.label,
                primary: spanned.is_primary,
            });
        } else if !spanned.label.is_empty() && spanned.label != error.message() {
            notes.push(format!("  {BLUE}={PLAIN} {}", spanned.label));
        }
    }
    lines.extend(excerpt(code, marks));
    lines.extend(notes);
    for help in error.help() {
        let mut help = help.lines().filter(|line| !line.trim().is_empty());
        lines.push(format!(
            "{CYAN}help{PLAIN}: {}",
            help.next().unwrap_or_default()
        ));
        lines.extend(help.map(|line| format!("      {}", line.trim_end())));
    }
    if let Some(hint) = error.evcxr_extra_hint() {
        lines.push(format!("{CYAN}note{PLAIN}: {hint}"));
    }
    lines
}

/// Columns of a line of the cell, and what is to say of them; lines and columns count from 1.
struct Mark<'a> {
    line: usize,
    columns: Range<usize>,
    label: &'a str,
    /// What went wrong, as opposed to why.
    primary: bool,
}

/// Lines of the cell, each once, with carets under the columns that are marked.
fn excerpt(code: &str, mut marks: Vec<Mark>) -> Vec<String> {
    marks.retain(|mark| (1..=code.lines().count()).contains(&mark.line));
    marks.sort_by_key(|mark| (mark.line, !mark.primary));
    let width = marks.last().map_or(0, |mark| mark.line.to_string().len());
    let margin = format!("{BLUE}{:width$} |{PLAIN}", "");
    let mut lines = Vec::new();
    for same in marks.chunk_by(|one, other| one.line == other.line) {
        let number = same[0].line;
        let text = code.lines().nth(number - 1).unwrap_or_default();
        lines.push(margin.clone());
        lines.push(format!("{BLUE}{number:width$} |{PLAIN} {text}"));
        for mark in same {
            let indent: String = text
                .chars()
                .take(mark.columns.start.saturating_sub(1))
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let (colour, sign) = if mark.primary {
                (RED, "^")
            } else {
                (BLUE, "-")
            };
            let signs = sign.repeat(mark.columns.len().max(1));
            let mut label = mark.label.lines();
            let first = format!("{signs} {}", label.next().unwrap_or_default());
            lines.push(format!(
                "{margin} {indent}{colour}{}{PLAIN}",
                first.trim_end()
            ));
            lines.extend(label.map(|more| format!("{margin} {indent}{colour}{more}{PLAIN}")));
        }
    }
    lines
}

/// `.../registry/src/INDEX/candle-core-0.11.0/src/tensor.rs` → `candle-core-0.11.0/src/tensor.rs`.
fn short_path(path: &str) -> &str {
    match path.split_once("/registry/src/") {
        Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, rest)| rest),
        None => path,
    }
}

/// The line of the cell that a line of the code generated from it came from.
///
/// Statements are in it in their order, line by line; functions and types have moved in front.
fn line_in_cell(generated: &str, generated_line: usize, code: &str) -> Option<usize> {
    let generated: Vec<&str> = generated.lines().collect();
    let wanted = generated.get(generated_line.checked_sub(1)?)?.trim();
    let same: Vec<usize> = code
        .lines()
        .enumerate()
        .filter(|(_, line)| line.trim() == wanted)
        .map(|(at, _)| at + 1)
        .collect();
    // Where a line is there more than once, its place among its like decides, counted from the last: an earlier cell's
    // functions come first.
    let after = generated[generated_line..]
        .iter()
        .filter(|line| line.trim() == wanted)
        .count();
    let from_last = same.len().checked_sub(after + 1);
    from_last.and_then(|at| same.get(at)).copied().or_else(|| {
        // A statement's first line may have lost what stood before it on the line.
        let mut ends = code
            .lines()
            .enumerate()
            .filter(|(_, line)| !wanted.is_empty() && line.trim_end().ends_with(wanted));
        let (at, _) = ends.next()?;
        ends.next().is_none().then_some(at + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_line_is_found_in_the_cell() {
        let generated =
            "fn old() {\npanic!();\n}\nfn run() {\nlet a = 1;\npanic!();\nlet b = 2;\npanic!();\n}";
        let code = "let a = 1;\npanic!();\nlet b = 2;\npanic!();";
        assert_eq!(line_in_cell(generated, 6, code), Some(2));
        assert_eq!(line_in_cell(generated, 8, code), Some(4));
        assert_eq!(line_in_cell(generated, 2, code), None);
    }

    fn panic_at(file: &str, line: usize, places: &[(usize, usize)]) -> String {
        let generated = "fn old() {\nboom()\n}\nfn run() {\nlet a = 1;\nold();\n}";
        let panic = Panic {
            file: file.into(),
            line,
            column: 1,
            message: "boom".into(),
            calls: vec![],
        };
        let failure = Failure::panic(&panic, places, "let a = 1;\nold();", generated);
        failure
            .traceback
            .join("\n")
            .replace(BLUE, "")
            .replace(RED, "")
            .replace(PLAIN, "")
    }

    #[test]
    fn a_panic_is_shown_at_the_line_of_the_cell_that_led_to_it() {
        assert_eq!(
            panic_at("/home/x/cell/lib.rs", 6, &[(6, 1)]),
            "panic: boom\n  |\n2 | old();\n  | ^ panicked here"
        );
        assert_eq!(
            panic_at("/registry/src/index/crate-1.0.0/src/lib.rs", 7, &[(6, 1)]),
            "panic: boom\n  |\n2 | old();\n  | ^ panicked in this call\n  --> crate-1.0.0/src/lib.rs:7"
        );
        assert_eq!(
            panic_at("/home/x/cell/lib.rs", 2, &[(2, 1), (6, 1)]),
            "panic: boom\n  |\n2 | old();\n  | ^ panicked in this call\n  --> in a function of an earlier cell"
        );
        assert_eq!(
            panic_at("src/other.rs", 3, &[]),
            "panic: boom\n  --> src/other.rs:3"
        );
        assert_eq!(panic_at("", 0, &[]), "panic: boom");
    }

    #[test]
    fn causes_that_the_message_tells_already_are_not_repeated() {
        let error = ReturnedError {
            type_name: "Error".into(),
            message: "reading a.json: not found".into(),
            causes: vec!["not found".into(), "os error 2".into()],
        };
        let failure = Failure::returned(&error);
        assert_eq!(failure.traceback.len(), 2);
        assert!(failure.traceback[1].ends_with("os error 2"));
    }

    #[test]
    fn carets_stand_under_the_columns_of_a_line_that_is_shown_once() {
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
