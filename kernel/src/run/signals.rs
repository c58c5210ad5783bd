//! Ctrl-C and its kin, counted, to be looked at when it suits.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);
static ENDING: AtomicI32 = AtomicI32::new(0);

extern "C" fn count(_signal: i32) {
    INTERRUPTS.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn end(signal: i32) {
    ENDING.store(signal, Ordering::SeqCst);
}

/// From now on interrupts are counted, and other wishes that the program end are noted, instead of ending it.
pub fn listen() {
    // SAFETY: the handlers only touch atomics.
    unsafe {
        libc::signal(libc::SIGINT, count as *const () as libc::sighandler_t);
        for signal in [libc::SIGTERM, libc::SIGHUP] {
            // Who was started by `nohup` goes on.
            if libc::signal(signal, end as *const () as libc::sighandler_t) == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
    }
}

/// How many interrupts came since it was last asked.
pub fn take_interrupts() -> usize {
    INTERRUPTS.swap(0, Ordering::SeqCst)
}

/// The name of the signal that asked the program to end, if one did.
pub fn ending() -> Option<&'static str> {
    match ENDING.load(Ordering::SeqCst) {
        0 => None,
        libc::SIGHUP => Some("SIGHUP"),
        _ => Some("SIGTERM"),
    }
}

/// Lets the program end, as others do, when the reader of its output has gone away.
pub fn end_with_the_pipe() {
    // SAFETY: gives a signal its default meaning.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}
