//! A session: evcxr, the process that runs the cells, and what passes between them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use evcxr::{CommandContext, EvalContext};

use crate::child;
use crate::event::{Display, Event, Sink};
use crate::failure::Failure;
use crate::pipes::Pipes;
use crate::prelude::{Libraries, Sources};
use crate::remote::Remote;
use crate::streams::{Report, Streams};
use crate::toolchain::Toolchain;
use crate::tools::OPT_LEVEL;
use crate::workshop::{Compilation, Recipe, Workshop, outside};
use crate::{Error, Result};

/// What is told to be waited for when nothing has to be built.
pub const STARTING: &str = "starting";

/// evcxr with everything around it that makes cells start fast and fail honestly.
pub struct Session {
    context: CommandContext,
    streams: Streams,
    events: Sink,
    /// Where events go instead while a value is looked up.
    captured: Captured,
    remote: Remote,
    has_prelude: bool,
    is_warm: bool,
    // Dropped last: the others use them.
    _libraries: Libraries,
    _workshop: Arc<Workshop>,
}

type Captured = Arc<Mutex<Option<Vec<Event>>>>;

impl Session {
    /// Starts a session in `workshop`, which must have been moved into. The thread that calls this must live as long as
    /// the session: the process that runs the cells ends with it.
    pub fn start(
        workshop: Arc<Workshop>,
        sources: Option<&Sources>,
        remote: Remote,
        events: Sink,
    ) -> Result<Self> {
        let captured = Captured::default();
        let events: Sink = {
            let captured = captured.clone();
            Arc::new(move |event| {
                match &mut *captured.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(captured) => captured.push(event),
                    None => events(event),
                }
            })
        };
        let toolchain = Toolchain::find()?;
        let waiting = |what: String| events(Event::Waiting(what));
        if !toolchain.has_sources() {
            waiting(
                "adding the sources of Rust's standard library (rustup component add rust-src)"
                    .into(),
            );
            toolchain.add_sources()?;
        }
        let libraries = Libraries::prepare(&toolchain, sources, &waiting)?;
        workshop.write_recipe(&Recipe {
            rustc: toolchain.rustc.clone(),
            cargo: toolchain.cargo.clone(),
            sysroot: toolchain.sysroot.clone(),
            host: toolchain.host.clone(),
            version: toolchain.version.clone(),
            library: toolchain.library_sources(),
            flags: libraries.flags.clone(),
            analysis: libraries.analysis.clone(),
        })?;
        let library = crate::library::shown(&toolchain)?;
        waiting(STARTING.into());
        // evcxr begins with a cell of its own, which needs no types. They are loaded with code that does, at one go:
        // rust-analyzer forgets what it has parsed from one piece of code to the next.
        workshop.show_nothing()?;
        let compilation = Compilation::of(&workshop);
        compilation.allow();
        let pipes = Pipes::new().map_err(Error::system("making pipes"))?;
        let mut command = cell_process(&toolchain, &libraries)?;
        pipes
            .connect(&mut command)
            .map_err(Error::system("connecting pipes"))?;
        let input = pipes
            .stdin
            .writer
            .try_clone()
            .map_err(Error::system("copying a pipe"))?;
        let streams = Streams::listen(pipes, events.clone())
            .map_err(Error::system("listening to the cells"))?;
        let (context, outputs) = EvalContext::with_subprocess_command(command)
            .map_err(|error| format!("The session could not be started: {error}"))?;
        // Output comes over our own pipes; evcxr waits until its own are empty.
        std::thread::spawn(move || while outputs.stdout.recv().is_ok() {});
        std::thread::spawn(move || while outputs.stderr.recv().is_ok() {});
        let mut context = CommandContext::with_eval_context(context);
        // The cell library reports returned errors by their `Display`.
        for command in [":efmt {}".to_owned(), format!(":opt {OPT_LEVEL}")] {
            context
                .execute(&command)
                .map_err(|error| error.to_string())?;
        }
        streams.unmute();
        remote.connect(context.process_handle(), input, compilation);
        // rust-analyzer looks at the library and the crates again because the manifest is another one.
        workshop.show_library(&library)?;
        workshop.set_opt_level(OPT_LEVEL)?;
        let mut session = Self {
            context,
            streams,
            events,
            captured,
            remote,
            has_prelude: sources.is_some(),
            is_warm: false,
            _libraries: libraries,
            _workshop: workshop,
        };
        session.learn();
        Ok(session)
    }

    /// Does what the first cells would have to wait for: loads the types of the library and of the prelude, as far as a
    /// first `let` needs them, and tells evcxr that cells use `?`.
    fn learn(&mut self) {
        let typical = self.typical_code();
        let _ = self.context.hover_at(typical, typical.len());
        let _ = self.value("std::fs::metadata(\".\")?;");
    }

    /// Code that ends with a variable.
    fn typical_code(&self) -> &'static str {
        match self.has_prelude {
            true => {
                "use cloze::prelude::*;\nlet warm = Tensor::zeros((1, 1), DType::F32, &Device::Cpu)?;\nwarm"
            }
            false => "let warm = std::fs::metadata(\".\")?;\nwarm",
        }
    }

    /// Runs a cell. Its output goes to the session's events, all of it before this returns.
    pub fn execute(&mut self, code: &str) -> Result<(), Failure> {
        let code = self.without_prelude_dep(code);
        let before: Vec<String> = self
            .context
            .variables_and_types()
            .map(|(name, _)| name.to_owned())
            .collect();
        self.streams.expect_value(!code.trim_end().ends_with(';'));
        self.remote.begin();
        let executed = self.context.execute(&code);
        let interrupts = self.remote.end();
        match executed {
            Ok(outputs) => {
                let report = self.streams.report();
                if !outputs.is_empty() {
                    let data = outputs
                        .content_by_mime_type
                        .into_iter()
                        .map(|(mime, text)| (mime, text.into()))
                        .collect();
                    (self.events)(Event::Display(Display {
                        data,
                        metadata: Default::default(),
                        display_id: None,
                        update: false,
                        is_result: true,
                    }));
                }
                self.outcome(&report, &code, interrupts)
            }
            Err(evcxr::Error::SubprocessTerminated(message)) => {
                let report = self.streams.report_of_dead_process();
                Err(self.death(&message, &report, &before, interrupts))
            }
            Err(_) if interrupts > 0 => Err(Failure::new(
                "Interrupted",
                "interrupted before the cell ran; variables are kept",
            )),
            Err(evcxr::Error::CompilationErrors(errors)) => {
                Err(Failure::compilation(&errors, &code))
            }
            Err(error) => Err(Failure::new("error", error.to_string())),
        }
    }

    /// Does what the first completion of a method would have to wait for, if nobody asks for anything else.
    pub fn warm_up(&mut self) {
        if !std::mem::replace(&mut self.is_warm, true) {
            let code = format!("{}.i", self.typical_code());
            self.complete(&code, code.len());
        }
    }

    /// What an expression is worth, without showing it.
    pub fn value(&mut self, code: &str) -> Result<Display, Failure> {
        let captured = self.captured.clone();
        let replace = |with| {
            std::mem::replace(
                &mut *captured.lock().unwrap_or_else(PoisonError::into_inner),
                with,
            )
        };
        replace(Some(Vec::new()));
        let outcome = self.execute(code);
        let events = replace(None).unwrap_or_default();
        outcome?;
        let mut displays = events.into_iter().rev().filter_map(|event| match event {
            Event::Display(display) => Some(display),
            _ => None,
        });
        displays
            .next()
            .ok_or_else(|| Failure::new("error", "the expression has no value to show"))
    }

    /// What may be written at a byte of the code, and the bytes that it would replace.
    pub fn complete(&mut self, code: &str, at: usize) -> Option<evcxr::Completions> {
        let code = self.without_prelude_dep(code);
        let at = at.min(code.len());
        let mut found = self.context.completions(&code, at).ok()?;
        let written = code.get(found.start_offset..at).unwrap_or_default();
        // Part of how values show themselves, and nobody's word.
        found
            .completions
            .retain(|one| written.starts_with("evcxr") || !one.code.starts_with("evcxr_display"));
        // After a type, what makes a value of it comes before what needs one.
        if code[..at].ends_with(&format!("::{written}")) {
            let selves = ["(self", "(mut self", "(&self", "(&mut self"];
            // The label of a method that a macro wrote lacks its arguments.
            let needs_value = |text: &str| selves.iter().any(|with| text.contains(with));
            found
                .completions
                .sort_by_key(|one| needs_value(&one.label) || needs_value(&one.code));
        }
        Some(found)
    }

    /// The documentation of the name that ends at a byte of the code, as text and as HTML.
    pub fn inspect(&mut self, code: &str, at: usize) -> Option<(String, String)> {
        let code = self.without_prelude_dep(code);
        let (name, rest) = code.split_at_checked(at)?;
        // A method is known by its call: without the bracket its name may be that of a field.
        let call = format!("{name}(");
        let candidates = match rest.starts_with('(') {
            true => [call.as_str(), name],
            false => [name, call.as_str()],
        };
        candidates.into_iter().find_map(|code| {
            let (text, html) = self.context.hover_at(code, code.len()).ok()?;
            (text != "No documentation found").then_some((text, html))
        })
    }

    fn outcome(&self, report: &Report, code: &str, interrupts: usize) -> Result<(), Failure> {
        if report.panicked {
            // What ended a worker ends the call that waits for it, and is told once, by the worker.
            let Some(panic) = report.panics.last().or(report.panics_of_threads.last()) else {
                return Err(Failure::new("panic", "the cell panicked"));
            };
            let generated = self.context.last_source().unwrap_or_default();
            let places = panic.places_in_cells();
            return Err(Failure::panic(panic, &places, code, &generated));
        }
        if report.returned {
            return Err(match report.errors.last() {
                // The work that listens says so in its own words.
                Some(error) if interrupts > 0 && error.message.starts_with("interrupted ") => {
                    Failure::new(
                        "Interrupted",
                        format!("{}; variables are kept", error.message),
                    )
                }
                Some(error) => Failure::returned(error),
                None => Failure::new("error", "the cell returned an error"),
            });
        }
        Ok(())
    }

    fn death(
        &self,
        message: &str,
        report: &Report,
        variables: &[String],
        interrupts: usize,
    ) -> Failure {
        let status = message
            .rsplit("Subprocess terminated with status: ")
            .next()
            .unwrap_or(message)
            .trim();
        let (name, what) = if interrupts > 1 {
            (
                "Interrupted",
                "the cell did not stop at the first interrupt, so its process was ended".to_owned(),
            )
        } else if let Some(panic) = report.panics.last() {
            (
                "panic",
                format!(
                    "{} (in code that can't unwind, so the process aborted)",
                    panic.message
                ),
            )
        } else if status.contains("SIGSEGV") || status.contains("SIGBUS") {
            (
                "SegmentationFault",
                format!("the process that runs the cells crashed ({status})"),
            )
        } else if status.contains("SIGILL") {
            let hint = "unreachable or undefined code, as unsafe code may lead to";
            (
                "IllegalInstruction",
                format!("the process that runs the cells crashed ({status}): {hint}"),
            )
        } else if status.contains("SIGABRT") {
            (
                "Aborted",
                format!("the process that runs the cells aborted ({status})"),
            )
        } else if status.contains("SIGKILL") {
            (
                "Killed",
                format!("the process that runs the cells was killed ({status}): out of memory?"),
            )
        } else if status.starts_with("exit status") {
            (
                "ProcessExited",
                format!("the cell ended the process that runs the cells ({status})"),
            )
        } else {
            (
                "ProcessDied",
                format!("the process that runs the cells died ({status})"),
            )
        };
        let lost = if variables.is_empty() {
            String::new()
        } else {
            format!(" Lost variables: {}.", variables.join(", "))
        };
        Failure::new(
            name,
            format!(
                "{what}. A new process is ready; functions, types and `use` lines are kept.{lost}"
            ),
        )
    }

    /// A notebook written for the stock kernel brings Cloze in with `:dep`; here it is there already.
    fn without_prelude_dep(&self, code: &str) -> String {
        if !self.has_prelude || !code.contains(":dep") {
            return code.to_owned();
        }
        // Blanks instead, so that what a front end says of places stays true.
        let lines = code.split('\n').map(|line| match prelude_dep(line) {
            Some(_) => " ".repeat(line.len()),
            None => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// What follows `:dep` in a line that brings Cloze in.
pub fn prelude_dep(line: &str) -> Option<&str> {
    let dep = line.trim_start().strip_prefix(":dep")?.trim_start();
    let rest = dep.strip_prefix("cloze")?;
    let ends = rest.is_empty() || rest.starts_with([' ', '=', '\t']);
    ends.then_some(dep)
}

/// The command that starts the process that runs the cells.
fn cell_process(toolchain: &Toolchain, libraries: &Libraries) -> Result<Command> {
    let program = std::env::current_exe().map_err(Error::system("the path of this program"))?;
    let mut command = Command::new(program);
    outside(&mut command);
    let mut path: Vec<PathBuf> = vec![toolchain.libraries()];
    path.extend(
        std::env::var_os("LD_LIBRARY_PATH")
            .iter()
            .flat_map(std::env::split_paths),
    );
    let load: Vec<&str> = libraries
        .load
        .iter()
        .filter_map(|library: &PathBuf| Path::to_str(library))
        .collect();
    command
        .env(
            "LD_LIBRARY_PATH",
            std::env::join_paths(path).unwrap_or_default(),
        )
        .env(child::LIBRARIES, load.join(":"))
        // The library then shows displays while they change, see its `display::live`.
        .env("CLOZE_KERNEL", env!("CARGO_PKG_VERSION"));
    Ok(command)
}
