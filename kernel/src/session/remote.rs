//! What other threads can do to a session while it runs a cell.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Write};
use std::os::fd::AsRawFd;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::evcxr::session_dir::Compilation;
use crate::{Error, Result};

/// Interrupts the running cell, first politely, then for good; answers it when it asks for input.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    inner: Arc<Inner>,
}

/// What a cell finds that reads from its standard input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Input {
    /// Somebody, who is asked for each line.
    #[default]
    Asked,
    /// Nobody: the input is at its end.
    Ended,
}

/// What an interrupt has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// Nothing: no cell runs.
    Nothing,
    /// The cell was asked to stop.
    Asked,
    /// The cell is asked once more: it does not run yet, so there is nothing but its compilation to be stopped.
    AskedAgain,
    /// The process that runs the cells was ended.
    Ended,
}

/// The session that is meant.
#[derive(Debug)]
struct Target {
    process: Arc<Mutex<Child>>,
    stdin: Stdin,
    compilation: Compilation,
    /// Whether the cell runs by now, after it was compiled.
    begun: Arc<AtomicBool>,
    /// The process that was to run the cell: one that came in its place has nothing to do with it.
    runs_in: u32,
    /// How often the cell was interrupted since it runs.
    asked: usize,
}

/// The kernel's end of the standard input of the process that runs the cells.
#[derive(Debug)]
struct Stdin {
    /// The other end, which the process has too: as long as it is open the way back to it is.
    reader: PipeReader,
    /// While there is none, the process reads the end of its input.
    writer: Option<File>,
}

impl Stdin {
    fn open(&mut self) {
        if self.writer.is_none() {
            let way = format!("/proc/self/fd/{}", self.reader.as_raw_fd());
            self.writer = OpenOptions::new().write(true).open(way).ok();
        }
    }
}

impl Target {
    /// Stops the cell's compilation or, if it runs, its code. Tells how often it was asked to since it runs.
    fn interrupt(&mut self, times: usize) -> usize {
        let begun = self.begun.load(Ordering::SeqCst);
        self.asked += usize::from(begun);
        // Nothing is lost with a compiler.
        let insist = times > 1 && !begun;
        self.compilation
            .stop(if insist { libc::SIGKILL } else { libc::SIGTERM });
        let process = lock(&self.process);
        // Where another process has taken its place already, the cell is over.
        if process.id() == self.runs_in {
            let process = process.id() as libc::pid_t;
            match self.asked {
                0 | 1 => signal(process, libc::SIGINT),
                _ => end_group(process),
            }
        }
        self.asked
    }
}

#[derive(Debug, Default)]
struct Inner {
    session: Mutex<Option<Target>>,
    /// 0: no cell runs; otherwise one more than the interrupts that it got.
    state: AtomicUsize,
    /// Whether the cell waits for a line of input.
    asking: AtomicBool,
    input: Mutex<Input>,
    /// When it was last given input, or told that there is no more.
    answered: Mutex<Option<Instant>>,
}

/// What was said of a cell before an answer can have reached it arrives within this time.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

impl Remote {
    /// Points it at a session: the process that runs its cells, that process's stdin, how its cells are compiled, and
    /// whether the cell runs by now.
    pub fn connect(
        &self,
        process: Arc<Mutex<Child>>,
        stdin: PipeReader,
        compilation: Compilation,
        begun: Arc<AtomicBool>,
    ) {
        let stdin = Stdin {
            reader: stdin,
            writer: None,
        };
        *self.session() = Some(Target {
            process,
            stdin,
            compilation,
            begun,
            runs_in: 0,
            asked: 0,
        });
    }

    /// Says what cells find that read from their standard input.
    pub fn set_input(&self, input: Input) {
        *lock(&self.inner.input) = input;
    }

    fn session(&self) -> MutexGuard<'_, Option<Target>> {
        lock(&self.inner.session)
    }

    /// A cell begins.
    pub fn begin(&self) {
        let input = *lock(&self.inner.input);
        if let Some(target) = self.session().as_mut() {
            target.compilation.allow();
            target.runs_in = lock(&target.process).id();
            target.asked = 0;
            match input {
                Input::Asked => target.stdin.open(),
                Input::Ended => target.stdin.writer = None,
            }
        }
        self.inner.asking.store(false, Ordering::SeqCst);
        self.inner.state.store(1, Ordering::SeqCst);
    }

    /// The cell has ended: how often it was interrupted.
    pub fn end(&self) -> usize {
        self.inner.state.swap(0, Ordering::SeqCst).saturating_sub(1)
    }

    /// Asks the cell to stop: its compilation, or its code once that runs. Asked a second time, code that runs loses its
    /// process, and with it all variables.
    pub fn interrupt(&self) -> Interrupted {
        let raised = self
            .inner
            .state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
                (state > 0).then_some(state + 1)
            });
        let Ok(times) = raised else {
            return Interrupted::Nothing;
        };
        let asked = match self.session().as_mut() {
            Some(target) => target.interrupt(times),
            None => 0,
        };
        // Who waits for a line looks at nothing else.
        if asked == 1 && self.inner.asking.load(Ordering::SeqCst) {
            let _ = self.end_input();
        }
        match (times, asked) {
            (_, 2..) => Interrupted::Ended,
            (1, _) => Interrupted::Asked,
            _ => Interrupted::AskedAgain,
        }
    }

    /// The id of the process that runs the cells, which is also that of its group.
    pub fn process(&self) -> Option<libc::pid_t> {
        let session = self.session();
        let target = session.as_ref()?;
        Some(lock(&target.process).id() as libc::pid_t)
    }

    /// Ends the process that runs the cells and all that the cells have started.
    pub fn end_process(&self) {
        if let Some(process) = self.process() {
            end_group(process);
        }
    }

    /// The cell has asked for a line of input, and waits for it.
    pub fn asks(&self) {
        self.inner.asking.store(true, Ordering::SeqCst);
    }

    /// The cell reads without having asked. False if it has been asked for already, or what it reads is on its way.
    pub fn reads(&self) -> bool {
        let on_its_way = lock(&self.inner.answered).is_some_and(|then| then.elapsed() < ON_ITS_WAY);
        !on_its_way && !self.inner.asking.swap(true, Ordering::SeqCst)
    }

    /// Gives the cell the line of input that it waits for, unless it got one already.
    pub fn answer(&self, line: &str) -> Result<()> {
        if !self.inner.asking.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        *lock(&self.inner.answered) = Some(Instant::now());
        let mut session = self.session();
        let writer = session
            .as_mut()
            .and_then(|target| target.stdin.writer.as_mut());
        let Some(writer) = writer else { return Ok(()) };
        // One question, one line: what stood in more would answer the next one, in whatever cell.
        let line = line.trim_end_matches(['\r', '\n']);
        writeln!(writer, "{}", line.replace(['\r', '\n'], " "))
            .map_err(Error::system("answering the cell"))
    }

    /// Tells the cell that there is no more input, until the next cell begins.
    pub fn end_input(&self) -> Result<()> {
        *lock(&self.inner.answered) = Some(Instant::now());
        self.inner.asking.store(false, Ordering::SeqCst);
        if let Some(target) = self.session().as_mut() {
            target.stdin.writer = None;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal(process: libc::pid_t, signal: i32) {
    // SAFETY: a signal to our own child; whoever calls this holds the lock under which it would be waited for, so that the
    // id is its own.
    unsafe {
        libc::kill(process, signal);
    }
}

/// Ends a process that runs cells, and what its cells have started: they are one group, made before the process began.
pub fn end_group(process: libc::pid_t) {
    if process > 1 {
        // SAFETY: a signal to the group of our own child; a group lives as long as any process in it.
        unsafe {
            libc::kill(-process, libc::SIGKILL);
        }
    }
}
