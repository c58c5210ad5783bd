//! `cloze run`: notebooks executed without Jupyter.

mod console;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use self::console::Console;
use crate::cli::Run;
use crate::event::{Event, Sink};
use crate::failure::Failure;
use crate::notebook::Notebook;
use crate::parameters;
use crate::prelude::Sources;
use crate::remote::Remote;
use crate::session::{Session, prelude_dep};
use crate::signals;
use crate::workshop::Workshop;
use crate::{Error, Result};

/// How often interrupts and the time limit are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long a cell that runs over its time has to stop by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Executes the notebooks one after the other.
pub fn run(arguments: &Run) -> Result<()> {
    let mut jobs = Vec::new();
    for path in &arguments.notebooks {
        let mut notebook = Notebook::read(path)?;
        parameters::inject(&mut notebook, &arguments.parameters)?;
        let output =
            std::path::absolute(output_path(path, arguments)).map_err(Error::file(path))?;
        let path = path.canonicalize().map_err(Error::file(path))?;
        jobs.push((path, notebook, output));
    }
    let workshop = Arc::new(Workshop::enter()?);
    workshop.move_in();
    signals::count_interrupts();
    for (path, notebook, output) in jobs {
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        std::env::set_current_dir(&folder).map_err(Error::file(&folder))?;
        Execution::new(path, notebook, workshop.clone(), arguments).run(&output)?;
    }
    Ok(())
}

fn output_path(notebook: &Path, arguments: &Run) -> PathBuf {
    if arguments.in_place {
        return notebook.to_owned();
    }
    match &arguments.output {
        Some(folder) if arguments.notebooks.len() > 1 || folder.is_dir() => {
            folder.join(notebook.file_name().unwrap_or_default())
        }
        Some(file) => file.clone(),
        None => notebook.with_extension("executed.ipynb"),
    }
}

struct Execution<'a> {
    path: PathBuf,
    notebook: Notebook,
    workshop: Arc<Workshop>,
    arguments: &'a Run,
    console: Console,
    remote: Remote,
}

impl<'a> Execution<'a> {
    fn new(path: PathBuf, notebook: Notebook, workshop: Arc<Workshop>, arguments: &'a Run) -> Self {
        let console = Console::new(notebook.code_cells().len());
        Self {
            path,
            notebook,
            workshop,
            arguments,
            console,
            remote: Remote::default(),
        }
    }

    fn run(&mut self, output: &Path) -> Result<()> {
        self.console.notebook(&self.arguments.notebooks, &self.path);
        self.notebook.clear();
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let sources = prelude_sources(&self.notebook, folder);
        let (cells, to_run) = crossbeam_channel::unbounded();
        let (finish, finished) = crossbeam_channel::unbounded();
        let (tell, events) = crossbeam_channel::unbounded();
        let (workshop, remote) = (self.workshop.clone(), self.remote.clone());
        let sink: Sink = Arc::new(move |event| {
            let _ = tell.send(event);
        });
        let session =
            std::thread::spawn(move || serve(workshop, sources, remote, sink, &to_run, &finish));
        let ran = self.run_cells(&cells, &events, &finished);
        // Also with what there is after a failure.
        let written = self.notebook.write(output);
        drop(cells);
        if !matches!(ran, Err(Error::Message(_))) {
            let _ = session.join();
        }
        written?;
        self.console.written(output);
        ran
    }

    fn run_cells(
        &mut self,
        cells: &Sender<String>,
        events: &Receiver<Event>,
        finished: &Receiver<Result<Result<(), Failure>>>,
    ) -> Result<()> {
        // The session says when it is ready.
        self.wait(None, events, finished)?
            .map_err(|failure| failure.value)?;
        self.console.ready();
        let mut failed = None;
        for (number, cell) in self.notebook.code_cells().into_iter().enumerate() {
            let code = self.notebook.source(cell);
            if code.trim().is_empty() {
                continue;
            }
            self.notebook.begin(cell, number + 1);
            self.console.begin(number + 1, &code);
            let _ = cells.send(code);
            let outcome = self.wait(Some(cell), events, finished)?;
            self.console.end(outcome.as_ref().err());
            if let Err(failure) = outcome {
                self.notebook.fail(cell, &failure);
                failed = failed.or(Some(number + 1));
                if !self.arguments.allow_errors {
                    break;
                }
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

    /// Shows what happens until the session has finished what it does.
    fn wait(
        &mut self,
        cell: Option<usize>,
        events: &Receiver<Event>,
        finished: &Receiver<Result<Result<(), Failure>>>,
    ) -> Result<Result<(), Failure>> {
        let start = Instant::now();
        let mut limit = self.arguments.timeout.filter(|_| cell.is_some());
        let mut timed_out = false;
        loop {
            select! {
                recv(events) -> event => if let Ok(event) = event { self.happened(cell, &event) },
                recv(finished) -> outcome => {
                    let outcome = outcome.unwrap_or_else(|_| Err("The session ended unexpectedly.".into()));
                    // All that the cell did was sent before it finished.
                    for event in events.try_iter().collect::<Vec<_>>() {
                        self.happened(cell, &event);
                    }
                    if timed_out {
                        let limit = self.arguments.timeout.unwrap_or_default();
                        let told = format!("the cell ran for longer than {} s", limit.as_secs_f64());
                        return outcome.map(|_| Err(Failure::new("Timeout", told)));
                    }
                    return outcome;
                }
                default(TICK) => {}
            }
            for _ in 0..signals::take_interrupts() {
                match self.remote.interrupt() {
                    0 => return Err("interrupted".into()),
                    1 => self.console.note(
                        "interrupted: waiting for the cell to stop; Ctrl-C again ends its process",
                    ),
                    _ => self
                        .console
                        .note("interrupted again: ending the cell's process"),
                }
            }
            if limit.is_some_and(|limit| start.elapsed() > limit) {
                self.console.note(if timed_out {
                    "time-out: ending the cell's process"
                } else {
                    "time-out: stopping the cell"
                });
                self.remote.interrupt();
                limit = if timed_out {
                    None
                } else {
                    Some(start.elapsed() + GRACE)
                };
                timed_out = true;
            }
        }
    }

    fn happened(&mut self, cell: Option<usize>, event: &Event) {
        self.console.show(event);
        if let Event::Input { prompt, password } = event {
            self.remote.asks();
            let line = self.console.ask(prompt, *password);
            let _ = self.remote.answer(&line);
        }
        if let Some(cell) = cell {
            self.notebook.add(cell, event);
        }
    }
}

/// Runs the session on a thread of its own: first it tells that it is ready, then the outcome of each cell.
fn serve(
    workshop: Arc<Workshop>,
    sources: Option<Sources>,
    remote: Remote,
    tell: Sink,
    to_run: &Receiver<String>,
    finish: &Sender<Result<Result<(), Failure>>>,
) {
    let mut session = match Session::start(workshop, sources.as_ref(), remote, tell) {
        Ok(session) => session,
        Err(error) => {
            let _ = finish.send(Err(error));
            return;
        }
    };
    let _ = finish.send(Ok(Ok(())));
    for code in to_run {
        let _ = finish.send(Ok(session.execute(&code)));
    }
}

/// The sources of the prelude, if the notebook uses it: those that it names, or those that this program is from.
fn prelude_sources(notebook: &Notebook, folder: &Path) -> Option<Sources> {
    let code: Vec<String> = notebook
        .code_cells()
        .into_iter()
        .map(|cell| notebook.source(cell))
        .collect();
    let dep = code
        .iter()
        .flat_map(|code| code.lines())
        .find_map(prelude_dep);
    if let Some(dep) = dep {
        return Sources::named_by(dep, folder).or_else(Sources::own);
    }
    let uses = code.iter().any(|code| code.contains("cloze::"));
    if uses { Sources::own() } else { None }
}
