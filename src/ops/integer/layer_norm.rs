//! Layer normalization in integers.

use candle_core::{D, Tensor};

use super::{Scale, record, values};
use crate::ops::{self, Param};
use crate::{Error, Result};

/// Sums of squares have fewer bits than this.
const MAX_BITS: i32 = 32;

/// The integers of one row, on the way to its deviation.
struct Centred {
    /// Differences from the mean.
    differences: Vec<f32>,
    /// The same, shifted to the right.
    shifted: Vec<f32>,
    /// The sum of the squares of `shifted`.
    squares: f32,
}

fn centred(row: &[f32], step: f32, shift: f32) -> Centred {
    let integers: Vec<f32> = row.iter().map(|value| value / step).collect();
    let sum: f64 = integers.iter().map(|&value| f64::from(value)).sum();
    let mean = ((sum / row.len() as f64) as f32).round_ties_even();
    let differences: Vec<f32> = integers.iter().map(|value| value - mean).collect();
    let unit = 2f32.powf(shift);
    let shifted: Vec<f32> = differences.iter().map(|d| (d / unit).floor()).collect();
    let squares: f64 = shifted.iter().map(|&d| f64::from(d * d)).sum();
    Centred {
        differences,
        shifted,
        squares: squares as f32,
    }
}

/// Returns by how many bits the integers of `x` (..., features), in steps of `step`, must be shifted to the right before
/// their squares are added up in 32 bits: `shift`, or more where that is too little.
///
/// # Errors
/// When `x` is a number alone, or can't be read.
pub fn layer_norm_shift(x: &Tensor, step: f32, shift: f32) -> Result<f32> {
    let width = x.dim(D::Minus1)?.max(1);
    let limit = 2f32.powi(MAX_BITS);
    let x = values(x)?;
    let most = |shift: f32| {
        let rows = x.chunks(width);
        rows.map(|row| centred(row, step, shift).squares)
            .fold(0f32, f32::max)
    };
    if most(shift) < limit {
        return Ok(shift);
    }
    Ok(shift.max((most(0.0) / limit).sqrt().log2().ceil()))
}

/// Normalizes the last dimension of `x`, in steps of `step`, in integers, shifting by `shift` bits before squaring;
/// returns the result and the value of its steps.
///
/// Gradients pass through the rounding. As in the reference, `bias` gets none.
///
/// # Errors
/// When sizes do not fit.
pub fn layer_norm(
    x: &Tensor,
    step: f32,
    weight: &Param,
    bias: &Param,
    shift: f32,
) -> Result<(Tensor, Scale)> {
    let width = x.dim(D::Minus1)?;
    if weight.elem_count() != width || bias.elem_count() != width || width == 0 {
        return Err(Error::argument(
            "weight",
            format!("{} features of {width}", weight.elem_count()),
        ));
    }
    let unit = 2f32.powf(shift);
    let root = (width as f32).sqrt() / 2f32.powi(30);
    let weights = values(&weight.value())?;
    let biases = values(&bias.value())?;
    let biases: Vec<f32> = (biases.iter().zip(&weights))
        .map(|(bias, weight)| (bias / weight / root).floor())
        .collect();
    let scales: Vec<f32> = weights.iter().map(|weight| root * weight).collect();
    let mut result = values(x)?;
    let mut rows = Vec::with_capacity(result.len() / width);
    let mut normalized = Vec::with_capacity(result.len());
    for row in result.chunks_mut(width) {
        let centred = centred(row, step, shift);
        // A row whose values are all the same has no deviation: it is divided by the smallest there is.
        let deviation = centred.squares.sqrt().floor().max(1.0) * unit;
        let factor = (1.0 / deviation * 2f32.powi(31)).floor();
        for (i, value) in row.iter_mut().enumerate() {
            let integer = (centred.differences[i] * factor / 2.0).floor() + biases[i];
            normalized.push(integer * root);
            *value = integer * scales[i];
        }
        rows.push((centred, deviation, factor));
    }
    let (x, weight) = (x.contiguous()?, ops::param_rows(weight)?);
    let features: std::sync::Arc<[f32]> = scales.into();
    let scales = features.clone();
    let y = record(
        "integer_layer_norm",
        &[&x, &weight],
        result,
        x.shape(),
        move |_, grad| {
            let mut dx = Vec::with_capacity(grad.len());
            let mut dw = vec![0f32; width];
            for (row, grad) in grad.chunks(width).enumerate() {
                let normalized = &normalized[row * width..(row + 1) * width];
                for i in 0..width {
                    dw[i] += grad[i] * normalized[i];
                }
                dx.extend(row_gradient(&rows[row], grad, &scales, unit, step));
            }
            Ok(vec![dx, dw])
        },
    )?;
    Ok((y, Scale::Features(features)))
}

/// Returns the gradient of one row of the input.
fn row_gradient(
    (centred, deviation, factor): &(Centred, f32, f32),
    grad: &[f32],
    scales: &[f32],
    unit: f32,
    step: f32,
) -> Vec<f32> {
    let scaled: Vec<f32> = grad.iter().zip(scales).map(|(g, s)| g * s / 2.0).collect();
    let by_factor: f64 = (scaled.iter().zip(&centred.differences))
        .map(|(&g, &d)| f64::from(g) * f64::from(d))
        .sum();
    let reciprocal = f64::from(1.0 / deviation);
    let by_deviation = -by_factor * reciprocal * reciprocal * 2f64.powi(31);
    let root = f64::from(centred.squares.sqrt());
    let by_squares = match root > 0.0 {
        true => by_deviation * f64::from(unit) / (2.0 * root),
        false => 0.0,
    };
    let mut dx: Vec<f64> = (scaled.iter().zip(&centred.shifted))
        .map(|(&g, &shifted)| {
            f64::from(g) * f64::from(*factor)
                + 2.0 * f64::from(shifted) * by_squares / f64::from(unit)
        })
        .collect();
    let mean = dx.iter().sum::<f64>() / dx.len() as f64;
    dx.iter_mut()
        .for_each(|dx| *dx = (*dx - mean) / f64::from(step));
    dx.into_iter().map(|dx| dx as f32).collect()
}
