//! Controls a session from other threads while it runs a cell.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Write};
use std::os::fd::AsRawFd;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::evcxr::session_dir::Compilation;
use crate::toolchain::guard;
use crate::toolchain::work::Stop;
use crate::{Error, Result};

/// Interrupts the running cell, first gently, then by ending its process; answers its requests for input.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    inner: Arc<Inner>,
}

/// A cell's standard input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Input {
    /// The user is asked for each line.
    #[default]
    Asked,
    /// The end of the input: there is no user.
    Ended,
}

/// The effect of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// Nothing: no cell runs.
    Nothing,
    /// The cell was asked to stop.
    Asked,
    /// The cell was asked again: it is not running yet, so only its compilation can be stopped.
    AskedAgain,
    /// The process that runs the cells was ended.
    Ended,
    /// Work of the kernel itself was stopped: the start of the session, or a shell command.
    Stopped,
}

/// The session that interrupts and input are sent to.
#[derive(Debug)]
struct Target {
    process: Arc<Mutex<Child>>,
    stdin: Stdin,
    compilation: Compilation,
    /// Whether the cell is running, as opposed to being compiled.
    begun: Arc<AtomicBool>,
    /// The process that was to run the cell; a process that replaced it must not be touched.
    runs_in: u32,
    /// The number of interrupts since the cell began to run.
    asked: usize,
}

/// The kernel's end of the standard input of the process that runs the cells.
#[derive(Debug)]
struct Stdin {
    /// The other end, which the process has too: it can be reopened for writing as long as it is open.
    reader: PipeReader,
    /// While it is `None`, the process reads the end of its input.
    writer: Option<File>,
}

impl Stdin {
    fn open(&mut self) {
        if self.writer.is_none() {
            let way = format!("/proc/self/fd/{}", self.reader.as_raw_fd());
            self.writer = OpenOptions::new().write(true).open(way).ok();
        }
    }

    /// Whether there is something in it that nobody has read yet, as on a busy machine.
    fn holds_input(&self) -> bool {
        let mut polled = libc::pollfd {
            fd: self.reader.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid descriptor, and no wait.
        let found = unsafe { libc::poll(&mut polled, 1, 0) };
        found > 0 && polled.revents & libc::POLLIN != 0
    }
}

impl Target {
    /// Stops the cell's compilation or, if it is running, its code. Returns the number of interrupts since it began to
    /// run.
    fn interrupt(&mut self, times: usize) -> usize {
        let begun = self.begun.load(Ordering::SeqCst);
        self.asked += usize::from(begun);
        // Killing a compiler loses nothing.
        let insist = times > 1 && !begun;
        self.compilation
            .stop(if insist { libc::SIGKILL } else { libc::SIGTERM });
        match self.asked {
            0 | 1 => self.signal(libc::SIGINT),
            _ => self.signal(libc::SIGKILL),
        }
        self.asked
    }

    /// Sends a signal to the process that runs the cell, or its end to all that cells have started.
    fn signal(&self, signal: i32) {
        let process = lock(&self.process);
        // Where another process has taken its place already, the cell is over.
        if process.id() != self.runs_in {
            return;
        }
        let process = process.id() as libc::pid_t;
        match signal {
            libc::SIGKILL => end_group(process),
            // SAFETY: a signal to our own child; the lock is held under which it would be waited for, so that the id is its own.
            _ => unsafe {
                libc::kill(process, signal);
            },
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    session: Mutex<Option<Target>>,
    /// 0 if no cell is running, and otherwise one more than the number of its interrupts.
    state: AtomicUsize,
    /// Whether the cell is waiting for a line of input.
    asking: AtomicBool,
    input: Mutex<Input>,
    /// When the cell last received input or the end of its input.
    answered: Mutex<Option<Instant>>,
    /// Work of the kernel itself that interrupts stop.
    work: Mutex<Option<Stop>>,
}

/// The time during which interrupts stop the kernel's own work.
#[derive(Debug)]
pub struct Working(Remote);

impl Drop for Working {
    fn drop(&mut self) {
        *lock(&self.0.inner.work) = None;
    }
}

/// The time within which reports that were sent before the cell took its answer arrive.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

impl Remote {
    /// Connects to a session: the process that runs its cells, that process's stdin, its compilations, and a flag for
    /// whether the cell is running.
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

    /// Sets what cells get when they read from standard input.
    pub fn set_input(&self, input: Input) {
        *lock(&self.inner.input) = input;
    }

    /// Until the returned value is dropped, interrupts stop this work.
    pub fn work(&self, stop: &Stop) -> Working {
        *lock(&self.inner.work) = Some(stop.clone());
        Working(self.clone())
    }

    fn session(&self) -> MutexGuard<'_, Option<Target>> {
        lock(&self.inner.session)
    }

    /// Begins a cell.
    pub fn begin(&self) {
        let input = *lock(&self.inner.input);
        let mut session = self.session();
        if let Some(target) = session.as_mut() {
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

    /// Records that the compiled cell runs. An interrupt that came too late for the compiler and too early for the cell is
    /// sent to it again.
    pub fn begun(&self) {
        let mut session = self.session();
        let interrupted = self.inner.state.load(Ordering::SeqCst) > 1;
        if let Some(target) = session.as_mut()
            && interrupted
            && target.asked == 0
        {
            target.asked = 1;
            target.signal(libc::SIGINT);
        }
    }

    /// Ends the cell. Returns the number of its interrupts.
    pub fn end(&self) -> usize {
        let _session = self.session();
        self.inner.state.swap(0, Ordering::SeqCst).saturating_sub(1)
    }

    /// Asks the cell to stop: its compilation, or its code once that is running. At the second request the process of
    /// running code is ended, and all variables are lost.
    pub fn interrupt(&self) -> Interrupted {
        let work = lock(&self.inner.work).clone();
        if let Some(stop) = &work {
            stop.request();
        }
        // Held until the end, so that the interrupt does not reach the next cell.
        let mut session = self.session();
        let raised = self
            .inner
            .state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
                (state > 0).then_some(state + 1)
            });
        let Ok(times) = raised else {
            return match work {
                Some(_) => Interrupted::Stopped,
                None => Interrupted::Nothing,
            };
        };
        let asked = match session.as_mut() {
            Some(target) => target.interrupt(times),
            None => 0,
        };
        drop(session);
        // Code that waits for a line checks for nothing else.
        if asked == 1 && self.inner.asking.load(Ordering::SeqCst) {
            let _ = self.end_input();
        }
        match (times, asked) {
            // A cell of the kernel's own, with which the session starts.
            _ if work.is_some() => Interrupted::Stopped,
            (_, 2..) => Interrupted::Ended,
            (1, _) => Interrupted::Asked,
            _ => Interrupted::AskedAgain,
        }
    }

    /// Returns the id of the process that runs the cells, which is also the id of its group.
    pub fn process(&self) -> Option<libc::pid_t> {
        let session = self.session();
        let target = session.as_ref()?;
        Some(lock(&target.process).id() as libc::pid_t)
    }

    /// Ends the process that runs the cells and every process that the cells started.
    pub fn end_process(&self) {
        if let Some(process) = self.process() {
            end_group(process);
        }
    }

    /// Ends everything that the session has started: builds, the process that runs the cells, and what cells started.
    pub fn end_all(&self) {
        let work = lock(&self.inner.work).clone();
        if let Some(stop) = work {
            stop.end();
        }
        if let Some(target) = self.session().as_ref() {
            target.compilation.stop(libc::SIGKILL);
        }
        self.end_process();
    }

    /// Records that the cell asked for a line of input and is waiting for it.
    pub fn asks(&self) {
        self.inner.asking.store(true, Ordering::SeqCst);
    }

    /// Records that the cell reads without having asked. Returns false if it already asked, or if input is on its way.
    pub fn reads(&self) -> bool {
        let on_its_way = lock(&self.inner.answered).is_some_and(|then| then.elapsed() < ON_ITS_WAY);
        let untaken = self
            .session()
            .as_ref()
            .is_some_and(|target| target.stdin.holds_input());
        !on_its_way && !untaken && !self.inner.asking.swap(true, Ordering::SeqCst)
    }

    /// Sends the cell the line of input that it is waiting for, unless it already got one.
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
        // One question gets one line: further lines would answer the next question, in whatever cell.
        let line = line.trim_end_matches(['\r', '\n']);
        writeln!(writer, "{}", line.replace(['\r', '\n'], " "))
            .map_err(Error::system("answering the cell"))
    }

    /// Signals the end of the input to the cell, until the next cell begins.
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

/// Ends a process that runs cells, and the processes that its cells started: they are one group, created before the
/// process began.
pub fn end_group(process: libc::pid_t) {
    if let Ok(leader) = process.try_into() {
        guard::end_group(leader);
    }
}
