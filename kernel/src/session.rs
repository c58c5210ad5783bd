//! A session: evcxr, the process that runs the cells, and what passes between them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crossbeam_channel::Sender;
use evcxr::{CommandContext, EvalContext};

use crate::child;
use crate::event::{Display, Event};
use crate::failure::{Failure, line_in_cell};
use crate::pipes::Pipes;
use crate::prelude::{Libraries, Sources};
use crate::remote::Remote;
use crate::streams::{Report, Streams};
use crate::toolchain::Toolchain;
use crate::workshop::{Recipe, Workshop, outside};
use crate::{Error, Result};

/// evcxr with everything around it that makes cells start fast and fail honestly.
pub struct Session {
    context: CommandContext,
    streams: Streams,
    events: Sender<Event>,
    remote: Remote,
    has_prelude: bool,
    // Dropped last: the others use it.
    _workshop: Arc<Workshop>,
}

impl Session {
    /// Starts a session in `workshop`, which must have been moved into. The thread that calls this must live as long as
    /// the session: the process that runs the cells ends with it.
    pub fn start(
        workshop: Arc<Workshop>,
        sources: Option<&Sources>,
        remote: Remote,
        events: Sender<Event>,
    ) -> Result<Self> {
        let toolchain = Toolchain::find()?;
        let waiting = |what: String| {
            let _ = events.send(Event::Waiting(what));
        };
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
            flags: libraries.flags.clone(),
            analysis: libraries.analysis.clone(),
        })?;
        waiting("starting".into());
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
        context
            .execute(":efmt {}")
            .map_err(|error| error.to_string())?;
        streams.unmute();
        remote.connect(context.process_handle(), input);
        Ok(Self {
            context,
            streams,
            events,
            remote,
            has_prelude: sources.is_some(),
            _workshop: workshop,
        })
    }

    /// Runs a cell. Its output goes to the session's events, all of it before this returns.
    pub fn execute(&mut self, code: &str) -> Result<(), Failure> {
        let code = self.without_prelude_dep(code);
        let before: Vec<String> = self
            .context
            .variables_and_types()
            .map(|(name, _)| name.to_owned())
            .collect();
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
                    let _ = self.events.send(Event::Display(Display {
                        data,
                        metadata: Default::default(),
                        display_id: None,
                        update: false,
                        is_result: true,
                    }));
                }
                self.outcome(&report, &code)
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

    fn outcome(&self, report: &Report, code: &str) -> Result<(), Failure> {
        if report.panicked {
            let Some(panic) = report.panics.last() else {
                return Err(Failure::new("panic", "the cell panicked"));
            };
            let generated = self.context.last_source().unwrap_or_default();
            let in_cell = panic.file.ends_with("cell/lib.rs") || panic.file == "lib.rs";
            let line = if in_cell {
                line_in_cell(&generated, panic.line, code)
            } else {
                None
            };
            return Err(Failure::panic(panic, code, line));
        }
        if report.returned {
            return Err(match report.errors.last() {
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
        let lines = code.lines().map(|line| {
            if prelude_dep(line).is_some() {
                ""
            } else {
                line
            }
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
        .env("CLOZE_KERNEL", env!("CARGO_PKG_VERSION"));
    Ok(command)
}
