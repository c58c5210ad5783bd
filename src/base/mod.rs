//! The foundation of all rooms: atomic file writes, interrupts, and panics of libraries turned into errors. The errors
//! themselves are in `error.rs`, a module of the crate.

pub(crate) mod cache_dir;
pub mod files;
pub mod interrupt;
pub(crate) mod json;
pub(crate) mod misspelling;
pub mod number;
pub(crate) mod panics;
