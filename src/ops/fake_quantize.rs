//! Rounding to a few levels, and what training makes of it.

use candle_core::Tensor;

use crate::ops::graph::{on_host, storage};
use crate::{Error, Result};

/// Ranges up to this one contain only zeros.
const NEGLIGIBLE: f32 = 1.0 / (1 << 24) as f32;

/// The largest magnitude that quantized values can have.
#[derive(Clone, Debug, PartialEq)]
pub enum QuantRange {
    /// The largest magnitude in the tensor itself.
    Dynamic,
    /// The largest magnitude in each row of the first dimension.
    DynamicRows,
    /// A range measured before; values beyond it are clipped.
    Fixed(f32),
    /// One for each row of the first dimension, measured before.
    FixedRows(Vec<f32>),
}

/// Returns `x` rounded to the levels of a signed integer of `bits` bits, evenly spaced up to the range, halves to even: what
/// arithmetic with such integers sees of `x`, as floats.
///
/// The gradient passes unchanged where `x` is within the range, and is zero beyond (the straight-through estimator of
/// Bengio et al. 2013). The CPU does the rounding, also for tensors on a GPU.
///
/// # Errors
/// When `bits` is not from 2 to 16, a fixed range is not a positive number (that of a row may be 0), or there is not one for
/// each row.
pub fn fake_quantize(x: &Tensor, range: &QuantRange, bits: u32) -> Result<Tensor> {
    if !(2..=16).contains(&bits) {
        return Err(Error::argument(
            "bits",
            format!("{bits} bits; values are quantized to 2 to 16"),
        ));
    }
    if let QuantRange::Fixed(range) = range
        && !(range.is_finite() && *range > 0.0)
    {
        return Err(Error::argument(
            "range",
            format!("{range} is not a valid range; give a positive number"),
        ));
    }
    if let QuantRange::FixedRows(ranges) = range {
        let rows = x.dims().first().copied().unwrap_or(1);
        if ranges.len() != rows
            || ranges
                .iter()
                .any(|range| !(range.is_finite() && *range >= 0.0))
        {
            return Err(Error::argument(
                "range",
                format!(
                    "{} ranges for {rows} rows; give each a number that is not negative",
                    ranges.len()
                ),
            ));
        }
    }
    let most = ((1 << (bits - 1)) - 1) as f32;
    let shape = x.shape().clone();
    let values = on_host::values(x)?;
    let width = match range {
        QuantRange::DynamicRows | QuantRange::FixedRows(_) => {
            values.len() / shape.dims().first().copied().unwrap_or(1).max(1)
        }
        _ => values.len(),
    };
    let mut rounded = values.clone();
    let mut passes = vec![1f32; values.len()];
    for (number, (row, passes)) in rounded
        .chunks_mut(width.max(1))
        .zip(passes.chunks_mut(width.max(1)))
        .enumerate()
    {
        let range = match range {
            QuantRange::Fixed(range) => *range,
            QuantRange::FixedRows(ranges) => ranges[number],
            _ => row.iter().fold(0f32, |most, value| most.max(value.abs())),
        };
        if range <= NEGLIGIBLE {
            row.fill(0.0);
            continue;
        }
        let scale = most / range;
        for (value, pass) in row.iter_mut().zip(passes) {
            if value.abs() > range {
                *pass = 0.0;
            }
            let level = (*value * scale).round_ties_even();
            *value = level.clamp(-most - 1.0, most) / scale;
        }
    }
    if !storage::is_cpu_f32(x) && !x.device().is_cuda() {
        // Differentiable by candle: x where it passes, and the rest as a constant.
        let (passes, rounded) = (on_host::like(passes, x)?, on_host::like(rounded, x)?);
        let through = (x * &passes)?;
        let constant = (rounded - through.detach())?;
        return Ok((through + constant)?);
    }
    let x = x.contiguous()?;
    on_host::record("fake_quantize", &[&x], rounded, &shape, move |_, grad| {
        let pairs = grad.iter().zip(&passes);
        Ok(vec![pairs.map(|(grad, pass)| grad * pass).collect()])
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn quantized(values: &[f32], range: QuantRange, bits: u32) -> Vec<f32> {
        let x = Tensor::new(values, &Device::Cpu).unwrap();
        fake_quantize(&x, &range, bits).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn values_become_multiples_of_the_range_divided_by_the_levels() {
        let values = [-1.27, -0.5, 0.004, 0.005, 0.015, 0.016, 1.0, 1.27];
        let found = quantized(&values, QuantRange::Dynamic, 8);
        let expected = [-1.27, -0.5, 0.0, 0.0, 0.01, 0.02, 1.0, 1.27];
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            // 0.005 and 0.015 lie between two levels, as far as f32 can say.
            let slack = if (3..5).contains(&i) { 0.0101 } else { 1e-6 };
            assert!((found - expected).abs() < slack, "{i}: {found}");
        }
        // Halves to even, exactly.
        assert_eq!(
            quantized(&[0.5, 1.5, 2.5, 127.0], QuantRange::Dynamic, 8),
            [0.0, 2.0, 2.0, 127.0]
        );
        assert_eq!(
            quantized(&[3.0, -9.0, 9.0], QuantRange::Fixed(7.0), 4),
            [3.0, -8.0, 7.0]
        );
        assert_eq!(quantized(&[0.0, 1e-9], QuantRange::Dynamic, 8), [0.0, 0.0]);
        let rows = Tensor::new(&[[127f32, 1.4], [1.27, 0.014]], &Device::Cpu).unwrap();
        for range in [
            QuantRange::DynamicRows,
            QuantRange::FixedRows(vec![127.0, 1.27]),
        ] {
            let found = fake_quantize(&rows, &range, 8).unwrap();
            let found = found.to_vec2::<f32>().unwrap();
            assert_eq!(found[0], [127.0, 1.0]);
            assert!((found[1][1] - 0.01).abs() < 1e-6);
        }
        let cut = fake_quantize(&rows, &QuantRange::FixedRows(vec![12.7, 0.0]), 8).unwrap();
        let cut = cut.to_vec2::<f32>().unwrap();
        assert!((cut[0][0] - 12.7).abs() < 1e-5 && (cut[0][1] - 1.4).abs() < 1e-5);
        assert_eq!(cut[1], [0.0, 0.0]);
    }

    #[test]
    fn gradients_pass_within_the_range_and_stop_beyond() {
        for dtype in [DType::F32, DType::F64] {
            let x = Tensor::new(&[0.3f32, -0.9, 1.1, -2.0], &Device::Cpu).unwrap();
            let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
            let y = fake_quantize(x.as_tensor(), &QuantRange::Fixed(1.0), 8).unwrap();
            let weights = Tensor::new(&[1f32, 2.0, 3.0, 4.0], &Device::Cpu).unwrap();
            let loss = (y * weights.to_dtype(dtype).unwrap())
                .unwrap()
                .sum_all()
                .unwrap();
            let grads = loss.backward().unwrap();
            let grad = grads
                .get(x.as_tensor())
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap();
            assert_eq!(grad.to_vec1::<f32>().unwrap(), [1.0, 2.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn invalid_bits_and_ranges_are_refused() {
        let x = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        for (range, bits) in [
            (QuantRange::Dynamic, 1),
            (QuantRange::Dynamic, 40),
            (QuantRange::Fixed(0.0), 8),
            (QuantRange::Fixed(f32::NAN), 8),
            (QuantRange::FixedRows(vec![1.0, 1.0]), 8),
            (QuantRange::FixedRows(vec![-1.0]), 8),
        ] {
            assert!(fake_quantize(&x, &range, bits).is_err());
        }
    }
}
