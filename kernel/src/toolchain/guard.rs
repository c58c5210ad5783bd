//! Programs that end with this one, together with everything that they start, however this one ends.
//!
//! Such a program is started by a guard: this program under another name, which leads their process group, and ends the
//! group when the process that started the guard is gone.

use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use crate::{Error, Result};

/// The name under which this program is called as a guard.
const NAME: &str = "cloze-guard";

/// How often a guard checks that the process that started it is still running.
const LOOK: Duration = Duration::from_millis(50);

/// Returns the command that runs `program` under a guard, as the leader of a process group.
pub fn command(program: &Path) -> Result<Command> {
    let own = std::env::current_exe().map_err(Error::system("finding the path of this program"))?;
    // An installation may have replaced the file while this program runs.
    let own = match own.exists() {
        true => own,
        false => PathBuf::from("/proc/self/exe"),
    };
    let mut command = Command::new(own);
    command
        .arg0(NAME)
        .arg(std::process::id().to_string())
        .arg(program)
        .process_group(0);
    Ok(command)
}

/// Acts as a guard, if this program was called as one.
pub fn run_as_guard() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    if arguments.next()? != NAME {
        return None;
    }
    let parent = arguments.next()?.to_str()?.parse().ok()?;
    end_with(parent);
    // The program may handle an interrupt of the group. Unlike a signal that is ignored, one with a handler has its
    // usual effect on the program.
    // SAFETY: the handler does nothing.
    unsafe {
        libc::signal(
            libc::SIGINT,
            on_interrupt as *const () as libc::sighandler_t,
        );
    }
    let program = PathBuf::from(arguments.next()?);
    let done = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::inherit())
        .status();
    Some(match done {
        // As a shell reports a program that a signal ended.
        Ok(status) => status
            .code()
            .or_else(|| Some(128 + status.signal()?))
            .and_then(|code| u8::try_from(code).ok())
            .map_or(ExitCode::FAILURE, ExitCode::from),
        Err(error) => {
            eprintln!("error: {}", Error::file(&program)(error));
            ExitCode::FAILURE
        }
    })
}

extern "C" fn on_interrupt(_signal: i32) {}

/// From now on, the group that this process leads ends when the process `parent`, which started it, is gone.
pub fn end_with(parent: u32) {
    std::thread::spawn(move || {
        while parent_id() == parent {
            std::thread::sleep(LOOK);
        }
        end_group(std::process::id());
    });
}

/// Ends all processes of the group that a child of this process leads.
pub fn end_group(leader: u32) {
    signal_group(leader, libc::SIGKILL);
}

/// Sends a signal to all processes of the group that a child of this process leads.
pub fn signal_group(leader: u32, signal: i32) {
    if let Ok(leader) = libc::pid_t::try_from(leader)
        && leader > 1
    {
        // SAFETY: signals the group of our own child, or our own; a group exists as long as any process in it.
        unsafe {
            libc::kill(-leader, signal);
        }
    }
}
