//! Products along the diagonals of a tile of scores: those of terms that depend on the distance between query and key.
//!
//! A table has a row for every distance, in the order in which a query meets them from key to key (or a key from query to
//! query). The products of a few rows with the table's rows that any of them meets are a narrow band, each row of which
//! starts one further on than the one before. As a matrix whose rows are one more element apart than the tile's it lies in
//! the tile just so that every product is where its score is: an ordinary product forms it, with nothing to gather. What it
//! has too much at its corners falls into the tile's margin.

use gemm::Parallelism;

use super::layout::{Margin, Rows, RowsMut, Tile};
use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::{Strides, matmul_raw};

/// How many rows share a band: the fewer, the less falls into the margin, and the smaller are the products.
const STRIP: usize = 32;

/// The position of a tile among all queries and keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub first_query: usize,
    pub queries: usize,
    pub first_key: usize,
    pub keys: usize,
}

/// All queries and keys of a sequence, and how many keys the distance moves by from one query to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub queries: usize,
    pub keys: usize,
    pub ratio: usize,
}

impl Grid {
    /// Returns the number of distances.
    pub(super) fn distances(&self) -> usize {
        self.ratio * (self.queries - 1) + self.keys
    }

    /// Returns the row of a table by query for a query and a key.
    pub(super) fn by_query(&self, query: usize, key: usize) -> usize {
        key + self.ratio * (self.queries - 1 - query)
    }

    /// Returns the row of a table by key for a query and a key; the ratio is 1.
    pub(super) fn by_key(&self, query: usize, key: usize) -> usize {
        query + self.keys - 1 - key
    }

    /// Returns the margin that a tile needs for bands by query, and also by key if `by_key`.
    pub(super) fn margin(&self, by_key: bool) -> Margin {
        Margin {
            columns: self.ratio * (STRIP - 1),
            rows: if by_key { STRIP - 1 } else { 0 },
        }
    }
}

/// Whose rows meet the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Query,
    Key,
}

/// Some rows of a tile, or of its transpose, and the band that they make with the table.
#[derive(Clone, Copy)]
struct Strip {
    /// The first row, counted in the tile.
    at: usize,
    rows: usize,
    /// The band's first element, from the tile's.
    offset: isize,
    /// Of the band as a (rows, count) matrix.
    strides: Strides,
    /// The table's first row.
    table: usize,
    count: usize,
}

fn strips(by: By, grid: Grid, place: Place, pitch: usize) -> impl Iterator<Item = Strip> {
    let all = match by {
        By::Query => place.queries,
        By::Key => place.keys,
    };
    (0..all).step_by(STRIP).map(move |at| {
        let rows = STRIP.min(all - at);
        let last = at + rows - 1;
        match by {
            By::Query => {
                let spill = grid.ratio * (rows - 1);
                Strip {
                    at,
                    rows,
                    offset: (at * pitch) as isize - spill as isize,
                    strides: Strides {
                        rows: pitch + grid.ratio,
                        cols: 1,
                    },
                    table: grid.by_query(place.first_query + last, place.first_key),
                    count: place.keys + spill,
                }
            }
            By::Key => Strip {
                at,
                rows,
                offset: at as isize - ((rows - 1) * pitch) as isize,
                strides: Strides {
                    rows: pitch + 1,
                    cols: pitch,
                },
                table: grid.by_key(place.first_query, place.first_key + last),
                count: place.queries + rows - 1,
            },
        }
    })
}

/// A table of one head: a row of `width` features for every distance.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub by: By,
    pub rows: &'a [f32],
    pub width: usize,
}

impl Table<'_> {
    fn rows_from(&self, strip: &Strip) -> Rows {
        let needed = &self.rows[strip.table * self.width..(strip.table + strip.count) * self.width];
        Rows {
            start: needed.as_ptr(),
            stride: self.width,
        }
    }

    /// Adds `scale · x · tableᵀ` to the tile: the products of the rows `x` (a head's queries or keys in the tile) with
    /// the table's rows at their distances.
    ///
    /// # Safety
    /// There must be a row of `x` for each of the tile's, and the margin must be [`Grid::margin`]'s.
    pub(super) unsafe fn spread(
        &self,
        grid: Grid,
        place: Place,
        scale: f32,
        x: Rows,
        tile: &mut Tile,
    ) {
        for strip in strips(self.by, grid, place, tile.pitch()) {
            // SAFETY: the caller's promise; the table has the rows, and the margin takes what spills.
            unsafe {
                matmul_raw(
                    (strip.rows, self.width, strip.count),
                    Accumulate::Add,
                    scale,
                    (tile.at(strip.offset), strip.strides),
                    x.skip(strip.at).operand(),
                    self.rows_from(&strip).transposed(),
                    Parallelism::None,
                );
            }
        }
    }

    /// Adds `scale · tile · table` to the rows of `x`: the transpose of [`Table::spread`]. The tile's margin is zero.
    ///
    /// # Safety
    /// As above; nothing else touches those rows of `x`.
    pub(super) unsafe fn gather(
        &self,
        grid: Grid,
        place: Place,
        scale: f32,
        tile: &mut Tile,
        x: RowsMut,
    ) {
        for strip in strips(self.by, grid, place, tile.pitch()) {
            // SAFETY: as above.
            unsafe {
                matmul_raw(
                    (strip.rows, strip.count, self.width),
                    Accumulate::Add,
                    scale,
                    x.skip(strip.at).target(),
                    (tile.at(strip.offset).cast_const(), strip.strides),
                    self.rows_from(&strip).operand(),
                    Parallelism::None,
                );
            }
        }
    }

    /// Adds the contribution of the gradient in the tile to `grad`, which has the table's size. The tile's margin is
    /// zero.
    ///
    /// # Safety
    /// Like [`Table::spread`].
    pub(super) unsafe fn add_grad(
        &self,
        grid: Grid,
        place: Place,
        scale: f32,
        tile: &mut Tile,
        x: Rows,
        grad: &mut [f32],
    ) {
        for strip in strips(self.by, grid, place, tile.pitch()) {
            let start = strip.table * self.width;
            let grad = &mut grad[start..start + strip.count * self.width];
            // SAFETY: as above.
            unsafe {
                matmul_raw(
                    (strip.count, strip.rows, self.width),
                    Accumulate::Add,
                    scale,
                    (grad.as_mut_ptr(), Strides::rows(self.width)),
                    (tile.at(strip.offset).cast_const(), strip.strides.t()),
                    x.skip(strip.at).operand(),
                    Parallelism::None,
                );
            }
        }
    }
}
