//! A random order of very many things, computed place by place.

use super::rng::Stream;

/// A permutation of `0..len` that belongs to a key: a Feistel network over the next even number of bits, walked until it
/// lands below `len` (Black & Rogaway 2002). Needs no memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    len: u64,
    half: u32,
    rounds: Stream,
}

/// Six rounds of a network whose rounds are random functions are far more than an order needs.
const ROUNDS: u64 = 6;

impl Permutation {
    pub(super) fn new(len: u64, key: &[u64]) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            len,
            half: bits.div_ceil(2).max(1),
            rounds: Stream::new(key),
        }
    }

    /// Returns the element at `place`, which is below the length.
    pub(super) fn at(&self, place: u64) -> u64 {
        let mut at = self.step(place);
        // Fewer than four steps on average.
        while at >= self.len {
            at = self.step(at);
        }
        at
    }

    fn step(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for round in 0..ROUNDS {
            let mixed = self.rounds.bits(round << 32 | right) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << self.half | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_occurs_once_and_keys_differ() {
        for len in [1, 2, 3, 64, 1000, 4097] {
            let order = Permutation::new(len, &[1, len]);
            let mut found: Vec<u64> = (0..len).map(|place| order.at(place)).collect();
            found.sort_unstable();
            assert_eq!(found, (0..len).collect::<Vec<_>>());
        }
        let first = |key| Permutation::new(1 << 40, &[key]).at(0);
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn positions_are_spread_evenly() {
        const BINS: u64 = 50;
        const LEN: u64 = 100_000;
        // Where neighbours go hangs on nothing that shows: pairs of bins are all about as frequent.
        let order = Permutation::new(LEN, &[7]);
        let bin = |place| order.at(place) * BINS / LEN;
        let mut pairs = vec![0f64; (BINS * BINS) as usize];
        for place in 0..LEN - 1 {
            pairs[(bin(place) * BINS + bin(place + 1)) as usize] += 1.0;
        }
        let mean = (LEN - 1) as f64 / pairs.len() as f64;
        let chi2: f64 = pairs.iter().map(|n| (n - mean).powi(2) / mean).sum();
        let freedom = pairs.len() as f64 - 1.0;
        let deviations = (chi2 - freedom) / (2.0 * freedom).sqrt();
        assert!(deviations.abs() < 5.0, "{deviations}");
    }
}
