//! Dropout whose mask is a function of a key and the element's index, so that it is never stored.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::Tensor;
use rayon::prelude::*;

use super::naive;
use super::parallel::{CHUNK, for_overwrite};
use super::simd::simd_fn;
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// How much to drop, and the key that decides what: the same key always drops the same elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropout {
    /// The probability that an element becomes zero; the others are scaled by 1 / (1 - p).
    pub p: f32,
    /// The key of the counter-based random generator.
    pub key: u64,
}

impl Dropout {
    /// No dropout.
    pub const NONE: Self = Self { p: 0.0, key: 0 };

    /// Returns whether anything is dropped at all.
    pub fn is_active(self) -> bool {
        self.p > 0.0
    }

    /// Returns the factor of element `index`: 0, or 1 / (1 - p).
    #[inline]
    pub fn factor(self, index: u64) -> f32 {
        Stream::new(self, index >> 32).factor(index as u32)
    }

    /// Returns the factors of the elements from `start` on.
    pub fn factors(self, start: u64, factors: &mut [f32]) {
        self.pieces(start, factors.len(), |stream, offset, at, n| {
            write_factors(&stream, offset, &mut factors[at..at + n]);
        });
    }

    /// Cuts `n` elements from `start` on where the upper half of the index changes, and calls
    /// `f(stream, lower half of the first index, position, count)` for each piece.
    #[inline(always)]
    pub(crate) fn pieces(self, start: u64, n: usize, mut f: impl FnMut(Stream, u32, usize, usize)) {
        let mut done = 0;
        while done < n {
            let index = start + done as u64;
            let left = (1 << 32) - (index & 0xFFFF_FFFF);
            let count = (n - done).min(usize::try_from(left).unwrap_or(usize::MAX));
            f(Stream::new(self, index >> 32), index as u32, done, count);
            done += count;
        }
    }
}

/// The generator for one upper half of the index, with its key prepared: 32-bit arithmetic, which vectors are good at.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    key: [u32; 2],
    threshold: u32,
    scale: f32,
}

impl Stream {
    pub(crate) fn new(dropout: Dropout, upper: u64) -> Self {
        // SplitMix64's finalizer: every bit of key and counter reaches every bit of the two words.
        let mut z = dropout
            .key
            .wrapping_add((upper + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let all = dropout.p >= 1.0;
        Self {
            key: [z as u32, (z >> 32) as u32],
            // Saturates for p near 1.
            threshold: (f64::from(dropout.p) * 4_294_967_296.0) as u32,
            scale: if all { 0.0 } else { 1.0 / (1.0 - dropout.p) },
        }
    }

    /// Returns the factor of the element whose index has this lower half.
    #[inline(always)]
    pub(crate) fn factor(&self, index: u32) -> f32 {
        // Two rounds of a 32-bit finalizer with a key before each: with one only, the masks of two keys would be
        // rearrangements of one another.
        let mut z = index.wrapping_add(self.key[0]);
        z = (z ^ (z >> 16)).wrapping_mul(0x21F0_AAAD);
        z = (z ^ (z >> 15)).wrapping_mul(0xD35A_2D97);
        z = (z ^ (z >> 15)).wrapping_add(self.key[1]);
        z = (z ^ (z >> 16)).wrapping_mul(0x85EB_CA6B);
        z = (z ^ (z >> 13)).wrapping_mul(0xC2B2_AE35);
        z ^= z >> 16;
        if z < self.threshold { 0.0 } else { self.scale }
    }
}

simd_fn! {
    fn write_factors(stream: &Stream, start: u32, factors: &mut [f32]) {
        for (i, factor) in factors.iter_mut().enumerate() {
            *factor = stream.factor(start.wrapping_add(i as u32));
        }
    }
}

simd_fn! {
    pub(crate) fn multiply_in_place(stream: &Stream, start: u32, x: &mut [f32]) {
        for (i, x) in x.iter_mut().enumerate() {
            *x *= stream.factor(start.wrapping_add(i as u32));
        }
    }
}

simd_fn! {
    pub(crate) fn multiply(stream: &Stream, start: u32, x: &[f32], out: &mut [f32]) {
        for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
            *out = x * stream.factor(start.wrapping_add(i as u32));
        }
    }
}

/// Returns `x` times the factors of its elements' indices.
fn apply(dropout: Dropout, x: &[f32]) -> Vec<f32> {
    let mut out = for_overwrite(x.len());
    out.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .enumerate()
        .for_each(|(i, (out, x))| {
            dropout.pieces((i * CHUNK) as u64, x.len(), |stream, offset, at, n| {
                multiply(&stream, offset, &x[at..at + n], &mut out[at..at + n]);
            });
        });
    out
}

/// Drops elements of `x` (any shape) according to `dropout`. The mask is recomputed in the backward pass, never stored.
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if !dropout.is_active() {
        return Ok(x.clone());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return cuda::dropout(x, dropout);
    }
    if !storage::is_cpu_f32(x) {
        return naive::dropout(x, dropout);
    }
    let x = x.contiguous()?;
    let out = storage::with(&x, |x| apply(dropout, x))?;
    tape::record("dropout", &[&x], out, x.shape(), move |_, _, grad| {
        let dx = storage::with(grad, |grad| apply(dropout, grad))?;
        Ok(vec![Some(storage::tensor(dx, grad.shape())?)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(p: f32, key: u64, start: u64, n: usize) -> Vec<bool> {
        let mut factors = vec![0.0; n];
        Dropout { p, key }.factors(start, &mut factors);
        factors.iter().map(|&f| f == 0.0).collect()
    }

    /// Returns the correlation of two masks of probability p, in standard deviations.
    fn correlation(a: &[bool], b: &[bool], p: f64) -> f64 {
        let n = a.len().min(b.len());
        let sum: f64 = (a.iter().zip(b))
            .map(|(&a, &b)| (f64::from(u8::from(a)) - p) * (f64::from(u8::from(b)) - p))
            .sum();
        sum / (p * (1.0 - p)) / (n as f64).sqrt()
    }

    #[test]
    fn single_factors_and_runs_agree_across_the_32_bit_boundary() {
        let dropout = Dropout { p: 0.3, key: 99 };
        let start = (1 << 32) - 21;
        let mut run = [0.0; 50];
        dropout.factors(start, &mut run);
        for (i, &factor) in run.iter().enumerate() {
            assert_eq!(factor, dropout.factor(start + i as u64));
        }
        assert!(run.iter().all(|&f| f == 0.0 || f == 1.0 / 0.7));
    }

    #[test]
    fn the_rate_is_p_and_neighbours_strides_and_keys_are_independent() {
        let n = 1 << 18;
        for p in [0.1f32, 0.5] {
            let wide = f64::from(p);
            for key in [0, 1, 2, 1 << 40, u64::MAX] {
                let a = mask(p, key, 0, n);
                let rate = a.iter().filter(|&&d| d).count() as f64 / n as f64;
                let sigma = (wide * (1.0 - wide) / n as f64).sqrt();
                assert!((rate - wide).abs() < 4.5 * sigma, "key {key}: rate {rate}");
                for lag in [1, 2, 3, 16, 64, 128, 768, 1024, 4096] {
                    let c = correlation(&a, &a[lag..], wide);
                    assert!(c.abs() < 4.5, "key {key}, lag {lag}: {c}");
                }
                for other in [key ^ 1, key.wrapping_add(1), key ^ (1 << 33), !key] {
                    let c = correlation(&a, &mask(p, other, 0, n), wide);
                    assert!(c.abs() < 4.5, "keys {key} and {other}: {c}");
                }
                let c = correlation(&a, &mask(p, key, 1 << 32, n), wide);
                assert!(c.abs() < 4.5, "key {key}, upper half: {c}");
            }
        }
    }

    #[test]
    fn p_of_one_drops_everything_and_zero_nothing() {
        assert!(mask(1.0, 3, 0, 1000).iter().all(|&d| d));
        assert!(mask(0.0, 3, 0, 1000).iter().all(|&d| !d));
        assert_eq!(Dropout { p: 1.0, key: 1 }.factor(7), 0.0);
    }
}
