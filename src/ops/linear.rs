//! Affine maps, alone or fused with the activation behind them.

use candle_core::Tensor;

use super::{Activation, Param};
use crate::Result;

/// `x · weightᵀ + bias` over the last dimension of `x`; `weight` is (out, in), `bias` (out).
pub fn linear(x: &Tensor, weight: &Param, bias: Option<&Param>) -> Result<Tensor> {
    let (out, width) = weight.shape().dims2()?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out;
    }
    let flat = x.reshape(((), width))?.matmul(&weight.tensor().t()?)?;
    let flat = match bias {
        Some(bias) => flat.broadcast_add(&bias.tensor())?,
        None => flat,
    };
    Ok(flat.reshape(dims)?)
}

/// `activation(x · weightᵀ + bias)`.
pub fn linear_act(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    activation: Activation,
) -> Result<Tensor> {
    activation.apply(&linear(x, weight, bias)?)
}
