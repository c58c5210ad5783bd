//! Masks as the loops of the CPU read them.

use candle_core::{DType, Tensor};

use super::{AttentionMask, Sizes};
use crate::{Error, Result};

/// Checks that a mask fits the sizes.
pub(super) fn check(mask: &AttentionMask, sizes: &Sizes) -> Result<()> {
    let Sizes {
        batch,
        heads,
        queries,
        keys,
        ..
    } = *sizes;
    match mask {
        AttentionMask::Keys(mask) if mask.dims() != [batch, keys] => Err(Error::argument(
            "attention_mask",
            format!(
                "shape {:?}, but there are {batch} sequences of {keys} keys",
                mask.dims()
            ),
        )),
        AttentionMask::Additive(bias)
            if bias.broadcast_as((batch, heads, queries, keys)).is_err() =>
        {
            Err(Error::argument(
                "attention_mask",
                format!(
                    "shape {:?} does not broadcast to (batch, heads, query, key) = ({batch}, {heads}, {queries}, {keys})",
                    bias.dims()
                ),
            ))
        }
        AttentionMask::Packed(_) => Err(not_packed()),
        _ => Ok(()),
    }
}

/// Says that sequences without padding are for plain attention.
pub(in crate::ops) fn not_packed() -> Error {
    Error::argument(
        "attention_mask",
        "concatenated sequences only work with plain softmax attention, without terms and plans",
    )
}

/// Checks that a mask of the queries fits the sizes.
pub(super) fn check_queries(mask: &Tensor, sizes: &Sizes) -> Result<()> {
    if mask.dims() == [sizes.batch, sizes.queries] {
        return Ok(());
    }
    Err(Error::argument(
        "query_mask",
        format!(
            "shape {:?}, but there are {} sequences of {} queries",
            mask.dims(),
            sizes.batch,
            sizes.queries
        ),
    ))
}

/// Returns a (batch, n) mask of any dtype: whether each entry is not zero.
pub(in crate::ops) fn rows(mask: &Tensor) -> Result<Vec<Vec<bool>>> {
    let mask = match mask.dtype() {
        DType::U32 => mask.clone(),
        _ => mask.ne(0.0)?.to_dtype(DType::U32)?,
    };
    let rows = mask.to_vec2::<u32>()?;
    let row = |row: &Vec<u32>| row.iter().map(|&m| m != 0).collect();
    Ok(rows.iter().map(row).collect())
}

/// Which keys each sequence has.
pub(super) struct KeyMask {
    pub sequences: Vec<KeysOfSequence>,
}

pub(super) struct KeysOfSequence {
    /// One past the last key that may be seen: padding at the end is not even computed. 0: none may be seen.
    pub end: usize,
    /// How many keys may be seen.
    pub count: usize,
    /// 0 or -∞ for each key; `None` if all before `end` may be seen.
    pub bias: Option<Vec<f32>>,
}

impl KeyMask {
    pub(super) fn new(mask: &Tensor) -> Result<Self> {
        let sequence = |row: &Vec<bool>| {
            let end = row.iter().rposition(|&m| m).map_or(0, |last| last + 1);
            let bias = row[..end].contains(&false).then(|| {
                let bias = |&m: &bool| if m { 0.0 } else { f32::NEG_INFINITY };
                row[..end].iter().map(bias).collect()
            });
            let count = row.iter().filter(|&&m| m).count();
            KeysOfSequence { end, count, bias }
        };
        Ok(Self {
            sequences: rows(mask)?.iter().map(sequence).collect(),
        })
    }
}

/// An additive mask and how far apart its elements lie, 0 where it is broadcast.
pub(super) struct Bias {
    pub values: Tensor,
    pub strides: [usize; 4],
}

impl Bias {
    pub(super) fn new(bias: &Tensor, sizes: &Sizes) -> Result<Self> {
        let full = bias.broadcast_as((sizes.batch, sizes.heads, sizes.queries, sizes.keys))?;
        let mut strides = [0; 4];
        strides.copy_from_slice(full.stride());
        Ok(Self {
            values: bias.clone(),
            strides,
        })
    }
}

/// Sums `grad` (batch, heads, query, key) over the dimensions that `bias` was broadcast along.
pub(in crate::ops) fn reduce_to(grad: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let mut grad = grad.clone();
    let missing = grad.rank() - bias.rank();
    for dim in 0..grad.rank() {
        let broadcast = dim < missing || bias.dim(dim - missing)? != grad.dim(dim)?;
        if broadcast {
            grad = grad.sum_keepdim(dim)?;
        }
    }
    Ok(grad.reshape(bias.shape())?)
}
