//! Layer normalization, alone or fused with the residual connection and dropout before it.

use candle_core::{D, Tensor};

use super::{Dropout, Param};
use crate::Result;

/// Normalizes the last dimension of `x` to mean 0 and variance 1, then scales by `weight` and shifts by `bias`
/// (Ba et al. 2016). Statistics are in f32 whatever the dtype.
pub fn layer_norm(x: &Tensor, weight: &Param, bias: Option<&Param>, eps: f64) -> Result<Tensor> {
    let mean = x.mean_keepdim(D::Minus1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let scaled = normed.broadcast_mul(&weight.tensor())?;
    Ok(match bias {
        Some(bias) => scaled.broadcast_add(&bias.tensor())?,
        None => scaled,
    })
}

/// `layer_norm(residual + dropout(x))`: the end of every post-norm transformer block.
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    eps: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let sum = (super::dropout(x, dropout)? + residual)?;
    layer_norm(&sum, weight, bias, eps)
}
