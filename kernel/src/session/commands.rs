//! Commands at the head of a cell (`:dep`, `:vars`, ...). evcxr runs those that work here; the kernel answers the
//! others, which would act on parts of evcxr that this kernel replaces, or end the process that they run in.

use std::path::Path;

use serde_json::{Map, Value};

use super::event::{Display, Event, Sink, Stream};
use super::failure::Failure;
use super::remote::Remote;
use crate::Error;
use crate::evcxr::{Evaluator, statics};
use crate::toolchain::environment::outside;
use crate::toolchain::guard;
use crate::toolchain::work::{Pipe, Stop};

/// The parts of the session that the kernel's own commands use.
pub struct Kernel<'a> {
    pub evaluator: &'a Evaluator,
    pub remote: &'a Remote,
    pub events: &'a Sink,
    /// The session's event sink.
    pub folder: &'a Path,
}

/// The available commands, and what they do.
const COMMANDS: [(&str, &str); 13] = [
    (
        ":clear",
        "Forget all variables, functions, types and dependencies",
    ),
    (
        ":dep NAME = \"VERSION\"",
        "Add a crate: :dep regex = \"1\", :dep mine = { path = \"../mine\" }",
    ),
    (":doc NAME", "Show the documentation of a name"),
    (
        ":env NAME=VALUE",
        "Set an environment variable for the next process that runs the cells",
    ),
    (":explain", "Explain the last compiler error"),
    (":help", "Show this list"),
    (
        ":offline 0|1",
        "Keep cargo off the network (1), or let it use the network (0)",
    ),
    (":opt 0|1|2|3", "Set the optimization level of cells"),
    (
        ":restart",
        "Restart the process that runs the cells, losing all variables",
    ),
    (":show_deps", "Show the crates that were added"),
    (":type NAME", "Show the type of a variable (:t for short)"),
    (":vars", "Show the variables and their types"),
    ("!COMMAND", "Run a shell command"),
];

/// Commands of evcxr that have no effect here, and what replaces them.
const WITHOUT_EFFECT: [(&str, &str); 17] = [
    (
        ":allow_static_linking",
        "the linking of cells can't be changed",
    ),
    (":build_env", "set the variable before starting the kernel"),
    (
        ":cache",
        "builds are cached automatically (`cloze doctor` shows where)",
    ),
    (
        ":clear_cache",
        "builds are cached automatically (`cloze doctor` shows where)",
    ),
    (
        ":codegen_backend",
        "cells are compiled with the installed compiler",
    ),
    (":efmt", "errors are always shown with their causes"),
    (
        ":fmt",
        "values are displayed through their `Debug`; use println!(\"{:#?}\", value) for another format",
    ),
    (":internal_debug", "it only serves the developers of evcxr"),
    (
        ":last_compile_dir",
        "`cloze doctor` shows the location of all files",
    ),
    (
        ":last_error_json",
        "errors are shown in the cell; :explain shows more",
    ),
    (":linker", "the linker is the toolchain's"),
    (":load_config", "there is no configuration file"),
    (
        ":preserve_vars_on_panic",
        "variables are always kept when a cell panics",
    ),
    (":sccache", "builds are cached automatically"),
    (
        ":time_passes",
        "it would need a nightly compiler and evcxr's own way of building",
    ),
    (
        ":toolchain",
        "cells are compiled with the toolchain of the environment in which the kernel was started",
    ),
    (":types", ":vars shows the types"),
];

/// Runs the kernel's own commands of a cell. Returns the code that is left for evcxr, with the same line numbers.
pub fn run(code: &str, kernel: &mut Kernel) -> Result<String, Failure> {
    let mut left: Vec<String> = Vec::new();
    let mut in_commands = true;
    for line in code.split('\n') {
        let word = line
            .trim_start_matches(' ')
            .split(' ')
            .next()
            .unwrap_or_default();
        let own = match word {
            _ if !in_commands => false,
            _ if line.starts_with('!') => {
                shell(line[1..].trim(), kernel)?;
                true
            }
            ":help" => {
                show(kernel, &[("Command", "What it does")], &COMMANDS);
                true
            }
            ":vars" => {
                let mut variables: Vec<(&str, &str)> = kernel.evaluator.variables().collect();
                variables.sort_unstable();
                match variables.is_empty() {
                    true => show_text(kernel, "There are no variables.".into()),
                    false => show(kernel, &[("Variable", "Type")], &variables),
                }
                true
            }
            ":version" => {
                show_text(kernel, format!("Cloze {}", env!("CARGO_PKG_VERSION")));
                true
            }
            ":restart" | ":clear" => {
                kernel.remote.end_process();
                statics::forget(kernel.folder);
                false
            }
            ":opt" if !is_level(line) => {
                return Err(Failure::new(
                    "error",
                    format!(
                        "`{}` is not an optimization level: choose 0, 1, 2, 3, s or z",
                        line.trim()
                    ),
                ));
            }
            ":quit" => {
                return Err(Failure::new(
                    "error",
                    ":quit would end the kernel and everything that runs in it.\n\
                     To end a session, close the notebook or shut down its kernel; :restart starts again without variables.",
                ));
            }
            ":timing" => {
                return Err(Failure::new(
                    "error",
                    ":timing has no effect in this kernel: `cloze run` and the front ends show the time of each cell",
                ));
            }
            _ if word.starts_with(':') => {
                if let Some((_, instead)) = WITHOUT_EFFECT.iter().find(|(name, _)| *name == word) {
                    return Err(Failure::new(
                        "error",
                        format!("{word} has no effect in this kernel: {instead}"),
                    ));
                }
                false
            }
            _ => {
                in_commands = line.trim().is_empty() || line.starts_with("//");
                false
            }
        };
        left.push(match own {
            true => String::new(),
            false => line.to_owned(),
        });
    }
    Ok(left.join("\n"))
}

/// Whether `:opt LEVEL` names a level that the compiler knows. Without one, evcxr chooses.
fn is_level(line: &str) -> bool {
    let level = line.trim().strip_prefix(":opt").unwrap_or_default().trim();
    ["", "0", "1", "2", "3", "s", "z"].contains(&level)
}

/// Runs a shell command in the environment that the user started the kernel with. Its output is shown as it comes, and
/// interrupts reach it.
fn shell(command: &str, kernel: &Kernel) -> Result<(), Failure> {
    let stop = Stop::gentle();
    let _working = kernel.remote.work(&stop);
    let mut incomplete = [Vec::new(), Vec::new()];
    let mut show = |pipe, bytes: &[u8], all: bool| {
        let (stream, rest) = match pipe {
            Pipe::Stdout => (Stream::Stdout, &mut incomplete[0]),
            Pipe::Stderr => (Stream::Stderr, &mut incomplete[1]),
        };
        rest.extend(bytes);
        let whole = match std::str::from_utf8(rest) {
            Err(error) if error.error_len().is_none() && !all => error.valid_up_to(),
            _ => rest.len(),
        };
        if whole > 0 {
            let text: Vec<u8> = rest.drain(..whole).collect();
            let text = String::from_utf8_lossy(&text).into_owned();
            (kernel.events)(Event::Text(stream, text));
        }
    };
    let ran = guard::command(Path::new("sh")).and_then(|mut shell| {
        outside(shell.args(["-c", command]));
        stop.stream(&mut shell, &mut |pipe, bytes| show(pipe, bytes, false))
    });
    for pipe in [Pipe::Stdout, Pipe::Stderr] {
        show(pipe, &[], true);
    }
    match ran {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(
            "error",
            format!("`{command}` failed ({status})"),
        )),
        Err(Error::Interrupted { .. }) => Err(Failure::new(
            "Interrupted",
            format!("`{command}` was interrupted; variables are kept"),
        )),
        Err(error) => Err(Failure::new(
            "error",
            format!("the shell could not be started: {error}"),
        )),
    }
}

fn show_text(kernel: &Kernel, text: String) {
    let data = [("text/plain".to_owned(), Value::from(text))]
        .into_iter()
        .collect();
    display(kernel, data);
}

/// Shows a table with a header.
fn show(kernel: &Kernel, heading: &[(&str, &str)], rows: &[(&str, &str)]) {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let text: Vec<String> = rows
        .iter()
        .map(|(name, what)| format!("{name:width$}  {what}"))
        .collect();
    let cell = |tag: &str, text: &str| {
        let escaped = text
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        format!("<{tag} style=\"text-align:left\">{escaped}</{tag}>")
    };
    let row = |tag: &str, (name, what): &(&str, &str)| {
        format!("<tr>{}{}</tr>", cell(tag, name), cell(tag, what))
    };
    let head: String = heading.iter().map(|cells| row("th", cells)).collect();
    let body: String = rows.iter().map(|cells| row("td", cells)).collect();
    let html = format!("<table><thead>{head}</thead><tbody>{body}</tbody></table>");
    let data = [
        ("text/html".to_owned(), Value::from(html)),
        ("text/plain".to_owned(), Value::from(text.join("\n"))),
    ];
    display(kernel, data.into_iter().collect());
}

fn display(kernel: &Kernel, data: Map<String, Value>) {
    (kernel.events)(Event::Display(Display {
        data,
        metadata: Map::new(),
        display_id: None,
        update: false,
        is_result: false,
    }));
}
