//! Probabilities from scores.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::naive;
use super::parallel::{for_overwrite, rows_per_task};
use super::simd::{self, simd_fn};
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// Returns the softmax over the last dimension of `x`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if x.elem_count() == 0 {
        return storage::empty(x, x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return cuda::softmax(x, width);
    }
    if !storage::is_cpu_f32(x) {
        return naive::softmax(x);
    }
    let x = x.contiguous()?;
    let y = storage::with(&x, |x| {
        let mut y = for_overwrite(x.len());
        y.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .with_min_len(rows_per_task(width))
            .for_each(|(y, x)| row(y, x));
        y
    })?;
    tape::record("softmax", &[&x], y, x.shape(), move |_, y, grad| {
        let dx = storage::with2(y, grad, |y, grad| {
            let mut dx = for_overwrite(y.len());
            dx.par_chunks_mut(width)
                .zip(y.par_chunks(width))
                .zip(grad.par_chunks(width))
                .with_min_len(rows_per_task(width))
                .for_each(|((dx, y), grad)| row_gradient(dx, y, grad));
            dx
        })?;
        Ok(vec![Some(storage::tensor(dx, y.shape())?)])
    })
}

simd_fn! {
    fn row(y: &mut [f32], x: &[f32]) {
        let top = simd::max(x);
        for (y, x) in y.iter_mut().zip(x) {
            *y = simd::exp(x - top);
        }
        let scale = 1.0 / simd::sum(y, |y| y);
        for y in y.iter_mut() {
            *y *= scale;
        }
    }
}

simd_fn! {
    fn row_gradient(dx: &mut [f32], y: &[f32], grad: &[f32]) {
        let mean = simd::dot(y, grad);
        for ((dx, y), grad) in dx.iter_mut().zip(y).zip(grad) {
            *dx = y * (grad - mean);
        }
    }
}

/// Returns the largest score, and the sum of the exponentials of the scores less the largest: each probability follows
/// from these.
pub(crate) fn exponential_sum(scores: &[f32]) -> (f32, f64) {
    let top = largest(scores);
    // In pieces, so that rounding does not grow with the length.
    let pieces = scores.chunks(1024);
    (
        top,
        pieces
            .map(|piece| f64::from(exponentials(piece, top)))
            .sum(),
    )
}

simd_fn! {
    fn largest(scores: &[f32]) -> f32 {
        simd::max(scores)
    }
}

simd_fn! {
    fn exponentials(scores: &[f32], top: f32) -> f32 {
        simd::sum(scores, |x| simd::exp(x - top))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_exponentials_agrees_with_f64() {
        let scores: Vec<f32> = (0..5003)
            .map(|i| ((i * 7919) % 1009) as f32 / 40.0 - 20.0)
            .collect();
        let (top, sum) = exponential_sum(&scores);
        let wide: f64 = scores
            .iter()
            .map(|&x| (f64::from(x) - f64::from(top)).exp())
            .sum();
        assert_eq!(top, scores.iter().copied().fold(f32::MIN, f32::max));
        assert!((sum / wide - 1.0).abs() < 1e-6, "{sum} {wide}");
        assert!(exponential_sum(&[0.0, f32::NAN]).1.is_nan());
    }
}
