//! USR1, which schedulers send some time before they end a job: training writes a checkpoint and stops.

/// Makes USR1 ask for a stop, as an interrupt does, where nobody has asked for it yet.
#[cfg(unix)]
pub(super) fn stop_on_usr1() {
    extern "C" fn stop(_: libc::c_int) {
        crate::base::interrupt::request();
    }
    // SAFETY: the handler only stores to an atomic. Both structures are plain data, for which zeros are valid values.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGUSR1, std::ptr::null(), &mut present) != 0
            || present.sa_sigaction != libc::SIG_DFL
        {
            return;
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = stop as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

#[cfg(not(unix))]
pub(super) fn stop_on_usr1() {}
