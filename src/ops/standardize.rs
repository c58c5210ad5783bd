//! Standardizes features to mean 0 and variance 1 over all rows of a batch: the core of batch normalization.

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::naive;
use super::parallel::{column_sums, for_overwrite, rows_per_task};
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// A batch standardized to mean 0 and variance 1, with its earlier statistics.
#[derive(Clone, Debug)]
pub struct Standardized {
    /// `(x - mean) / √(variance + eps)`.
    pub values: Tensor,
    /// Of each feature over all rows, outside of the graph.
    pub mean: Tensor,
    /// Of each feature: the mean square of what deviates from the mean, outside of the graph.
    pub variance: Tensor,
}

/// Returns `x` (..., width) with mean 0 and variance 1 of each feature over all rows (Ioffe and Szegedy 2015). The
/// gradient goes through mean and variance.
pub fn standardize(x: &Tensor, eps: f64) -> Result<Standardized> {
    let width = x.dim(D::Minus1)?;
    if !storage::is_cpu_f32(x) || x.elem_count() == 0 {
        return naive::standardize(x, eps);
    }
    let x = x.contiguous()?;
    let count = x.elem_count() / width;
    let [mean, variance] = storage::with(&x, |x| moments(x, width))?;
    let scale: Vec<f32> = (variance.iter())
        .map(|&v| (1.0 / (f64::from(v) + eps).sqrt()) as f32)
        .collect();
    let y = storage::with(&x, |x| mapped(x, width, |i, x| (x - mean[i]) * scale[i]))?;
    let shape = width.into();
    let (mean, variance) = (
        storage::tensor(mean, &shape)?,
        storage::tensor(variance, &shape)?,
    );
    let values = tape::record("standardize", &[&x], y, x.shape(), move |_, y, grad| {
        let dx = storage::with2(y, grad, |y, grad| {
            let mut sums = vec![0f32; width];
            column_sums(grad, width, &mut sums, true);
            let mut product = for_overwrite(y.len());
            let blocks = product.par_chunks_mut(width).zip(y.par_chunks(width));
            blocks
                .zip(grad.par_chunks(width))
                .with_min_len(rows_per_task(width))
                .for_each(|((product, y), grad)| {
                    for ((product, y), grad) in product.iter_mut().zip(y).zip(grad) {
                        *product = y * grad;
                    }
                });
            let mut along = vec![0f32; width];
            column_sums(&product, width, &mut along, true);
            let mut dx = product;
            let share = 1.0 / count as f32;
            dx.par_chunks_mut(width)
                .zip(y.par_chunks(width))
                .zip(grad.par_chunks(width))
                .with_min_len(rows_per_task(width))
                .for_each(|((dx, y), grad)| {
                    for i in 0..width {
                        dx[i] = scale[i] * (grad[i] - share * (sums[i] + y[i] * along[i]));
                    }
                });
            dx
        })?;
        Ok(vec![Some(storage::tensor(dx, y.shape())?)])
    })?;
    Ok(Standardized {
        values,
        mean,
        variance,
    })
}

/// Mean and variance of each column.
fn moments(x: &[f32], width: usize) -> [Vec<f32>; 2] {
    let share = 1.0 / (x.len() / width) as f32;
    let mut mean = vec![0f32; width];
    column_sums(x, width, &mut mean, true);
    mean.iter_mut().for_each(|mean| *mean *= share);
    let squares = mapped(x, width, |i, x| (x - mean[i]) * (x - mean[i]));
    let mut variance = vec![0f32; width];
    column_sums(&squares, width, &mut variance, true);
    variance.iter_mut().for_each(|variance| *variance *= share);
    [mean, variance]
}

/// Returns `f(column, element)` of every element.
fn mapped(x: &[f32], width: usize, f: impl Fn(usize, f32) -> f32 + Sync) -> Vec<f32> {
    let mut y = for_overwrite(x.len());
    y.par_chunks_mut(width)
        .zip(x.par_chunks(width))
        .with_min_len(rows_per_task(width))
        .for_each(|(y, x)| {
            for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                *y = f(i, x);
            }
        });
    y
}
