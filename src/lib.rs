//! Masked language modelling for Rust notebooks.
#![warn(missing_docs)]

pub mod audio;
mod base;
pub mod collate;
pub mod dataset;
pub mod display;
pub mod distributed;
pub mod fill_mask;
pub mod hub;
pub mod model;
pub mod notebook;
pub mod ops;
pub mod prelude;
pub mod speech;
pub mod tokenizer;
pub mod train;

// Of the room `base`; here, because messages of the compiler and of cells name the type by this path.
#[path = "base/error.rs"]
pub mod error;

#[doc = include_str!("../docs/families.md")]
pub mod families {}

pub use base::{files, interrupt, number};
pub use error::{Error, Result};
// The crates whose types are in this library's, in the very versions that it is built with.
pub use {arrow, candle_core, candle_nn};
