//! What other threads can do to a session while it runs a cell.

use std::io::{PipeWriter, Write};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::workshop::Compilation;
use crate::{Error, Result};

/// Interrupts the running cell, first politely, then for good; answers it when it asks for input.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    inner: Arc<Inner>,
}

/// The session that is meant.
#[derive(Debug)]
struct Target {
    process: Arc<Mutex<Child>>,
    stdin: PipeWriter,
    compilation: Compilation,
}

#[derive(Debug, Default)]
struct Inner {
    session: Mutex<Option<Target>>,
    /// 0: no cell runs; otherwise one more than the interrupts that it got.
    state: AtomicUsize,
    /// Whether the cell waits for a line of input.
    asking: AtomicBool,
}

impl Remote {
    /// Points it at a session: the process that runs its cells, that process's stdin, and how its cells are compiled.
    pub fn connect(&self, process: Arc<Mutex<Child>>, stdin: PipeWriter, compilation: Compilation) {
        *self.session() = Some(Target {
            process,
            stdin,
            compilation,
        });
    }

    fn session(&self) -> MutexGuard<'_, Option<Target>> {
        self.inner
            .session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A cell begins.
    pub fn begin(&self) {
        if let Some(target) = self.session().as_ref() {
            target.compilation.allow();
        }
        self.inner.asking.store(false, Ordering::SeqCst);
        self.inner.state.store(1, Ordering::SeqCst);
    }

    /// The cell has ended: how often it was interrupted.
    pub fn end(&self) -> usize {
        self.inner.state.swap(0, Ordering::SeqCst).saturating_sub(1)
    }

    /// Asks the running cell to stop; asked a second time, ends its process. Tells which time this was, 0 if no cell runs.
    pub fn interrupt(&self) -> usize {
        let raised = self
            .inner
            .state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
                (state > 0).then_some(state + 1)
            });
        let Ok(times) = raised else { return 0 };
        self.signal(if times == 1 {
            libc::SIGINT
        } else {
            libc::SIGKILL
        });
        // Who waits for a line looks at nothing else.
        if times == 1 && self.inner.asking.load(Ordering::SeqCst) {
            let _ = self.answer("");
        }
        times
    }

    fn signal(&self, signal: i32) {
        let session = self.session();
        let Some(target) = session.as_ref() else {
            return;
        };
        target.compilation.stop();
        let process = target
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a signal to our own child; nobody has waited for it while we hold the lock, so the id is its own.
        unsafe {
            libc::kill(process.id() as libc::pid_t, signal);
        }
    }

    /// The cell waits for a line of input.
    pub fn asks(&self) {
        self.inner.asking.store(true, Ordering::SeqCst);
    }

    /// Gives the cell the line of input that it waits for, unless it got one already.
    pub fn answer(&self, line: &str) -> Result<()> {
        if !self.inner.asking.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let mut session = self.session();
        let Some(target) = session.as_mut() else {
            return Ok(());
        };
        writeln!(target.stdin, "{}", line.trim_end_matches('\n'))
            .map_err(Error::system("answering the cell"))
    }
}
