//! Loops compiled for several instruction sets, the best of which is chosen at run time, and the elementary functions
//! that such loops call.

use std::sync::OnceLock;

/// The instruction sets that loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// The instructions of every machine of the target.
    Base,
    /// AVX2 with fused multiply-add.
    V3,
    /// AVX-512.
    V4,
    /// AVX-512, and a matrix unit (AMX) for products; loops are those of [`Level::V4`].
    Matrix,
}

/// Returns the best level of this machine, or the limit set by the environment variable `CLOZE_CPU` ("base", "avx2",
/// "avx512", "amx").
#[inline]
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let limit = match std::env::var("CLOZE_CPU").as_deref() {
            Ok("base") => Level::Base,
            Ok("avx2") => Level::V3,
            Ok("avx512") => Level::V4,
            _ => Level::Matrix,
        };
        detect().min(limit)
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return Level::Base;
    }
    if !(is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl"))
    {
        return Level::V3;
    }
    #[cfg(target_os = "linux")]
    if crate::ops::gemm::amx::is_available() {
        return Level::Matrix;
    }
    Level::V4
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Base
}

/// Defines a function whose body is compiled once per [`Level`] and run at the machine's best.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn v4($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn v3($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::ops::simd::level() {
                    // SAFETY: the level says that the machine has these instructions.
                    $crate::ops::simd::Level::V4 | $crate::ops::simd::Level::Matrix => return unsafe { v4($($arg),*) },
                    $crate::ops::simd::Level::V3 => return unsafe { v3($($arg),*) },
                    $crate::ops::simd::Level::Base => {}
                }
            }
            #[allow(unreachable_code)]
            body($($arg),*)
        }
    };
}
pub(crate) use simd_fn;

/// Width of the register blocks that reductions keep: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// eˣ to 1.5e-7 relative for x ≤ 88; 0 below -87.3, saturating above 88; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2²³ leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.336_54, 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    // Near-minimax over |r| ≤ ln 2 / 2.
    let p = 1.383_673_7e-3_f32;
    let p = p.mul_add(r, 8.374_898e-3);
    let p = p.mul_add(r, 4.166_823_3e-2);
    let p = p.mul_add(r, 1.666_642e-1);
    let p = p.mul_add(r, 4.999_999e-1);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    if x < -87.336_54 { 0.0 } else { p * power }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh x to 3e-7 relative.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // Near zero the exponential form would cancel: an odd polynomial serves there.
    let s = x * x;
    let p = -5.468_264e-3_f32;
    let p = p.mul_add(s, 2.041_519e-2);
    let p = p.mul_add(s, -5.366_528e-2);
    let p = p.mul_add(s, 1.333_041_5e-1);
    let p = p.mul_add(s, -3.333_323e-1);
    let small = (p * s).mul_add(x, x);
    let e = exp(-2.0 * x.abs());
    let large = ((1.0 - e) / (1.0 + e)).copysign(x);
    if x.abs() < 0.65 { small } else { large }
}

/// Φ(x) and φ(x): distribution and density of the standard normal, to 4e-7 relative (in the tails too).
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    let a = x.abs();
    // exp(-x²/2) loses digits to the rounding of x² in the tails; the remainder puts them back.
    let square = x * x;
    let remainder = x.mul_add(x, -square);
    let e = exp(-0.5 * square);
    let e = (e * -0.5).mul_add(remainder, e);
    // The upper tail divided by exp(-x²/2) is smooth in t = 1 / (1 + 0.35 a): a near-minimax polynomial.
    let t = 1.0 / a.mul_add(0.35, 1.0);
    let p = MILLS[0];
    let p = p.mul_add(t, MILLS[1]);
    let p = p.mul_add(t, MILLS[2]);
    let p = p.mul_add(t, MILLS[3]);
    let p = p.mul_add(t, MILLS[4]);
    let p = p.mul_add(t, MILLS[5]);
    let p = p.mul_add(t, MILLS[6]);
    let p = p.mul_add(t, MILLS[7]);
    let p = p.mul_add(t, MILLS[8]);
    let p = p.mul_add(t, MILLS[9]);
    // Past 13 the tail is below the smallest normal f32, and x² may have overflowed to infinity.
    let tail = if a > 13.0 { 0.0 } else { e * p * t };
    let density = if a > 13.0 { 0.0 } else { e * FRAC_1_SQRT_2PI };
    (if x > 0.0 { 1.0 - tail } else { tail }, density)
}

const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;

/// Coefficients of [`normal`]'s tail, highest power first.
const MILLS: [f32; 10] = [
    3.630_020_7e-3,
    -4.826_801_6e-2,
    1.873_729_5e-1,
    -3.112_546e-1,
    2.031_939_3e-1,
    -4.544_227e-2,
    1.127_352_64e-1,
    1.183_989_05e-1,
    1.400_197e-1,
    1.396_140_8e-1,
];

/// Adds up `term(i)` for i in 0..n in independent lanes, which are then added pairwise.
#[inline(always)]
fn lanes(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    const WIDE: usize = 2 * LANES;
    let mut sums = [0f32; WIDE];
    let whole = n / WIDE * WIDE;
    let mut at = 0;
    while at < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(at + lane);
        }
        at += WIDE;
    }
    for (lane, sum) in sums.iter_mut().enumerate().take(n - whole) {
        *sum += term(whole + lane);
    }
    let mut half = WIDE / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Σ f(x).
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    lanes(x.len(), |i| f(x[i]))
}

/// Σ a · b.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    lanes(a.len(), |i| a[i] * b[i])
}

/// Σ a · b · c.
#[inline(always)]
pub(crate) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let (b, c) = (&b[..a.len()], &c[..a.len()]);
    lanes(a.len(), |i| a[i] * b[i] * c[i])
}

/// Returns the largest element; NaN if there is one, -∞ if there is none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    // `a > b` is false for NaN: such a comparison keeps a NaN that stands in the accumulator or comes new.
    let larger = |a: f32, b: f32| if a > b || a.is_nan() { a } else { b };
    let mut tops = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (top, &x) in tops.iter_mut().zip(chunk) {
            *top = larger(*top, x);
        }
    }
    for (top, &x) in tops.iter_mut().zip(chunks.remainder()) {
        *top = larger(*top, x);
    }
    tops.into_iter().fold(f32::NEG_INFINITY, larger)
}
