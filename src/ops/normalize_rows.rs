//! Normalizes rows to length 1, without parameters.

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::naive;
use super::parallel::{for_overwrite, rows_per_task};
use super::simd::{self, simd_fn};
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// The norm of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowLength {
    /// √(mean of the squares + `eps`): MEGA's scale norm, the keys of Reformer.
    RootMeanSquare {
        /// The constant added to the mean.
        eps: f64,
    },
    /// √(sum of the squares), but at least `least`: YOSO's queries, keys and results.
    Euclidean {
        /// The divisor of shorter rows.
        least: f64,
    },
}

/// Returns `x` with each row (along the last dimension) divided by its length.
pub fn normalize_rows(x: &Tensor, length: RowLength) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if !storage::is_cpu_f32(x) || x.elem_count() == 0 {
        return naive::normalize_rows(x, length);
    }
    let x = x.contiguous()?;
    let block = rows_per_task(width) * width;
    let y = storage::with(&x, |x| {
        let mut y = for_overwrite(x.len());
        y.par_chunks_mut(block)
            .zip(x.par_chunks(block))
            .for_each(|(y, x)| {
                for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
                    let (scale, _) = length.scale(square(x), width);
                    multiple(y, x, scale);
                }
            });
        y
    })?;
    tape::record(
        "normalize_rows",
        &[&x],
        y,
        x.shape(),
        move |args, _, grad| {
            let dx = storage::with2(args[0], grad, |x, grad| {
                let mut dx = for_overwrite(x.len());
                dx.par_chunks_mut(block)
                    .zip(x.par_chunks(block))
                    .zip(grad.par_chunks(block))
                    .for_each(|((dx, x), grad)| {
                        let rows = dx.chunks_mut(width).zip(x.chunks(width));
                        for ((dx, x), grad) in rows.zip(grad.chunks(width)) {
                            let (scale, share) = length.scale(square(x), width);
                            gradient(dx, x, grad, scale, share);
                        }
                    });
                dx
            })?;
            Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
        },
    )
}

impl RowLength {
    /// Returns the reciprocal of the length of a row with that sum of squares, and by what share of its cube times x
    /// the sum of x · dy changes it: 1 / length depends on x as -share · x / length³.
    fn scale(self, square: f32, width: usize) -> (f32, f32) {
        match self {
            Self::RootMeanSquare { eps } => {
                let share = 1.0 / width as f32;
                (1.0 / (square * share + eps as f32).sqrt(), share)
            }
            Self::Euclidean { least } => {
                let length = square.sqrt();
                // Written so that NaN stays NaN.
                if length <= least as f32 {
                    ((1.0 / least) as f32, 0.0)
                } else {
                    (1.0 / length, 1.0)
                }
            }
        }
    }
}

simd_fn! {
    fn square(x: &[f32]) -> f32 {
        simd::dot(x, x)
    }
}

simd_fn! {
    fn multiple(y: &mut [f32], x: &[f32], scale: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * scale;
        }
    }
}

simd_fn! {
    fn gradient(dx: &mut [f32], x: &[f32], grad: &[f32], scale: f32, share: f32) {
        // Where nothing of x is in the length, a huge gradient must not meet a zero.
        let along = if share == 0.0 { 0.0 } else { share * scale * scale * simd::dot(x, grad) };
        for ((dx, x), grad) in dx.iter_mut().zip(x).zip(grad) {
            *dx = scale * (grad - x * along);
        }
    }
}
