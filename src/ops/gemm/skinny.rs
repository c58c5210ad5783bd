//! Products with few rows on the left: `c (m, n) = or += a (m, k) · bᵀ`, where `b` is stored as (n, k).
//!
//! One text through a model is such a product at every layer, and what it costs is reading the weights once. So `b` is
//! neither copied nor rearranged, as it pays to do for large products: each group of its rows is read from memory once and
//! meets all rows of `a`, a few at a time, in registers.

use std::arch::x86_64::*;

use rayon::prelude::*;

use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::simd::{self, Level};

/// The most rows on the left for which this beats rearranging `b` (measured).
const MOST_ROWS: usize = 32;
/// Elements of `b` per task.
const TASK: usize = 1 << 14;
/// How many rows of `b` are read side by side.
const GROUP: usize = 4;
/// How far ahead a row of `b` is fetched that is read alone.
const AHEAD: usize = 512;

/// Returns whether this machine and this size are served here.
pub(in crate::ops) fn fits((m, k, n): (usize, usize, usize)) -> bool {
    simd::level() >= Level::V3 && m <= MOST_ROWS && m * k * n >= 1 << 14
}

/// The product; the machine must have passed [`fits`].
pub(in crate::ops) fn matmul(
    size: (usize, usize, usize),
    into: Accumulate,
    dst: &mut [f32],
    a: &[f32],
    b: &[f32],
) {
    matmul_at(simd::level(), size, into, dst, a, b);
}

fn matmul_at(
    level: Level,
    (m, k, n): (usize, usize, usize),
    into: Accumulate,
    dst: &mut [f32],
    a: &[f32],
    b: &[f32],
) {
    assert!(level >= Level::V3 && level <= simd::level());
    assert!(dst.len() == m * n && a.len() == m * k && b.len() == n * k);
    let wide = level >= Level::V4;
    let add = into == Accumulate::Add;
    let dst = Destination(dst.as_mut_ptr());
    let columns = (TASK / k.max(1)).max(1).next_multiple_of(GROUP);
    (0..n.div_ceil(columns)).into_par_iter().for_each(|task| {
        let columns = task * columns..n.min((task + 1) * columns);
        // SAFETY: the level says that the machine has the instructions, the lengths were checked, and each task writes
        // columns of its own.
        unsafe {
            match wide {
                true => avx512::columns((m, k, n), add, &dst, a.as_ptr(), b.as_ptr(), columns),
                false => avx2::columns((m, k, n), add, &dst, a.as_ptr(), b.as_ptr(), columns),
            }
        }
    });
}

/// The destination, shared by tasks that write different columns.
struct Destination(*mut f32);
// SAFETY: tasks write disjoint elements, and nobody reads before all are done.
unsafe impl Sync for Destination {}

/// The same loops for registers of different width. `$rows` rows of `a` times [`GROUP`] rows of `b` make the sums that are
/// kept in registers.
macro_rules! kernel {
    ($name:ident, $features:literal, $lanes:literal, $rows:literal, [$($fewer:literal)*],
     $zero:ident, $load:ident, $multiply_add:ident, $total:ident) => {
        mod $name {
            use super::*;

            /// # Safety
            /// The machine must have the instructions; the pointers must be valid for the shapes; nobody else may use these
            /// columns of `dst`.
            #[target_feature(enable = $features)]
            pub(in crate::ops) unsafe fn columns(
                (m, k, n): (usize, usize, usize),
                add: bool,
                dst: &Destination,
                a: *const f32,
                b: *const f32,
                columns: std::ops::Range<usize>,
            ) {
                // The fewest rows wait for memory, which answers fastest along one row of `b` at a time.
                let group = if m < $rows { 1 } else { GROUP };
                for start in columns.clone().step_by(group) {
                    let width = group.min(columns.end - start);
                    let mut row = 0;
                    while row < m {
                        let height = $rows.min(m - row);
                        // SAFETY: rows and columns lie within the shapes.
                        unsafe {
                            let (c, a, b) = (dst.0.add(row * n + start), a.add(row * k), b.add(start * k));
                            match (height, width) {
                                ($rows, GROUP) => tile::<$rows, GROUP>(k, n, add, c, a, b),
                                $(($fewer, GROUP) => tile::<$fewer, GROUP>(k, n, add, c, a, b),)*
                                $(($fewer, 1) => tile::<$fewer, 1>(k, n, add, c, a, b),)*
                                _ => {
                                    for row in 0..height {
                                        for column in 0..width {
                                            let c = c.add(row * n + column);
                                            tile::<1, 1>(k, n, add, c, a.add(row * k), b.add(column * k));
                                        }
                                    }
                                }
                            }
                        }
                        row += height;
                    }
                }
            }

            /// `M` rows of `a` times `N` rows of `b`.
            #[target_feature(enable = $features)]
            unsafe fn tile<const M: usize, const N: usize>(
                k: usize,
                n: usize,
                add: bool,
                c: *mut f32,
                a: *const f32,
                b: *const f32,
            ) {
                let mut sums = [[$zero(); N]; M];
                let whole = k / $lanes * $lanes;
                let mut at = 0;
                while at < whole {
                    // SAFETY: `at + lanes` stays within each row; what is fetched ahead need not exist.
                    unsafe {
                        let mut right = [$zero(); N];
                        for (j, right) in right.iter_mut().enumerate() {
                            let b = b.add(j * k + at);
                            *right = $load(b);
                            // What comes soon in this row, or the same place of the rows that come next.
                            let ahead = if N == 1 { AHEAD } else { GROUP * k };
                            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(ahead).cast());
                        }
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let left = $load(a.add(i * k + at));
                            for (sum, right) in sums.iter_mut().zip(right) {
                                *sum = $multiply_add(left, right, *sum);
                            }
                        }
                    }
                    at += $lanes;
                }
                for (i, sums) in sums.iter().enumerate() {
                    for (j, &sum) in sums.iter().enumerate() {
                        // SAFETY: the element lies within the rows and columns that the caller vouches for.
                        unsafe {
                            let mut total = $total(sum);
                            for at in whole..k {
                                total += *a.add(i * k + at) * *b.add(j * k + at);
                            }
                            let c = c.add(i * n + j);
                            *c = if add { *c + total } else { total };
                        }
                    }
                }
            }
        }
    };
}

kernel!(avx512, "avx512f,avx2,fma", 16, 5, [1 2 3 4], _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps);
kernel!(
    avx2,
    "avx2,fma",
    8,
    2,
    [1],
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    total_of_8
);

#[inline]
#[target_feature(enable = "avx2")]
fn total_of_8(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_is_as_exact_as_multiply_adds_in_order() {
        let value = |i: usize| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0;
        let sizes = [
            (1, 768, 1003),
            (2, 97, 66),
            (3, 200, 21),
            (4, 131, 9),
            (5, 160, 4),
            (7, 131, 9),
            (11, 200, 130),
            (48, 97, 66),
        ];
        let levels = [Level::V3, Level::V4]
            .into_iter()
            .filter(|&level| level <= simd::level());
        for (level, (m, k, n)) in levels.flat_map(|level| sizes.map(|size| (level, size))) {
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..n * k).map(|i| value(i + 17)).collect();
            for (into, old) in [(Accumulate::Overwrite, 0.0f32), (Accumulate::Add, 0.5)] {
                let mut c = vec![0.5f32; m * n];
                matmul_at(level, (m, k, n), into, &mut c, &a, &b);
                let (mut error, mut plain_error) = (0.0, 0.0);
                for (at, &c) in c.iter().enumerate() {
                    let pairs = || a[at / n * k..][..k].iter().zip(&b[at % n * k..][..k]);
                    let wide = pairs().fold(f64::from(old), |sum, (&a, &b)| {
                        sum + f64::from(a) * f64::from(b)
                    });
                    let plain = pairs().fold(old, |sum, (&a, &b)| a.mul_add(b, sum));
                    error += (f64::from(c) - wide).powi(2);
                    plain_error += (f64::from(plain) - wide).powi(2);
                }
                assert!(
                    error <= plain_error,
                    "{level:?} {m} {k} {n}: {error:e}, in order {plain_error:e}"
                );
            }
        }
    }
}
