//! A session: evcxr, the process that runs the cells, and the communication between them.

mod building;
mod caught;
mod commands;
mod completion;
mod diagnostics;
pub mod event;
pub mod failure;
mod lines;
mod output;
mod places;
mod private_names;
mod receiver;
pub mod remote;
mod report;
mod streams;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use self::building::ProgressDisplay;
use self::caught::caught;
use self::completion::{Candidate, Completions, Context};
use self::event::{Display, Event, Sink, Stream};
use self::failure::Failure;
use self::places::Places;
use self::private_names::PrivateNames;
use self::remote::Remote;
use self::report::Report;
use self::streams::Streams;
use crate::code::{self, Cell, Chunk, Edit};
use crate::evcxr::failed::Failed;
use crate::evcxr::pipes::Pipes;
use crate::evcxr::session_dir::{BuildPlan, Compilation, SessionDir};
use crate::evcxr::stand_in::OPT_LEVEL;
use crate::evcxr::{CompileError, Death, EvalError, Evaluator, child, retype, statics};
use crate::toolchain::environment::{LIBRARY_PATH, outside};
use crate::toolchain::prelude::{Libraries, Sources};
use crate::toolchain::work::{Stop, Work};
use crate::toolchain::{Toolchain, outline};
use crate::{Error, Result};

/// The status while the session starts and nothing has to be built.
pub const STARTING: &str = "starting";

/// The time limit for finding out which completions are private, for types whose sources are not read. JupyterLab
/// discards completions that take longer than a second, including rust-analyzer's part.
const VISIBILITY: Duration = Duration::from_millis(250);

/// evcxr, together with everything that makes cells start fast and fail informatively.
pub struct Session {
    evaluator: Evaluator,
    streams: Streams,
    events: Sink,
    /// Collects events while a value is evaluated, instead of sending them.
    captured: Captured,
    remote: Remote,
    places: Places,
    folder: PathBuf,
    /// Whether the last cell failed to compile.
    failed_to_compile: bool,
    /// The source folders that completion uses, and the private names in them, once they have been read.
    crate_sources: Vec<PathBuf>,
    private_names: Arc<OnceLock<PrivateNames>>,
    /// The types that cells defined.
    own_types: HashSet<String>,
    has_prelude: bool,
    is_warm: bool,
    // Dropped last, because the others use them.
    _libraries: Libraries,
    _dir: Arc<SessionDir>,
}

type Captured = Arc<Mutex<Option<Vec<Event>>>>;

impl Session {
    /// Starts a session in `session_dir`, which must have been entered with `move_in`. The calling thread must live as
    /// long as the session: the process that runs the cells ends with it.
    pub fn start(
        session_dir: Arc<SessionDir>,
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
        let stop = Stop::default();
        let _working = remote.work(&stop);
        let waiting = |what: String| events(Event::Waiting(what));
        let work = Work::new(&waiting, &stop);
        let toolchain = Toolchain::find()?;
        toolchain.add_sources(&work)?;
        let libraries = Libraries::prepare(&toolchain, sources, &work)?;
        session_dir.write_plan(&BuildPlan {
            rustc: toolchain.rustc.clone(),
            cargo: toolchain.cargo.clone(),
            sysroot: toolchain.sysroot.clone(),
            host: toolchain.host.clone(),
            version: toolchain.version.clone(),
            std_sources: toolchain.std_sources(),
            flags: libraries.flags.clone(),
            analysis: libraries.analysis.clone(),
        })?;
        let library = outline::shown(&toolchain)?;
        stop.check()?;
        work.tell(STARTING);
        // evcxr starts with a cell of its own, which needs no types. They are loaded together with the first code that
        // needs them: rust-analyzer forgets what it has parsed from one piece of code to the next.
        session_dir.show_nothing()?;
        statics::forget(session_dir.folder());
        let compilation = Compilation::of(&session_dir);
        compilation.allow();
        let pipes = Pipes::new().map_err(Error::system("creating pipes"))?;
        let mark = uuid::Uuid::new_v4().simple().to_string();
        let mut command = cell_process(&toolchain, &libraries, &mark)?;
        pipes
            .connect(&mut command)
            .map_err(Error::system("connecting pipes"))?;
        let input = pipes
            .stdin
            .try_clone()
            .map_err(Error::system("copying a pipe"))?;
        let places = Places::new(session_dir.folder(), &toolchain.host);
        let streams = Streams::listen(pipes, &mark, places.clone(), events.clone(), remote.clone())
            .map_err(Error::system("listening to the cells"))?;
        let evaluator = Evaluator::start(command)?;
        stop.check()?;
        streams.unmute();
        let begun = streams.about_to_run();
        remote.connect(evaluator.process(), input, compilation, begun);
        // The changed manifest makes rust-analyzer load the library and the crates again.
        session_dir.show_library(&library)?;
        session_dir.set_opt_level(OPT_LEVEL)?;
        let mut session = Self {
            evaluator,
            streams,
            events,
            captured,
            remote,
            places,
            folder: session_dir.folder().to_owned(),
            failed_to_compile: false,
            crate_sources: sources
                .and_then(|sources| sources.folder().or(libraries.analysis.as_deref()))
                .map(|folder| folder.join("src"))
                .into_iter()
                .chain(libraries.analysed())
                .chain(
                    ["alloc/src", "core/src", "std/src"].map(|it| toolchain.std_sources().join(it)),
                )
                .collect(),
            private_names: Arc::default(),
            own_types: HashSet::new(),
            has_prelude: sources.is_some(),
            is_warm: false,
            _libraries: libraries,
            _dir: session_dir,
        };
        session.learn();
        stop.check()?;
        Ok(session)
    }

    /// Starts to read what the first completion needs. A session without a user who types does not need it.
    pub fn expect_completions(&self) {
        let (names, folders) = (self.private_names.clone(), self.crate_sources.clone());
        std::thread::spawn(move || {
            names.get_or_init(|| PrivateNames::read(&folders));
        });
    }

    /// Prepares what the first cells would have to wait for: loads the types of the library and of the prelude, as far
    /// as a first `let` needs them, and makes evcxr learn that cells use `?`.
    fn learn(&mut self) {
        let typical = self.typical_code();
        let _ = self.evaluator.documentation(typical);
        let _ = self.value("std::fs::metadata(\".\")?;");
    }

    /// Returns code that ends with a variable.
    fn typical_code(&self) -> &'static str {
        match self.has_prelude {
            true => {
                "use cloze::prelude::*;\nlet warm = Tensor::zeros((1, 1), DType::F32, &Device::Cpu)?;\nwarm"
            }
            false => "let warm = std::fs::metadata(\".\")?;\nwarm",
        }
    }

    /// Runs a cell. All of its output is sent to the session's events before this returns.
    pub fn execute(&mut self, number: usize, code: &str) -> Result<(), Failure> {
        caught(|| self.execute_code(number, code)).unwrap_or_else(|failure| {
            self.remote.end();
            self.places.end(false);
            Err(failure)
        })
    }

    fn execute_code(&mut self, number: usize, code: &str) -> Result<(), Failure> {
        let code = code.strip_prefix('\u{feff}').unwrap_or(code);
        let code = self.without_prelude_dep(code);
        let mut kernel = commands::Kernel {
            evaluator: &self.evaluator,
            remote: &self.remote,
            events: &self.events,
            folder: &self.folder,
        };
        let code = commands::run(&code, &mut kernel)?;
        let cell = code::prepare(number, &code)
            .map_err(|complaint| diagnostics::complaint(&complaint, &code))?;
        let adds_crates = code
            .lines()
            .any(|line| line.trim_start().starts_with(":dep"));
        // evcxr would not build crates that it has seen before; their sources may have changed.
        let cell = match adds_crates && cell.chunks().is_empty() {
            true => cell.changed(vec![Edit {
                at: cell.prepared.len(),
                removed: 0,
                inserted: "\n();".into(),
            }]),
            false => cell,
        };
        let _telling = adds_crates.then(|| {
            ProgressDisplay::begin(
                self.streams.about_to_run(),
                self.events.clone(),
                self.folder.clone(),
            )
        });
        let outcome = self.execute_cell(&cell);
        if outcome.is_ok() || !self.failed_to_compile {
            return outcome;
        }
        // Types that evcxr writes too short are written out, if nothing else is wrong.
        let attempts = Failed::read(&self.folder).map(|failed| retype::attempts(&failed, &cell));
        for cell in attempts.into_iter().flatten() {
            let again = self.execute_cell(&cell);
            if again.is_ok() || !self.failed_to_compile {
                return again;
            }
        }
        outcome
    }

    fn execute_cell(&mut self, cell: &Arc<Cell>) -> Result<(), Failure> {
        let before: Vec<String> = self
            .evaluator
            .variables()
            .map(|(name, _)| name.to_owned())
            .collect();
        let process = self.remote.process();
        self.streams
            .expect_value(!cell.prepared.trim_end().ends_with(';'));
        Failed::forget(&self.folder);
        statics::begin(&self.folder, cell);
        self.failed_to_compile = false;
        self.places.begin(cell);
        self.streams.about_to_run();
        self.remote.begin();
        let executed = self.evaluator.execute(&cell.prepared);
        let interrupts = self.remote.end();
        // The error is mapped to cells while this cell still counts as the running one.
        let outcome = match executed {
            Ok(outputs) => {
                let report = self.streams.report();
                statics::ran(&self.folder);
                let types = cell
                    .chunks()
                    .into_iter()
                    .filter_map(|chunk| chunk.type_name());
                self.own_types.extend(types);
                if !outputs.is_empty() {
                    let data = outputs
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
                let outcome = self.outcome(&report, cell, interrupts);
                for name in self.places.macros_that_define(cell) {
                    let text = format!(
                        "Items defined by `{name}!` exist in this cell only: only items that are written out are kept for later cells.\n"
                    );
                    (self.events)(Event::Text(Stream::Stderr, text));
                }
                self.places.end(true);
                return outcome;
            }
            Err(EvalError::Died(death)) => {
                let report = self.streams.report_of_dead_process();
                if let Some(process) = process {
                    remote::end_group(process);
                }
                statics::forget(&self.folder);
                Err(self.death(&death, &report, &before, interrupts))
            }
            Err(_) if interrupts > 0 => Err(Failure::new(
                "Interrupted",
                "interrupted before the cell ran; variables are kept",
            )),
            Err(EvalError::Compiler(errors)) => {
                self.failed_to_compile = true;
                Err(self.compilation(&errors, cell))
            }
            Err(EvalError::Other(problem)) => Err(Failure::new("error", problem)),
        };
        self.places.end(false);
        outcome
    }

    /// Builds the failure of a cell that does not compile.
    fn compilation(&self, errors: &[CompileError], cell: &Arc<Cell>) -> Failure {
        // evcxr's own errors come first.
        let own: Vec<_> = errors
            .iter()
            .filter(|error| error.is_own)
            .cloned()
            .collect();
        if own.is_empty()
            && let Some(failed) = Failed::read(&self.folder)
        {
            let map = self.places.map_of(&failed.source);
            if let Some(failure) = diagnostics::failure(&failed, &map, cell) {
                return failure;
            }
        }
        let errors = if own.is_empty() { errors } else { &own };
        Failure::compilation(errors, &cell.original)
    }

    /// Prepares what the first completion of a method would have to wait for, unless it is prepared already.
    pub fn warm_up(&mut self) {
        if !std::mem::replace(&mut self.is_warm, true) {
            let code = format!("{}.i", self.typical_code());
            self.complete(&code, code.len());
        }
    }

    /// Evaluates an expression without showing it.
    pub fn value(&mut self, code: &str) -> Result<Display, Failure> {
        let captured = self.captured.clone();
        let replace = |with| {
            std::mem::replace(
                &mut *captured.lock().unwrap_or_else(PoisonError::into_inner),
                with,
            )
        };
        replace(Some(Vec::new()));
        let outcome = self.execute(0, code);
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

    /// Returns the completions at a byte of the code, and the bytes that they replace.
    pub fn complete(&mut self, code: &str, at: usize) -> Option<Completions> {
        caught(|| self.completions(code, at)).ok()?
    }

    fn completions(&mut self, code: &str, at: usize) -> Option<Completions> {
        let code = self.without_prelude_dep(code);
        let at = at.min(code.len());
        if code::too_deep_at(&code).is_some() {
            return None;
        }
        let found = self.evaluator.offers(&code, at)?;
        let written = code.get(found.start..at).unwrap_or_default();
        let before = code.get(..found.start).unwrap_or_default();
        let context = Context {
            // After a type, constructors come before methods.
            of_type: before.ends_with("::"),
            of_value: before.ends_with('.'),
            written,
        };
        let mut candidates = completion::candidates(&found.offers, &context);
        // rust-analyzer takes all crates for one crate, in which everything is accessible. For most types the sources
        // tell what is private; for any other type, the documentation of the name is looked up.
        let private_names = self.private_names.clone();
        let private_names = private_names.get_or_init(|| PrivateNames::read(&self.crate_sources));
        let is_doubtful = |candidate: &Candidate| {
            let Candidate { name, is_field, .. } = candidate;
            *is_field || private_names.contains(name, *is_field)
        };
        let of_something = context.of_value || context.of_type;
        let of_type = match of_something && candidates.iter().any(is_doubtful) {
            true => self.type_before(before),
            false => None,
        };
        let start = Instant::now();
        candidates.retain(|candidate| {
            if !of_something || !is_doubtful(candidate) {
                return true;
            }
            let known = of_type.as_deref().and_then(|type_| {
                private_names.is_private(type_, &candidate.name, candidate.is_field)
            });
            if let Some(is_private) = known {
                return !is_private;
            }
            if start.elapsed() > VISIBILITY {
                return true;
            }
            let asked = match candidate.is_field {
                true => format!("{before}{}", candidate.name),
                false => format!("{before}{}(", candidate.name),
            };
            let told = self.evaluator.documentation(&asked);
            told.is_none_or(|(text, _)| !completion::is_private(&text, &candidate.name))
        });
        completion::once(&mut candidates);
        Some(Completions {
            start: found.start,
            end: found.end,
            candidates,
        })
    }

    /// Returns the type before the dot or the colons at the end of the code, unless the session defines a type of that
    /// name.
    fn type_before(&mut self, code: &str) -> Option<String> {
        let type_ = match receiver::named_type(code) {
            Some(name) => name.to_owned(),
            None => {
                let asked = receiver::as_variable(code)?;
                let (told, _) = self.evaluator.documentation(&asked)?;
                receiver::type_in(&told)?.to_owned()
            }
        };
        let of_this_code = code::chunks(code);
        let own = of_this_code.iter().filter_map(Chunk::type_name);
        let own = own.chain(self.own_types.iter().cloned());
        let is_own = own.into_iter().any(|name| {
            let mut words = type_.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| word == name)
        });
        (!is_own).then_some(type_)
    }

    /// Returns the documentation of the name that ends at a byte of the code, as text and as HTML.
    pub fn inspect(&mut self, code: &str, at: usize) -> Option<(String, String)> {
        caught(|| self.documentation(code, at)).ok()?
    }

    fn documentation(&mut self, code: &str, at: usize) -> Option<(String, String)> {
        let code = self.without_prelude_dep(code);
        if code::too_deep_at(&code).is_some() {
            return None;
        }
        let (name, rest) = code.split_at_checked(at)?;
        if let Some(path) = completion::used_path(name) {
            // evcxr splits `use` lines; the name is found as a type or as a value.
            let asked = [format!("let _: {path}"), path.clone(), format!("{path}(")];
            return asked
                .iter()
                .find_map(|code| self.evaluator.documentation(code));
        }
        // A method is found by its call: without the bracket its name may be that of a field.
        let call = format!("{name}(");
        let candidates = match rest.starts_with('(') {
            true => [call.as_str(), name],
            false => [name, call.as_str()],
        };
        candidates
            .into_iter()
            .find_map(|code| self.evaluator.documentation(code))
    }

    fn outcome(&self, report: &Report, cell: &Cell, interrupts: usize) -> Result<(), Failure> {
        if report.panicked {
            // A panic in a worker thread ends the call that waits for the worker, and only the worker reports it.
            let panic = report.panics.last().or(report.panics_of_threads.last());
            return Err(match panic {
                Some(panic) => Failure::panic(panic, &self.places, cell.number),
                None => Failure::new("panic", "the cell panicked"),
            });
        }
        if report.returned {
            return Err(match report.errors.last() {
                // Interrupted work of the library describes itself.
                Some(error) if interrupts > 0 && error.interrupted => Failure::new(
                    "Interrupted",
                    format!("{}; variables are kept", error.message),
                ),
                Some(error) => Failure::returned(error),
                None => Failure::new("error", "the cell returned an error"),
            });
        }
        Ok(())
    }

    fn death(
        &self,
        death: &Death,
        report: &Report,
        variables: &[String],
        interrupts: usize,
    ) -> Failure {
        const PROCESS: &str = "the process that runs the cells";
        let status = &death.status;
        let (name, what) = match death.signal {
            _ if interrupts > 1 => (
                "Interrupted",
                "the cell did not stop at the first interrupt, so its process was ended".to_owned(),
            ),
            _ if !report.panics.is_empty() => {
                let message = report.panics.last().map_or("", |panic| &panic.message);
                (
                    "panic",
                    format!("{message} (in code that can't unwind, so the process was aborted)"),
                )
            }
            Some(libc::SIGSEGV | libc::SIGBUS) => {
                ("SegmentationFault", format!("{PROCESS} crashed ({status})"))
            }
            Some(libc::SIGILL) => (
                "IllegalInstruction",
                format!(
                    "{PROCESS} crashed ({status}): it reached invalid instructions, perhaps because of unsafe code"
                ),
            ),
            Some(libc::SIGABRT) => ("Aborted", format!("{PROCESS} aborted ({status})")),
            Some(libc::SIGKILL) => (
                "Killed",
                format!("{PROCESS} was killed ({status}): out of memory?"),
            ),
            _ if death.exited => (
                "ProcessExited",
                format!("the cell ended {PROCESS} ({status})"),
            ),
            _ => ("ProcessDied", format!("{PROCESS} died ({status})")),
        };
        let lost = match variables.is_empty() {
            true => String::new(),
            false => format!(" Lost variables: {}.", variables.join(", ")),
        };
        Failure::new(
            name,
            format!(
                "{what}. A new process is ready; functions, types and `use` lines are kept.{lost}"
            ),
        )
    }

    /// Removes the `:dep` line by which a notebook for the stock kernel adds Cloze; here it is built in.
    fn without_prelude_dep(&self, code: &str) -> String {
        if !self.has_prelude || !code.contains(":dep") {
            return code.to_owned();
        }
        // Replaced by spaces, so that positions stay valid for front ends.
        let lines = code.split('\n').map(|line| match prelude_dep(line) {
            Some(_) => " ".repeat(line.len()),
            None => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Returns what follows `:dep` in a line that adds Cloze.
pub fn prelude_dep(line: &str) -> Option<&str> {
    let dep = line.trim_start().strip_prefix(":dep")?.trim_start();
    let rest = dep.strip_prefix("cloze")?;
    let ends = rest.is_empty() || rest.starts_with([' ', '=', '\t']);
    ends.then_some(dep)
}

/// Returns the command that starts the process that runs the cells.
fn cell_process(toolchain: &Toolchain, libraries: &Libraries, mark: &str) -> Result<Command> {
    let program =
        std::env::current_exe().map_err(Error::system("finding the path of this program"))?;
    let mut command = Command::new(program);
    outside(&mut command);
    let mut path: Vec<PathBuf> = vec![toolchain.libraries()];
    path.extend(
        std::env::var_os(LIBRARY_PATH)
            .iter()
            .flat_map(std::env::split_paths),
    );
    let load: Vec<&str> = libraries
        .load
        .iter()
        .filter_map(|library: &PathBuf| Path::to_str(library))
        .collect();
    command
        .env(LIBRARY_PATH, std::env::join_paths(path).unwrap_or_default())
        .env(child::LIBRARIES, load.join(":"))
        // Tells the library that it may update displays while they are shown; see its `notebook::live`.
        .env(child::MARK, mark);
    for (name, original) in child::RESTORED {
        match std::env::var_os(name) {
            Some(value) => command.env(original, value),
            None => command.env_remove(original),
        };
    }
    Ok(command)
}
