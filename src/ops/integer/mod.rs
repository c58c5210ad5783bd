//! The integer arithmetic of I-BERT (Kim et al. 2021, arXiv:2101.01321), emulated in floats as its reference does it: what
//! hardware with 8-bit products and 32-bit sums would compute, with gradients that pass through every rounding.
//!
//! A tensor holds the real values, and its [`Scale`] is the step of the integers: value = integer · scale. All
//! functions compute in f32, and requantization in f64, in the reference's order, so that the integers are the same.
//! They run on the processor: tensors on a GPU are copied to the host, and the result back.

mod exponentials;
mod gelu;
mod layer_norm;
mod linear;
mod normalize;
mod quantize;
mod requantize;

use std::sync::Arc;

use candle_core::Tensor;

pub use exponentials::{MaskedKeys, exponentials};
pub use gelu::gelu;
pub use layer_norm::{layer_norm, layer_norm_shift};
pub use linear::{IntegerWeights, integer_weights, linear};
pub use normalize::normalize;
pub use quantize::{levels, quantize, step};
pub use requantize::requantize;

use crate::ops::graph::on_host::{record, values};
use crate::{Error, Result};

/// The real value of one step of the integers.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// The same everywhere.
    All(f32),
    /// A separate step for each feature of the last dimension.
    Features(Arc<[f32]>),
}

impl Scale {
    /// Returns the step of the element number `i` of a tensor.
    fn of(&self, i: usize) -> f32 {
        match self {
            Self::All(step) => *step,
            Self::Features(steps) => steps[i % steps.len()],
        }
    }

    /// Checks that there is a step for each feature of `x`.
    fn check(&self, x: &Tensor) -> Result<()> {
        let width = x.dims().last().copied().unwrap_or(1);
        match self {
            Self::Features(steps) if steps.len() != width || width == 0 => Err(Error::argument(
                "scale",
                format!("{} steps for {width} features", steps.len()),
            )),
            _ => Ok(()),
        }
    }

    /// Returns the scale with every step changed by `f`.
    fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        match self {
            Self::All(step) => Self::All(f(*step)),
            Self::Features(steps) => Self::Features(steps.iter().map(|&step| f(step)).collect()),
        }
    }
}

#[cfg(test)]
mod tests;
