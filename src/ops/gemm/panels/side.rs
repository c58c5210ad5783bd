//! One side of a product, the rows of the left operand or the columns of the right one, packed on the fly.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Kind;
use crate::ops::gemm::operand::Operand;
use crate::ops::gemm::shared::Shared;
use crate::ops::gemm::transpose::transpose;
use crate::ops::parallel::for_each_task;

/// Steps that are rearranged in one go, in registers.
const STEPS: usize = 16;
/// Elements of the inner dimension that are rearranged in one go where memory runs along the other one; blocks consist of
/// whole ones.
pub(super) const CHUNK: usize = 32;
/// How far ahead elements are fetched that are rearranged, along a row and from row to row.
const AHEAD: usize = 64;
const ROWS_AHEAD: usize = 8;
impl Kind {
    /// Returns the number of steps for this many elements of the inner dimension.
    #[inline]
    pub(super) fn steps(self, inner: usize) -> usize {
        match self.per_word() {
            1 => inner,
            // Whole squares, whose missing elements are zeros.
            per_word => inner.div_ceil(STEPS * per_word) * STEPS,
        }
    }
}

/// Returns the blocks of a stretch of the inner dimension.
pub(super) fn blocks_of(
    stretch: &Range<usize>,
    depth: usize,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let Range { start, end } = *stretch;
    // Sums of nothing are zeros that have to be written.
    let starts = (start..end.max(start + 1)).step_by(depth.max(1));
    starts.map(move |from| from..end.min(from + depth))
}

/// How a side is cut into pieces.
#[derive(Clone, Copy)]
pub(super) enum Cut {
    /// Into tiles of nearly the same height, at most this.
    Even(usize),
    /// Into panels of this width, the last of them filled up with zeros.
    Whole(usize),
}

/// The rows of the left operand, in tiles, or the columns of the right one, in panels.
pub(super) struct Side {
    pub kind: Kind,
    from: Operand,
    /// Rows (or columns).
    len: usize,
    cut: Cut,
    pub pieces: usize,
    /// Words of a step of all pieces.
    pub words: usize,
}

impl Side {
    pub(super) fn new(kind: Kind, from: Operand, len: usize, cut: Cut) -> Self {
        let (pieces, words) = match cut {
            Cut::Even(most) => (len.div_ceil(most), len),
            Cut::Whole(width) => (len.div_ceil(width), len.next_multiple_of(width)),
        };
        Self {
            kind,
            from,
            len,
            cut,
            pieces,
            words,
        }
    }

    /// Returns the first row of a piece, which is also how many words of a step lie before it.
    #[inline]
    pub(super) fn at(&self, piece: usize) -> usize {
        match self.cut {
            Cut::Even(_) => {
                let low = self.len / self.pieces;
                piece * low + piece.min(self.len % self.pieces)
            }
            Cut::Whole(width) => piece * width,
        }
    }

    /// Returns the rows of some pieces.
    #[inline]
    pub(super) fn rows(&self, pieces: &Range<usize>) -> Range<usize> {
        self.at(pieces.start)..self.at(pieces.end).min(self.len)
    }

    /// Returns how many words of a step some pieces have.
    #[inline]
    pub(super) fn width(&self, pieces: &Range<usize>) -> usize {
        self.at(pieces.end) - self.at(pieces.start)
    }

    /// Packs all pieces of all blocks of a stretch, one block after the other.
    ///
    /// # Safety
    /// The operand must be valid for its rows and the stretch, and `to` for all words.
    pub(super) unsafe fn pack_all(
        &self,
        stretch: &Range<usize>,
        depth: usize,
        to: *mut u32,
        parallel: bool,
    ) {
        let to = Shared(to);
        let place = |block: &Range<usize>| {
            let before = self.words * self.kind.steps(block.start - stretch.start);
            to.get().wrapping_add(before)
        };
        // In the order of memory; tasks write words of their own.
        let along_inner = self.from.inner == 1;
        let task = |task: usize| {
            if along_inner {
                for block in blocks_of(stretch, depth) {
                    let to = place(&block);
                    // SAFETY: for the caller.
                    unsafe { self.pack(task..task + 1, &block, block.clone(), to) };
                }
                return;
            }
            let at = stretch.start + task * CHUNK;
            let from = stretch.start + task * CHUNK / depth * depth;
            let block = from..stretch.end.min(from + depth);
            let part = at..stretch.end.min(at + CHUNK);
            // SAFETY: for the caller; a chunk lies in one block.
            unsafe { self.pack(0..self.pieces, &block, part, place(&block)) };
        };
        let tasks = match along_inner {
            true => self.pieces,
            false => stretch.len().div_ceil(CHUNK),
        };
        match parallel {
            true => for_each_task(tasks, task),
            false => (0..tasks).for_each(task),
        }
    }

    /// Packs some pieces of a block.
    ///
    /// # Safety
    /// The operand must be valid for its rows and the block, and `to` for these pieces.
    pub(super) unsafe fn pack_block(
        &self,
        pieces: Range<usize>,
        block: Range<usize>,
        to: *mut u32,
    ) {
        let before = self.at(pieces.start) * self.kind.steps(block.len());
        // SAFETY: for the caller.
        unsafe { self.pack(pieces, &block, block.clone(), to.wrapping_sub(before)) };
    }

    /// Packs a part of a block, whole chunks but for the last one, of some pieces; `to` is where the block's first piece is.
    ///
    /// # Safety
    /// The operand must be valid for its rows and the block, and `to` for the pieces.
    unsafe fn pack(
        &self,
        pieces: Range<usize>,
        block: &Range<usize>,
        part: Range<usize>,
        to: *mut u32,
    ) {
        let (steps, before) = (
            self.kind.steps(block.len()),
            self.kind.steps(part.start - block.start),
        );
        // SAFETY: for the caller; the level of the multiplier says that there is AVX-512.
        unsafe {
            if self.from.inner == 1 {
                for piece in pieces {
                    let piece = piece..piece + 1;
                    let (rows, width) = (self.rows(&piece), self.width(&piece));
                    let to = to.wrapping_add(rows.start * steps + before * width);
                    let from = self.from.at(rows.start, part.start);
                    match self.kind.per_word() {
                        1 => pack_along::<1>(from, (rows.len(), part.len()), width, to),
                        _ => pack_along::<2>(from, (rows.len(), part.len()), width, to),
                    }
                }
                return;
            }
            match self.kind.per_word() {
                1 => self.pack_across::<1>(pieces, part, (steps, before), to),
                _ => self.pack_across::<2>(pieces, part, (steps, before), to),
            }
        }
    }

    /// Packs a part of the inner dimension of some pieces, whose rows lie side by side; `before` of the block's `steps` come
    /// before it.
    ///
    /// # Safety
    /// The operand must be valid for its rows and the part, `to` for the pieces, and the machine must have AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn pack_across<const PER_WORD: usize>(
        &self,
        pieces: Range<usize>,
        part: Range<usize>,
        (steps, before): (usize, usize),
        to: *mut u32,
    ) {
        for step in 0..self.kind.steps(part.len()) {
            // A word of two holds elements of the same square.
            let at = step / STEPS * STEPS * PER_WORD + step % STEPS;
            let at = [at, at + STEPS];
            let there = [at[0] < part.len(), at[1] < part.len()];
            let (mut row, end) = (self.at(pieces.start), self.len);
            for piece in pieces.clone() {
                let width = self.at(piece + 1) - row;
                let to = to.wrapping_add(row * steps + (before + step) * width);
                for first in (0..width).step_by(16) {
                    let rows = mask(end.saturating_sub(row + first));
                    let masks = [
                        if there[0] { rows } else { 0 },
                        if there[1] { rows } else { 0 },
                    ];
                    let from = [
                        self.from.at(row + first, part.start + at[0]).start,
                        self.from.at(row + first, part.start + at[1]).start,
                    ];
                    for from in &from[..PER_WORD] {
                        let ahead = from.wrapping_add(ROWS_AHEAD * self.from.inner);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    }
                    // SAFETY: masked elements are not read; those that are exist.
                    unsafe {
                        let words = words::<PER_WORD>(from, masks);
                        let to = to.wrapping_add(first).cast();
                        _mm512_mask_storeu_epi32(to, mask(width - first), words);
                    }
                }
                row += width;
            }
        }
    }
}

/// Packs `rows` rows of `inner` elements that lie side by side, `PER_WORD` of them a word, as steps of `width` words; rows that
/// are missing, and what is missing of a word, become zeros. A word of two holds elements that are [`STEPS`] apart, which costs
/// the least: the order of the inner dimension does not matter as long as both operands have the same.
///
/// # Safety
/// The operand must be valid for that many elements, `to` for all steps, and the machine must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_along<const PER_WORD: usize>(
    from: Operand,
    (rows, inner): (usize, usize),
    width: usize,
    to: *mut u32,
) {
    let square = STEPS * PER_WORD;
    for at in (0..inner).step_by(square) {
        let there = inner - at;
        let steps = if PER_WORD == 1 {
            there.min(STEPS)
        } else {
            STEPS
        };
        let masks = [mask(there), mask(there.saturating_sub(STEPS))];
        for first in (0..width).step_by(16) {
            let source = from.at(first, at);
            let rows = rows.saturating_sub(first).min(16);
            let mut tile = [_mm512_setzero_si512(); 16];
            // SAFETY: masked elements are not read; those that are exist. The steps are those that the caller has room for.
            unsafe {
                for (i, row) in tile.iter_mut().enumerate() {
                    // Rows that are missing are not even pointed at, which costs more than reading another one.
                    let start = source.at(i.min(rows.saturating_sub(1)), 0).start;
                    let masks = if i < rows { masks } else { [0; 2] };
                    *row = words::<PER_WORD>([start, start.wrapping_add(STEPS)], masks);
                    for line in (0..square).step_by(16) {
                        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(AHEAD + line).cast());
                    }
                }
                transpose(&mut tile);
                let to = to.add(at / PER_WORD * width + first);
                for (i, words) in tile.iter().enumerate() {
                    if i < steps {
                        let to = to.add(i * width).cast();
                        _mm512_mask_storeu_epi32(to, mask(width - first), *words);
                    }
                }
            }
        }
    }
}

/// Returns 16 words, of the elements at the first place, or of pairs of those at both, that the masks let through.
///
/// # Safety
/// These elements must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn words<const PER_WORD: usize>(at: [*const f32; 2], masks: [__mmask16; 2]) -> __m512i {
    // SAFETY: for the caller.
    let read = |i: usize| unsafe { _mm512_castps_si512(_mm512_maskz_loadu_ps(masks[i], at[i])) };
    if PER_WORD == 1 {
        return read(0);
    }
    // Rounded to nearest, halves away from zero.
    let rounded = |i: usize| _mm512_add_epi32(read(i), _mm512_set1_epi32(0x8000));
    let upper = _mm512_and_si512(rounded(1), _mm512_set1_epi32(-0x1_0000));
    _mm512_or_si512(_mm512_srli_epi32::<16>(rounded(0)), upper)
}

/// Returns the lowest `n` bits.
#[inline]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}
