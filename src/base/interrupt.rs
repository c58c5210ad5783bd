//! Asks long-running work to stop without losing its results.
//!
//! The kernel (or Ctrl-C in a program that installed a handler) calls [`request`]; long loops call [`check`] between
//! items, or [`take`] where they can end early with a partial result.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Error, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// How many requests there have been, which work in the background counts by.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static BACKGROUND: Cell<Option<Background>> = const { Cell::new(None) };
}

/// Asks the work that is under way to stop. Only sets flags: safe in a signal handler.
pub fn request() {
    REQUESTS.fetch_add(1, Ordering::SeqCst);
    REQUESTED.store(true, Ordering::SeqCst);
}

/// Forgets a request, for instance when a new cell starts.
pub fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// Returns whether a stop was requested; leaves the request in place.
pub fn is_requested() -> bool {
    match BACKGROUND.get() {
        Some(background) => background.is_to_stop(),
        None => REQUESTED.load(Ordering::SeqCst),
    }
}

/// Returns whether a stop was requested, and clears the request, so that it is seen once. Background work leaves the
/// request for the foreground.
pub fn take() -> bool {
    match BACKGROUND.get() {
        Some(background) => background.is_to_stop(),
        None => REQUESTED.swap(false, Ordering::SeqCst),
    }
}

/// Work that goes on beside other work: a request stops both, whichever of them looks first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Background {
    requests: u64,
}

impl Background {
    /// Begins such work: requests from now on stop it.
    pub(crate) fn begin() -> Self {
        Self {
            requests: REQUESTS.load(Ordering::SeqCst),
        }
    }

    /// Returns the work that this thread is part of, if it is in the background.
    pub(crate) fn current() -> Option<Self> {
        BACKGROUND.get()
    }

    /// Makes this thread part of the work until it ends.
    pub(crate) fn enter(self) {
        BACKGROUND.set(Some(self));
    }

    fn is_to_stop(self) -> bool {
        REQUESTS.load(Ordering::SeqCst) != self.requests
    }
}

/// Ends work that has no partial result: [`Error::Interrupted`] if a stop was requested while `doing` it.
pub fn check(doing: &str) -> Result<()> {
    if take() {
        return Err(Error::Interrupted(doing.to_owned()));
    }
    Ok(())
}
