//! evcxr 0.22 and everything that depends on its internals: an upgrade touches this room and no other.
//!
//! The rest of the kernel sees [`Evaluator`]. Around it are the programs that evcxr starts and takes for cargo
//! ([`stand_in`]) and for its own runtime ([`child`]), the pipes between them ([`pipes`]), the folder in which they
//! work ([`session_dir`]), and the code that evcxr generates for a cell ([`generated`]): the mapping back to the cell
//! ([`source_map`]), `static`s that persist ([`statics`]), types that evcxr writes too short ([`retype`]), and types that
//! change while variables of them exist ([`shapes`]).

pub mod building;
pub mod child;
mod effort;
pub mod failed;
pub mod generated;
pub mod pipes;
pub mod retype;
pub mod session_dir;
mod shapes;
pub mod source_map;
pub mod stand_in;
pub mod statics;

use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use ::evcxr::{CommandContext, CompilationError, EvalContext};

use crate::Result;

/// A running evcxr: compiles cells, runs them, and knows their variables.
pub struct Evaluator {
    context: CommandContext,
}

/// Content by MIME type.
pub type Shown = Vec<(String, String)>;

/// Why a cell did not finish.
pub enum EvalError {
    /// The process that runs the cells is gone.
    Died(Death),
    /// The cell does not compile, or contains a command that evcxr can't carry out.
    Compiler(Vec<CompileError>),
    /// Any other error, as a message for the user.
    Other(String),
}

/// How the process that runs the cells ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Death {
    /// As the operating system describes it: `signal: 11 (SIGSEGV) (core dumped)`.
    pub status: String,
    /// The number of the signal, if a signal ended it.
    pub signal: Option<i32>,
    /// Whether the process exited by itself.
    pub exited: bool,
}

impl Death {
    /// Parses evcxr's message.
    fn read(message: &str) -> Self {
        let status = message
            .rsplit("Subprocess terminated with status: ")
            .next()
            .unwrap_or(message)
            .trim();
        let signal = status.strip_prefix("signal: ");
        let signal = signal.and_then(|rest| rest.split(' ').next()?.parse().ok());
        Self {
            status: status.to_owned(),
            signal,
            exited: status.starts_with("exit status"),
        }
    }
}

/// An error in a cell, as evcxr reports it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompileError {
    pub code: Option<String>,
    pub message: String,
    /// Its labels; some have no place in the cell.
    pub labels: Vec<Label>,
    pub help: Vec<String>,
    pub hint: Option<String>,
    /// Whether it is evcxr's own rather than the compiler's: about its commands, or about variables that can't be kept.
    pub is_own: bool,
}

/// A label at a place in the cell; lines and columns count from 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label {
    pub text: String,
    /// The first line and column, and the last.
    pub span: Option<((usize, usize), (usize, usize))>,
    /// Whether it marks the fault itself, as opposed to its cause.
    pub primary: bool,
}

impl From<&CompilationError> for CompileError {
    fn from(error: &CompilationError) -> Self {
        let labels = error.spanned_messages().iter().map(|message| Label {
            text: message.label.clone(),
            span: message.span.map(|span| {
                (
                    (span.start_line, span.start_column),
                    (span.end_line, span.end_column),
                )
            }),
            primary: message.is_primary,
        });
        let is_own = error.json.is_null();
        Self {
            code: error.code().map(str::to_owned),
            message: match is_own {
                true => reworded(&error.message()),
                false => error.message(),
            },
            labels: labels.collect(),
            help: error.help(),
            hint: error.evcxr_extra_hint().map(str::to_owned),
            is_own,
        }
    }
}

/// A completion that rust-analyzer offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// The text that it would insert.
    pub code: String,
    /// `function`, `instance`, ...
    pub kind: &'static str,
    pub label: String,
}

/// The completions at a place, and the bytes that they would replace.
pub struct Offers {
    pub start: usize,
    pub end: usize,
    pub offers: Vec<Offer>,
}

impl Evaluator {
    /// Starts evcxr, which starts the process that runs the cells with `command`.
    pub fn start(command: Command) -> Result<Self> {
        let (context, outputs) = EvalContext::with_subprocess_command(command)
            .map_err(|error| format!("The session could not be started: {error}"))?;
        // Output comes over the kernel's own pipes; evcxr waits until its own pipes are empty.
        std::thread::spawn(move || while outputs.stdout.recv().is_ok() {});
        std::thread::spawn(move || while outputs.stderr.recv().is_ok() {});
        let mut context = CommandContext::with_eval_context(context);
        // The cell library reports returned errors with their `Display`.
        for command in [
            ":efmt {}".to_owned(),
            format!(":opt {}", stand_in::OPT_LEVEL),
        ] {
            context
                .execute(&command)
                .map_err(|error| error.to_string())?;
        }
        Ok(Self { context })
    }

    /// Compiles and runs a cell. Returns what it displayed through evcxr's own channel.
    pub fn execute(&mut self, code: &str) -> Result<Shown, EvalError> {
        match self.context.execute(code) {
            Ok(outputs) => Ok(outputs.content_by_mime_type.into_iter().collect()),
            Err(::evcxr::Error::SubprocessTerminated(message)) => {
                Err(EvalError::Died(Death::read(&message)))
            }
            Err(::evcxr::Error::CompilationErrors(errors)) => {
                let errors = errors.iter().filter(|error| error.level() != "warning");
                Err(EvalError::Compiler(errors.map(Into::into).collect()))
            }
            Err(error) => Err(EvalError::Other(reworded(&error.to_string()))),
        }
    }

    /// Returns the process that runs the cells.
    pub fn process(&self) -> Arc<Mutex<Child>> {
        self.context.process_handle()
    }

    /// Returns the session's variables and their types.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.context.variables_and_types()
    }

    /// Returns the completions at a byte of the code.
    pub fn offers(&mut self, code: &str, at: usize) -> Option<Offers> {
        let found = self.context.completions(code, at).ok()?;
        let offers = found.completions.into_iter().map(|one| Offer {
            code: one.code,
            kind: one.kind,
            label: one.label,
        });
        Some(Offers {
            start: found.start_offset,
            end: found.end_offset,
            offers: offers.collect(),
        })
    }

    /// Returns the documentation of the name that the code ends with, as text and as HTML, or `None` if there is no
    /// such name.
    pub fn documentation(&mut self, code: &str) -> Option<(String, String)> {
        let (text, html) = self.context.hover_at(code, code.len()).ok()?;
        (text != "No documentation found").then_some((text, html))
    }
}

/// Rewords evcxr's messages about itself for users of the notebook.
fn reworded(message: &str) -> String {
    if message.contains("is a closure, which cannot be persisted") {
        let name = message.split('`').nth(1).unwrap_or_default();
        return format!(
            "The variable `{name}` is a closure, whose type has no name, so it can't be kept for later cells.\n\
             To keep it, box it: let {name}: Box<dyn Fn(i32) -> i32> = Box::new(|x| x + 1);\n\
             To use it in this cell only, put the cell into braces: {{ let {name} = ...; ... }}"
        );
    }
    if message.contains("no parsable errors were found") {
        // Cargo's own errors, before it calls the compiler.
        if let Some(at) = message.find("\nerror: ") {
            let told = message[at..].trim_start();
            let told = told.rsplit_once("\nSTDOUT:").map_or(told, |(told, _)| told);
            let told = told.trim_start_matches("error: ").trim_end();
            return format!("cargo can't build the crates that `:dep` added: {told}");
        }
        let told = match message.contains("overflowed its stack") {
            true => {
                "its stack overflowed: the code is nested too deeply. Move some of it into variables"
            }
            false => message,
        };
        return format!("The compiler stopped without an error message: {told}");
    }
    if message.contains("contains a reference with a non-static lifetime") {
        let name = message.split('`').nth(1).unwrap_or_default();
        return format!(
            "The variable `{name}` refers to another variable or to a temporary value, so it can't be kept for later cells.\n\
             Give it a value of its own, for example with `.clone()` or `.to_owned()`, or put the code into braces, so that it is not kept."
        );
    }
    message
        .replace(
            "prevent evcxr from attempting to persist\nthe variable by wrapping your code in braces",
            "put the code into braces, so that the variable is not kept",
        )
        .replace("cannot be persisted", "can't be kept for later cells")
        .replace("can't be persisted", "can't be kept for later cells")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evcxrs_message_tells_how_the_process_ended() {
        let died =
            Death::read("Subprocess terminated with status: signal: 11 (SIGSEGV) (core dumped)");
        assert_eq!(died.signal, Some(libc::SIGSEGV));
        assert_eq!(died.status, "signal: 11 (SIGSEGV) (core dumped)");
        let exited = Death::read("Subprocess terminated with status: exit status: 3");
        assert!(exited.exited && exited.signal.is_none());
        assert_eq!(Death::read("something else").status, "something else");
    }
}
