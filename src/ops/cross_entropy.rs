//! The vocabulary product fused with its cross-entropy loss, for the rows that count.

use candle_core::{D, DType, Tensor};

use super::Param;
use crate::{Error, Result};

/// The label of a position that does not count towards the loss.
pub const IGNORE_INDEX: i64 = -100;

/// The summed negative log-likelihood (a scalar) of `labels` under `softmax(hidden · weightᵀ + bias)`.
///
/// `hidden` is (rows, width), `weight` (vocab, width), `bias` (vocab), `labels` (rows) of u32, every one of which counts:
/// pick the counted rows first. Divide by their number for the mean. The logits are never needed after this call, so
/// their gradient may take their place in memory.
pub fn masked_cross_entropy(
    hidden: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    labels: &Tensor,
) -> Result<Tensor> {
    let (rows, _) = hidden.dims2()?;
    if labels.dims() != [rows] {
        return Err(Error::argument(
            "labels",
            format!("shape {:?}, but there are {rows} rows", labels.dims()),
        ));
    }
    let logits = super::linear(hidden, weight, bias)?.to_dtype(DType::F32)?;
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let picked = shifted.gather(&labels.unsqueeze(1)?, 1)?;
    Ok((log_sum - picked)?.sum_all()?)
}
