//! Probabilities from scores.

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::parallel::{for_overwrite, rows_per_task};
use super::simd::{self, simd_fn};
use super::{naive, storage, tape};
use crate::Result;

/// Returns the softmax over the last dimension of `x`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if x.elem_count() == 0 {
        return storage::empty(x, x.shape());
    }
    #[cfg(feature = "cuda")]
    if super::cuda::takes(x, []) {
        return super::cuda::softmax(x, width);
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
