//! bf16 products on processors that have AVX-512's dot products of bf16 pairs (AVX512-BF16: AMD's from Zen 4 on, Intel's
//! Cooper Lake) but no matrix unit: two multiply-adds in the place of one, twice the rate of f32.

use std::arch::x86_64::*;

use super::gemm_tiles::{PART, SIDE, TILE};

/// Returns whether this machine has the instruction. That it has AVX-512 is for the caller to know.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// Rows of the result that are kept in registers at a time, 32 columns of each.
const ROWS: usize = 8;

/// 32 x 32 elements of the result, rows `stride` bytes apart, from packed blocks of one part.
///
/// # Safety
/// As for [`gemm_packed::multiply`](super::gemm_packed), with all of the block existing, on a machine for which [`is_available`]
/// holds.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn bf16_kernel(
    [a, b, _]: [*const u8; 3],
    steps: usize,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    for first in (0..SIDE).step_by(ROWS) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        // A tile holds 16 rows of 16 pairs; this group of rows lies in one tile.
        let mut rows = a.wrapping_add(first / 16 * TILE + first % 16 * 64);
        let mut columns = b;
        // SAFETY: each step reads inside of one block of `a` and one of `b`; the rows of `c` exist.
        unsafe {
            for _ in 0..steps {
                for pair in 0..16 {
                    let b = [0, TILE]
                        .map(|half| pairs(_mm512_load_si512(columns.add(half + pair * 64).cast())));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let a = rows.add(row * 64 + pair * 4).cast::<i32>().read();
                        let a = pairs(_mm512_set1_epi32(a));
                        sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                        sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
                    }
                }
                rows = rows.add(PART);
                columns = columns.add(PART);
            }
            for (row, sums) in sums.into_iter().enumerate() {
                let to = c.byte_add((first + row) * stride);
                for (half, sum) in sums.into_iter().enumerate() {
                    let to = to.add(16 * half);
                    let sum = match add {
                        true => _mm512_add_ps(_mm512_loadu_ps(to), sum),
                        false => sum,
                    };
                    _mm512_storeu_ps(to, sum);
                }
            }
        }
    }
}

/// 32 bf16, as the dot product takes them.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes for which every pattern is valid.
    unsafe { std::mem::transmute(bits) }
}
