//! `cloze run`: executes notebooks without Jupyter.

mod arguments;
mod console;
mod foreign;
mod notebook;
pub mod parameters;
mod place;
pub mod signals;
#[cfg(any(test, fuzzing))]
pub mod untrusted;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

pub use self::arguments::Run;
use self::console::Console;
use self::notebook::Notebook;
use self::place::Place;
use crate::code;
use crate::evcxr::session_dir::SessionDir;
use crate::session::event::{Event, Sink};
use crate::session::failure::Failure;
use crate::session::remote::{Input, Interrupted, Remote};
use crate::session::{Session, prelude_dep};
use crate::toolchain::prelude::Sources;
use crate::{Error, Result};

/// How long a cell that exceeds its time limit has to stop by itself.
const GRACE: Duration = Duration::from_secs(5);
/// The same when the whole program is to end: whoever sent the signal will not wait long.
const SHORT_GRACE: Duration = Duration::from_secs(2);
/// How long the start of a session that was interrupted has to report where.
const LAST_WORDS: Duration = Duration::from_millis(800);
/// Cell tags of nbclient and papermill: the cell is expected to fail; the cell is skipped.
const RAISES: &str = "raises-exception";
const SKIP: &str = "skip-execution";

/// Executes the notebooks one after the other.
pub fn run(arguments: &Run) -> Result<()> {
    let mut jobs = Vec::new();
    for path in &arguments.notebooks {
        let mut notebook = Notebook::read(path)?;
        let warnings =
            code::on_deep_stack(|| parameters::inject(&mut notebook, &arguments.parameters))?;
        let path = path.canonicalize().map_err(Error::file(path))?;
        jobs.push((path, notebook, warnings));
    }
    let places = place::settle(arguments)?;
    let session_dir = Arc::new(SessionDir::enter()?);
    session_dir.move_in();
    signals::listen();
    for (number, ((path, notebook, warnings), place)) in jobs.into_iter().zip(places).enumerate() {
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        std::env::set_current_dir(&folder).map_err(Error::file(&folder))?;
        let mut execution = Execution::new(path, notebook, session_dir.clone(), arguments, &place);
        execution
            .console
            .notebook(&execution.path, number + 1, arguments.notebooks.len());
        for warning in warnings {
            execution.console.note(&warning);
        }
        execution.run(&place)?;
    }
    Ok(())
}

struct Execution<'a> {
    path: PathBuf,
    notebook: Notebook,
    session_dir: Arc<SessionDir>,
    arguments: &'a Run,
    console: Console,
    remote: Remote,
    /// Whether a cell has begun; before that there is nothing to write.
    begun: bool,
    /// Whether the user pressed Ctrl-C.
    interrupted: bool,
}

impl<'a> Execution<'a> {
    fn new(
        path: PathBuf,
        notebook: Notebook,
        session_dir: Arc<SessionDir>,
        arguments: &'a Run,
        place: &Place,
    ) -> Self {
        let console = Console::new(notebook.code_cells().len(), *place == Place::Stdout);
        Self {
            path,
            notebook,
            session_dir,
            arguments,
            console,
            remote: Remote::default(),
            begun: false,
            interrupted: false,
        }
    }

    fn run(&mut self, place: &Place) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let sources = prelude_sources(&self.notebook, folder)?;
        let (cells, to_run) = crossbeam_channel::unbounded();
        let (finish, finished) = crossbeam_channel::unbounded();
        let (tell, events) = crossbeam_channel::unbounded();
        let (session_dir, remote) = (self.session_dir.clone(), self.remote.clone());
        // Without a terminal nobody can answer: cells that read input find its end.
        remote.set_input(if Console::can_ask() {
            Input::Asked
        } else {
            Input::Ended
        });
        let sink: Sink = Arc::new(move |event| {
            let _ = tell.send(event);
        });
        let session = std::thread::Builder::new()
            .name("session".into())
            .stack_size(crate::code::STACK)
            .spawn(move || serve(session_dir, sources, remote, sink, &to_run, &finish))
            .map_err(Error::system("starting the session"))?;
        let ran = self.run_cells(&cells, &events, &finished);
        // The result is written after a failure, too; a notebook of which no cell ran is left unchanged.
        let written = match self.begun || ran.is_ok() {
            true => Some(place::write(&self.notebook.json()?, place, &self.path)),
            false => None,
        };
        drop(cells);
        if !matches!(ran, Err(Error::Message(_))) {
            let _ = session.join();
        }
        self.remote.end_all();
        match written {
            Some(Ok(place)) => self.console.written(&place),
            // Report both: what failed, and where the result is.
            Some(Err(error)) => {
                if let Err(earlier) = &ran {
                    self.console.note(&earlier.to_string());
                }
                return Err(error);
            }
            None => self
                .console
                .note("no cell was started, so nothing was written"),
        }
        ran
    }

    fn run_cells(
        &mut self,
        cells: &Sender<(usize, String)>,
        events: &Receiver<Event>,
        finished: &Receiver<Result<Result<(), Failure>>>,
    ) -> Result<()> {
        // The session reports when it is ready.
        self.wait(None, events, finished)?
            .map_err(|failure| failure.value)?;
        self.console.ready();
        let mut failed = None;
        for (number, cell) in self.notebook.code_cells().into_iter().enumerate() {
            let code = self.notebook.source(cell);
            if code.trim().is_empty() {
                continue;
            }
            if self.notebook.has_tag(cell, SKIP) {
                self.console.begin(number + 1, &code);
                self.console
                    .note(&format!("skipped: the cell is tagged {SKIP}"));
                continue;
            }
            // The cell before finished all the same, or it would have ended the run.
            if self.interrupted && !self.arguments.allow_errors {
                return Err(Error::Message(format!(
                    "interrupted: the cells from {} on were not run",
                    number + 1
                )));
            }
            self.begun = true;
            self.notebook.begin(cell, number + 1);
            self.console.begin(number + 1, &code);
            let _ = cells.send((number + 1, code));
            let outcome = self.wait(Some(cell), events, finished);
            let outcome = match outcome {
                Ok(outcome) => outcome,
                Err(error) => {
                    let name = match signals::ending().is_some() || self.interrupted {
                        true => "Interrupted",
                        false => "KernelError",
                    };
                    let failure = Failure::new(name, error.to_string());
                    self.notebook.fail(cell, &failure);
                    return Err(error);
                }
            };
            let expected = self.notebook.has_tag(cell, RAISES);
            self.console.end(outcome.as_ref().err());
            if let Err(failure) = outcome {
                self.notebook.fail(cell, &failure);
                if let Some(signal) = signals::ending() {
                    return Err(Error::Message(format!("ended by {signal}")));
                }
                if expected {
                    self.interrupted = false;
                    continue;
                }
                failed = failed.or(Some(number + 1));
                if !self.arguments.allow_errors {
                    break;
                }
            }
            if let Some(signal) = signals::ending() {
                return Err(Error::Message(format!("ended by {signal}")));
            }
        }
        match failed.filter(|_| !self.arguments.allow_errors) {
            Some(cell) => Err(Error::CellFailed {
                path: self.path.clone(),
                cell,
            }),
            None => Ok(()),
        }
    }

    /// Shows events until the session has finished its current task.
    fn wait(
        &mut self,
        cell: Option<usize>,
        events: &Receiver<Event>,
        finished: &Receiver<Result<Result<(), Failure>>>,
    ) -> Result<Result<(), Failure>> {
        let start = Instant::now();
        let mut limit = self.arguments.timeout.filter(|_| cell.is_some());
        // Why the cell is being stopped, if it is.
        let mut stopped: Option<Failure> = None;
        loop {
            select! {
                recv(events) -> event => if let Ok(event) = event { self.happened(cell, &event) },
                recv(finished) -> outcome => {
                    let outcome = outcome.unwrap_or_else(|_| Err("The session ended unexpectedly.".into()));
                    // All events of the cell were sent before it finished.
                    for event in events.try_iter().collect::<Vec<_>>() {
                        self.happened(cell, &event);
                    }
                    return match stopped {
                        Some(why) => outcome.map(|_| Err(why)),
                        None => outcome,
                    };
                }
                default(signals::TICK) => {}
            }
            for _ in 0..signals::take_interrupts() {
                self.interrupted = true;
                match self.remote.interrupt() {
                    Interrupted::Nothing => return Err("interrupted".into()),
                    // The session reports what was stopped, unless it takes too long.
                    Interrupted::Stopped if cell.is_none() => {
                        if limit.is_some() {
                            return Err("interrupted before the first cell".into());
                        }
                        limit = Some(start.elapsed() + LAST_WORDS);
                    }
                    Interrupted::Stopped => {}
                    Interrupted::Asked => self.console.note(
                        "interrupted: waiting for the cell to stop; Ctrl-C again ends its process",
                    ),
                    Interrupted::AskedAgain => self
                        .console
                        .note("interrupted again: stopping the compiler"),
                    Interrupted::Ended => self
                        .console
                        .note("interrupted again: ending the cell's process"),
                }
            }
            if let Some(signal) = signals::ending()
                && stopped.is_none()
            {
                let interrupted = self.remote.interrupt();
                if cell.is_none() || interrupted == Interrupted::Nothing {
                    return Err(Error::Message(format!("ended by {signal}")));
                }
                self.console.note(&format!("{signal}: stopping the cell"));
                stopped = Some(Failure::new(
                    "Interrupted",
                    format!("the run was ended by {signal}"),
                ));
                limit = Some(start.elapsed() + SHORT_GRACE);
            }
            if limit.is_some_and(|limit| start.elapsed() > limit) {
                if cell.is_none() {
                    return Err("interrupted before the first cell".into());
                }
                limit = Some(start.elapsed() + GRACE);
                if stopped.is_none() {
                    self.console.note("time-out: stopping the cell");
                    let limit_s = self.arguments.timeout.unwrap_or_default().as_secs_f64();
                    let told = format!("the cell ran for longer than {limit_s} s");
                    stopped = Some(Failure::new("Timeout", told));
                }
                if self.remote.interrupt() == Interrupted::Ended {
                    self.console
                        .note("the cell does not stop: ending its process");
                }
            }
        }
    }

    fn happened(&mut self, cell: Option<usize>, event: &Event) {
        self.console.show(event);
        let asked = match event {
            Event::Input { prompt, password } => Some((prompt.as_str(), *password)),
            Event::Reads if self.remote.reads() => Some(("", false)),
            _ => None,
        };
        if let Some((prompt, password)) = asked {
            self.remote.asks();
            let _ = match self.console.ask(prompt, password) {
                Some(line) => self.remote.answer(&line),
                None => self.remote.end_input(),
            };
        }
        if let Some(cell) = cell {
            self.notebook.add(cell, event);
        }
    }
}

/// Runs the session on a thread of its own. Sends one message when it is ready, then the result of each cell.
fn serve(
    session_dir: Arc<SessionDir>,
    sources: Option<Sources>,
    remote: Remote,
    tell: Sink,
    to_run: &Receiver<(usize, String)>,
    finish: &Sender<Result<Result<(), Failure>>>,
) {
    let mut session = match Session::start(session_dir, sources.as_ref(), remote, tell) {
        Ok(session) => session,
        Err(error) => {
            let _ = finish.send(Err(error));
            return;
        }
    };
    let _ = finish.send(Ok(Ok(())));
    for (number, code) in to_run {
        let _ = finish.send(Ok(session.execute(number, &code)));
    }
}

/// Returns the sources of the prelude, if the notebook uses it: those that it names, or this program's own.
fn prelude_sources(notebook: &Notebook, folder: &Path) -> Result<Option<Sources>> {
    let code: Vec<String> = notebook
        .code_cells()
        .into_iter()
        .map(|cell| notebook.source(cell))
        .collect();
    let dep = code
        .iter()
        .flat_map(|code| code.lines())
        .find_map(prelude_dep);
    let uses = dep.is_some() || code.iter().any(|code| code.contains("cloze::"));
    if !uses {
        return Ok(None);
    }
    let named = dep.and_then(|dep| Sources::named_by(dep, folder));
    let sources = named.or_else(Sources::own);
    sources.map(Some).ok_or_else(Sources::missing)
}
