//! numpy's `default_rng(seed)`, as far as a permutation needs it, so that a seed gives the same rows as in Python.
//!
//! A seed is spread by `SeedSequence` over the state of a 128-bit PCG (XSL-RR output); bounded numbers are drawn from
//! halves of its 64-bit outputs.

const POOL: usize = 4;

/// The seeded generator.
pub(crate) struct NumpyGenerator {
    state: u128,
    increment: u128,
    /// The upper half of the last output, if only its lower half was used.
    half: Option<u32>,
}

impl NumpyGenerator {
    const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

    pub(crate) fn new(seed: u64) -> Self {
        let words = seed_sequence(seed);
        let wide = |i: usize| u128::from(words[i]) << 64 | u128::from(words[i + 1]);
        let mut generator = Self {
            state: 0,
            increment: wide(2) << 1 | 1,
            half: None,
        };
        generator.step();
        generator.state = generator.state.wrapping_add(wide(0));
        generator.step();
        generator
    }

    /// Returns the numbers below `len` in a random order.
    pub(crate) fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            order.swap(last, self.up_to(last as u64) as usize);
        }
        order
    }

    fn step(&mut self) {
        self.state = self
            .state
            .wrapping_mul(Self::MULTIPLIER)
            .wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// Returns a number from 0 up to, but not including, 1.
    pub(crate) fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let next = self.next_u64();
        self.half = Some((next >> 32) as u32);
        next as u32
    }

    /// Returns a number from 0 to `max`, both included: bits are drawn until they make one.
    fn up_to(&mut self, max: u64) -> u64 {
        let mask = u64::MAX >> max.leading_zeros();
        loop {
            let drawn = match max <= u64::from(u32::MAX) {
                true => u64::from(self.next_u32()) & mask,
                false => self.next_u64() & mask,
            };
            if drawn <= max {
                return drawn;
            }
        }
    }
}

/// Four well-mixed words from a seed.
fn seed_sequence(seed: u64) -> [u64; POOL] {
    let mut constant = 0x43b0_d7e5u32;
    let mut hash = |value: u32| {
        let mut value = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        value = value.wrapping_mul(constant);
        value ^ value >> 16
    };
    let entropy = [seed as u32, (seed >> 32) as u32, 0, 0];
    let mut pool = entropy.map(&mut hash);
    for from in 0..POOL {
        for to in (0..POOL).filter(|&to| to != from) {
            let mixed = 0xca01_f9ddu32
                .wrapping_mul(pool[to])
                .wrapping_sub(0x4973_f715u32.wrapping_mul(hash(pool[from])));
            pool[to] = mixed ^ mixed >> 16;
        }
    }
    let mut constant = 0x8b51_f9ddu32;
    let mut next = |i: usize| {
        let mut value = pool[i % POOL] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        value = value.wrapping_mul(constant);
        u64::from(value ^ value >> 16)
    };
    std::array::from_fn(|i| next(2 * i) | next(2 * i + 1) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    // numpy.random.default_rng(seed).permutation(len)
    #[test]
    fn permutations_equal_those_of_numpy() {
        let expected: [(u64, &[usize]); 6] = [
            (0, &[2, 4, 3, 6, 5, 0, 1]),
            (42, &[5, 6, 0, 7, 3, 2, 4, 9, 1, 8]),
            (1, &[0, 1]),
            (123456789, &[11, 5, 7, 4, 0, 3, 8, 10, 2, 1, 6, 9]),
            (4294967301, &[5, 6, 2, 4, 0, 8, 7, 3, 1]),
            (18446744073709551615, &[8, 7, 3, 0, 4, 6, 1, 2, 5, 9, 10]),
        ];
        for (seed, order) in expected {
            assert_eq!(
                NumpyGenerator::new(seed).permutation(order.len()),
                order,
                "seed {seed}"
            );
        }
    }

    #[test]
    fn a_long_permutation_equals_that_of_numpy() {
        let order = NumpyGenerator::new(42).permutation(100_000);
        assert_eq!(
            order[..8],
            [45262, 49850, 30394, 90177, 95569, 10900, 193, 98908]
        );
        assert_eq!(
            order[99_992..],
            [437, 98795, 46606, 34957, 70338, 5668, 22113, 75400]
        );
        let weighted: u64 = order
            .iter()
            .enumerate()
            .map(|(i, &n)| (i * n) as u64 % 1_000_003)
            .sum();
        assert_eq!(weighted, 50067448952);
    }
}
