//! The library's tests, a module for each subject. Tests that affect a whole process are in `tests/process`.

mod architecture;
mod candle_transformers;
mod checkpointing;
mod cloze_sentences;
mod damaged_files;
mod dataset;
mod dataset_loading;
mod display;
mod documentation;
mod family_gradients;
#[cfg(feature = "bundled")]
mod guide_calls;
#[cfg(feature = "hub")]
mod hub_dataset;
#[cfg(feature = "hub")]
mod hub_download;
#[cfg(feature = "hub")]
mod hub_guide;
#[cfg(feature = "hub")]
mod hub_https;
#[cfg(feature = "hub")]
mod hub_push;
#[cfg(feature = "hub")]
mod hub_python;
#[cfg(feature = "hub")]
mod hub_training;
#[path = "../support/imports.rs"]
mod imports;
mod live_training;
mod lock_files;
mod marked_files;
mod mixed_precision;
mod models;
mod onnx;
mod ops;
#[cfg(feature = "bundled")]
mod packages;
#[path = "../support/small_disk.rs"]
mod small_disk;
mod special_inputs;
mod streaming;
#[cfg(feature = "hub")]
#[path = "../support/mod.rs"]
mod support;
mod tied_weights;
mod train;

// Used by the checks of operations, which other programs run on other devices.
use ops::{TOLERANCES, device};
