//! e to the power of differences from the largest, in integers: the first half of a softmax.

use candle_core::{D, Tensor};

use super::{record, values};
use crate::{Error, Result};

/// -ln 2, whole numbers of which are left to shifts.
#[allow(
    clippy::approx_constant,
    reason = "the reference's number, in its few digits"
)]
const MINUS_LN_2: f32 = -0.6931;
/// The largest number of halvings; the result of more is the same.
const HALVINGS: f32 = 30.0;
/// a·x² + b·x + c is near to e^x from -ln 2 to 0; b and c are divided by a.
const A: f32 = 0.358_151_47;
const B: f32 = (0.969_632_38 / 0.358_151_47f64) as f32;
const C: f32 = (1.0 / 0.358_151_47f64) as f32;

/// Which keys are padding.
#[derive(Clone, Copy, Debug)]
pub struct MaskedKeys<'a> {
    /// 0 where a key is padding, (batch · keys).
    pub seen: &'a [u32],
    /// The size of the batch.
    pub batch: usize,
}

/// Returns e to the power of each score's difference from the largest of its row, as integers (not as real values,
/// which is how the reference measures them), and the scale of these integers. `scores` is (batch, heads, queries,
/// keys) in steps of `step`.
///
/// Gradients pass through the rounding: that of the number of halvings stands for all, as in the reference.
///
/// # Errors
/// When the mask does not fit.
pub fn exponentials(
    scores: &Tensor,
    step: f32,
    mask: Option<MaskedKeys<'_>>,
) -> Result<(Tensor, f32)> {
    let keys = scores.dim(D::Minus1)?;
    let mut result = values(scores)?;
    if let Some(mask) = mask
        && (mask.batch == 0
            || mask.seen.len() != mask.batch * keys
            || !result.len().is_multiple_of(mask.seen.len().max(1)))
    {
        return Err(Error::argument(
            "mask",
            format!("{} values for scores {:?}", mask.seen.len(), scores.dims()),
        ));
    }
    let each = mask.map_or(1, |mask| result.len() / mask.batch).max(1);
    let ln_2 = (1.0 / step * MINUS_LN_2).floor();
    let b = (1.0 / step * B).floor();
    let c = (1.0 / (step * step) * C).floor();
    let shift = 2f32.powi(HALVINGS as i32);
    // How fast each exponential changes with the difference from the largest score.
    let mut slopes = Vec::with_capacity(result.len());
    let mut largest = Vec::with_capacity(result.len() / keys.max(1));
    for (row, values) in result.chunks_mut(keys.max(1)).enumerate() {
        if let Some(mask) = mask {
            let example = row * keys / each;
            let seen = &mask.seen[example * keys..(example + 1) * keys];
            for (value, &seen) in values.iter_mut().zip(seen) {
                *value = match seen {
                    0 => f32::MIN,
                    _ => *value / step,
                };
            }
        } else {
            values.iter_mut().for_each(|value| *value /= step);
        }
        let mut at = 0;
        for (i, value) in values.iter().enumerate() {
            if *value > values[at] {
                at = i;
            }
        }
        largest.push(at);
        let most = values[at];
        for value in values {
            let difference = *value - most;
            let lowest = HALVINGS * ln_2;
            let integer = difference.max(lowest);
            let halvings = (integer / ln_2).floor();
            let rest = integer - ln_2 * halvings;
            let polynomial = (rest + b) * rest + c;
            let power = 2f32.powi((HALVINGS - halvings) as i32);
            *value = (polynomial * power).floor().max(0.0);
            let passes = match difference.partial_cmp(&lowest) {
                Some(std::cmp::Ordering::Greater) => 1.0,
                Some(std::cmp::Ordering::Equal) => 0.5,
                _ => 0.0,
            };
            slopes.push(-std::f32::consts::LN_2 * polynomial * power / ln_2 * passes);
        }
    }
    let scores = scores.contiguous()?;
    let exponentials = record(
        "integer_exponentials",
        &[&scores],
        result,
        scores.shape(),
        move |_, grad| {
            let pairs = grad.iter().zip(&slopes);
            let mut dx: Vec<f32> = pairs.map(|(grad, slope)| grad * slope).collect();
            for (row, &at) in dx.chunks_mut(keys.max(1)).zip(&largest) {
                let sum: f32 = row.iter().sum();
                row[at] -= sum;
                row.iter_mut().for_each(|dx| *dx /= step);
            }
            Ok(vec![dx])
        },
    )?;
    Ok((exponentials, A * (step * step) / shift))
}
