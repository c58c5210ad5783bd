//! From floats to evenly spaced integers.

use candle_core::Tensor;

use super::{Scale, record, values};
use crate::Result;

/// Returns the step of integers of `bits` bits that cover `min` to `max`, symmetric around zero.
pub fn step(min: f32, max: f32, bits: u32) -> f32 {
    min.abs().max(max.abs()).max(1e-8) / most(bits)
}

/// Returns the largest integer of `bits` bits.
pub(super) fn most(bits: u32) -> f32 {
    ((1u64 << (bits - 1)) - 1) as f32
}

/// Returns the integers nearest to `values`, where element `i` has the step `step(i)`: halves to even, cut to `bits` bits,
/// the largest left out as in the reference.
pub fn levels(values: &[f32], step: impl Fn(usize) -> f32, bits: u32) -> Vec<f32> {
    let most = most(bits);
    // In f64, because the largest 32-bit integer less one is no f32.
    let largest = (f64::from(most) - 1.0) as f32;
    let level = |(i, &value): (usize, &f32)| {
        let level = (1.0 / step(i) * value).round_ties_even();
        level.clamp(-most, largest)
    };
    values.iter().enumerate().map(level).collect()
}

/// Returns `x` rounded to integers of `bits` bits, as real values; the gradient passes as it is.
///
/// # Errors
/// When `scale` does not fit.
pub fn quantize(x: &Tensor, scale: &Scale, bits: u32) -> Result<Tensor> {
    scale.check(x)?;
    let mut rounded = levels(&values(x)?, |i| scale.of(i), bits);
    for (i, value) in rounded.iter_mut().enumerate() {
        *value *= scale.of(i);
    }
    let x = x.contiguous()?;
    let pass = |_: &[&Tensor], grad: &[f32]| Ok(vec![grad.to_vec()]);
    record("integer_quantize", &[&x], rounded, x.shape(), pass)
}
