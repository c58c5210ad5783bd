//! The one seam where panics of the libraries below become errors.
//!
//! `tokenizers` and `spm_precompiled` index and unwrap on what files say; a damaged file must not take a notebook down.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::{Error, Result};

thread_local! {
    /// Whether this thread's panics are caught and returned as errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Returns an error of the library below as ours.
pub(super) fn failed(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}

/// Runs `work`; a panic in it is the error that `doing` met a damaged tokenizer.
///
/// A caught panic is not printed: the error contains its message.
pub(super) fn guarded<T>(doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                others(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| {
        let said = crate::base::panics::words(&*panic);
        Err(Error::Tokenizer(format!(
            "{doing} failed inside the tokenizers library ({said}); the tokenizer's files are damaged or contradictory"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_later_calls_work() {
        let numbers: Vec<u8> = Vec::new();
        let error = guarded("counting", || Ok(numbers[3])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("counting failed") && text.contains("out of bounds"),
            "{text}"
        );
        assert_eq!(guarded("counting", || Ok(7)).unwrap(), 7);
        // One inside the other: the inner one's end does not unguard the outer one.
        let error = guarded("outer", || {
            let _ = guarded::<()>("inner", || panic!("first"));
            assert!(GUARDED.get());
            panic!("second {}", 2)
        });
        let error: Result<()> = error;
        assert!(error.unwrap_err().to_string().contains("second 2"));
        assert!(!GUARDED.get());
    }
}
