//! Products of f32 matrices on the matrix unit ([`amx`](super::amx)), which multiplies bf16: blocks of both operands are
//! packed in the order in which the unit reads them.
//!
//! At f32's precision every f32 is split exactly into three bf16 parts, a = a₁ + a₂ + a₃ with |aᵢ₊₁| ≤ 2⁻⁸ |aᵢ|, and of the
//! nine products of parts the six that reach f32's precision are summed in f32: a₁b₁ + a₁b₂ + a₂b₁ + a₁b₃ + a₂b₂ + a₃b₁.
//! What is left out is below 2⁻²³ of the term, so that results are as good as those of f32 multiply-adds (the tests hold
//! them to that), at a multiple of the speed. NaN and infinity come out as NaN; parts below the smallest normal number are
//! taken as zero.
//!
//! At bf16's precision the first parts are all there is.
//!
//! Operands are copied into tiles: 32 rows or columns ("a panel") times 32 of the inner dimension ("a step") make a
//! block of 3 parts (or 1) x 2 tiles x 16 rows x 64 bytes.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::amx;
use super::memory::{Memory, with_memory};
use super::operand::Operand;
use super::shared::Shared;
use super::tiles::{PART, SIDE, TILE};
use super::transpose::transpose;

/// How many parts an f32 has at its own precision; at bf16's it has one.
pub(in crate::ops) const EXACT: usize = 3;
pub(in crate::ops) const BF16: usize = 1;
/// Longest stretch of the inner dimension between two visits to the result.
const DEPTH: usize = 1024;
/// The second-level cache of the processors that have such units, more or less.
const CACHE_BYTES: usize = 2 << 20;
/// Bytes of the panel to come that are fetched during one step.
const AHEAD: usize = 1024;

/// Returns the kernel for this precision.
fn kernel<const PARTS: usize>() -> Kernel {
    match PARTS {
        BF16 => amx::bf16_kernel,
        _ => amx::exact_kernel,
    }
}

/// 32 x 32 elements of the result from packed blocks of both operands: `([a, b, where to fetch memory into the cache from
/// meanwhile], steps, result, bytes between its rows, whether to add to it)`.
pub(in crate::ops) type Kernel = unsafe fn([*const u8; 3], usize, *mut f32, usize, bool);

thread_local! {
    static COMMON: Memory = const { Cell::new(Vec::new()) };
    static OWN: Memory = const { Cell::new(Vec::new()) };
}

/// How a product is cut into pieces for the caches.
struct Cut {
    /// The stretch of the inner dimension between two visits to the result.
    depth: usize,
    /// Whether the common operand fits the cache.
    fits: bool,
    /// The number of panels in each task.
    chunk: usize,
}

impl Cut {
    /// Returns the cut for an inner dimension of `k`, these numbers of panels, and packed blocks of `block` bytes.
    fn new(k: usize, common_panels: usize, own_panels: usize, block: usize) -> Self {
        let depth = k.div_ceil(k.div_ceil(DEPTH)).next_multiple_of(SIDE);
        // Where the common operand fits the cache, own panels are packed few at a time just before they are used; else
        // many, so that they stay in the cache while the common operand passes by.
        let fits = common_panels * depth / SIDE * block <= CACHE_BYTES / 2;
        let most = match fits {
            true => (CACHE_BYTES / 4 / (depth / SIDE * block)).clamp(1, 8),
            false => (CACHE_BYTES / 2 / (depth / SIDE * block)).max(1),
        };
        let tasks = own_panels
            .div_ceil(most)
            .next_multiple_of(rayon::current_num_threads());
        let chunk = own_panels.div_ceil(tasks);
        Self { depth, fits, chunk }
    }
}

/// `c (m, n) = or (with `add`) += a · b` on all threads of the pool, at the precision of so many parts; `c` is row-major
/// with rows `stride` apart.
///
/// # Safety
/// The machine must have the unit; the operands and `c` must be valid for these
/// dimensions, `c` for writes that nobody else sees meanwhile. Without `add`, `c` may be uninitialized.
pub(in crate::ops) unsafe fn matmul<const PARTS: usize>(
    (m, k, n): (usize, usize, usize),
    add: bool,
    (c, stride): (*mut f32, usize),
    a: Operand,
    b: Operand,
) {
    let block = PARTS * PART;
    // The shorter side is packed once for all tasks; the longer side is cut into pieces that each task packs itself.
    let by_rows = m > n;
    let (common, common_len, own, own_len) = match by_rows {
        true => (b, n, a, m),
        false => (a, m, b, n),
    };
    let common_panels = common_len.div_ceil(SIDE);
    let own_panels = own_len.div_ceil(SIDE);
    let Cut { depth, fits, chunk } = Cut::new(k, common_panels, own_panels, block);
    let work = Work::<PARTS> {
        size: (m, n),
        by_rows,
        common_panels,
        fits,
        c: Shared(c),
        stride,
    };
    let words = |blocks: usize| blocks * block / size_of::<u32>();
    with_memory(&COMMON, words(common_panels * depth / SIDE), |packed| {
        let packed = Shared(packed.cast::<u8>());
        for from in (0..k).step_by(depth) {
            let inner = depth.min(k - from);
            let steps = inner.div_ceil(SIDE);
            let common = Panels {
                from: common.at(0, from),
                len: common_len,
                inner,
                left: !by_rows,
            };
            // SAFETY: the buffer has room for all panels of `depth`.
            unsafe { common.pack_all::<PARTS>(common_panels, steps, packed) };
            let add = add || from > 0;
            (0..own_panels.div_ceil(chunk))
                .into_par_iter()
                .for_each(|task| {
                    let first = task * chunk;
                    let panels = first..own_panels.min(first + chunk);
                    let own = Panels {
                        from: own.at(first * SIDE, from),
                        len: own_len - first * SIDE,
                        inner,
                        left: by_rows,
                    };
                    with_memory(&OWN, words(panels.len() * steps), |mine| {
                        let mine = mine.cast::<u8>();
                        // SAFETY: this thread's buffer has room for these panels; the common ones were packed above; the
                        // rest for the caller.
                        unsafe {
                            own.pack::<PARTS>(0..panels.len(), 0..steps, mine);
                            work.multiply(panels, steps, packed.get(), mine, add);
                        }
                    });
                });
        }
    });
}

/// The state shared by the tasks of a product.
struct Work<const PARTS: usize> {
    /// Rows and columns of the result.
    size: (usize, usize),
    /// Whether the tasks divide the rows of the result, not its columns.
    by_rows: bool,
    common_panels: usize,
    /// Whether the common operand fits the cache.
    fits: bool,
    c: Shared<f32>,
    stride: usize,
}

impl<const PARTS: usize> Work<PARTS> {
    /// Multiplies a task's own panels, which are packed in `mine`, with all panels of the common operand.
    ///
    /// # Safety
    /// `packed` and `mine` must hold `steps` packed blocks for each of their panels, the task's part of the result must be
    /// its alone, and the machine must have the unit.
    unsafe fn multiply(
        &self,
        own: Range<usize>,
        steps: usize,
        packed: *mut u8,
        mine: *mut u8,
        add: bool,
    ) {
        let panel_bytes = steps * PARTS * PART;
        // SAFETY: the unit is there, and released at the end of this function, before any other task.
        unsafe { amx::configure() };
        if self.fits {
            for panel in own.clone() {
                let ours = mine.wrapping_add((panel - own.start) * panel_bytes);
                for common in 0..self.common_panels {
                    let theirs = packed.wrapping_add(common * panel_bytes);
                    // SAFETY: for the caller.
                    unsafe { self.visit((common, theirs), (panel, ours), mine, steps, add) };
                }
            }
        } else {
            for common in 0..self.common_panels {
                let theirs = packed.wrapping_add(common * panel_bytes);
                let next = packed.wrapping_add((common + 1) % self.common_panels * panel_bytes);
                for panel in own.clone() {
                    let index = panel - own.start;
                    let ours = mine.wrapping_add(index * panel_bytes);
                    let ahead = match index * steps * AHEAD {
                        ahead if ahead < panel_bytes => next.wrapping_add(ahead),
                        _ => mine,
                    };
                    // SAFETY: for the caller.
                    unsafe { self.visit((common, theirs), (panel, ours), ahead, steps, add) };
                }
            }
        }
        // SAFETY: as above.
        unsafe { amx::release() };
    }

    /// Multiplies one panel of the common operand with one of the task's own, each given by its number and its blocks.
    ///
    /// # Safety
    /// As for [`multiply`](Self::multiply), for these panels.
    unsafe fn visit(
        &self,
        (of_common, theirs): (usize, *mut u8),
        (of_own, ours): (usize, *mut u8),
        ahead: *mut u8,
        steps: usize,
        add: bool,
    ) {
        let (i, j, a, b) = match self.by_rows {
            true => (of_own, of_common, ours, theirs),
            false => (of_common, of_own, theirs, ours),
        };
        let (i, j) = (i * SIDE, j * SIDE);
        let left = (self.size.0 - i, self.size.1 - j);
        // SAFETY: for the caller; blocks of the result do not overlap.
        unsafe {
            let at = self.c.get().add(i * self.stride + j);
            let operands = [a.cast_const(), b.cast_const(), ahead.cast_const()];
            multiply(
                kernel::<PARTS>(),
                operands,
                steps,
                (at, self.stride),
                left,
                add,
            );
        }
    }
}

/// One block of the result, `left` rows and columns of which exist (32 are computed).
///
/// # Safety
/// The first two operands must point to `steps` packed blocks, `c` to the block's first element, and the kernel's unit
/// be configured.
unsafe fn multiply(
    kernel: Kernel,
    operands: [*const u8; 3],
    steps: usize,
    (c, stride): (*mut f32, usize),
    left: (usize, usize),
    add: bool,
) {
    if left.0 >= SIDE && left.1 >= SIDE {
        // SAFETY: the caller's promise, and the whole block exists.
        return unsafe { kernel(operands, steps, c, stride * size_of::<f32>(), add) };
    }
    #[repr(align(64))]
    struct Edge([f32; SIDE * SIDE]);
    let mut edge = Edge([0.0; SIDE * SIDE]);
    let (rows, columns) = (left.0.min(SIDE), left.1.min(SIDE));
    // SAFETY: only the rows and columns that exist are touched in `c`.
    unsafe {
        if add {
            for i in 0..rows {
                let to = edge.0[i * SIDE..].as_mut_ptr();
                std::ptr::copy_nonoverlapping(c.add(i * stride), to, columns);
            }
        }
        let row = SIDE * size_of::<f32>();
        kernel(operands, steps, edge.0.as_mut_ptr(), row, add);
        for i in 0..rows {
            let from = edge.0[i * SIDE..].as_ptr();
            std::ptr::copy_nonoverlapping(from, c.add(i * stride), columns);
        }
    }
}

/// An operand from some row (or column) and inner position on.
#[derive(Clone, Copy)]
struct Panels {
    from: Operand,
    /// Rows or columns that exist.
    len: usize,
    /// Inner elements that exist.
    inner: usize,
    /// Whether this is the left operand.
    left: bool,
}

impl Panels {
    /// Packs all of `panels` panels, on all threads.
    ///
    /// # Safety
    /// As for [`Panels::pack`], for all of them.
    unsafe fn pack_all<const PARTS: usize>(&self, panels: usize, steps: usize, to: Shared<u8>) {
        // Pieces that are read in the order of memory.
        let pieces = if self.from.inner == 1 { panels } else { steps };
        (0..pieces).into_par_iter().for_each(|piece| {
            let (panels, steps) = match self.from.inner {
                1 => (piece..piece + 1, 0..steps),
                _ => (0..panels, piece..piece + 1),
            };
            // SAFETY: for the caller; each task writes its own blocks.
            unsafe { self.pack::<PARTS>(panels, steps, to.get()) };
        });
    }

    /// Packs blocks, each to its place among all blocks of these panels.
    ///
    /// In tiles of the left operand a row holds 16 pairs of inner elements of one row; in those of the right operand a
    /// row holds one pair for each of 16 columns. A pair is made of elements 16 apart, which costs the least: the order
    /// of the inner dimension does not matter as long as both operands have the same. Missing elements become zeros.
    ///
    /// # Safety
    /// The operand must be valid for these sizes, `to` for all blocks of the panels, and the machine have AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn pack<const PARTS: usize>(
        &self,
        panels: Range<usize>,
        steps: Range<usize>,
        to: *mut u8,
    ) {
        let all_steps = self.inner.div_ceil(SIDE);
        let mut parts: Parts<PARTS> = [[_mm512_setzero_si512(); 16]; PARTS];
        let mut block = |panel: usize, step: usize| {
            // SAFETY: the caller's promise.
            unsafe {
                self.pack_block(
                    panel,
                    step,
                    &mut parts,
                    to.add((panel * all_steps + step) * PARTS * PART),
                )
            }
        };
        // In the order of memory.
        if self.from.inner == 1 {
            for panel in panels {
                steps.clone().for_each(|step| block(panel, step));
            }
        } else {
            for step in steps {
                panels.clone().for_each(|panel| block(panel, step));
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn pack_block<const PARTS: usize>(
        &self,
        panel: usize,
        step: usize,
        parts: &mut Parts<PARTS>,
        to: *mut u8,
    ) {
        let along_inner = self.from.inner == 1;
        let count = (self.inner - step * SIDE).min(SIDE);
        for half in 0..2 {
            let first = panel * SIDE + half * 16;
            let rows = self.len.saturating_sub(first).min(16);
            let source = self.from.at(first, step * SIDE);
            // SAFETY: the caller's promise; `rows` and `count` bound what is read.
            unsafe {
                match along_inner {
                    true => rows_of_pairs(source, rows, count, parts),
                    false => pairs_of_rows(source, rows, count, parts),
                }
            }
            for (part, tile) in parts.iter_mut().enumerate() {
                if along_inner != self.left {
                    transpose(tile);
                }
                for (i, row) in tile.iter().enumerate() {
                    // SAFETY: the block lies inside of what the caller gave, aligned to 64 bytes.
                    unsafe {
                        let at = to.add(part * PART + half * TILE + i * 64);
                        _mm512_store_si512(at.cast(), *row);
                    }
                }
            }
        }
    }
}

/// Returns the parts of 16 f32, each in the upper half of 32 bits whose lower half is zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn split<const PARTS: usize>(x: __m512) -> [__m512i; PARTS] {
    // Rounded to nearest, which leaves remainders small and without a preferred sign; both subtractions are exact, and
    // the last remainder fits bf16.
    let round = |x: __m512| {
        let half = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
        _mm512_and_si512(half, _mm512_set1_epi32(-0x1_0000))
    };
    let first = round(x);
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(first));
    let second = round(rest);
    let third = _mm512_sub_ps(rest, _mm512_castsi512_ps(second));
    // Below the smallest normal number it has bits that bf16 has no room for, and that must not reach its neighbour.
    let third = _mm512_and_si512(_mm512_castps_si512(third), _mm512_set1_epi32(-0x1_0000));
    let mut parts = [first; PARTS];
    parts.copy_from_slice(&[first, second, third][..PARTS]);
    parts
}

/// Returns the lowest `n` bits.
#[inline]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

type Parts<const PARTS: usize> = [[__m512i; 16]; PARTS];

/// Sets row `i` of each part to the pairs of `x` and `y`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn set_pairs<const PARTS: usize>(parts: &mut Parts<PARTS>, i: usize, x: __m512, y: __m512) {
    for ((part, x), y) in parts
        .iter_mut()
        .zip(split::<PARTS>(x))
        .zip(split::<PARTS>(y))
    {
        part[i] = _mm512_or_si512(_mm512_srli_epi32::<16>(x), y);
    }
}

/// 16 rows of 16 pairs along the inner dimension, which is contiguous in memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rows_of_pairs<const PARTS: usize>(
    from: Operand,
    rows: usize,
    count: usize,
    parts: &mut Parts<PARTS>,
) {
    let (low, high) = (mask(count), mask(count.saturating_sub(16)));
    for i in 0..16 {
        let start = from.at(i, 0).start;
        let (low, high) = if i < rows { (low, high) } else { (0, 0) };
        // SAFETY: masked elements are not read.
        let (x, y) = unsafe {
            let x = _mm512_maskz_loadu_ps(low, start);
            (x, _mm512_maskz_loadu_ps(high, start.wrapping_add(16)))
        };
        set_pairs(parts, i, x, y);
    }
}

/// 16 pairs along the inner dimension of 16 rows, which are contiguous in memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pairs_of_rows<const PARTS: usize>(
    from: Operand,
    rows: usize,
    count: usize,
    parts: &mut Parts<PARTS>,
) {
    let rows = mask(rows);
    let present = |i: usize| if i < count { rows } else { 0 };
    for i in 0..16 {
        // SAFETY: masked elements are not read.
        let (x, y) = unsafe {
            let x = _mm512_maskz_loadu_ps(present(i), from.at(0, i).start);
            (
                x,
                _mm512_maskz_loadu_ps(present(i + 16), from.at(0, i + 16).start),
            )
        };
        set_pairs(parts, i, x, y);
        // The next step's rows lie far away, in no order that the hardware follows on its own.
        for next in [32, 48] {
            _mm_prefetch::<_MM_HINT_T0>(from.at(0, i + next).start.cast());
        }
    }
}
