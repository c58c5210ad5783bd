//! From integers of one step to integers of another.

use candle_core::Tensor;

use super::quantize::most;
use super::{Scale, record, values};
use crate::{Error, Result};

/// Returns `x`, and what is added to it, in steps of `step` and cut to `bits` bits, as real values: each side's integers are
/// multiplied by the ratio of the steps as hardware does it, by a 31-bit integer and a shift, and then added up.
///
/// The gradient of `x` is that of the result as it is. What is added gets zeros: the reference's backward pass hands that
/// gradient to its scale, which wants none, and models that were trained there were trained so.
///
/// # Errors
/// When the two differ in shape, or a scale does not fit.
pub fn requantize(
    x: &Tensor,
    scale: &Scale,
    added: Option<(&Tensor, &Scale)>,
    step: f32,
    bits: u32,
) -> Result<Tensor> {
    if let Some((added, _)) = added
        && added.shape() != x.shape()
    {
        return Err(Error::argument(
            "added",
            format!("shape {:?} beside {:?}", added.dims(), x.dims()),
        ));
    }
    let mut sums = multiplied(x, scale, step)?;
    if let Some((added, scale)) = added {
        let sides = multiplied(added, scale, step)?;
        sums.iter_mut()
            .zip(sides)
            .for_each(|(sum, side)| *sum += side);
    }
    let most = most(bits);
    let value = |sum: f64| (sum as f32).clamp(-most - 1.0, most) * step;
    let values: Vec<f32> = sums.into_iter().map(value).collect();
    let x = x.contiguous()?;
    let added = added.map(|(added, _)| added.contiguous()).transpose()?;
    let mut args = vec![&x];
    args.extend(&added);
    let sides = args.len();
    record(
        "integer_requantize",
        &args,
        values,
        x.shape(),
        move |_, grad| {
            let mut grads = vec![grad.to_vec()];
            if sides == 2 {
                grads.push(vec![0.0; grad.len()]);
            }
            Ok(grads)
        },
    )
}

/// Returns the integers of `x` in steps of `to`.
fn multiplied(x: &Tensor, scale: &Scale, to: f32) -> Result<Vec<f64>> {
    scale.check(x)?;
    let ratio = |step: f32| multiplier(f64::from(step) / f64::from(to));
    let ratios: Vec<(f64, f64)> = match scale {
        Scale::All(step) => vec![ratio(*step)],
        Scale::Features(steps) => steps.iter().map(|&step| ratio(step)).collect(),
    };
    let multiply = |(i, value): (usize, f32)| {
        let integer = f64::from((value / scale.of(i)).round_ties_even());
        let (factor, shift) = ratios[i % ratios.len()];
        (integer * factor / shift).round_ties_even()
    };
    Ok(values(x)?.into_iter().enumerate().map(multiply).collect())
}

/// Returns a 31-bit integer (with its sign) and a power of two whose quotient is nearest to `ratio`, halves away from zero.
pub(super) fn multiplier(ratio: f64) -> (f64, f64) {
    if ratio == 0.0 || !ratio.is_finite() {
        return (ratio, 1.0);
    }
    // The mantissa from 0.5 to 1, and its exponent.
    let mut exponent = ratio.abs().log2().floor() as i32 + 1;
    let mut mantissa = ratio / 2f64.powi(exponent);
    if mantissa.abs() >= 1.0 {
        (mantissa, exponent) = (mantissa / 2.0, exponent + 1);
    } else if mantissa.abs() < 0.5 {
        (mantissa, exponent) = (mantissa * 2.0, exponent - 1);
    }
    let factor = (mantissa * 2f64.powi(31)).round();
    (factor, 2f64.powi(31 - exponent))
}
