//! Products of two matrices that are both packed for the product, as in training: c = a · b.
//!
//! The crate `gemm` multiplies f32 too, and does so on processors without AVX-512 and where there is little to rearrange. It
//! is not used for the rest because an operand whose inner dimension runs along memory, as every forward pass has it, costs it
//! 13 to 22% of what the registers can do (this: 9%), because its threads wait for the slowest of them several times in a
//! product, and because it knows no bf16. benches/README.md has the figures.
//!
//! The shorter side, of the rows of `a` and the columns of `b`, is rearranged by all threads together, once. The longer one
//! is cut into tasks, each of which rearranges its part a block of the inner dimension at a time, just before it is met.
//! Elements are summed up in the same order whatever the number of threads.

use std::cell::Cell;
use std::ops::Range;

use super::side::{CHUNK, Cut, Side, blocks_of};
use super::tiles::{self, Fetch, Place};
use super::{Kind, Unit};
use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::memory::{Memory, with_memory};
use crate::ops::gemm::operand::Operand;
use crate::ops::gemm::shared::Shared;
use crate::ops::parallel::for_each_task;
use crate::ops::simd::{self, Level};

/// Elements of the inner dimension between two visits to the result, at most: a block of a panel and of a few tiles that
/// stays in the nearer caches.
const DEPTH: usize = 768;
/// The most words of the common operand that are kept at a time, 16 MB; few in tests, whose products are small.
const MOST_WORDS: usize = if cfg!(test) { 1 << 17 } else { 1 << 22 };
/// The most tiles, or panels, of a task's own: they stay in the second-level cache.
const TILES: usize = 8;
const PANELS: usize = 4;

/// What multiplies matrices of this kind.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Multiplier {
    kind: Kind,
    unit: Unit,
}

/// A product's sizes and options.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Product<'a> {
    /// Rows of `a`, inner dimension, columns of `b`.
    pub size: (usize, usize, usize),
    pub into: Accumulate,
    /// The factor on the product.
    pub scale: f32,
    /// The vector added to each of its rows, unless the product is added to the destination.
    pub bias: Option<&'a [f32]>,
    /// Whether all threads of the pool take part.
    pub parallel: bool,
}

impl Multiplier {
    /// Returns the multiplier of f32, as it is or rounded to bf16, for processors on which it is the fastest.
    pub(in crate::ops) fn new(bf16: bool) -> Option<Self> {
        let kind = match bf16 {
            true => Kind::Bf16,
            false => Kind::F32,
        };
        if simd::level() != Level::V4 {
            return None;
        }
        let unit = kind.unit()?;
        Some(Self { kind, unit })
    }

    /// `c = or += scale · a · b (+ bias)`, rows of `c` that many elements apart.
    ///
    /// # Safety
    /// The operands and `c` must be valid for the product's size, `c` for writes that nobody else sees meanwhile. With
    /// [`Accumulate::Overwrite`], `c` may be uninitialized.
    pub(in crate::ops) unsafe fn multiply(
        self,
        product: Product,
        (c, stride): (*mut f32, usize),
        [a, b]: [Operand; 2],
    ) {
        let Self { kind, unit } = self;
        let (m, k, n) = product.size;
        let left = Side::new(kind, a, m, Cut::Even(unit.tiles.len()));
        let right = Side::new(kind, b, n, Cut::Whole(unit.columns));
        let by_rows = m > n;
        let (common, own, most) = match by_rows {
            true => (&right, &left, TILES),
            false => (&left, &right, PANELS),
        };
        let threads = match product.parallel {
            true => rayon::current_num_threads(),
            false => 1,
        };
        let tasks = own.pieces.div_ceil(most).next_multiple_of(threads);
        let tasks = tasks.min(own.pieces);
        let depth = k.div_ceil(k.div_ceil(DEPTH).max(1)).next_multiple_of(CHUNK);
        // Whole blocks, in as few stretches of nearly the same length as the memory allows.
        let stretches = (common.words * kind.steps(k)).div_ceil(MOST_WORDS).max(1);
        let stretch = k.div_ceil(stretches).next_multiple_of(depth.max(1));
        let work = Work {
            product,
            unit,
            scales: [product.scale; tiles::MOST_ROWS],
            c: Shared(c),
            stride,
            left: &left,
            right: &right,
            depth,
        };
        with_memory(
            &COMMON,
            common.words * kind.steps(stretch.min(k)),
            |packed| {
                for stretch in blocks_of(&(0..k), stretch) {
                    // SAFETY: the memory has room for a stretch of all pieces.
                    unsafe { common.pack_all(&stretch, depth, packed, product.parallel) };
                    let packed = Shared(packed);
                    let task = |task: usize| {
                        let mine = task * own.pieces / tasks..(task + 1) * own.pieces / tasks;
                        // SAFETY: for the caller; the stretch was packed above, and tasks have pieces of their own.
                        unsafe { work.multiply(mine, &stretch, by_rows, packed.get()) };
                    };
                    match product.parallel {
                        true => for_each_task(tasks, task),
                        false => (0..tasks).for_each(task),
                    }
                }
            },
        );
    }
}

/// The state shared by the tasks of a product.
struct Work<'a> {
    product: Product<'a>,
    unit: Unit,
    scales: [f32; tiles::MOST_ROWS],
    c: Shared<f32>,
    stride: usize,
    left: &'a Side,
    right: &'a Side,
    depth: usize,
}

impl Work<'_> {
    /// Multiplies some tiles with all panels, or some panels with all tiles, along a stretch of the inner dimension.
    ///
    /// # Safety
    /// `packed` must be the other side's stretch, all of it, and these elements of the result the calling task's alone.
    unsafe fn multiply(
        &self,
        mine: Range<usize>,
        stretch: &Range<usize>,
        by_rows: bool,
        packed: *const u32,
    ) {
        let Self { left, right, .. } = *self;
        let (m, _, n) = self.product.size;
        let (own, common) = match by_rows {
            true => (left, right),
            false => (right, left),
        };
        let rows = if by_rows { own.rows(&mine) } else { 0..m };
        let columns = if by_rows { 0..n } else { own.rows(&mine) };
        if let Some(bias) = self.product.bias.filter(|_| stretch.start == 0) {
            for row in rows {
                // SAFETY: for the caller.
                let to = unsafe { self.c.row(row * self.stride + columns.start, columns.len()) };
                to.copy_from_slice(&bias[columns.clone()]);
            }
        }
        let steps = own.kind.steps(self.depth.min(stretch.len()));
        with_memory(&OWN, own.width(&mine) * steps, |memory| {
            for block in blocks_of(stretch, self.depth) {
                // SAFETY: the memory has room for a block of these pieces.
                unsafe { own.pack_block(mine.clone(), block.clone(), memory) };
                let steps = own.kind.steps(block.len());
                let add = self.product.into == Accumulate::Add
                    || self.product.bias.is_some()
                    || block.start > 0;
                let theirs =
                    packed.wrapping_add(common.words * own.kind.steps(block.start - stretch.start));
                let ours = memory.wrapping_sub(own.at(mine.start) * steps).cast_const();
                let (of_left, of_right) = match by_rows {
                    true => (ours, theirs),
                    false => (theirs, ours),
                };
                let visit = |tile: usize, panel: usize| {
                    let words = [
                        of_left.wrapping_add(left.at(tile) * steps),
                        of_right.wrapping_add(right.at(panel) * steps),
                    ];
                    // The piece of the common operand that comes next.
                    let (theirs, width, index) = match by_rows {
                        true => (words[1], right.width(&(panel..panel + 1)), tile),
                        false => (words[0], left.width(&(tile..tile + 1)), panel),
                    };
                    let fetch = Fetch::share(
                        theirs.wrapping_add(width * steps),
                        width,
                        steps,
                        (index - mine.start, mine.len()),
                    );
                    // SAFETY: both pieces are packed; the rest for the caller.
                    unsafe { self.visit((tile, panel), words, steps, fetch, add) };
                };
                if by_rows {
                    for panel in 0..right.pieces {
                        mine.clone().for_each(|tile| visit(tile, panel));
                    }
                } else {
                    for tile in 0..left.pieces {
                        mine.clone().for_each(|panel| visit(tile, panel));
                    }
                }
            }
        });
    }

    /// Multiplies a tile with a panel.
    ///
    /// # Safety
    /// Both must be packed and have that many steps; their place in the result must be the calling task's alone.
    unsafe fn visit(
        &self,
        (tile, panel): (usize, usize),
        words: [*const u32; 2],
        steps: usize,
        fetch: Fetch,
        add: bool,
    ) {
        let Unit { columns, tiles } = self.unit;
        let (rows, there) = (
            self.left.rows(&(tile..tile + 1)),
            self.right.rows(&(panel..panel + 1)),
        );
        let multiply = tiles[rows.len() - 1];
        let scales = [self.scales.as_ptr(); 2];
        if there.len() == columns {
            let place = Place {
                start: self
                    .c
                    .get()
                    .wrapping_add(rows.start * self.stride + there.start),
                stride: self.stride,
                add,
            };
            // SAFETY: for the caller; all of the tile exists.
            return unsafe { multiply(words, steps, fetch, place, scales) };
        }
        let mut edge = [0.0; tiles::MOST];
        let place = Place {
            start: edge.as_mut_ptr(),
            stride: columns,
            add: false,
        };
        // SAFETY: the edge is as large as any tile.
        unsafe { multiply(words, steps, fetch, place, scales) };
        for (row, sums) in rows.zip(edge.chunks_exact(columns)) {
            // SAFETY: for the caller; these columns exist.
            let to = unsafe { self.c.row(row * self.stride + there.start, there.len()) };
            match add {
                true => to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
                false => to.copy_from_slice(&sums[..there.len()]),
            }
        }
    }
}

thread_local! {
    static COMMON: Memory = const { Cell::new(Vec::new()) };
    static OWN: Memory = const { Cell::new(Vec::new()) };
}

#[cfg(test)]
mod tests;
