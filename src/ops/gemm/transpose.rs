//! Squares of elements transposed in registers.
//!
//! Loops of this kind call no generic function of the standard library that isn't marked for inlining, such as the `map` of
//! arrays: such a function may be compiled in another unit of the crate, and is then called for every element.

use std::arch::x86_64::*;

/// Transposes 16 x 16 elements of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::ops) fn transpose(tile: &mut [__m512i; 16]) {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(tile[2 * i], tile[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(tile[2 * i], tile[2 * i + 1]);
    }
    // Of rows 4g to 4g + 3, register 4g + c holds columns c, 4 + c, 8 + c and 12 + c.
    let mut quads = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let [a, b, c, d] = [
            pairs[4 * i],
            pairs[4 * i + 1],
            pairs[4 * i + 2],
            pairs[4 * i + 3],
        ];
        quads[4 * i] = _mm512_unpacklo_epi64(a, c);
        quads[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        quads[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        quads[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for column in 0..4 {
        let [a, b, c, d] = [
            quads[column],
            quads[4 + column],
            quads[8 + column],
            quads[12 + column],
        ];
        let even = (
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0x88>(c, d),
        );
        let odd = (
            _mm512_shuffle_i32x4::<0xDD>(a, b),
            _mm512_shuffle_i32x4::<0xDD>(c, d),
        );
        tile[column] = _mm512_shuffle_i32x4::<0x88>(even.0, even.1);
        tile[column + 8] = _mm512_shuffle_i32x4::<0xDD>(even.0, even.1);
        tile[column + 4] = _mm512_shuffle_i32x4::<0x88>(odd.0, odd.1);
        tile[column + 12] = _mm512_shuffle_i32x4::<0xDD>(odd.0, odd.1);
    }
}
