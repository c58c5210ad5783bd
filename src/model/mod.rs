//! Masked language models: one door ([`MaskedLm`]), one file per family.
//!
//! A family is built from the parts in [`nn`] and registered in the list of `families`. It names its parameters exactly
//! as `transformers` does, so a folder written by either library opens in the other.

mod architecture;
mod batch;
mod checkpoint;
mod config;
mod config_keys;
mod config_sizes;
mod context;
mod draws;
mod families;
mod family;
mod flops;
mod input;
mod loss;
mod masked_lm;
mod measured;
pub mod nn;
pub mod onnx;
mod quantization;
mod resize;
mod vocabulary;
mod weights;

pub use architecture::Architecture;
pub(crate) use batch::INPUT_VALUES;
pub use batch::ModelInputs;
pub use config::Config;
pub use context::Context;
pub(crate) use draws::uniform;
#[cfg(test)]
pub(crate) use family::family_of;
pub use family::{Family, SUPPORTED_MODEL_TYPES, Sharing};
pub(crate) use family::{known_input, sharing};
pub use flops::ModelFlops;
pub use input::{Column, Input, Masked, Per, Values};
pub use loss::{LossTerm, MlmLoss};
pub use masked_lm::MaskedLm;
pub(crate) use measured::Measured;
pub use resize::ResizeEmbeddings;
pub use weights::{Init, LoadReport, WeightBuilder};
