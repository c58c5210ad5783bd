//! Layer normalization, by itself or fused with the preceding residual connection and dropout.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::dropout::Stream;
use super::parallel::{add_rows, for_overwrite, rows_per_task};
use super::simd::{self, simd_fn};
use super::{Dropout, Param, naive};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Normalizes the last dimension of `x` to mean 0 and variance 1, then scales by `weight` and shifts by `bias`
/// (Ba et al. 2016). Statistics are in f32 whatever the dtype.
pub fn layer_norm(x: &Tensor, weight: &Param, bias: Option<&Param>, eps: f64) -> Result<Tensor> {
    check(x, weight, bias)?;
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, [weight].into_iter().chain(bias)) {
        return cuda::layer_norm(x, None, weight, bias, eps, Dropout::NONE);
    }
    if !is_fused(x, weight, bias) {
        return naive::layer_norm(x, weight, bias, eps);
    }
    fused(x, None, weight, bias, eps, Dropout::NONE)
}

/// Returns `layer_norm(residual + dropout(x))`: the end of every post-norm transformer block.
///
/// The sum is not kept: the backward pass forms it again from its parts, which are alive anyway.
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    eps: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    check(x, weight, bias)?;
    if x.shape() != residual.shape() {
        return Err(Error::argument(
            "residual",
            format!("shape {:?}, but x has {:?}", residual.shape(), x.shape()),
        ));
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, [weight].into_iter().chain(bias))
        && crate::ops::cuda::takes(residual, [])
    {
        return cuda::layer_norm(x, Some(residual), weight, bias, eps, dropout);
    }
    if !is_fused(x, weight, bias) || !storage::is_cpu_f32(residual) {
        return naive::add_layer_norm(x, residual, weight, bias, eps, dropout);
    }
    fused(x, Some(residual), weight, bias, eps, dropout)
}

/// That both parameters are as long as the last dimension of `x`.
pub(super) fn check(x: &Tensor, weight: &Param, bias: Option<&Param>) -> Result<()> {
    for param in [Some(weight), bias].into_iter().flatten() {
        if param.shape().rank() != 1 || x.dims().last() != param.shape().dims().first() {
            return Err(Error::argument(
                "x",
                format!(
                    "shape {:?} does not end in the length of {}, whose shape is {:?}",
                    x.shape(),
                    param.name(),
                    param.shape()
                ),
            ));
        }
    }
    Ok(())
}

fn is_fused(x: &Tensor, weight: &Param, bias: Option<&Param>) -> bool {
    x.elem_count() > 0
        && storage::is_cpu_f32(x)
        && weight.is_cpu_f32()
        && bias.is_none_or(|bias| bias.dtype() == DType::F32)
}

fn fused(
    x: &Tensor,
    residual: Option<&Tensor>,
    weight: &Param,
    bias: Option<&Param>,
    eps: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let anchor = tape::anchor(weight, bias);
    let (y, statistics) = {
        let bias = bias.map(|bias| bias.own_var().as_tensor());
        with_inputs(&x, residual.as_ref(), |x, residual| {
            storage::with(weight.own_var(), |w| match bias {
                Some(bias) => {
                    storage::with(bias, |b| forward(x, residual, w, Some(b), eps, dropout))
                }
                None => Ok(forward(x, residual, w, None, eps, dropout)),
            })
        })???
    };
    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let has_residual = residual.is_some();
    let mut args = vec![&x];
    args.extend(&residual);
    args.push(&anchor);
    tape::record("layer_norm", &args, y, x.shape(), move |args, _, dy| {
        let (x, residual) = (args[0], has_residual.then(|| args[1]));
        let grads = with_inputs(x, residual, |x, residual| {
            storage::with2(weight.own_var(), dy, |w, dy| {
                backward(x, residual, w, dy, &statistics, dropout)
            })
        })??;
        let width = weight.elem_count();
        // Each task's part: the sums for the weight, then those for the bias.
        let total = |column: usize, sums: &mut [f32], fresh: bool| {
            for (i, part) in grads.parts.chunks_exact(2 * width).enumerate() {
                add_rows(sums, &part[column * width..][..width], fresh && i == 0);
            }
        };
        if wants_weight {
            weight.update_grad(|dw, fresh| total(0, dw, fresh))?;
        }
        if let Some(bias) = bias.as_ref().filter(|_| wants_bias) {
            bias.update_grad(|db, fresh| total(1, db, fresh))?;
        }
        let shape = x.shape();
        let sum = storage::tensor(grads.sum, shape)?;
        let dx = match grads.x {
            Some(dx) => storage::tensor(dx, shape)?,
            None => sum.clone(),
        };
        Ok(vec![Some(dx), has_residual.then_some(sum)])
    })
}

fn with_inputs<T>(
    x: &Tensor,
    residual: Option<&Tensor>,
    f: impl FnOnce(&[f32], Option<&[f32]>) -> T,
) -> Result<T> {
    match residual {
        Some(residual) => storage::with2(x, residual, |x, residual| f(x, Some(residual))),
        None => storage::with(x, |x| f(x, None)),
    }
}

/// Mean and reciprocal standard deviation of a row.
type Statistics = [f32; 2];

fn forward(
    x: &[f32],
    residual: Option<&[f32]>,
    w: &[f32],
    b: Option<&[f32]>,
    eps: f64,
    dropout: Dropout,
) -> (Vec<f32>, Vec<Statistics>) {
    let width = w.len();
    let rows = rows_per_task(width);
    let mut y = for_overwrite(x.len());
    let mut statistics = vec![[0f32; 2]; x.len() / width];
    y.par_chunks_mut(rows * width)
        .zip(statistics.par_chunks_mut(rows))
        .enumerate()
        .for_each(|(task, (y, statistics))| {
            let first = task * rows;
            for (i, (y, statistics)) in y.chunks_mut(width).zip(statistics).enumerate() {
                let row = (first + i) * width..(first + i + 1) * width;
                // The sum is formed where the result will stand.
                add_row(
                    &x[row.clone()],
                    residual.map(|r| &r[row.clone()]),
                    dropout,
                    row.start,
                    y,
                );
                *statistics = normalize(y, w, b, eps as f32);
            }
        });
    (y, statistics)
}

struct Grads {
    /// With respect to the sum, which is that of the residual.
    sum: Vec<f32>,
    /// With respect to x, where dropout makes it another.
    x: Option<Vec<f32>>,
    /// Per task, the gradients of weight and bias.
    parts: Vec<f32>,
}

fn backward(
    x: &[f32],
    residual: Option<&[f32]>,
    w: &[f32],
    dy: &[f32],
    statistics: &[Statistics],
    dropout: Dropout,
) -> Grads {
    let width = w.len();
    let rows = rows_per_task(width);
    let mut sum = for_overwrite(x.len());
    let mut dx = for_overwrite(if dropout.is_active() { x.len() } else { 0 });
    let tasks = statistics.len().div_ceil(rows);
    let mut parts = vec![0f32; tasks * 2 * width];
    // Without dropout there are no rows of `dx` to hand out: each task then gets an empty one.
    let mut dx_tasks: Vec<&mut [f32]> = match dropout.is_active() {
        true => dx.chunks_mut(rows * width).collect(),
        false => (0..tasks).map(|_| <&mut [f32]>::default()).collect(),
    };
    sum.par_chunks_mut(rows * width)
        .zip(parts.par_chunks_mut(2 * width))
        .zip(dx_tasks.par_iter_mut())
        .enumerate()
        .for_each(|(task, ((sum, parts), dx))| {
            let (dw, db) = parts.split_at_mut(width);
            for (i, sum) in sum.chunks_mut(width).enumerate() {
                let at = task * rows + i;
                let row = at * width..(at + 1) * width;
                add_row(
                    &x[row.clone()],
                    residual.map(|r| &r[row.clone()]),
                    dropout,
                    row.start,
                    sum,
                );
                normalize_backward(sum, w, &dy[row.clone()], statistics[at], dw, db);
                if dropout.is_active() {
                    add_row(sum, None, dropout, row.start, &mut dx[i * width..][..width]);
                }
            }
        });
    Grads {
        sum,
        x: dropout.is_active().then_some(dx),
        parts,
    }
}

/// `out = residual + dropout(x)`, for elements from index `start` on.
fn add_row(x: &[f32], residual: Option<&[f32]>, dropout: Dropout, start: usize, out: &mut [f32]) {
    if !dropout.is_active() {
        return match residual {
            Some(residual) => add(x, residual, out),
            None => out.copy_from_slice(x),
        };
    }
    dropout.pieces(start as u64, x.len(), |stream, offset, at, n| {
        let (x, out) = (&x[at..at + n], &mut out[at..at + n]);
        match residual {
            Some(residual) => add_dropped(&stream, offset, x, &residual[at..at + n], out),
            None => super::dropout::multiply(&stream, offset, x, out),
        }
    });
}

simd_fn! {
    fn add(x: &[f32], residual: &[f32], out: &mut [f32]) {
        for ((out, x), residual) in out.iter_mut().zip(x).zip(residual) {
            *out = x + residual;
        }
    }
}

simd_fn! {
    fn add_dropped(stream: &Stream, start: u32, x: &[f32], residual: &[f32], out: &mut [f32]) {
        let n = out.len();
        let (x, residual) = (&x[..n], &residual[..n]);
        for i in 0..n {
            out[i] = x[i].mul_add(stream.factor(start.wrapping_add(i as u32)), residual[i]);
        }
    }
}

simd_fn! {
    fn normalize(y: &mut [f32], w: &[f32], b: Option<&[f32]>, eps: f32) -> Statistics {
        let n = y.len() as f32;
        let mean = simd::sum(y, |x| x) / n;
        let variance = simd::sum(y, |x| (x - mean) * (x - mean)) / n;
        let scale = 1.0 / (variance + eps).sqrt();
        match b {
            Some(b) => {
                for ((y, w), b) in y.iter_mut().zip(w).zip(b) {
                    *y = ((*y - mean) * scale).mul_add(*w, *b);
                }
            }
            None => {
                for (y, w) in y.iter_mut().zip(w) {
                    *y = (*y - mean) * scale * w;
                }
            }
        }
        [mean, scale]
    }
}

simd_fn! {
    /// Turns a row of inputs into their gradient; adds to those of weight and bias.
    fn normalize_backward(
        x: &mut [f32],
        w: &[f32],
        dy: &[f32],
        statistics: Statistics,
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        let [mean, scale] = statistics;
        let n = x.len();
        let (w, dy, dw, db) = (&w[..n], &dy[..n], &mut dw[..n], &mut db[..n]);
        for i in 0..n {
            let normed = (x[i] - mean) * scale;
            x[i] = normed;
            dw[i] = dy[i].mul_add(normed, dw[i]);
            db[i] += dy[i];
        }
        // With g = dy · w: dx = scale · (g - mean(g) - normed · mean(g · normed)).
        let shift = simd::dot(dy, w) / n as f32;
        let slope = simd::dot3(dy, w, x) / n as f32;
        for i in 0..n {
            x[i] = scale * x[i].mul_add(-slope, dy[i].mul_add(w[i], -shift));
        }
    }
}
