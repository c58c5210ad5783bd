//! evcxr 0.22, and everything here that hangs on its insides: an upgrade touches this room and no other.
//!
//! [`Evaluator`] is what the rest of the kernel sees of it. Around it stand what evcxr starts and believes to be cargo
//! ([`stand_in`]) and its own runtime ([`child`]), the pipes between them ([`pipes`]), the folder that all of it works in
//! ([`session_dir`]), and what is known of the code that evcxr makes of a cell ([`generated`]): the way back from it
//! ([`source_map`]), `static`s that live on ([`statics`]), types that it writes too short ([`retype`]).

pub mod building;
pub mod child;
mod effort;
pub mod failed;
pub mod generated;
pub mod pipes;
pub mod retype;
pub mod session_dir;
pub mod source_map;
pub mod stand_in;
pub mod statics;

use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use ::evcxr::{CommandContext, CompilationError, EvalContext};

use crate::Result;

/// evcxr, started: it compiles cells, has them run, and knows their variables.
pub struct Evaluator {
    context: CommandContext,
}

/// Content by MIME type.
pub type Shown = Vec<(String, String)>;

/// Why a cell did not come to its end.
pub enum EvalError {
    /// The process that runs the cells is gone.
    Died(Death),
    /// The cell does not compile, or evcxr can't do what it asks for.
    Compiler(Vec<CompileError>),
    /// Anything else, in words for the person at the notebook.
    Other(String),
}

/// How the process that runs the cells ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Death {
    /// As the system says it: `signal: 11 (SIGSEGV) (core dumped)`.
    pub status: String,
    /// The number of the signal, if it was one.
    pub signal: Option<i32>,
    /// Whether it ended by itself.
    pub exited: bool,
}

impl Death {
    /// From what evcxr says of it.
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

/// An error of a cell as evcxr tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompileError {
    pub code: Option<String>,
    pub message: String,
    /// What it says of places, or of none.
    pub labels: Vec<Label>,
    pub help: Vec<String>,
    pub hint: Option<String>,
    /// Whether it is evcxr's own, which no compiler said: of its commands, and of variables that can't be kept.
    pub is_own: bool,
}

/// What an error says of a place in the cell; lines and columns count from 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label {
    pub text: String,
    /// The first line and column, and the last.
    pub span: Option<((usize, usize), (usize, usize))>,
    /// What went wrong, as opposed to why.
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
        Self {
            code: error.code().map(str::to_owned),
            message: error.message(),
            labels: labels.collect(),
            help: error.help(),
            hint: error.evcxr_extra_hint().map(str::to_owned),
            is_own: error.json.is_null(),
        }
    }
}

/// A name that may be written, as rust-analyzer offers it.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// What it would insert.
    pub code: String,
    /// `function`, `instance`, ...
    pub kind: &'static str,
    pub label: String,
}

/// The names that may be written at a place, and the bytes that they would replace.
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
        // Output comes over the kernel's own pipes; evcxr waits until its own are empty.
        std::thread::spawn(move || while outputs.stdout.recv().is_ok() {});
        std::thread::spawn(move || while outputs.stderr.recv().is_ok() {});
        let mut context = CommandContext::with_eval_context(context);
        // The cell library reports returned errors by their `Display`.
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

    /// Compiles a cell and has it run. What it shows by evcxr's own means is given back.
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
            Err(error) => Err(EvalError::Other(in_our_words(&error.to_string()))),
        }
    }

    /// The process that runs the cells.
    pub fn process(&self) -> Arc<Mutex<Child>> {
        self.context.process_handle()
    }

    /// The session's variables and their types.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.context.variables_and_types()
    }

    /// What may be written at a byte of the code.
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

    /// The documentation of the name that a code ends with, as text and as HTML; `None` if there is no such name.
    pub fn documentation(&mut self, code: &str) -> Option<(String, String)> {
        let (text, html) = self.context.hover_at(code, code.len()).ok()?;
        (text != "No documentation found").then_some((text, html))
    }
}

/// What evcxr says of itself, said of the notebook.
fn in_our_words(message: &str) -> String {
    if message.contains("is a closure, which cannot be persisted") {
        let name = message.split('`').nth(1).unwrap_or_default();
        return format!(
            "The variable `{name}` is a closure, whose type has no name, so it can't be kept for later cells.\n\
             To keep it, put it into a box: let {name}: Box<dyn Fn(i32) -> i32> = Box::new(|x| x + 1);\n\
             To use it in this cell only, put the cell into braces: {{ let {name} = ...; ... }}"
        );
    }
    if message.contains("no parsable errors were found") {
        let told = match message.contains("overflowed its stack") {
            true => {
                "its stack overflowed: parts of the code are in each other too deep. Take some out into variables"
            }
            false => message,
        };
        return format!("The compiler ended without saying what is wrong: {told}");
    }
    message
        .replace(
            "prevent evcxr from attempting to persist\nthe variable by wrapping your code in braces",
            "leave it out of what is kept by putting the code into braces",
        )
        .replace("cannot be persisted", "can't be kept for later cells")
        .replace("can't be persisted", "can't be kept for later cells")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_is_read_from_what_evcxr_says() {
        let died =
            Death::read("Subprocess terminated with status: signal: 11 (SIGSEGV) (core dumped)");
        assert_eq!(died.signal, Some(libc::SIGSEGV));
        assert_eq!(died.status, "signal: 11 (SIGSEGV) (core dumped)");
        let exited = Death::read("Subprocess terminated with status: exit status: 3");
        assert!(exited.exited && exited.signal.is_none());
        assert_eq!(Death::read("something else").status, "something else");
    }
}
