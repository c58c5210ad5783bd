//! Work of the kernel itself that may take minutes: it reports what it waits for, and other threads can stop it.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use super::guard::signal_group;
use crate::{Error, Result};

/// How often a wait checks whether it was stopped.
const LOOK: Duration = Duration::from_millis(20);

/// How long a program that was told to stop may take for its last words.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The parts of a piece of work.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// Reports what is being waited for.
    tell: &'a dyn Fn(String),
    pub stop: &'a Stop,
}

impl<'a> Work<'a> {
    pub fn new(tell: &'a dyn Fn(String), stop: &'a Stop) -> Self {
        Self { tell, stop }
    }

    /// Reports what is being waited for.
    pub fn tell(&self, what: impl Into<String>) {
        (self.tell)(what.into());
    }

    /// Locks a file; if another process holds it, reports `waiting_for` and waits.
    pub fn lock(&self, file: &File, waiting_for: &str) -> Result<()> {
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        self.tell(waiting_for);
                    }
                    self.stop.check()?;
                    std::thread::sleep(LOOK);
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Error::system("locking a file of the cache")(error));
                }
            }
        }
    }
}

/// Stops work from another thread: no further program is started, and the one that runs is ended with all that it
/// started.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of requests.
    requests: usize,
    /// The process that leads the group of the running program.
    group: Option<u32>,
    /// Whether the first request only asks the program to end.
    gentle: bool,
}

impl State {
    /// Whether the program is ended, as opposed to asked to end.
    fn ends(&self) -> bool {
        self.requests > usize::from(self.gentle)
    }
}

impl Stop {
    /// Creates one whose first request sends the program SIGINT, as a terminal does, instead of ending it.
    pub fn gentle() -> Self {
        let stop = Self::default();
        stop.lock().gentle = true;
        stop
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the work.
    pub fn request(&self) {
        let mut state = self.lock();
        state.requests += 1;
        if let Some(group) = state.group {
            let signal = match state.ends() {
                true => libc::SIGKILL,
                false => libc::SIGINT,
            };
            signal_group(group, signal);
        }
    }

    /// Stops the work without giving its program time to end by itself.
    pub fn end(&self) {
        self.lock().gentle = false;
        self.request();
    }

    /// Whether the work was told to stop.
    pub fn is_requested(&self) -> bool {
        self.lock().requests > 0
    }

    /// Fails if the work was told to stop.
    pub fn check(&self) -> Result<()> {
        match self.is_requested() {
            true => Err(Error::Interrupted {
                during: "the session was being started",
            }),
            false => Ok(()),
        }
    }

    /// Starts a program. The command must make it the leader of a process group.
    fn spawn(&self, command: &mut Command) -> Result<Running> {
        self.check()?;
        // Held until the group is known, so that no request misses it.
        let mut state = self.lock();
        let child = command
            .spawn()
            .map_err(Error::file(command.get_program().as_ref()))?;
        state.group = Some(child.id());
        if state.requests > 0 {
            signal_group(child.id(), libc::SIGKILL);
        }
        drop(state);
        Ok(Running {
            child,
            stop: self.clone(),
        })
    }

    /// Runs a program to its end, and hands over what it prints as it comes.
    pub fn stream(
        &self,
        command: &mut Command,
        heard: &mut dyn FnMut(Pipe, &[u8]),
    ) -> Result<ExitStatus> {
        let mut running = self.spawn(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )?;
        let (said, pieces) = crossbeam_channel::unbounded();
        forward(running.child.stdout.take(), Pipe::Stdout, &said);
        forward(running.child.stderr.take(), Pipe::Stderr, &said);
        drop(said);
        let mut stopped: Option<Instant> = None;
        loop {
            match pieces.recv_timeout(LOOK) {
                Ok((pipe, bytes)) => heard(pipe, &bytes),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Processes that it left behind, or that have left the group, may keep the pipes open.
            let ended = self.lock().ends();
            if self.is_requested()
                && (ended || running.has_ended())
                && stopped.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS
            {
                signal_group(running.child.id(), libc::SIGKILL);
                break;
            }
        }
        let status = running.wait()?;
        self.check()?;
        Ok(status)
    }

    /// Runs a program to its end, and returns what it printed.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.stream(command, &mut |pipe, bytes| match pipe {
            Pipe::Stdout => stdout.extend(bytes),
            Pipe::Stderr => stderr.extend(bytes),
        })?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
}

/// A pipe that a program prints to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    Stdout,
    Stderr,
}

/// Sends what comes out of a pipe to `said`, from a thread of its own.
fn forward<R: Read + Send + 'static>(
    from: Option<R>,
    pipe: Pipe,
    said: &crossbeam_channel::Sender<(Pipe, Vec<u8>)>,
) {
    let Some(mut from) = from else {
        return;
    };
    let said = said.clone();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            if said.send((pipe, bytes[..length].to_vec())).is_err() {
                return;
            }
        }
    });
}

/// A program that runs as the leader of a process group.
#[derive(Debug)]
struct Running {
    child: Child,
    stop: Stop,
}

impl Running {
    /// Waits until the program has ended.
    fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self
                .try_wait()
                .map_err(Error::system("waiting for a program"))?
            {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the program itself has ended.
    fn has_ended(&mut self) -> bool {
        matches!(self.try_wait(), Ok(Some(_)))
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        // A request must not signal the group of an id that is free again.
        let mut state = self.stop.lock();
        let status = self.child.try_wait()?;
        if status.is_some() {
            state.group = None;
        }
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.try_wait() {
            signal_group(self.child.id(), libc::SIGKILL);
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0);
        command
    }

    #[test]
    fn a_request_ends_the_running_program_and_lets_no_other_begin() {
        let stop = Stop::default();
        assert_eq!(
            stop.output(&mut shell("echo out; echo err >&2"))
                .map(|output| (output.stdout, output.stderr))
                .expect("it runs"),
            (b"out\n".to_vec(), b"err\n".to_vec())
        );
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(200));
                stop.request();
            });
            // The pipes stay open as long as the inner program runs.
            let stopped = stop.output(&mut shell("sleep 600 & wait"));
            assert!(matches!(stopped, Err(Error::Interrupted { .. })));
        });
        assert!(start.elapsed() < Duration::from_secs(60));
        let next = stop.output(&mut shell("echo out"));
        assert!(matches!(next, Err(Error::Interrupted { .. })));
    }

    #[test]
    fn a_gentle_request_lets_the_program_end_by_itself() {
        let stop = Stop::gentle();
        let folder = tempfile::tempdir().expect("a folder");
        let script =
            "trap 'echo last words > words; exit' INT; touch ready; while :; do sleep 0.05; done";
        let mut command = shell(script);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !folder.path().join("ready").exists() {
                    std::thread::sleep(LOOK);
                }
                stop.request();
            });
            let stopped = stop.output(command.current_dir(folder.path()));
            assert!(matches!(stopped, Err(Error::Interrupted { .. })));
        });
        assert!(folder.path().join("words").exists());
    }

    #[test]
    fn a_wait_for_a_lock_can_be_stopped() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || File::create(folder.path().join("lock")).expect("made");
        let held = open();
        held.lock().expect("locked");
        let stop = Stop::default();
        let told = Mutex::new(Vec::new());
        let tell = |what| told.lock().expect("whole").push(what);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                stop.request();
            });
            let waited = Work::new(&tell, &stop).lock(&open(), "somebody builds");
            assert!(matches!(waited, Err(Error::Interrupted { .. })));
        });
        drop(held);
        assert_eq!(*told.lock().expect("whole"), ["somebody builds"]);
        assert!(
            Work::new(&tell, &stop)
                .lock(&open(), "somebody builds")
                .is_ok()
        );
    }
}
