//! The words that a notebook uses: `use cloze::prelude::*;`

pub use crate::model::{Config, Context, MaskedLm, ModelInputs};
pub use crate::{Error, Result};
pub use candle_core::{DType, Device, IndexOp, Tensor};
