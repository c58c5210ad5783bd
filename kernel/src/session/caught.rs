//! Panics in the kernel itself, or in the parsers that it uses: the session must survive them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::failure::Failure;

/// Calls `work`; a panic in it is a failure that says so.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Failure::new(
            "KernelError",
            format!(
                "the kernel itself failed at this cell: {message}\n\
                 This is a fault of Cloze, not of the cell; please report it together with the cell. Earlier variables are kept."
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failure() {
        assert_eq!(caught(|| 5), Ok(5));
        let index = std::hint::black_box(3);
        let failure = caught(|| [1, 2][index]).expect_err("out of bounds");
        assert!(failure.value.contains("out of bounds"), "{failure:?}");
    }
}
