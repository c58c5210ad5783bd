//! Affine maps with 8-bit weights.

use candle_core::{Device, Tensor};

use super::quantize::{levels, step};
use super::{Scale, record, values};
use crate::ops::{self, Param, Precision, autocast};
use crate::{Error, Result};

const WEIGHT_BITS: u32 = 8;
const BIAS_BITS: u32 = 32;

/// A map's weights as integers.
#[derive(Clone, Debug)]
pub struct IntegerWeights {
    /// The weights, (out, in).
    pub weight: Tensor,
    /// The value of a step of each row, (out).
    pub steps: Vec<f32>,
    /// The bias in steps of the product, (out).
    pub bias: Vec<f32>,
    /// The value of a step of each feature of the product.
    pub scale: Scale,
}

/// Returns the integers of a map whose input has steps of `input`: the weights in 8 bits with a step for each row, the bias
/// in 32.
///
/// # Errors
/// When the bias does not fit the weights.
pub fn integer_weights(weight: &Param, bias: &Param, input: f32) -> Result<IntegerWeights> {
    let (outer, inner) = weight.shape().dims2()?;
    if bias.elem_count() != outer || inner == 0 {
        return Err(Error::argument(
            "bias",
            format!("{} values for a map to {outer} features", bias.elem_count()),
        ));
    }
    let floats = values(&weight.value())?;
    let range = |row: &[f32]| {
        let min = row.iter().copied().fold(f32::INFINITY, f32::min);
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        step(min, max, WEIGHT_BITS)
    };
    let steps: Vec<f32> = floats.chunks(inner).map(range).collect();
    let integers = levels(&floats, |i| steps[i / inner], WEIGHT_BITS);
    let products: Vec<f32> = steps.iter().map(|step| step * input).collect();
    let bias = levels(&values(&bias.value())?, |i| products[i], BIAS_BITS);
    Ok(IntegerWeights {
        weight: Tensor::from_vec(integers, (outer, inner), &Device::Cpu)?,
        steps,
        bias,
        scale: Scale::Features(products.into()),
    })
}

/// Applies a map to `x` (batch, seq, in), whose steps are `input`, in integers; returns the result, (batch, seq, out),
/// and the value of its steps. Gradients pass through the rounding of the weights.
///
/// # Errors
/// When sizes do not fit.
pub fn linear(x: &Tensor, input: f32, weight: &Param, bias: &Param) -> Result<(Tensor, Scale)> {
    let (batch, seq, inner) = x.dims3()?;
    let integers = integer_weights(weight, bias, input)?;
    let outer = integers.steps.len();
    let rows = ops::reshape(x, (batch * seq, inner))?.contiguous()?;
    let divided: Vec<f32> = values(&rows)?
        .into_iter()
        .map(|value| value / input)
        .collect();
    let here = |values: Vec<f32>, width: usize| {
        let rows = values.len() / width.max(1);
        Tensor::from_vec(values, (rows, width), &Device::Cpu)
    };
    let product = |a: &Tensor, b: &Tensor, transpose_a, transpose_b| {
        let product = || ops::matmul(a, b, transpose_a, transpose_b);
        values(&autocast(Precision::F32, product)?)
    };
    let mut result = product(&here(divided, inner)?, &integers.weight, false, true)?;
    for (i, value) in result.iter_mut().enumerate() {
        *value = (*value + integers.bias[i % outer]) * integers.scale.of(i);
    }
    // What the input's gradient meets: the rounded weights as real values.
    let mut rounded = values(&integers.weight)?;
    for (i, value) in rounded.iter_mut().enumerate() {
        *value *= integers.steps[i / inner];
    }
    let rounded = here(rounded, inner)?;
    let (weight, bias) = (ops::param_rows(weight)?, ops::param_rows(bias)?);
    let y = record(
        "integer_linear",
        &[&rows, &weight, &bias],
        result,
        (batch * seq, outer),
        move |args, grad| {
            let grad = here(grad.to_vec(), outer)?;
            let x = here(values(args[0])?, inner)?;
            Ok(vec![
                product(&grad, &rounded, false, false)?,
                product(&grad, &x, true, false)?,
                values(&grad.sum(0)?)?,
            ])
        },
    )?;
    Ok((ops::reshape(&y, (batch, seq, outer))?, integers.scale))
}
