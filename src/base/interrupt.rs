//! Asking long work to stop without losing what it has.
//!
//! The kernel (or Ctrl-C in a program that installed a handler) calls [`request`]; long loops call [`check`] between
//! items, or [`take`] where they can end early with a partial result.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Asks the work that is under way to stop. Only sets a flag: safe in a signal handler.
pub fn request() {
    REQUESTED.store(true, Ordering::SeqCst);
}

/// Forgets a request, for instance when a new cell starts.
pub fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// Returns whether a stop was requested; leaves the request in place.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Returns whether a stop was requested; answers the request, so that it is seen once.
pub fn take() -> bool {
    REQUESTED.swap(false, Ordering::SeqCst)
}

/// Ends work that has no partial result: [`Error::Interrupted`] if a stop was requested while `doing` it.
pub fn check(doing: &str) -> Result<()> {
    if take() {
        return Err(Error::Interrupted(doing.to_owned()));
    }
    Ok(())
}
