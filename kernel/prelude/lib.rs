//! What the cells of a notebook link against: the whole of Cloze in one dynamic library, so that there is one copy of
//! everything in a session however many cells it has.
#![warn(missing_docs)]

pub use cloze::*;

/// Asks work that is under way to stop; called in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_interrupt_request() {
    cloze::interrupt::request();
}

/// Forgets such a request; called when a cell begins.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_interrupt_clear() {
    cloze::interrupt::clear();
}

/// Notes that this kernel reads what the process prints, while the environment still says so; called before the first cell.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_kernel_connect() {
    cloze::notebook::live::Host::current();
}
