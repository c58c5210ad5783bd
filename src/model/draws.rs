//! Random numbers for weights, which depend on a seed and their place alone.

use super::context::mix;
use crate::ops;

/// Returns a number that represents a parameter's name.
pub(super) fn name_hash(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

/// Returns `count` draws from N(0, std²), a function of `seed` and the index alone.
pub(super) fn normal(count: usize, std: f64, seed: u64) -> Vec<f32> {
    use rayon::prelude::*;
    let mut values = ops::zeros(count);
    values.par_chunks_mut(2).enumerate().for_each(|(i, pair)| {
        // Box and Muller 1958: two uniform draws make two normal ones.
        let bits = |k: u64| (mix(seed ^ mix(2 * i as u64 + k)) >> 11) as f64 / (1u64 << 53) as f64;
        let radius = (-2.0 * (1.0 - bits(0)).ln()).sqrt() * std;
        let (sin, cos) = (std::f64::consts::TAU * bits(1)).sin_cos();
        pair[0] = (radius * cos) as f32;
        if let Some(second) = pair.get_mut(1) {
            *second = (radius * sin) as f32;
        }
    });
    values
}

/// Returns `count` draws from the numbers between `low` and `high`, a function of `seed` and the index alone.
pub(crate) fn uniform(count: usize, low: f64, high: f64, seed: u64) -> Vec<f32> {
    use rayon::prelude::*;
    let mut values = ops::zeros(count);
    values.par_iter_mut().enumerate().for_each(|(i, value)| {
        let draw = (mix(seed ^ mix(i as u64)) >> 11) as f64 / (1u64 << 53) as f64;
        *value = (low + (high - low) * draw) as f32;
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_draws_have_the_requested_moments() {
        let values = normal(1_000_001, 0.02, 5);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let var = values
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / n;
        // Four standard errors of a sample of a million.
        assert!(mean.abs() < 4.0 * 0.02 / n.sqrt(), "mean {mean}");
        assert!(
            (var.sqrt() / 0.02 - 1.0).abs() < 4.0 / (2.0 * n).sqrt(),
            "std {}",
            var.sqrt()
        );
    }

    #[test]
    fn uniform_draws_fill_their_range() {
        let values = uniform(100_000, -1.0, 3.0, 5);
        assert!(values.iter().all(|value| (-1.0..=3.0).contains(value)));
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        // Four standard errors: the deviation is 4 / sqrt(12).
        assert!(
            (mean - 1.0).abs() < 4.0 * (4.0 / 12f64.sqrt()) / 100_000f64.sqrt(),
            "mean {mean}"
        );
    }
}
