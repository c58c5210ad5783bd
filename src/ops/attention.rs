//! Scaled dot-product attention over all heads.

use candle_core::{D, Tensor};

use super::Dropout;
use crate::Result;

/// What a query may look at.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum AttentionMask {
    /// Everything.
    #[default]
    None,
    /// Keys whose entry in this (batch, key) u32 or u8 tensor is not zero: the tokenizer's `attention_mask`.
    Keys(Tensor),
    /// A tensor added to the scores before the softmax; broadcasts to (batch, heads, query, key) and is
    /// differentiable (relative position biases).
    Additive(Tensor),
}

/// `softmax(scale · q kᵀ + mask) · v` for every head, with dropout on the probabilities.
///
/// `q` is (batch, query, heads · d), `k` (batch, key, heads · d), `v` (batch, key, heads · e), as the projections leave
/// them; the result is (batch, query, heads · e). A query all of whose keys are masked attends to all keys equally, as
/// in the reference.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
    scale: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let split = |x: &Tensor| -> Result<Tensor> {
        let (batch, seq, width) = x.dims3()?;
        Ok(x.reshape((batch, seq, heads, width / heads))?
            .transpose(1, 2)?
            .contiguous()?)
    };
    let (batch, queries, _) = q.dims3()?;
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let scores = (q.matmul(&k.t()?)? * scale)?;
    let scores = match mask {
        AttentionMask::None => scores,
        AttentionMask::Additive(bias) => scores.broadcast_add(bias)?,
        AttentionMask::Keys(keys) => {
            let keys = keys.to_dtype(scores.dtype())?;
            let lowest = f64::from(f32::MIN);
            let bias = ((1.0 - keys)? * lowest)?;
            let (b, s) = bias.dims2()?;
            scores.broadcast_add(&bias.reshape((b, 1, 1, s))?)?
        }
    };
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    let probs = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    let probs = super::dropout(&probs, dropout)?;
    let context = probs.matmul(&v)?.transpose(1, 2)?;
    Ok(context.reshape((batch, queries, ()))?)
}
