//! The pipes between the kernel and the process that runs the cells.
//!
//! evcxr starts that process with pipes of its own for stdin, stdout and stderr, and starts it again after a crash.
//! Just before the process begins, evcxr's pipes are moved to high descriptors, and the kernel's pipes take their
//! place.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::child::{ANSWERS_FD, COMMANDS_FD, EVENTS_FD, REPLIES_FD};

/// One direction: what is written to `writer` comes out of `reader`.
#[derive(Debug)]
pub struct Pipe {
    pub reader: io::PipeReader,
    pub writer: io::PipeWriter,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self { reader, writer })
    }
}

/// The pipes of a session. Both ends of each stay open in the kernel, for the next process after a crash.
#[derive(Debug)]
pub struct Pipes {
    pub stdout: Pipe,
    pub stderr: Pipe,
    pub events: Pipe,
    /// Written to only by the session's `Remote`.
    pub stdin: io::PipeReader,
    pub replies: Pipe,
}

impl Pipes {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            stdout: Pipe::new()?,
            stderr: Pipe::new()?,
            events: Pipe::new()?,
            stdin: Pipe::new()?.reader,
            replies: Pipe::new()?,
        })
    }

    /// Installs the pipes in every process that `command` starts. Each such process ends with the thread that started
    /// it.
    pub fn connect(&self, command: &mut Command) -> io::Result<()> {
        let stdin = OwnedFd::from(self.stdin.try_clone()?);
        let stdout = OwnedFd::from(self.stdout.writer.try_clone()?);
        let stderr = OwnedFd::from(self.stderr.writer.try_clone()?);
        let events = OwnedFd::from(self.events.writer.try_clone()?);
        let replies = OwnedFd::from(self.replies.reader.try_clone()?);
        let moves = move || -> io::Result<()> {
            for (from, to) in [
                (0, COMMANDS_FD),
                (1, ANSWERS_FD),
                (replies.as_raw_fd(), REPLIES_FD),
                (events.as_raw_fd(), EVENTS_FD),
                (stdin.as_raw_fd(), 0),
                (stdout.as_raw_fd(), 1),
                (stderr.as_raw_fd(), 2),
            ] {
                // SAFETY: duplicates descriptors that this closure owns or that every process has; dup2 is
                // async-signal-safe.
                if unsafe { libc::dup2(from, to) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            // SAFETY: plain system calls in the new process. Its own process group keeps Ctrl-C in a terminal to the
            // kernel, which decides what to do; and the process ends with its parent (see `child::on_hang_up`).
            unsafe {
                libc::setpgid(0, 0);
                #[cfg(target_os = "linux")]
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGHUP);
            }
            Ok(())
        };
        // SAFETY: the closure only makes async-signal-safe system calls and does not allocate.
        unsafe {
            command.pre_exec(moves);
        }
        Ok(())
    }
}
