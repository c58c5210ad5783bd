//! Rows of the inner dimension as words: those of `x`, laid out in tiles, and those of a weight.

use std::cell::Cell;

use rayon::prelude::*;

use super::Kind;
use super::side::pack_along;
use crate::ops::gemm::operand::Operand;
use crate::ops::simd::{self, Level, simd_fn};

/// The rows of `x`, in tiles of nearly the same height: step by step, a word of each of the tile's rows.
pub(super) struct Left {
    words: Vec<u32>,
    /// The scale of each row's sums.
    pub scales: Vec<f32>,
    /// A row's scale times the number that stands for 0.
    pub zeros: Vec<f32>,
    /// Words of a row.
    steps: usize,
    /// The number of tiles.
    pub tiles: usize,
}

/// Elements of a task that lays them out, at least.
const TASK: usize = 1 << 16;

impl Left {
    /// Calls `use_it` with the rows of `x`, each `inner` long, in tiles of at most `tall`.
    pub(super) fn with<T>(
        kind: Kind,
        tall: usize,
        x: &[f32],
        inner: usize,
        use_it: impl FnOnce(&Self) -> T,
    ) -> T {
        thread_local! {
            static MEMORY: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
        }
        let rows = x.len() / inner;
        let steps = inner.div_ceil(kind.per_word());
        // Taken out of its place: a thread of the pool may start another product while it waits for this one.
        let mut words = MEMORY.take();
        words.resize(words.len().max(rows * steps), 0);
        let mut left = Self {
            words,
            scales: vec![0.0; rows],
            zeros: vec![0.0; rows],
            steps,
            tiles: rows.div_ceil(tall),
        };
        left.fill(kind, x, inner);
        let result = use_it(&left);
        MEMORY.set(left.words);
        result
    }

    fn fill(&mut self, kind: Kind, x: &[f32], inner: usize) {
        let (rows, steps) = (self.scales.len(), self.steps);
        let low = rows / self.tiles.max(1);
        let taller = rows - low * self.tiles;
        let (high_words, low_words) =
            self.words[..rows * steps].split_at_mut(taller * (low + 1) * steps);
        let (high_scales, low_scales) = self.scales.split_at_mut(taller * (low + 1));
        let (high_zeros, low_zeros) = self.zeros.split_at_mut(taller * (low + 1));
        let (high_x, low_x) = x.split_at(taller * (low + 1) * inner);
        for (height, words, scales, zeros, x) in [
            (low + 1, high_words, high_scales, high_zeros, high_x),
            (low, low_words, low_scales, low_zeros, low_x),
        ] {
            if words.is_empty() {
                continue;
            }
            words
                .par_chunks_mut(height * steps)
                .zip(scales.par_chunks_mut(height))
                .zip(zeros.par_chunks_mut(height))
                .zip(x.par_chunks(height * inner))
                .with_min_len((TASK / (height * inner)).max(1))
                .for_each(|(((words, scales), zeros), x)| {
                    if kind == Kind::F32 && simd::level() >= Level::V4 {
                        scales.fill(1.0);
                        let from = Operand {
                            start: x.as_ptr(),
                            outer: inner,
                            inner: 1,
                        };
                        // SAFETY: there are that many rows and words, and the level says that there is AVX-512.
                        unsafe {
                            let size = (x.len() / inner, inner);
                            pack_along::<1>(from, size, height, words.as_mut_ptr());
                        }
                        return;
                    }
                    let mut lines = vec![0; 4 * steps * height];
                    for ((row, x), line) in
                        x.chunks(inner).enumerate().zip(lines.chunks_mut(4 * steps))
                    {
                        (scales[row], zeros[row]) = inputs(kind, x, line);
                    }
                    interleave(&lines, words, height);
                });
        }
    }

    /// Returns each tile's first row, height and words.
    pub(super) fn tiles(&self) -> impl Iterator<Item = (usize, usize, &[u32])> {
        let rows = self.scales.len();
        let low = rows / self.tiles.max(1);
        let taller = rows - low * self.tiles;
        (0..self.tiles).map(move |tile| {
            let first = tile * low + tile.min(taller);
            let height = low + usize::from(tile < taller);
            let words = &self.words[first * self.steps..(first + height) * self.steps];
            (first, height, words)
        })
    }
}

/// Writes the first word of each row, then the second of each, and so on; `stride` words in each go.
pub(super) fn interleave(rows: &[u8], words: &mut [u32], stride: usize) {
    /// Steps at a time, whose words stay in the first-level cache from row to row.
    const BLOCK: usize = 64;
    let steps = words.len() / stride;
    if steps == 0 {
        return;
    }
    for (block, words) in words.chunks_mut(BLOCK * stride).enumerate() {
        for (at, row) in rows.chunks(4 * steps).enumerate() {
            let row = &row.as_chunks().0[block * BLOCK..];
            for (to, &word) in words[at..].iter_mut().step_by(stride).zip(row) {
                *to = u32::from_le_bytes(word);
            }
        }
    }
}

/// Turns a row of inputs into the bytes of words. Returns its scale, and the scale times the number that stands for 0.
fn inputs(kind: Kind, row: &[f32], bytes: &mut [u8]) -> (f32, f32) {
    match kind {
        Kind::F32 => plain(row, bytes),
        Kind::Bf16 => rounded(row, bytes),
        Kind::Int8 => {
            // 0 is in the range, so that it is met exactly.
            let (low, high) = range(row);
            let scale = (high - low) / 255.0;
            let zero = if scale > 0.0 {
                (-low / scale).round()
            } else {
                0.0
            };
            quantize(row, 1.0 / scale, zero, [0.0, 255.0], bytes);
            return (scale, scale * zero);
        }
    }
    (1.0, 0.0)
}

/// Turns a row of weights into the bytes of words. Returns its scale, and the scale times the sum of its numbers.
pub(super) fn weights(kind: Kind, row: &[f32], bytes: &mut [u8]) -> (f32, f32) {
    match kind {
        Kind::F32 => plain(row, bytes),
        Kind::Bf16 => rounded(row, bytes),
        Kind::Int8 => {
            let (low, high) = range(row);
            let scale = if -low > high { -low } else { high } / 127.0;
            quantize(row, 1.0 / scale, 0.0, [-127.0, 127.0], bytes);
            let sum: i32 = bytes.iter().map(|&byte| i32::from(byte as i8)).sum();
            return (scale, scale * sum as f32);
        }
    }
    (1.0, 0.0)
}

fn plain(row: &[f32], bytes: &mut [u8]) {
    for (bytes, x) in bytes.as_chunks_mut().0.iter_mut().zip(row) {
        *bytes = x.to_le_bytes();
    }
}

simd_fn! {
    fn rounded(row: &[f32], bytes: &mut [u8]) {
        for (bytes, x) in bytes.as_chunks_mut().0.iter_mut().zip(row) {
            let bits = x.to_bits();
            // To the nearest, of two to the even one. NaN keeps its upper half, made quiet.
            let near = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
            let half = if x.is_nan() { bits >> 16 | 0x40 } else { near };
            *bytes = (half as u16).to_le_bytes();
        }
    }
}

simd_fn! {
    /// Returns the lowest and the highest of 0 and all elements; both NaN if one of them is not finite.
    fn range(row: &[f32]) -> (f32, f32) {
        const LANES: usize = 16;
        let (mut low, mut high, mut bad) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        let mut add = |at: usize, x: f32| {
            low[at] = if x < low[at] { x } else { low[at] };
            high[at] = if x > high[at] { x } else { high[at] };
            bad[at] += x * 0.0;
        };
        let (whole, rest) = row.as_chunks::<LANES>();
        for chunk in whole {
            for (at, &x) in chunk.iter().enumerate() {
                add(at, x);
            }
        }
        for (at, &x) in rest.iter().enumerate() {
            add(at, x);
        }
        let bad: f32 = bad.iter().sum();
        let low = low.into_iter().fold(0.0, |a, b| if b < a { b } else { a });
        let high = high.into_iter().fold(0.0, |a, b| if b > a { b } else { a });
        (low + bad, high + bad)
    }
}

simd_fn! {
    /// The whole numbers nearest to `x · factor + zero`, within these bounds.
    fn quantize(row: &[f32], factor: f32, zero: f32, bounds: [f32; 2], bytes: &mut [u8]) {
        // Adding 1.5 · 2²³ leaves the nearest integer in the low bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        let [low, high] = bounds;
        for (byte, x) in bytes.iter_mut().zip(row) {
            let scaled = x.mul_add(factor, zero);
            let scaled = if scaled < low { low } else { scaled };
            let scaled = if scaled > high { high } else { scaled };
            *byte = (scaled + ROUND).to_bits() as u8;
        }
    }
}
