//! From one sampling rate to another, by the crate `rubato`.
//!
//! Each new sample is a sum of old ones, weighted by a sinc under a window: a filter that cuts off at the limit of the lower
//! rate.

use rubato::audioadapter_buffers::owned::InterleavedOwned;
use rubato::{
    Async, FixedAsync, Resampler, SincInterpolationParameters, SincInterpolationType,
    WindowFunction,
};

/// How many samples of the lower rate the filter reaches over.
const REACH: f64 = 256.0;

/// The longest filter, for rates that lie far apart.
const LONGEST: f64 = 8_192.0;

/// The most weights of the filter that are computed ahead, 16 MB of them.
const TABLE: usize = 1 << 21;

/// The number of samples processed at once.
const CHUNK: usize = 1_024;

/// Resamples `samples` from `from` to `to` samples per second; errors are described in words. Both rates are positive.
pub(super) fn resample(samples: &[f32], from: u32, to: u32) -> Result<Vec<f32>, String> {
    if from == to || samples.is_empty() {
        return Ok(samples.to_vec());
    }
    let divisor = gcd(from, to);
    let (from, to) = ((from / divisor) as usize, (to / divisor) as usize);
    let ratio = to as f64 / from as f64;
    let length = (REACH / ratio.min(1.0)).min(LONGEST) as usize;
    let length = length.next_multiple_of(8);
    let exact = to <= TABLE / length;
    let (places, interpolation) = match exact {
        // New samples lie at these places between two old ones, and at no others.
        true => (to, SincInterpolationType::Nearest),
        false => (TABLE / length, SincInterpolationType::Cubic),
    };
    let parameters = SincInterpolationParameters::new(length, WindowFunction::BlackmanHarris2)
        .oversampling_factor(places)
        .interpolation(interpolation);
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let mut resampler =
        Async::<f64>::new_sinc(ratio, 1.0, &parameters, CHUNK, 1, FixedAsync::Input)
            .map_err(|error| words(&error))?;

    // The crate's new sample `n` is at `(n + 1) / ratio - length / 2` in old samples (without interpolation, one place
    // later). After some silence one of them is exactly at the first sample of the sound.
    let (half, behind) = (length / 2, usize::from(exact));
    let delay = resampler.output_delay();
    let first = |silence: usize| ((silence + half) * to - behind) / from - 1;
    let on_a_sample = |silence: usize| (silence + half) * to % from == behind % from;
    let silence = (0..)
        .find(|&silence| on_a_sample(silence) && first(silence) >= delay)
        .unwrap_or(0);
    let count = (samples.len() * to).div_ceil(from);

    let mut input = vec![0.0; silence];
    input.extend(samples.iter().copied().map(f64::from));
    // The last new samples are after the last old one.
    input.resize(input.len() + 2 * (from.div_ceil(to) + 1), 0.0);
    let frames = input.len();
    let input = InterleavedOwned::new_from(input, 1, frames).map_err(|error| words(&error))?;
    // The crate leaves out as many as the filter takes to begin.
    let skipped = first(silence).saturating_sub(delay);
    let new = resampler
        .process_all(&input, frames, None)
        .map_err(|error| words(&error))?
        .take_data();
    let new = new.into_iter().skip(skipped).take(count);
    Ok(new.map(|sample| sample as f32).collect())
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
        for rate in [
            8_000, 11_025, 15_989, 22_050, 44_100, 44_101, 48_000, 96_000, 999_983,
        ] {
            let seconds = 0.5;
            let from = tone(1_000.0, rate, (f64::from(rate) * seconds) as usize);
            let to = resample(&from, rate, 16_000).unwrap();
            assert_eq!(to.len(), (from.len() * 16_000).div_ceil(rate as usize));
            let found = difference(&to, &tone(1_000.0, 16_000, to.len()));
            assert!(found < 1e-4, "{rate}: {found}");
        }
    }

    #[test]
    fn frequencies_above_the_lower_rates_limit_are_removed() {
        let from = tone(11_000.0, 44_100, 22_050);
        let to = resample(&from, 44_100, 16_000).unwrap();
        let found = difference(&to, &vec![0.0; to.len()]);
        assert!(found < 1e-4, "{found}");
    }

    #[test]
    fn the_same_rate_keeps_samples_and_short_inputs_work() {
        let from = tone(440.0, 16_000, 50);
        assert_eq!(resample(&from, 16_000, 16_000).unwrap(), from);
        assert!(resample(&[], 8_000, 16_000).unwrap().is_empty());
        for count in 1..5 {
            let length = |rate| resample(&from[..count], rate, 16_000).unwrap().len();
            assert_eq!(length(8_000), 2 * count);
            assert_eq!(length(48_000), count.div_ceil(3));
        }
    }
}
