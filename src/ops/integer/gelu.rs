//! GELU by a polynomial of second order in integers.

use candle_core::Tensor;

use super::{Scale, record, values};
use crate::Result;

/// The number by which the argument of erf is smaller; near to the root of 2.
#[allow(
    clippy::approx_constant,
    reason = "the reference's number, in its few digits"
)]
const ROOT_OF_TWO: f32 = 1.4142;
/// a·(x + b)² + c is near to erf(x) up to -b, and 1 from there on; c is divided by a.
const A: f32 = -0.2888;
const B: f32 = -1.769;
const C: f32 = (1.0 / -0.2888f64) as f32;
/// Bits that erf has too many.
const DROPPED: f32 = (1 << 14) as f32;

/// The constants of one step, in integers.
#[derive(Clone, Copy)]
struct Constants {
    b: f32,
    c: f32,
    /// One, in steps of erf.
    one: f32,
    /// The value of a step of the result.
    step: f32,
}

impl Constants {
    fn new(step: f32) -> Self {
        let inner = step / ROOT_OF_TWO;
        let square = inner * inner;
        let erf = square * A * DROPPED;
        Self {
            b: (1.0 / inner * B).floor(),
            c: (1.0 / square * C).floor(),
            one: floor_quotient(1.0, erf),
            step: step * erf / 2.0,
        }
    }

    /// Returns the integers of erf for the integer `x`, before one is added, and how fast they change with `x`.
    fn erf(&self, x: f32) -> (f32, f32) {
        let sign = match x {
            0.0 => 0.0,
            x => x.signum(),
        };
        let cut = x.abs().min(-self.b);
        let sum = cut + self.b;
        let value = (sign * (sum * sum + self.c) / DROPPED).floor();
        // Half of the gradient where the two sides of the minimum meet, as PyTorch has it.
        let passes = match x.abs().partial_cmp(&-self.b) {
            Some(std::cmp::Ordering::Less) => 1.0,
            Some(std::cmp::Ordering::Equal) => 0.5,
            _ => 0.0,
        };
        (value, sign * sign * 2.0 * sum * passes / DROPPED)
    }
}

/// Returns the largest integer that is not above `a` / `b`, as PyTorch divides.
fn floor_quotient(a: f32, b: f32) -> f32 {
    let rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest != 0.0 && (b < 0.0) != (rest < 0.0) {
        quotient -= 1.0;
    }
    let floor = quotient.floor();
    if quotient - floor > 0.5 {
        floor + 1.0
    } else {
        floor
    }
}

/// Returns the GELU of `x` in integers, and the value of its steps. Gradients are those of the polynomial, and pass
/// through the rounding.
///
/// # Errors
/// When `scale` does not fit.
pub fn gelu(x: &Tensor, scale: &Scale) -> Result<(Tensor, Scale)> {
    scale.check(x)?;
    let constants: Vec<Constants> = match scale {
        Scale::All(step) => vec![Constants::new(*step)],
        Scale::Features(steps) => steps.iter().map(|&step| Constants::new(step)).collect(),
    };
    let out = scale.map(|step| Constants::new(step).step);
    let mut result = values(x)?;
    let mut slopes = Vec::with_capacity(result.len());
    for (i, value) in result.iter_mut().enumerate() {
        let of = &constants[i % constants.len()];
        let integer = *value / scale.of(i);
        let (erf, slope) = of.erf(integer);
        let factor = erf + of.one;
        *value = integer * factor * of.step;
        slopes.push((factor + integer * slope) * of.step / scale.of(i));
    }
    let x = x.contiguous()?;
    let y = record("integer_gelu", &[&x], result, x.shape(), move |_, grad| {
        let pairs = grad.iter().zip(&slopes);
        Ok(vec![pairs.map(|(grad, slope)| grad * slope).collect()])
    })?;
    Ok((y, out))
}
