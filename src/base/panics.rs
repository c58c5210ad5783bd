//! The one seam at which a panic of a library that reads what people give it becomes an error.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls `work`; a panic in it is an error with the panic's words.
///
/// For calls into decoders of file formats, which may panic on damaged files. State that `work` changed before a panic
/// must not be used afterwards.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| words(&*panic))
}

/// Returns the message of a panic.
pub(crate) fn words(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(caught(|| 5), Ok(5));
        let index = std::hint::black_box(3);
        let error = caught(|| [1, 2][index]).unwrap_err();
        assert!(error.contains("out of bounds"), "{error}");
        assert_eq!(caught::<()>(|| panic!("as is")), Err("as is".to_owned()));
    }
}
