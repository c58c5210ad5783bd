//! What the cells of a notebook link against: the whole of Cloze in one dynamic library, so that there is one copy of
//! everything in a session however many cells it has.
#![warn(missing_docs)]

use std::any::TypeId;
use std::ffi::c_void;

pub use cloze::*;

#[doc(hidden)]
pub mod shared;

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

/// Shows a value that ends a cell if its type, which another crate defines, has a display here: a tensor. False if it has
/// none.
///
/// # Safety
/// `kind` must point to a `TypeId`, and `value` to a value of that type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cloze_prelude_show(kind: *const c_void, value: *const c_void) -> bool {
    use cloze::prelude::Tensor;
    // SAFETY: the caller's promise, above.
    let kind = unsafe { &*kind.cast::<TypeId>() };
    if *kind == TypeId::of::<Tensor>() {
        // SAFETY: a value of this very type, says the type's own number.
        let tensor = unsafe { &*value.cast::<Tensor>() };
        cloze::display::show(tensor);
        return true;
    }
    false
}

/// Whether an error, or one that caused it, says that work of this library was interrupted.
#[unsafe(no_mangle)]
#[allow(improper_ctypes_definitions)] // The cell library calls it, which is Rust, too, of the same compiler.
pub extern "C" fn cloze_prelude_is_interrupt(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if matches!(error.downcast_ref(), Some(cloze::Error::Interrupted(_))) {
            return true;
        }
        next = error.source();
    }
    false
}
