//! Exports models as ONNX files, for ONNX Runtime and other runtimes.
//!
//! Written by hand: no maintained crate writes ONNX. The messages are those of `onnx.proto`, encoded by `prost`.

mod activation;
mod attention;
mod export;
mod graph;
mod proto;

pub use attention::{Heads, Turn};
pub use graph::{Graph, Setting, Value};

use crate::Error;

/// Returns the error of a part that can't be written.
pub(crate) fn refused(part: &str) -> Error {
    Error::Config(format!(
        "this model can't be written as an ONNX file: {part} can't be expressed there yet"
    ))
}
