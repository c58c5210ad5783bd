//! USR1, which schedulers send some time before they end a job: training writes a checkpoint and stops.

#[cfg(unix)]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The handler that was there before, if it was a function.
#[cfg(unix)]
static PREVIOUS: AtomicUsize = AtomicUsize::new(0);
#[cfg(unix)]
static PREVIOUS_TAKES_INFO: AtomicBool = AtomicBool::new(false);

#[cfg(unix)]
type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
#[cfg(unix)]
type ShortHandler = extern "C" fn(libc::c_int);

/// Returns whether the program leaves USR1 as it is. To be asked before the MPI library starts, which may take the signal
/// for itself: MPICH does.
#[cfg(unix)]
pub(super) fn usr1_is_free() -> bool {
    present().is_some_and(|action| action.sa_sigaction == libc::SIG_DFL)
}

/// Makes USR1 request a stop, as an interrupt does, and then run the previous handler.
#[cfg(unix)]
pub(super) fn stop_on_usr1() {
    let Some(before) = present() else {
        return;
    };
    if before.sa_sigaction == stop as Handler as usize {
        return;
    }
    PREVIOUS.store(before.sa_sigaction, Ordering::SeqCst);
    PREVIOUS_TAKES_INFO.store(before.sa_flags & libc::SA_SIGINFO != 0, Ordering::SeqCst);
    // SAFETY: the handler only reads and stores atomics, and calls what was the handler before. The structure is plain data,
    // for which zeros are valid values.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = stop as Handler as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

#[cfg(unix)]
extern "C" fn stop(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    crate::base::interrupt::request();
    pass_on(signal, info, context);
}

/// Runs the previous handler.
#[cfg(unix)]
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.load(Ordering::SeqCst);
    if previous == libc::SIG_DFL || previous == libc::SIG_IGN {
        return;
    }
    // SAFETY: the system would have called this function with these arguments; its flags said which of the two kinds it is.
    unsafe {
        if PREVIOUS_TAKES_INFO.load(Ordering::SeqCst) {
            std::mem::transmute::<usize, Handler>(previous)(signal, info, context);
        } else {
            std::mem::transmute::<usize, ShortHandler>(previous)(signal);
        }
    }
}

#[cfg(unix)]
fn present() -> Option<libc::sigaction> {
    // SAFETY: only reads the present action into a structure of plain data, for which zeros are valid values.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(libc::SIGUSR1, std::ptr::null(), &mut action) == 0).then_some(action)
    }
}

#[cfg(not(unix))]
pub(super) fn usr1_is_free() -> bool {
    false
}

#[cfg(not(unix))]
pub(super) fn stop_on_usr1() {}

#[cfg(test)]
mod tests {
    use super::*;

    static CALLS: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn of_a_library(_: libc::c_int) {
        CALLS.fetch_add(1, Ordering::SeqCst);
    }

    /// Does not raise the signal: a stop that is asked for here would be seen by other tests.
    #[test]
    #[cfg(unix)]
    fn usr1_still_reaches_the_handler_that_was_there() {
        assert!(usr1_is_free());
        // SAFETY: installs a handler that only adds to an atomic; structures of plain data.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = of_a_library as ShortHandler as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
        assert!(!usr1_is_free());
        stop_on_usr1();
        // Twice is as good as once.
        stop_on_usr1();
        assert_eq!(present().unwrap().sa_sigaction, stop as Handler as usize);
        pass_on(libc::SIGUSR1, std::ptr::null_mut(), std::ptr::null_mut());
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
    }
}
