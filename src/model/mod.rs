//! Masked language models: one door ([`MaskedLm`]), one file per architecture family.
//!
//! A family is written over the shared [`layers`] and registered in `auto`. It names its parameters exactly as the
//! reference library does, so a folder written by either side opens in the other.

mod auto;
mod bert;
mod checkpoint;
mod config;
mod context;
mod distilbert;
mod flops;
mod inputs;
pub mod layers;
mod masked_lm;
mod roberta;
mod weights;

pub use auto::SUPPORTED_MODEL_TYPES;
pub use config::Config;
pub use context::Context;
pub use flops::ModelFlops;
pub use inputs::ModelInputs;
pub use masked_lm::{Architecture, Decoder, MaskedLm, MlmLoss};
pub use weights::{Init, LoadReport, WeightBuilder};
