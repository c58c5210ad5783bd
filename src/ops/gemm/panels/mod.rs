//! Products with a weight that was packed once and is reused: y = x · wᵀ + bias for a model in inference. Those of
//! training, which pack their operands every time, are in [`product`].
//!
//! The weight lies in panels of two vector registers' columns. A panel is a list of steps along the inner dimension, and
//! a step has one word of 4 bytes for each column: one f32, two bf16 or four whole numbers of 8 bits. A tile of some rows
//! of `x` times a panel stays in registers from the first step to the last: per step it reads two registers of the panel
//! and one word of each row.

mod left;
pub(in crate::ops) mod product;
mod side;
mod tiles;

use std::sync::LazyLock;

use rayon::prelude::*;

use crate::ops::allocator;
use crate::ops::gemm::shared::Shared;
use crate::ops::parallel::{for_each_task, for_overwrite};
use crate::ops::simd::{self, Level};
use left::Left;
use tiles::{Fetch, Place, Tile};

/// The number type that a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Kind {
    F32,
    /// Rounded to nearest.
    Bf16,
    /// A column of the result has one scale for its weights, a row one scale and one zero for its inputs.
    Int8,
}

/// What multiplies words of a kind on this machine.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Unit {
    /// Columns of a panel.
    columns: usize,
    /// For 1, 2, ... rows.
    tiles: &'static [Tile],
}

impl Kind {
    /// Returns the unit for this kind, if the processor has one.
    pub(in crate::ops) fn unit(self) -> Option<Unit> {
        static BF16: LazyLock<bool> = LazyLock::new(|| is_x86_feature_detected!("avx512bf16"));
        static INT8: LazyLock<bool> = LazyLock::new(|| is_x86_feature_detected!("avx512vnni"));
        let wide = simd::level() >= Level::V4;
        let (columns, tiles) = match self {
            Self::F32 if wide => (32, tiles::f32_avx512::TILES),
            Self::F32 if simd::level() == Level::V3 => (16, tiles::f32_avx2::TILES),
            Self::Bf16 if wide && *BF16 => (32, tiles::bf16_avx512::TILES),
            Self::Int8 if wide && *INT8 => (32, tiles::int8_avx512::TILES),
            _ => return None,
        };
        Some(Unit { columns, tiles })
    }

    /// Returns how many elements of the inner dimension a word holds.
    #[inline]
    fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// Words of the inner dimension between two visits to the result: a panel's stretch that stays in the second-level cache,
/// and sums of 8-bit products that stay far below 2³¹.
const STRETCH: usize = 768;
/// The most panels of one task, whose part of the result is in the cache when the activation comes to it.
const GROUP: usize = 4;

/// A weight in panels.
pub(in crate::ops) struct Panels {
    kind: Kind,
    unit: Unit,
    /// Rows of the weight: columns of the result.
    out: usize,
    /// The inner dimension.
    inner: usize,
    words: Vec<u32>,
    /// The scale of each column's sums, with [`Kind::Int8`].
    scales: Vec<f32>,
    /// A column's scale times the sum of its weights, with [`Kind::Int8`].
    sums: Vec<f32>,
}

impl Panels {
    /// Rearranges `weight`, (out, inner), on all threads; `None` where the processor has no unit for the kind.
    pub(in crate::ops) fn new(
        kind: Kind,
        weight: &[f32],
        (out, inner): (usize, usize),
    ) -> Option<Self> {
        assert_eq!(
            weight.len(),
            out * inner,
            "a weight has a value for each place"
        );
        let unit = kind.unit()?;
        let (columns, per_word) = (unit.columns, kind.per_word());
        let panels = out.div_ceil(columns);
        let steps = inner.div_ceil(per_word);
        let mut words: Vec<u32> = Vec::with_capacity(panels * steps * columns);
        allocator::advise_huge(words.spare_capacity_mut());
        words.resize(panels * steps * columns, 0);
        let mut scales = vec![0.0; panels * columns];
        let mut sums = vec![0.0; panels * columns];
        if !words.is_empty() {
            words
                .par_chunks_mut(steps * columns)
                .zip(scales.par_chunks_mut(columns))
                .zip(sums.par_chunks_mut(columns))
                .zip(weight.par_chunks(columns * inner))
                .for_each(|(((words, scales), sums), rows)| {
                    let mut lines = vec![0; 4 * steps * columns];
                    let each = rows.chunks(inner).zip(lines.chunks_mut(4 * steps));
                    for (column, (row, line)) in each.enumerate() {
                        (scales[column], sums[column]) = left::weights(kind, row, line);
                    }
                    left::interleave(&lines, words, columns);
                });
        }
        Some(Self {
            kind,
            unit,
            out,
            inner,
            words,
            scales,
            sums,
        })
    }

    pub(in crate::ops) fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns `x · wᵀ + bias` of the rows of `x`, each stretch of a row changed by `finish` before it leaves the cache.
    pub(in crate::ops) fn multiply(
        &self,
        x: &[f32],
        bias: Option<&[f32]>,
        finish: impl Fn(&mut [f32]) + Sync,
    ) -> Vec<f32> {
        assert!(
            self.inner > 0 && x.len().is_multiple_of(self.inner),
            "rows are whole"
        );
        assert!(
            bias.is_none_or(|bias| bias.len() == self.out),
            "a bias for each column"
        );
        let rows = x.len() / self.inner;
        let mut result = for_overwrite(rows * self.out);
        let panels = self.out.div_ceil(self.unit.columns);
        let group = panels
            .div_ceil(4 * rayon::current_num_threads())
            .clamp(1, GROUP);
        let target = Shared(result.as_mut_ptr());
        Left::with(self.kind, self.unit.tiles.len(), x, self.inner, |left| {
            for_each_task(panels.div_ceil(group), |task| {
                let panels = task * group..panels.min((task + 1) * group);
                self.multiply_panels(panels, left, bias, &target, &finish);
            });
        });
        result
    }

    /// The columns of some panels, which belong to the calling task alone.
    fn multiply_panels(
        &self,
        panels: std::ops::Range<usize>,
        left: &Left,
        bias: Option<&[f32]>,
        target: &Shared<f32>,
        finish: &impl Fn(&mut [f32]),
    ) {
        let Unit { columns, .. } = self.unit;
        let from = panels.start * columns;
        let width = self.out.min(panels.end * columns) - from;
        // SAFETY: these columns of any row lie in the result and are this task's.
        let row = |row: usize| unsafe { target.row(row * self.out + from, width) };
        for (at, zero) in left.zeros.iter().enumerate() {
            let row = row(at);
            match bias {
                Some(bias) => row.copy_from_slice(&bias[from..from + width]),
                None => row.fill(0.0),
            }
            if self.kind == Kind::Int8 {
                subtract_scaled(row, *zero, &self.sums[from..from + width]);
            }
        }
        for panel in panels {
            self.multiply_panel(panel, left, target);
        }
        (0..left.zeros.len()).for_each(|at| finish(row(at)));
    }

    /// Adds the product to a panel's columns of the result.
    fn multiply_panel(&self, panel: usize, left: &Left, target: &Shared<f32>) {
        let Unit { columns, tiles } = self.unit;
        let steps = self.inner.div_ceil(self.kind.per_word());
        let from = panel * columns;
        let there = columns.min(self.out - from);
        let scales = self.scales[from..from + columns].as_ptr();
        for step in (0..steps).step_by(STRETCH) {
            let count = STRETCH.min(steps - step);
            let right = self.words[(panel * steps + step) * columns..].as_ptr();
            for (index, (first, height, words)) in left.tiles().enumerate() {
                // What comes next lies behind the panel's stretch.
                let fetch = match left.tiles {
                    1 => Fetch::onward(right, columns),
                    tiles => {
                        let next = right.wrapping_add(count * columns);
                        Fetch::share(next, columns, count, (index, tiles))
                    }
                };
                let tile = tiles[height - 1];
                let words = words[step * height..].as_ptr();
                let row_scales = left.scales[first..first + height].as_ptr();
                let mut edge = [0.0; tiles::MOST];
                let (start, stride) = match there == columns {
                    true => (target.0.wrapping_add(first * self.out + from), self.out),
                    false => (edge.as_mut_ptr(), columns),
                };
                let place = Place {
                    start,
                    stride,
                    add: true,
                };
                // SAFETY: the unit is the machine's; both operands have `count` steps from there on; the tile's place is
                // in the result and this task's, or in `edge`, which is as large as any tile.
                unsafe { tile([words, right], count, fetch, place, [row_scales, scales]) };
                if there < columns {
                    for (i, sums) in edge.chunks_exact(columns).take(height).enumerate() {
                        // SAFETY: these columns exist and are this task's.
                        let row = unsafe { target.row((first + i) * self.out + from, there) };
                        row.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
                    }
                }
            }
        }
    }
}

simd::simd_fn! {
    fn subtract_scaled(row: &mut [f32], scale: f32, sums: &[f32]) {
        for (to, sum) in row.iter_mut().zip(sums) {
            *to -= scale * sum;
        }
    }
}

#[cfg(test)]
mod tests;
