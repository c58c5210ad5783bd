//! Normalization by the root of the mean square.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::Tensor;
use rayon::prelude::*;

use super::parallel::{add_rows, for_overwrite, rows_per_task};
use super::simd::{self, simd_fn};
use super::{Param, layer_norm, naive};
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// Returns `x / √(mean(x²) + eps) · weight` over the last dimension of `x` (Zhang and Sennrich 2019). Statistics are in
/// f32 whatever the dtype.
pub fn rms_norm(x: &Tensor, weight: &Param, eps: f64) -> Result<Tensor> {
    layer_norm::check(x, weight, None)?;
    if x.elem_count() == 0 {
        return storage::empty(x, x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, [weight]) {
        return cuda::rms_norm(x, weight, eps);
    }
    if !storage::is_cpu_f32(x) || !weight.is_cpu_f32() {
        return naive::rms_norm(x, weight, eps);
    }
    let x = x.contiguous()?;
    let width = weight.elem_count();
    let block = rows_per_task(width) * width;
    let anchor = tape::anchor(weight, None);
    let (y, scales) = storage::with2(&x, weight.own_var(), |x, w| {
        let mut y = for_overwrite(x.len());
        let mut scales = vec![0f32; x.len() / width];
        y.par_chunks_mut(block)
            .zip(x.par_chunks(block))
            .zip(scales.par_chunks_mut(block / width))
            .for_each(|((y, x), scales)| {
                let rows = y.chunks_mut(width).zip(x.chunks(width));
                for ((y, x), scale) in rows.zip(scales) {
                    *scale = normalize(y, x, w, eps as f32);
                }
            });
        (y, scales)
    })?;
    let weight = weight.clone();
    let wants_weight = weight.tensor().track_op();
    let args = [&x, &anchor];
    tape::record("rms_norm", &args, y, x.shape(), move |args, _, dy| {
        let x = args[0];
        let mut dx = for_overwrite(x.elem_count());
        let mut parts = vec![0f32; x.elem_count().div_ceil(block) * width];
        storage::with2(x, dy, |x, dy| {
            storage::with(weight.own_var(), |w| {
                dx.par_chunks_mut(block)
                    .zip(x.par_chunks(block))
                    .zip(dy.par_chunks(block))
                    .zip(scales.par_chunks(block / width))
                    .zip(parts.par_chunks_mut(width))
                    .for_each(|((((dx, x), dy), scales), dw)| {
                        let rows = dx.chunks_mut(width).zip(x.chunks(width));
                        for (((dx, x), dy), scale) in rows.zip(dy.chunks(width)).zip(scales) {
                            gradients(dx, x, w, dy, *scale, dw);
                        }
                    });
            })
        })??;
        if wants_weight {
            weight.update_grad(|dw, fresh| add_rows(dw, &parts, fresh))?;
        }
        Ok(vec![Some(storage::tensor(dx, x.shape())?)])
    })
}

simd_fn! {
    /// Returns the factor that the row was multiplied by.
    fn normalize(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) -> f32 {
        let square = simd::dot(x, x) / x.len() as f32;
        let scale = 1.0 / (square + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * scale * w;
        }
        scale
    }
}

simd_fn! {
    /// With g = dy · w: dx = scale · (g - x · scale² · mean(g · x)).
    fn gradients(dx: &mut [f32], x: &[f32], w: &[f32], dy: &[f32], scale: f32, dw: &mut [f32]) {
        let n = dx.len();
        let (x, w, dy, dw) = (&x[..n], &w[..n], &dy[..n], &mut dw[..n]);
        let slope = scale * scale * simd::dot3(dy, w, x) / n as f32;
        for i in 0..n {
            dx[i] = scale * x[i].mul_add(-slope, dy[i] * w[i]);
            dw[i] = dy[i].mul_add(x[i] * scale, dw[i]);
        }
    }
}
