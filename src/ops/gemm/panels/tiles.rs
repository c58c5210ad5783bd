//! Tiles of the result: some rows times two registers of columns, summed in registers and then written, or added to the
//! destination.

use std::arch::x86_64::*;

/// The most rows of a tile, and its most elements.
pub(super) const MOST_ROWS: usize = 12;
pub(super) const MOST: usize = MOST_ROWS * 32;
/// How far ahead a panel is prefetched, in words: about the memory latency.
const AHEAD: usize = 1024;

/// The addresses that a tile prefetches.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    start: *const u32,
    /// Words that each step goes on.
    pace: usize,
}

impl Fetch {
    /// Returns what goes on in the panel itself, for a tile that meets a panel of so many columns alone.
    #[inline]
    pub(super) fn onward(panel: *const u32, columns: usize) -> Self {
        Self {
            start: panel.wrapping_add(AHEAD),
            pace: columns,
        }
    }

    /// Returns what the tile at `index` of `tiles` fetches, each of which takes as many steps, so that all of them together
    /// fetch as many steps of `width` words.
    #[inline]
    pub(super) fn share(
        from: *const u32,
        width: usize,
        steps: usize,
        (index, tiles): (usize, usize),
    ) -> Self {
        let pace = width.div_ceil(tiles);
        Self {
            start: from.wrapping_add(index * steps * pace),
            pace,
        }
    }
}

/// The position of a tile in the result.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub start: *mut f32,
    /// Elements between its rows.
    pub stride: usize,
    /// Whether sums are added to the destination.
    pub add: bool,
}

/// Forms a tile: `([words of x, words of the panel], steps, what to fetch meanwhile, place in the result, [scales of the rows,
/// scales of the columns])`. Columns have scales with whole numbers only.
///
/// # Safety
/// The machine must have the instructions that the module names; the operands must have that many steps, the place room for
/// the tile, and nobody else may use it meanwhile; the scales must be as many as rows and columns.
pub(super) type Tile = unsafe fn([*const u32; 2], usize, Fetch, Place, [*const f32; 2]);

/// The same loop for several instruction sets and kinds of words: `$load` reads `$lanes` words of a panel, `$repeat` one
/// word of a row into each lane, `$multiply_add` adds the products to the sums, and `$write` writes the sums, or adds them.
macro_rules! tiles {
    ($name:ident, $features:literal, $lanes:literal, [$($rows:literal)*], $zero:ident, $load:ident, $repeat:ident,
     $multiply_add:ident, $write:ident) => {
        pub(super) mod $name {
            use super::*;

            /// For 1, 2, ... rows.
            pub(in super::super) const TILES: &[Tile] = &[$(tile::<$rows>),*];

            /// # Safety
            /// As for [`Tile`].
            #[target_feature(enable = $features)]
            unsafe fn tile<const ROWS: usize>(
                [mut left, mut right]: [*const u32; 2],
                steps: usize,
                mut fetch: Fetch,
                place: Place,
                [row_scales, column_scales]: [*const f32; 2],
            ) {
                const LANES: usize = $lanes;
                let to = |row: usize, column: usize| {
                    place.start.wrapping_add(row * place.stride + column)
                };
                for row in 0..ROWS {
                    for column in (0..2 * LANES).step_by(16) {
                        _mm_prefetch::<_MM_HINT_T0>(to(row, column).cast());
                    }
                }
                let mut sums = [[$zero(); 2]; ROWS];
                for _ in 0..steps {
                    // SAFETY: both operands have this step; what is fetched ahead need not exist.
                    unsafe {
                        let columns = [$load(right), $load(right.add(LANES))];
                        for half in (0..2 * LANES).step_by(16) {
                            _mm_prefetch::<_MM_HINT_T0>(fetch.start.wrapping_add(half).cast());
                        }
                        fetch.start = fetch.start.wrapping_add(fetch.pace);
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let repeated = $repeat(left.add(row));
                            sums[0] = $multiply_add(sums[0], repeated, columns[0]);
                            sums[1] = $multiply_add(sums[1], repeated, columns[1]);
                        }
                        left = left.add(ROWS);
                        right = right.add(2 * LANES);
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    for (half, sums) in sums.into_iter().enumerate() {
                        // SAFETY: the place has room for the tile, and there are scales for all of it.
                        unsafe {
                            let scales = [row_scales.add(row), column_scales.add(half * LANES)];
                            $write(to(row, half * LANES), sums, scales, place.add);
                        }
                    }
                }
            }
        }
    };
}

tiles!(f32_avx512, "avx512f", 16, [1 2 3 4 5 6 7 8 9 10 11 12], _mm512_setzero_ps, load_512, repeat_512, multiply_add_512, write_512);
tiles!(f32_avx2, "avx2,fma", 8, [1 2 3 4 5 6], _mm256_setzero_ps, load_256, repeat_256, multiply_add_256, write_256);
tiles!(bf16_avx512, "avx512f,avx512bf16", 16, [1 2 3 4 5 6 7 8 9 10 11 12], _mm512_setzero_ps, load_words, repeat_words,
    multiply_add_pairs, write_512);
tiles!(int8_avx512, "avx512f,avx512vnni", 16, [1 2 3 4 5 6 7 8 9 10 11 12], _mm512_setzero_si512, load_words, repeat_words,
    _mm512_dpbusd_epi32, write_scaled);

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_512(from: *const u32) -> __m512 {
    // SAFETY: the caller has these words.
    unsafe { _mm512_loadu_ps(from.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn repeat_512(from: *const u32) -> __m512 {
    // SAFETY: the caller has this word.
    unsafe { _mm512_set1_ps(*from.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn multiply_add_512(sums: __m512, left: __m512, right: __m512) -> __m512 {
    _mm512_fmadd_ps(left, right, sums)
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write_512(to: *mut f32, sums: __m512, [row, _]: [*const f32; 2], add: bool) {
    // SAFETY: the caller has room for a register, and a scale for the row.
    unsafe {
        let scale = _mm512_set1_ps(*row);
        let sums = match add {
            true => _mm512_fmadd_ps(sums, scale, _mm512_loadu_ps(to)),
            false => _mm512_mul_ps(sums, scale),
        };
        _mm512_storeu_ps(to, sums);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_256(from: *const u32) -> __m256 {
    // SAFETY: the caller has these words.
    unsafe { _mm256_loadu_ps(from.cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn repeat_256(from: *const u32) -> __m256 {
    // SAFETY: the caller has this word.
    unsafe { _mm256_set1_ps(*from.cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_256(sums: __m256, left: __m256, right: __m256) -> __m256 {
    _mm256_fmadd_ps(left, right, sums)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn write_256(to: *mut f32, sums: __m256, [row, _]: [*const f32; 2], add: bool) {
    // SAFETY: the caller has room for a register, and a scale for the row.
    unsafe {
        let scale = _mm256_set1_ps(*row);
        let sums = match add {
            true => _mm256_fmadd_ps(sums, scale, _mm256_loadu_ps(to)),
            false => _mm256_mul_ps(sums, scale),
        };
        _mm256_storeu_ps(to, sums);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_words(from: *const u32) -> __m512i {
    // SAFETY: the caller has these words.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn repeat_words(from: *const u32) -> __m512i {
    // SAFETY: the caller has this word.
    unsafe { _mm512_set1_epi32(*from.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_add_pairs(sums: __m512, left: __m512i, right: __m512i) -> __m512 {
    // SAFETY: both are 64 bytes for which every pattern is valid.
    let (left, right) = unsafe {
        (
            std::mem::transmute::<__m512i, __m512bh>(left),
            std::mem::transmute::<__m512i, __m512bh>(right),
        )
    };
    _mm512_dpbf16_ps(sums, left, right)
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write_scaled(to: *mut f32, sums: __m512i, [row, columns]: [*const f32; 2], add: bool) {
    // SAFETY: the caller has room for a register, a scale for the row and one for each column.
    unsafe {
        let scales = _mm512_mul_ps(_mm512_set1_ps(*row), _mm512_loadu_ps(columns));
        let sums = _mm512_cvtepi32_ps(sums);
        let sums = match add {
            true => _mm512_fmadd_ps(sums, scales, _mm512_loadu_ps(to)),
            false => _mm512_mul_ps(sums, scales),
        };
        _mm512_storeu_ps(to, sums);
    }
}
