//! Ctrl-C and its kin, counted, to be looked at when it suits.

use std::sync::atomic::{AtomicUsize, Ordering};

static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_signal: i32) {
    INTERRUPTS.fetch_add(1, Ordering::SeqCst);
}

/// From now on interrupts are counted instead of ending the program.
pub fn count_interrupts() {
    // SAFETY: the handler only touches an atomic.
    unsafe {
        libc::signal(libc::SIGINT, count as *const () as libc::sighandler_t);
    }
}

/// How many interrupts came since it was last asked.
pub fn take_interrupts() -> usize {
    INTERRUPTS.swap(0, Ordering::SeqCst)
}
