//! Integers divided by their sum: the second half of a softmax.

use candle_core::{D, Tensor};

use super::{record, values};
use crate::Result;

/// The bits of the reciprocal of a sum.
const RECIPROCAL_BITS: i32 = 32;

/// Returns each row of `x` (..., keys), in steps of `step`, divided by its sum, and rounded down to multiples of 2^-`bits`,
/// which is the step of the result. Gradients pass through the rounding.
///
/// # Errors
/// When `x` is a number alone, or can't be read.
pub fn normalize(x: &Tensor, step: f32, bits: u32) -> Result<(Tensor, f32)> {
    let keys = x.dim(D::Minus1)?.max(1);
    let mut integers = values(x)?;
    integers.iter_mut().for_each(|value| *value /= step);
    let dropped = 2f32.powi(RECIPROCAL_BITS - bits as i32);
    let out = 2f32.powi(-(bits as i32));
    let mut result = integers.clone();
    let mut reciprocals = Vec::with_capacity(integers.len() / keys);
    for row in result.chunks_mut(keys) {
        // A row of nothing stays nothing.
        let sum = row.iter().sum::<f32>().max(1.0);
        let factor = (1.0 / sum * 2f32.powi(RECIPROCAL_BITS)).floor();
        reciprocals.push((factor, sum));
        for value in row {
            *value = (*value * factor / dropped).floor() * out;
        }
    }
    let x = x.contiguous()?;
    let y = record(
        "integer_normalize",
        &[&x],
        result,
        x.shape(),
        move |_, grad| {
            let mut dx = grad.to_vec();
            let rows = dx.chunks_mut(keys).zip(integers.chunks(keys));
            for ((dx, integers), &(factor, sum)) in rows.zip(&reciprocals) {
                let by_factor: f32 = (dx.iter().zip(integers))
                    .map(|(grad, integer)| grad * out / dropped * integer)
                    .sum();
                let by_sum = -by_factor / sum / sum * 2f32.powi(RECIPROCAL_BITS);
                for dx in dx {
                    *dx = (*dx * out / dropped * factor + by_sum) / step;
                }
            }
            Ok(vec![dx])
        },
    )?;
    Ok((y, out))
}
