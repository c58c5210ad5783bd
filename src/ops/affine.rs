//! A factor and a shift for each feature, without normalization (MobileBERT's NoNorm).

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::parallel::{add_rows, for_overwrite, rows_per_task};
use super::simd::simd_fn;
use super::{Param, layer_norm, naive};
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// Returns `x · weight + bias` feature by feature: both have the length of the last dimension of `x`.
pub fn affine(x: &Tensor, weight: &Param, bias: Option<&Param>) -> Result<Tensor> {
    layer_norm::check(x, weight, bias)?;
    if x.elem_count() == 0 {
        return storage::empty(x, x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, [weight].into_iter().chain(bias)) {
        let params: Vec<&Param> = [weight].into_iter().chain(bias).collect();
        let (w, b) = (weight.clone(), bias.cloned());
        return crate::ops::cuda::composed("affine", &[x], &params, move |args| {
            naive::affine(&args[0], &w, b.as_ref())
        });
    }
    let fits = storage::is_cpu_f32(x)
        && weight.is_cpu_f32()
        && bias.is_none_or(|bias| bias.dtype() == DType::F32);
    if !fits {
        return naive::affine(x, weight, bias);
    }
    let x = x.contiguous()?;
    let width = weight.elem_count();
    let anchor = tape::anchor(weight, bias);
    let y = storage::with2(&x, weight.own_var(), |x, w| match bias {
        Some(bias) => storage::with(bias.own_var(), |b| forward(x, w, Some(b))),
        None => Ok(forward(x, w, None)),
    })??;
    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let args = [&x, &anchor];
    tape::record("affine", &args, y, x.shape(), move |args, _, dy| {
        let x = args[0];
        let (dx, parts) = storage::with2(x, dy, |x, dy| {
            storage::with(weight.own_var(), |w| backward(x, w, dy))
        })??;
        let total = |column: usize, sums: &mut [f32], fresh: bool| {
            for (i, part) in parts.chunks_exact(2 * width).enumerate() {
                add_rows(sums, &part[column * width..][..width], fresh && i == 0);
            }
        };
        if wants_weight {
            weight.update_grad(|dw, fresh| total(0, dw, fresh))?;
        }
        if let Some(bias) = bias.as_ref().filter(|_| wants_bias) {
            bias.update_grad(|db, fresh| total(1, db, fresh))?;
        }
        Ok(vec![Some(storage::tensor(dx, x.shape())?)])
    })
}

fn forward(x: &[f32], w: &[f32], b: Option<&[f32]>) -> Vec<f32> {
    let width = w.len();
    let block = rows_per_task(width) * width;
    let mut y = for_overwrite(x.len());
    y.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(y, x)| {
            for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
                match b {
                    Some(b) => scale_and_shift(y, x, w, b),
                    None => scale(y, x, w),
                }
            }
        });
    y
}

/// Returns the gradient of x and, per task, the sums for the weight, then those for the bias.
fn backward(x: &[f32], w: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let width = w.len();
    let block = rows_per_task(width) * width;
    let mut dx = for_overwrite(x.len());
    let mut parts = vec![0f32; x.len().div_ceil(block) * 2 * width];
    dx.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .zip(dy.par_chunks(block))
        .zip(parts.par_chunks_mut(2 * width))
        .for_each(|(((dx, x), dy), parts)| {
            let (dw, db) = parts.split_at_mut(width);
            let rows = dx.chunks_mut(width).zip(x.chunks(width));
            for ((dx, x), dy) in rows.zip(dy.chunks(width)) {
                gradients(dx, x, w, dy, dw, db);
            }
        });
    (dx, parts)
}

simd_fn! {
    fn scale(y: &mut [f32], x: &[f32], w: &[f32]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * w;
        }
    }
}

simd_fn! {
    fn scale_and_shift(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32]) {
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = x.mul_add(*w, *b);
        }
    }
}

simd_fn! {
    fn gradients(dx: &mut [f32], x: &[f32], w: &[f32], dy: &[f32], dw: &mut [f32], db: &mut [f32]) {
        let n = dx.len();
        let (x, w, dy, dw, db) = (&x[..n], &w[..n], &dy[..n], &mut dw[..n], &mut db[..n]);
        for i in 0..n {
            dx[i] = dy[i] * w[i];
            dw[i] = dy[i].mul_add(x[i], dw[i]);
            db[i] += dy[i];
        }
    }
}
