//! Commands at the head of a cell (`:dep`, `:vars`, ...): those of evcxr that do here what they say, and an answer for the
//! others, which act on what this kernel has put in their place or end the process that they run in.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use super::event::{Display, Event, Sink, Stream};
use super::failure::Failure;
use super::remote::Remote;
use crate::evcxr::{Evaluator, statics};
use crate::toolchain::environment::outside;

/// What commands have to do with.
pub struct Kernel<'a> {
    pub evaluator: &'a Evaluator,
    pub remote: &'a Remote,
    pub events: &'a Sink,
    /// The session's.
    pub folder: &'a Path,
}

/// The commands that there are, and what they do.
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
        "Set a variable of the environment for the process that starts next",
    ),
    (":explain", "Explain the last error of the compiler"),
    (":help", "Show this list"),
    (":offline 0|1", "Whether cargo may use the network"),
    (":opt 0|1|2|3", "How much cells are optimized"),
    (
        ":restart",
        "End the process that runs the cells, with all variables, and start another",
    ),
    (":show_deps", "Show the crates that were added"),
    (":type NAME", "Show the type of a variable (:t for short)"),
    (":vars", "Show the variables and their types"),
    ("!COMMAND", "Run a command of the shell"),
];

/// Commands of evcxr that have no effect here, and what there is instead.
const WITHOUT_EFFECT: [(&str, &str); 17] = [
    (":allow_static_linking", "how cells are linked is settled"),
    (
        ":build_env",
        "set the variable before the kernel is started",
    ),
    (
        ":cache",
        "what was built is kept by itself (`cloze doctor` shows where)",
    ),
    (
        ":clear_cache",
        "what was built is kept by itself (`cloze doctor` shows where)",
    ),
    (
        ":codegen_backend",
        "cells are compiled with the installed compiler",
    ),
    (":efmt", "errors are shown with their causes"),
    (
        ":fmt",
        "values are shown by their `Debug`; println!(\"{:#?}\", value) prints them otherwise",
    ),
    (":internal_debug", "it is of use to who works on evcxr"),
    (
        ":last_compile_dir",
        "`cloze doctor` shows where everything is",
    ),
    (
        ":last_error_json",
        "errors are shown in the cell; :explain says more",
    ),
    (":linker", "the linker is the toolchain's"),
    (":load_config", "there is no configuration"),
    (
        ":preserve_vars_on_panic",
        "variables are always kept when a cell panics",
    ),
    (":sccache", "what was built is kept by itself"),
    (
        ":time_passes",
        "it needs a nightly compiler and evcxr's own builds",
    ),
    (
        ":toolchain",
        "cells are compiled with the toolchain that the kernel was started with",
    ),
    (":types", ":vars shows the types"),
];

/// Runs what is the kernel's own business of a cell's commands. What evcxr has to do is left in the code that is given back;
/// lines keep their places.
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
            ":quit" => {
                return Err(Failure::new(
                    "error",
                    ":quit would end the kernel, and with it everything that runs in it.\n\
                     To end a session, close the notebook or shut its kernel down; :restart begins anew with no variables.",
                ));
            }
            ":timing" => {
                return Err(Failure::new(
                    "error",
                    ":timing has no effect in this kernel: `cloze run` tells each cell's time, and so do front ends",
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

/// Runs a command of the shell, with the environment that the user started the kernel with.
fn shell(command: &str, kernel: &Kernel) -> Result<(), Failure> {
    let mut shell = Command::new("sh");
    let output = outside(shell.args(["-c", command]).stdin(Stdio::null()))
        .output()
        .map_err(|error| {
            Failure::new("error", format!("the shell could not be started: {error}"))
        })?;
    for (stream, bytes) in [
        (Stream::Stdout, &output.stdout),
        (Stream::Stderr, &output.stderr),
    ] {
        if !bytes.is_empty() {
            let text = String::from_utf8_lossy(bytes).into_owned();
            (kernel.events)(Event::Text(stream, text));
        }
    }
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::new(
            "error",
            format!("`{command}` failed ({})", output.status),
        )),
    }
}

fn show_text(kernel: &Kernel, text: String) {
    let data = [("text/plain".to_owned(), Value::from(text))]
        .into_iter()
        .collect();
    display(kernel, data);
}

/// Shows a table with a heading.
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
