//! Weights of pairs that depend only on the pair's own score, in place of the softmax over all keys.

use crate::ops::Activation;
use crate::ops::dropout::Stream;
use crate::ops::simd::{self, simd_fn};

/// How [`pointwise_attention`](super::pointwise_attention) weighs a pair by its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PairWeights {
    /// Mega's Laplace function, ½ (1 + erf((x - √½) / (σ √2))) with σ = 0.282095. The product of query and key is divided
    /// by the number of keys that are not masked first.
    Laplace,
    /// max(0, x)², with the same division.
    ReluSquared,
    /// YOSO's expectation of `power` equal hash codes, (1 - acos(x) / π)^power, for queries and keys of length 1; scores
    /// beyond ±1 count as ±1. What comes back through a weight w is taken as `power / 2 · w`, as the model's authors do, and
    /// not the derivative, which has no bound.
    AnglePower(u32),
}

impl PairWeights {
    /// Returns whether products are divided by the number of keys.
    pub(in crate::ops) fn are_means(self) -> bool {
        !matches!(self, Self::AnglePower(_))
    }

    /// Returns the activation that weighs scores; `None` where there is none with the same gradient.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn activation(self) -> Option<Activation> {
        match self {
            Self::Laplace => Some(Activation::Laplace),
            Self::ReluSquared => Some(Activation::ReluSquared),
            Self::AnglePower(_) => None,
        }
    }

    /// Replaces a row of scores by weights.
    pub(super) fn weigh(self, row: &mut [f32]) {
        match self {
            Self::Laplace => laplace(row),
            Self::ReluSquared => relu_squared(row),
            Self::AnglePower(power) => angle_power(row, power),
        }
    }

    /// Turns scores into weights after dropout, and the gradient of those into that of the scores.
    pub(super) fn weigh_backward(
        self,
        stream: Option<(&Stream, u32)>,
        scores: &mut [f32],
        grads: &mut [f32],
    ) {
        match self {
            Self::Laplace => laplace_backward(scores, grads),
            Self::ReluSquared => relu_squared_backward(scores, grads),
            Self::AnglePower(power) => angle_power_backward(scores, grads, power),
        }
        if let Some((stream, start)) = stream {
            crate::ops::dropout::multiply_in_place(stream, start, scores);
            crate::ops::dropout::multiply_in_place(stream, start, grads);
        }
    }
}

const MEAN: f32 = Activation::LAPLACE[0] as f32;
const DEVIATION: f32 = Activation::LAPLACE[1] as f32;

simd_fn! {
    fn laplace(row: &mut [f32]) {
        for x in row {
            *x = simd::normal((*x - MEAN) / DEVIATION).0;
        }
    }
}

simd_fn! {
    fn laplace_backward(scores: &mut [f32], grads: &mut [f32]) {
        for (score, grad) in scores.iter_mut().zip(grads) {
            let (weight, density) = simd::normal((*score - MEAN) / DEVIATION);
            *score = weight;
            *grad *= density / DEVIATION;
        }
    }
}

simd_fn! {
    fn relu_squared(row: &mut [f32]) {
        for x in row {
            let positive = x.max(0.0);
            *x = positive * positive;
        }
    }
}

simd_fn! {
    fn relu_squared_backward(scores: &mut [f32], grads: &mut [f32]) {
        for (score, grad) in scores.iter_mut().zip(grads) {
            let positive = score.max(0.0);
            *score = positive * positive;
            *grad *= 2.0 * positive;
        }
    }
}

simd_fn! {
    fn angle_power(row: &mut [f32], power: u32) {
        for x in row {
            *x = to_power(angle_share(*x), power);
        }
    }
}

simd_fn! {
    fn angle_power_backward(scores: &mut [f32], grads: &mut [f32], power: u32) {
        let half = power as f32 / 2.0;
        for (score, grad) in scores.iter_mut().zip(grads) {
            let weight = to_power(angle_share(*score), power);
            *score = weight;
            *grad *= half * weight;
        }
    }
}

/// 1 - acos(x) / π, to 1e-7.
#[inline(always)]
fn angle_share(x: f32) -> f32 {
    let x = x.clamp(-1.0, 1.0);
    let a = x.abs();
    // acos(a) / √(1 - a) is smooth: Abramowitz and Stegun, 4.4.46.
    let p = -0.001_262_491_1_f32;
    let p = p.mul_add(a, 0.006_670_09);
    let p = p.mul_add(a, -0.017_088_126);
    let p = p.mul_add(a, 0.030_891_88);
    let p = p.mul_add(a, -0.050_174_303);
    let p = p.mul_add(a, 0.088_978_99);
    let p = p.mul_add(a, -0.214_598_8);
    let p = p.mul_add(a, std::f32::consts::FRAC_PI_2);
    let share = p * (1.0 - a).sqrt() * std::f32::consts::FRAC_1_PI;
    if x < 0.0 { share } else { 1.0 - share }
}

#[inline(always)]
fn to_power(x: f32, mut power: u32) -> f32 {
    let (mut result, mut square) = (1.0, x);
    while power > 0 {
        if power & 1 == 1 {
            result *= square;
        }
        square *= square;
        power >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_exact_to_seven_digits() {
        for i in -1000..=1000 {
            let x = f64::from(i) / 1000.0;
            let wanted = 1.0 - x.acos() / std::f64::consts::PI;
            let got = f64::from(angle_share(x as f32));
            // Near ±1 the rounding of x itself shows.
            let rounding = 1e-7 / (1.0 - x * x).max(1e-6).sqrt();
            assert!(
                (got - wanted).abs() < 1.5e-7 + rounding * 0.3,
                "{x}: {got} {wanted}"
            );
        }
        assert_eq!(angle_share(1.5), 1.0);
        assert_eq!(angle_share(-1.5), 0.0);
        assert_eq!(angle_share(f32::NEG_INFINITY), 0.0);
        assert!(angle_share(f32::NAN).is_nan());
    }

    #[test]
    fn masked_pairs_have_no_weight_and_no_gradient() {
        for weights in [
            PairWeights::Laplace,
            PairWeights::ReluSquared,
            PairWeights::AnglePower(9),
        ] {
            let mut row = [f32::NEG_INFINITY; 3];
            weights.weigh(&mut row);
            assert_eq!(row, [0.0; 3], "{weights:?}");
            let (mut scores, mut grads) = ([f32::NEG_INFINITY; 3], [2.0f32; 3]);
            weights.weigh_backward(None, &mut scores, &mut grads);
            assert_eq!((scores, grads), ([0.0; 3], [0.0; 3]), "{weights:?}");
        }
    }
}
