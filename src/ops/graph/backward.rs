//! The backward pass, with gradients left in their parameters.

use candle_core::Tensor;

use crate::Result;
use crate::ops::graph::tape;
use crate::ops::{Param, add};

/// Runs the backward pass from `loss` and leaves every gradient in its parameter.
///
/// Where the whole graph was made by the fused operations of [`crate::ops`], candle's own pass and its copies are left
/// out.
pub fn backward(loss: &Tensor, params: &[Param]) -> Result<()> {
    if let Some(mut grads) = tape::backward(loss, add)? {
        for param in params.iter().filter(|param| param.is_trainable()) {
            if let Some(grad) = grads.remove(&param.variable_id()) {
                param.add_grad(&grad)?;
            }
        }
        return Ok(());
    }
    let mut store = loss.backward()?;
    for param in params {
        param.absorb(&mut store)?;
    }
    Ok(())
}
