//! Coverage-guided fuzzers: a program for each kind of input that others make.
//!
//! What is done with an input stands beside the tests that replay the found ones, in `tests/support/untrusted.rs`.

#[path = "../../tests/support/untrusted.rs"]
mod untrusted;

use std::alloc::{GlobalAlloc, Layout, System};

pub use libfuzzer_sys;

/// No input of a few kilobytes may ask for more at once.
const MOST_BYTES: usize = 256 << 20;

/// Ends the program where an input makes it ask for absurd amounts of memory, which the system may well promise.
struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fn check(size: usize) {
    if size > MOST_BYTES {
        eprintln!("an input asked for {size} bytes at once");
        std::process::abort();
    }
}

// SAFETY: everything is the system allocator's, which is called with the arguments as they came.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Prepares the process: panics that the library turns into errors are none of the program's.
pub fn prepare() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// Reads an input as a file of the kind `kind`. A panic ends the program.
pub fn call(kind: &str, bytes: &[u8]) {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder for files");
    }
    let mut readers = untrusted::READERS.iter();
    let (_, read) = readers.find(|(name, _)| *name == kind).expect("a kind");
    FOLDER.with(|folder| read(folder.path(), bytes));
}

/// The program of a kind of input, or of a function that reads one.
#[macro_export]
macro_rules! fuzz {
    ($kind:literal) => {
        $crate::fuzz!(|bytes| $crate::call($kind, bytes));
    };
    ($read:expr) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::prepare(),
            |bytes: &[u8]| $read(bytes)
        );
    };
}
