//! Counts Ctrl-C and similar signals, to be checked at a convenient time.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

/// How often waits check for signals and time limits.
pub const TICK: Duration = Duration::from_millis(50);

static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);
static ENDING: AtomicI32 = AtomicI32::new(0);

extern "C" fn count(_signal: i32) {
    INTERRUPTS.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn end(signal: i32) {
    ENDING.store(signal, Ordering::SeqCst);
}

/// From now on, counts interrupts and records other signals that ask the program to end, instead of ending it.
pub fn listen() {
    // SAFETY: the handlers only touch atomics.
    unsafe {
        libc::signal(libc::SIGINT, count as *const () as libc::sighandler_t);
        for signal in [libc::SIGTERM, libc::SIGHUP] {
            // A program started by `nohup` keeps ignoring SIGHUP.
            if libc::signal(signal, end as *const () as libc::sighandler_t) == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
    }
}

/// Returns the number of interrupts since the last call.
pub fn take_interrupts() -> usize {
    INTERRUPTS.swap(0, Ordering::SeqCst)
}

/// Returns the name of the signal that asked the program to end, if one did.
pub fn ending() -> Option<&'static str> {
    match ENDING.load(Ordering::SeqCst) {
        0 => None,
        libc::SIGHUP => Some("SIGHUP"),
        _ => Some("SIGTERM"),
    }
}

/// Restores the usual behaviour when the reader of stdout goes away: the program ends.
pub fn end_with_the_pipe() {
    // SAFETY: restores a signal's default action.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}
