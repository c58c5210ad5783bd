//! From one sampling rate to another.
//!
//! Each new sample is a sum of old ones, weighted by a sinc under a Kaiser window, a filter that cuts off at the limit
//! of the lower rate. It is implemented here because the crates for it are made for streams of unknown length, and
//! enable features of number crates that every dependency would have to be built with.

/// Zero crossings of the sinc on each side.
const CROSSINGS: f64 = 64.0;

/// The shape of the Kaiser window: what should be gone is weaker than what stays by 118 decibels.
const BETA: f64 = 12.0;

/// The filter's cutoff as a fraction of the lower limit: half of its transition band is above it.
const CUTOFF: f64 = 0.94;

/// The most weights that are computed ahead.
const TABLE: u64 = 1 << 21;

/// Resamples `samples` from `from` to `to` samples per second. Both are positive.
pub(super) fn resample(samples: &[f32], from: u32, to: u32) -> Vec<f32> {
    if from == to || samples.is_empty() {
        return samples.to_vec();
    }
    let divisor = gcd(from, to);
    let (from, to) = (u64::from(from / divisor), u64::from(to / divisor));
    let filter = Filter::new(from, to);
    let count = (samples.len() as u64 * to).div_ceil(from);
    let ahead: Vec<Vec<f64>> = match to * filter.width() <= TABLE {
        true => (0..to).map(|phase| filter.weights(phase)).collect(),
        false => Vec::new(),
    };
    let sample = |i: u64| {
        // The old sample at or before this one, and how far behind it this one is, in parts of `to`.
        let (place, phase) = (i * from / to, i * from % to);
        match ahead.get(phase as usize) {
            Some(weights) => filter.sum(samples, place, weights),
            None => filter.sum(samples, place, &filter.weights(phase)),
        }
    };
    (0..count).map(sample).collect()
}

/// A low-pass filter between two rates, `from` old samples in the time of `to` new ones.
struct Filter {
    to: f64,
    /// Its cut-off, of the old rate's limit.
    cutoff: f64,
    /// How many old samples it reaches to each side.
    reach: u64,
}

impl Filter {
    fn new(from: u64, to: u64) -> Self {
        let lower = (to as f64 / from as f64).min(1.0);
        Self {
            to: to as f64,
            cutoff: CUTOFF * lower,
            reach: (CROSSINGS / lower).ceil() as u64,
        }
    }

    fn width(&self) -> u64 {
        2 * self.reach
    }

    /// Returns the weights of the old samples around a new one, which is `phase / to` after the middle one.
    fn weights(&self, phase: u64) -> Vec<f64> {
        let behind = phase as f64 / self.to;
        let reach = self.reach as f64;
        let weight = |tap: u64| {
            let distance = tap as f64 - reach + 1.0 - behind;
            let x = std::f64::consts::PI * self.cutoff * distance;
            let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
            let inside = (1.0 - (distance / reach).powi(2)).max(0.0);
            self.cutoff * sinc * bessel(BETA * inside.sqrt()) / bessel(BETA)
        };
        (0..self.width()).map(weight).collect()
    }

    /// Returns the weighted sum of the old samples around `place`; before and after them is silence.
    fn sum(&self, samples: &[f32], place: u64, weights: &[f64]) -> f32 {
        let first = place as i64 - self.reach as i64 + 1;
        let skipped = (-first).max(0) as usize;
        let old = samples.get(first.max(0) as usize..).unwrap_or_default();
        let pairs = old.iter().zip(weights.get(skipped..).unwrap_or_default());
        pairs
            .map(|(&old, weight)| f64::from(old) * weight)
            .sum::<f64>() as f32
    }
}

/// Returns the modified Bessel function of the first kind of order 0, by its series.
fn bessel(x: f64) -> f64 {
    let (mut term, mut sum, mut k) = (1.0, 1.0, 1.0);
    while term > 1e-16 * sum {
        term *= (x / (2.0 * k)).powi(2);
        sum += term;
        k += 1.0;
    }
    sum
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hertz: f64, rate: u32, count: usize) -> Vec<f32> {
        let phase = |i: usize| i as f64 * hertz * std::f64::consts::TAU / f64::from(rate);
        (0..count).map(|i| (0.5 * phase(i).sin()) as f32).collect()
    }

    /// Returns the largest difference, the ends aside, where a filter sees past the sound.
    fn difference(a: &[f32], b: &[f32]) -> f32 {
        let edge = a.len() / 10;
        let inner = edge..a.len() - edge;
        let pairs = a[inner.clone()].iter().zip(&b[inner]);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_tone_keeps_its_frequency_at_every_rate() {
        for rate in [8_000, 11_025, 15_989, 22_050, 44_100, 48_000, 96_000] {
            let seconds = 0.5;
            let from = tone(1_000.0, rate, (f64::from(rate) * seconds) as usize);
            let to = resample(&from, rate, 16_000);
            assert_eq!(to.len(), (from.len() * 16_000).div_ceil(rate as usize));
            let found = difference(&to, &tone(1_000.0, 16_000, to.len()));
            assert!(found < 1e-4, "{rate}: {found}");
        }
    }

    #[test]
    fn frequencies_above_the_lower_rates_limit_are_removed() {
        let from = tone(11_000.0, 44_100, 22_050);
        let to = resample(&from, 44_100, 16_000);
        let found = difference(&to, &vec![0.0; to.len()]);
        assert!(found < 1e-4, "{found}");
    }

    #[test]
    fn the_same_rate_keeps_samples_and_short_inputs_work() {
        let from = tone(440.0, 16_000, 50);
        assert_eq!(resample(&from, 16_000, 16_000), from);
        assert!(resample(&[], 8_000, 16_000).is_empty());
        for count in 1..5 {
            assert_eq!(resample(&from[..count], 8_000, 16_000).len(), 2 * count);
            assert_eq!(
                resample(&from[..count], 48_000, 16_000).len(),
                count.div_ceil(3)
            );
        }
    }
}
