//! Products of row-major f32 matrices on the shared thread pool.

pub(super) mod accumulate;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) mod amx;
pub(super) mod batched;
#[cfg(feature = "cuda")]
pub(super) mod cublas;
#[cfg(feature = "cuda")]
pub(super) mod cublas_lt;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
#[cfg(target_arch = "x86_64")]
mod memory;
#[cfg(test)]
mod noise;
#[cfg(target_arch = "x86_64")]
mod operand;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod packed;
#[cfg(target_arch = "x86_64")]
pub(super) mod panels;
#[cfg(target_arch = "x86_64")]
mod shared;
#[cfg(target_arch = "x86_64")]
mod skinny;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod transpose;

use gemm::Parallelism;
use rayon::prelude::*;

use self::accumulate::Accumulate;
#[cfg(target_arch = "x86_64")]
use self::operand::Operand;
#[cfg(target_arch = "x86_64")]
use self::panels::product::{Multiplier, Product};
#[cfg(target_arch = "x86_64")]
use super::precision::{Precision, precision};
use super::simd::{self, Level};

/// Returns the name of what multiplies large f32 matrices on this machine's processor: "vector" for multiply-adds,
/// "matrix" for a matrix unit (AMX) that forms each product from bf16 parts, with results as exact as f32's.
///
/// The environment variable `CLOZE_CPU` ("base", "avx2", "avx512", "amx") limits the instructions that are used.
pub fn matmul_kernel() -> &'static str {
    match simd::level() {
        Level::Matrix => "matrix",
        _ => "vector",
    }
}

/// A matrix inside a larger buffer: element (i, j) is `i · rows + j · cols` elements after the start.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub rows: usize,
    pub cols: usize,
}

impl Strides {
    /// Returns a row-major matrix whose rows are `width` elements apart.
    pub(crate) fn rows(width: usize) -> Self {
        Self {
            rows: width,
            cols: 1,
        }
    }

    /// Returns the transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
        }
    }
}

/// `dst (m, n) = or += scale · a (m, k) · b (k, n)`, on this thread or on all of the pool's.
///
/// # Safety
/// Each pointer must be valid for the matrix that its strides and dimensions describe, `dst` for writes that nobody
/// else sees meanwhile. With [`Accumulate::Overwrite`], `dst` may be uninitialized.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn matmul_raw(
    (m, k, n): (usize, usize, usize),
    into: Accumulate,
    scale: f32,
    (dst, dst_strides): (*mut f32, Strides),
    (a, a_strides): (*const f32, Strides),
    (b, b_strides): (*const f32, Strides),
    parallelism: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    // One thread's products lie in its caches, where rearranging gains nothing.
    #[cfg(target_arch = "x86_64")]
    if !matches!(parallelism, Parallelism::None)
        && dst_strides.cols == 1
        && let Some(a) = operand(a, a_strides)
        && let Some(b) = operand(b, b_strides.t())
        && let Some(multiplier) = multiplier((m, k, n), b, false)
    {
        let product = Product {
            size: (m, k, n),
            into,
            scale,
            bias: None,
            parallel: true,
        };
        // SAFETY: the caller's promise.
        return unsafe { multiplier.multiply(product, (dst, dst_strides.rows), [a, b]) };
    }
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            dst_strides.cols as isize,
            dst_strides.rows as isize,
            into == Accumulate::Add,
            a,
            a_strides.cols as isize,
            a_strides.rows as isize,
            b,
            b_strides.cols as isize,
            b_strides.rows as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Returns the operand whose rows are those of a matrix; `None` if its elements lie side by side in neither direction.
#[cfg(target_arch = "x86_64")]
fn operand(start: *const f32, strides: Strides) -> Option<Operand> {
    let Strides { rows, cols } = strides;
    (rows == 1 || cols == 1).then_some(Operand {
        start,
        outer: rows,
        inner: cols,
    })
}

/// Returns what multiplies matrices of this size from rearranged operands, `b` on the right, if that is worth while
/// (measured).
#[cfg(target_arch = "x86_64")]
fn multiplier((m, k, n): (usize, usize, usize), b: Operand, bf16: bool) -> Option<Multiplier> {
    if m * k * n < 1 << 20 || m.min(n) < 16 {
        return None;
    }
    if bf16 && let Some(multiplier) = Multiplier::new(true) {
        return Some(multiplier);
    }
    // Rows of `b` are read as they lie by the crate `gemm`, and few of `a` do not pay for rearranging them.
    match b.inner != 1 && m < 256 {
        true => None,
        false => Multiplier::new(false),
    }
}

/// All threads of the pool that the caller is in.
pub(crate) const PARALLEL: Parallelism = Parallelism::Rayon(0);

/// `dst (m, n) = or += a · b`, all row-major and contiguous; `a` is (m, k), or with `a_t` stored as (k, m); `b` is
/// (k, n), or with `b_t` stored as (n, k).
pub(crate) fn matmul(
    size: (usize, usize, usize),
    into: Accumulate,
    dst: &mut [f32],
    a: (&[f32], bool),
    b: (&[f32], bool),
) {
    multiply(size, into, None, dst, a, b);
}

/// `dst (m, n) = a · b + bias`, as [`matmul`]; `bias` (n) is added to each row.
pub(crate) fn matmul_bias(
    size: (usize, usize, usize),
    bias: &[f32],
    dst: &mut [f32],
    a: (&[f32], bool),
    b: (&[f32], bool),
) {
    multiply(size, Accumulate::Overwrite, Some(bias), dst, a, b);
}

fn multiply(
    (m, k, n): (usize, usize, usize),
    into: Accumulate,
    bias: Option<&[f32]>,
    dst: &mut [f32],
    (a, a_t): (&[f32], bool),
    (b, b_t): (&[f32], bool),
) {
    assert!(
        dst.len() == m * n
            && a.len() == m * k
            && b.len() == k * n
            && bias.is_none_or(|bias| bias.len() == n),
        "a product's shapes do not fit its buffers"
    );
    if m == 0 || n == 0 {
        return;
    }
    let strides = |rows, cols, transposed| match transposed {
        false => Strides::rows(cols),
        true => Strides::rows(rows).t(),
    };
    let (of_a, of_b) = (strides(m, k, a_t), strides(k, n, b_t));
    #[cfg(target_arch = "x86_64")]
    let is_skinny = !a_t && b_t && skinny::fits((m, k, n));
    #[cfg(target_arch = "x86_64")]
    if !is_skinny
        && let Some(a) = operand(a.as_ptr(), of_a)
        && let Some(b) = operand(b.as_ptr(), of_b.t())
        && let Some(multiplier) = multiplier((m, k, n), b, precision() == Precision::Bf16)
    {
        let product = Product {
            size: (m, k, n),
            into,
            scale: 1.0,
            bias,
            parallel: true,
        };
        // SAFETY: the lengths were checked, and `dst` is borrowed mutably.
        return unsafe { multiplier.multiply(product, (dst.as_mut_ptr(), n), [a, b]) };
    }
    let into = match bias {
        // The product is added to the bias, which costs less than a pass over the result.
        Some(bias) => {
            dst.par_chunks_mut(64 * n)
                .for_each(|rows| rows.chunks_mut(n).for_each(|y| y.copy_from_slice(bias)));
            Accumulate::Add
        }
        None => into,
    };
    #[cfg(target_arch = "x86_64")]
    if is_skinny {
        return skinny::matmul((m, k, n), into, dst, a, b);
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if simd::level() == Level::Matrix
        && m * k * n >= 1 << 20
        && m.min(n) >= 16
        && let Some(a) = operand(a.as_ptr(), of_a)
        && let Some(b) = operand(b.as_ptr(), of_b.t())
    {
        let multiply = match precision() {
            Precision::F32 | Precision::F16 | Precision::Int8 => {
                packed::matmul::<{ packed::EXACT }>
            }
            Precision::Bf16 => packed::matmul::<{ packed::BF16 }>,
        };
        let c = (dst.as_mut_ptr(), n);
        // SAFETY: the unit is there, the lengths were checked, and `dst` is borrowed mutably.
        return unsafe { multiply((m, k, n), into == Accumulate::Add, c, a, b) };
    }
    // SAFETY: the lengths were checked, and `dst` is borrowed mutably.
    unsafe {
        matmul_raw(
            (m, k, n),
            into,
            1.0,
            (dst.as_mut_ptr(), Strides::rows(n)),
            (a.as_ptr(), of_a),
            (b.as_ptr(), of_b),
            PARALLEL,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::noise::noise;
    use super::*;

    /// Returns the relative error of a product against f64, and that of plain multiply-adds in f32.
    fn errors(
        (m, k, n): (usize, usize, usize),
        a_t: bool,
        b_t: bool,
        into: Accumulate,
    ) -> [f64; 2] {
        let (a, b, before) = (noise(m * k, 1), noise(k * n, 2), noise(m * n, 3));
        let mut c = before.clone();
        matmul((m, k, n), into, &mut c, (&a, a_t), (&b, b_t));
        let (mut errors, mut norm) = ([0.0; 2], 0.0);
        for i in 0..m {
            for j in 0..n {
                let a = |x: usize| if a_t { a[x * m + i] } else { a[i * k + x] };
                let b = |x: usize| if b_t { b[j * k + x] } else { b[x * n + j] };
                let old = if into == Accumulate::Add {
                    before[i * n + j]
                } else {
                    0.0
                };
                let wide = (0..k).fold(f64::from(old), |sum, x| {
                    sum + f64::from(a(x)) * f64::from(b(x))
                });
                let plain = (0..k).fold(old, |sum, x| a(x).mul_add(b(x), sum));
                errors[0] += (f64::from(c[i * n + j]) - wide).powi(2);
                errors[1] += (f64::from(plain) - wide).powi(2);
                norm += wide * wide;
            }
        }
        errors.map(|e| (e / norm).sqrt())
    }

    #[test]
    fn products_are_as_exact_as_f32_multiply_adds_in_every_layout_and_size() {
        let sizes = [
            (1, 1, 1),
            (3, 70, 5),
            (31, 33, 1100),
            (32, 1024, 32),
            (64, 64, 320),
            (150, 96, 130),
            (77, 2100, 65),
            (600, 40, 33),
        ];
        for size in sizes {
            for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
                for into in [Accumulate::Overwrite, Accumulate::Add] {
                    let [error, plain] = errors(size, a_t, b_t, into);
                    assert!(
                        error <= plain.max(1e-7),
                        "{size:?} {a_t} {b_t}: {error:e}, multiply-adds {plain:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn bf16_products_equal_those_of_rounded_operands() {
        use super::super::{Precision, autocast};
        if !Precision::Bf16.is_available() {
            eprintln!("skipped: this processor has no unit for bf16");
            return;
        }
        let round = |x: f32| f32::from_bits((x.to_bits() + 0x8000) & 0xFFFF_0000);
        for (m, k, n) in [(64, 768, 320), (150, 1100, 130), (77, 2100, 65)] {
            for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
                let (a, b) = (noise(m * k, 1), noise(k * n, 2));
                let mut c = vec![0.0; m * n];
                autocast(Precision::Bf16, || {
                    matmul(
                        (m, k, n),
                        Accumulate::Overwrite,
                        &mut c,
                        (&a, a_t),
                        (&b, b_t),
                    );
                });
                let (a, b): (Vec<f32>, Vec<f32>) = (
                    a.into_iter().map(round).collect(),
                    b.into_iter().map(round).collect(),
                );
                let mut rounded = vec![0.0; m * n];
                matmul(
                    (m, k, n),
                    Accumulate::Overwrite,
                    &mut rounded,
                    (&a, a_t),
                    (&b, b_t),
                );
                for (c, rounded) in c.iter().zip(&rounded) {
                    assert!(
                        (c - rounded).abs() < 1e-5 * (k as f32).sqrt(),
                        "{c} {rounded}"
                    );
                }
            }
        }
    }

    #[test]
    fn tiny_numbers_do_not_affect_their_neighbours() {
        // Down to 1e-45, as the tails of activations and softmax have them.
        let tiny = |n: usize, seed: u32| -> Vec<f32> {
            let scale = |i: usize| 10f64.powi(-((i * 7 % 46) as i32));
            let scaled = |(i, x): (usize, f32)| (f64::from(x) * scale(i)) as f32;
            noise(n, seed).into_iter().enumerate().map(scaled).collect()
        };
        let (m, k, n) = (64, 320, 130);
        for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
            let (a, b) = (tiny(m * k, 1), noise(k * n, 2));
            let mut c = vec![0.0; m * n];
            matmul(
                (m, k, n),
                Accumulate::Overwrite,
                &mut c,
                (&a, a_t),
                (&b, b_t),
            );
            for (at, &c) in c.iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let a = |x: usize| if a_t { a[x * m + i] } else { a[i * k + x] };
                let b = |x: usize| if b_t { b[j * k + x] } else { b[x * n + j] };
                let wide: f64 = (0..k).map(|x| f64::from(a(x)) * f64::from(b(x))).sum();
                assert!(
                    (f64::from(c) - wide).abs() < 1e-5,
                    "{a_t} {b_t}: {c} {wide}"
                );
            }
        }
    }

    #[test]
    fn nan_and_infinity_propagate() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut a = noise(64 * 64, 1);
            a[70] = bad;
            let (b, mut c) = (noise(64 * 300, 2), vec![0.0; 64 * 300]);
            matmul(
                (64, 64, 300),
                Accumulate::Overwrite,
                &mut c,
                (&a, false),
                (&b, false),
            );
            assert!(c[300..600].iter().all(|x| !x.is_finite()));
            assert!(c[..300].iter().chain(&c[600..]).all(|x| x.is_finite()));
        }
    }
}
