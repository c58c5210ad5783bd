//! Masked language modelling for Rust notebooks.
#![warn(missing_docs)]

pub mod collate;
pub mod dataset;
pub mod display;
pub mod error;
pub mod files;
pub mod fill_mask;
pub mod hub;
pub mod interrupt;
pub mod model;
pub mod ops;
mod panics;
pub mod prelude;
pub mod progress;
pub mod tokenizer;
pub mod train;

pub use error::{Error, Result};
