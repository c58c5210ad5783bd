//! Random numbers by position: the value at a counter needs none of those before it.

/// SplitMix64's increment, the golden ratio in 64 bits.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sequence of random numbers that belongs to a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream(u64);

impl Stream {
    /// Keys that differ in any word have unrelated sequences.
    pub(super) fn new(key: &[u64]) -> Self {
        let fold =
            |state: u64, word: &u64| mix(mix(state.wrapping_add(STEP)) ^ word.wrapping_mul(STEP));
        Self(key.iter().fold(0, fold))
    }

    /// 64 random bits.
    pub(super) fn bits(self, counter: u64) -> u64 {
        mix(self.0.wrapping_add((counter + 1).wrapping_mul(STEP)))
    }

    /// Uniform in [0, 1).
    pub(super) fn unit(self, counter: u64) -> f64 {
        (self.bits(counter) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n.
    pub(super) fn below(self, counter: u64, n: u64) -> u64 {
        ((u128::from(self.bits(counter)) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_within_and_across_keys() {
        const N: u64 = 200_000;
        const BINS: u64 = 64;
        let within = Stream::new(&[42, 0, 7]);
        let sequences: [Box<dyn Fn(u64) -> u64>; 2] = [
            Box::new(|i| within.below(i, BINS)),
            Box::new(|i| Stream::new(&[42, i % 3, i / 3]).below(0, BINS)),
        ];
        for draw in sequences {
            let mut counts = [0u64; BINS as usize];
            (0..N).for_each(|i| counts[draw(i) as usize] += 1);
            let mean = N as f64 / BINS as f64;
            let chi2: f64 = counts
                .iter()
                .map(|&c| (c as f64 - mean).powi(2) / mean)
                .sum();
            // 63 degrees of freedom: mean 63, standard deviation 11.2.
            assert!((18.0..108.0).contains(&chi2), "{chi2}");
        }
    }

    #[test]
    fn keys_that_differ_in_one_word_differ_everywhere() {
        let base = Stream::new(&[1, 2, 3]);
        for other in [[2, 2, 3], [1, 3, 3], [1, 2, 4], [3, 2, 1]] {
            let other = Stream::new(&other);
            assert!((0..1000).all(|i| base.bits(i) != other.bits(i)));
        }
    }
}
