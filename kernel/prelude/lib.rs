//! The library that the cells of a notebook link against: all of Cloze in one dynamic library, so that a session has
//! one copy of everything, however many cells it has.
#![warn(missing_docs)]

use std::any::TypeId;
use std::ffi::c_void;

pub use cloze::*;

#[doc(hidden)]
pub mod shared;

/// Asks running work to stop; called in a signal handler.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_interrupt_request() {
    cloze::interrupt::request();
}

/// Clears such a request; called when a cell begins.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_interrupt_clear() {
    cloze::interrupt::clear();
}

/// Records that this kernel reads what the process prints, while the environment still tells; called before the first
/// cell.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_kernel_connect() {
    cloze::notebook::live::Host::current();
}

/// Displays a value that ends a cell if its type is defined by another crate but has a display here, such as a tensor.
/// Returns false if it has none.
///
/// # Safety
/// `kind` must point to a `TypeId`, and `value` to a value of that type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cloze_prelude_show(kind: *const c_void, value: *const c_void) -> bool {
    use cloze::prelude::Tensor;
    // SAFETY: promised by the caller, see above.
    let kind = unsafe { &*kind.cast::<TypeId>() };
    if *kind == TypeId::of::<Tensor>() {
        // SAFETY: the type id shows that the value has this type.
        let tensor = unsafe { &*value.cast::<Tensor>() };
        cloze::display::show(tensor);
        return true;
    }
    false
}

/// Whether an error, or one of its causes, reports that work of this library was interrupted.
#[unsafe(no_mangle)]
#[allow(improper_ctypes_definitions)] // Called by the cell library, which is Rust code from the same compiler.
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
