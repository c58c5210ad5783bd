//! What every room stands on: errors, files that are written whole, interrupts, and panics of libraries turned into errors.

pub mod error;
pub mod files;
pub mod interrupt;
pub(crate) mod misspelling;
pub mod number;
pub(crate) mod panics;
