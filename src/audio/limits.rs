//! Limits that every decoder of recordings applies, and the errors for unreadable recordings.

use std::fmt;

/// The most samples of one recording: two hours and a half at 16 kHz.
pub(super) const MOST_SAMPLES: usize = 150_000_000;

/// Returns the error for longer files.
pub(super) fn too_long() -> String {
    format!("it has more than {MOST_SAMPLES} samples; cut long recordings into pieces")
}

/// Returns the error for a truncated file.
pub(super) fn damaged(error: &dyn fmt::Display) -> String {
    format!(
        "the recording can't be read ({error}); it may be truncated or damaged: download it again"
    )
}
