//! Attention with terms that depend on the distance between query and key.

use candle_core::Tensor;
use rayon::prelude::*;

use super::RelativeIndex;
use super::Sizes;
use super::layout::{Margin, Rows, RowsMut, Tile};
use super::rows::add;
use super::skew::{By, Grid, Place, Table};
use crate::ops::graph::storage;
use crate::{Error, Result};

/// The scores that [`relative_attention`](super::relative_attention) adds for the distance between a query and a key, all of it
/// optional and differentiable. A pair's row in every table is the same, [`RelativeIndex::get`].
///
/// ```
/// use cloze::ops::{RelativeIndex, RelativeTerms};
/// # let table = candle_core::Tensor::zeros((32, 12), candle_core::DType::F32, &candle_core::Device::Cpu)?;
/// // MPNet: a bias for each bucket and head.
/// let terms = RelativeTerms {
///     bias_table: Some(table),
///     ..RelativeTerms::new(RelativeIndex::t5_buckets(10, 10, 32, 128))
/// };
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RelativeTerms {
    /// Which row of the tables a pair has.
    pub index: RelativeIndex,
    /// Adds `scale · q · row` to the scores: (rows, heads · d), or (rows, d) for all heads alike.
    pub query_table: Option<Tensor>,
    /// Adds `scale · k · row` to the scores: (rows, heads · d), or (rows, d) for all heads alike. The index must not be a
    /// [`linear`](RelativeIndex::linear) one with unequal steps.
    pub key_table: Option<Tensor>,
    /// Adds the head's value in the row to the scores: (rows, heads), or (rows, 1) for all heads.
    pub bias_table: Option<Tensor>,
    /// Adds the row to the value that the query gets from the key, times the probability after dropout: (rows, heads · e),
    /// or (rows, e) for all heads alike.
    pub value_table: Option<Tensor>,
    /// The factor on the products with `query_table` and `key_table`; `None`: the same as for queries and keys.
    pub scale: Option<f64>,
    /// Leaves all terms in the scores out for the first query and for the first key (Funnel Transformer's
    /// `separate_cls`).
    pub skip_first: bool,
}

impl RelativeTerms {
    /// Returns terms without tables, which add nothing.
    pub fn new(index: RelativeIndex) -> Self {
        Self {
            index,
            query_table: None,
            key_table: None,
            bias_table: None,
            value_table: None,
            scale: None,
            skip_first: false,
        }
    }

    /// Returns the terms of a sequence of `len` positions, in place of those of the longer one that the index is made for.
    pub(super) fn of_sequence(&self, len: usize) -> Result<Self> {
        let grid = self.index.grid;
        if grid.ratio != 1 || grid.queries != grid.keys || len > grid.queries {
            return Err(Error::argument(
                "index",
                format!(
                    "packed sequences need an index with as many queries as keys, both in single steps, and at least as many as the longest has positions; it is made for {} queries and {} keys, and a sequence has {len} positions",
                    grid.queries, grid.keys
                ),
            ));
        }
        Ok(Self {
            index: self.index.first(len),
            ..self.clone()
        })
    }

    /// Returns what remains without tables.
    pub(super) fn without_tables(&self) -> Self {
        Self {
            scale: self.scale,
            skip_first: self.skip_first,
            ..Self::new(self.index.clone())
        }
    }

    /// Returns the same terms with these in place of the tables that are there, in the order of [`KINDS`].
    #[cfg(feature = "cuda")]
    pub(super) fn with_tables(&self, tables: &[Tensor]) -> Self {
        let mut tables = tables.iter().cloned();
        let mut next = |table: &Option<Tensor>| table.as_ref().and_then(|_| tables.next());
        Self {
            query_table: next(&self.query_table),
            key_table: next(&self.key_table),
            bias_table: next(&self.bias_table),
            value_table: next(&self.value_table),
            ..self.clone()
        }
    }

    /// Returns the tables that are there, in the order of [`KINDS`].
    pub(super) fn tables(&self) -> [Option<&Tensor>; 4] {
        [
            self.query_table.as_ref(),
            self.key_table.as_ref(),
            self.bias_table.as_ref(),
            self.value_table.as_ref(),
        ]
    }

    /// Checks that index and tables fit the sizes.
    pub(super) fn check(&self, sizes: &Sizes) -> Result<()> {
        let grid = self.index.grid;
        if (grid.queries, grid.keys) != (sizes.queries.max(1), sizes.keys.max(1)) {
            return Err(Error::argument(
                "index",
                format!(
                    "made for {} queries and {} keys, but there are {} and {}",
                    grid.queries, grid.keys, sizes.queries, sizes.keys
                ),
            ));
        }
        if self.key_table.is_some() && grid.ratio != 1 {
            return Err(Error::argument(
                "key_table",
                format!(
                    "a term by key needs queries and keys in equal steps, but queries are {} times as far apart",
                    grid.ratio
                ),
            ));
        }
        for (kind, table) in KINDS.into_iter().zip(self.tables()) {
            let Some(table) = table else { continue };
            let width = kind.width(sizes);
            let &[rows, columns] = table.dims() else {
                return Err(kind.misfit(table, sizes));
            };
            if columns != width && columns != width * sizes.heads {
                return Err(kind.misfit(table, sizes));
            }
            if self.index.highest() as usize >= rows {
                return Err(Error::argument(
                    kind.name(),
                    format!(
                        "has {rows} rows, but the index asks for row {}",
                        self.index.highest()
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The kinds of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Query,
    Key,
    Bias,
    Value,
}

const KINDS: [Kind; 4] = [Kind::Query, Kind::Key, Kind::Bias, Kind::Value];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Query => "query_table",
            Self::Key => "key_table",
            Self::Bias => "bias_table",
            Self::Value => "value_table",
        }
    }

    /// Of one head's row.
    pub(super) fn width(self, sizes: &Sizes) -> usize {
        match self {
            Self::Query | Self::Key => sizes.key,
            Self::Bias => 1,
            Self::Value => sizes.value,
        }
    }

    fn misfit(self, table: &Tensor, sizes: &Sizes) -> Error {
        let width = self.width(sizes);
        Error::argument(
            self.name(),
            format!(
                "shape {:?}, but rows of {width} or of {} features are needed",
                table.dims(),
                width * sizes.heads
            ),
        )
    }
}

/// A table with a row for every distance, in the order of `by`.
struct Expanded {
    /// (copies, distances, width)
    data: Vec<f32>,
    width: usize,
    /// As many as there are heads, or 1 for all alike.
    copies: usize,
    by: By,
}

impl Expanded {
    fn new(table: &Tensor, kind: Kind, index: &RelativeIndex, sizes: &Sizes) -> Result<Self> {
        let width = kind.width(sizes);
        let copies = table.dims()[1] / width.max(1);
        let by = match kind {
            Kind::Key => By::Key,
            _ => By::Query,
        };
        let distances = index.grid.distances();
        let mut data = vec![0f32; copies * distances * width];
        let per_row = copies * width;
        storage::with(&table.contiguous()?, |table| {
            let heads = data.par_chunks_mut((distances * width).max(1));
            heads.enumerate().for_each(|(copy, to)| {
                for (to, row) in to.chunks_exact_mut(width).zip(ordered(index, by)) {
                    let at = row as usize * per_row + copy * width;
                    to.copy_from_slice(&table[at..at + width]);
                }
            });
        })?;
        Ok(Self {
            data,
            width,
            copies,
            by,
        })
    }

    fn head(&self, head: usize) -> Table<'_> {
        let size = self.data.len() / self.copies;
        let copy = if self.copies == 1 { 0 } else { head };
        Table {
            by: self.by,
            rows: &self.data[copy * size..][..size],
            width: self.width,
        }
    }
}

/// Returns the index's rows in the order of `by`.
fn ordered(index: &RelativeIndex, by: By) -> impl Iterator<Item = u32> {
    let n = index.rows.len();
    (0..n).map(move |at| {
        index.rows[match by {
            By::Query => at,
            By::Key => n - 1 - at,
        }]
    })
}

/// [`RelativeTerms`] as the loops of the CPU read them.
pub(super) struct Terms {
    grid: Grid,
    query: Option<Expanded>,
    key: Option<Expanded>,
    bias: Option<Expanded>,
    value: Option<Expanded>,
    scale: f32,
    skip_first: bool,
}

impl Terms {
    /// From tables in the order of [`KINDS`], all f32 on the CPU.
    pub(super) fn new(
        terms: &RelativeTerms,
        tables: [Option<&Tensor>; 4],
        sizes: &Sizes,
        scale: f64,
    ) -> Result<Self> {
        let expanded = |i: usize| -> Result<Option<Expanded>> {
            let expand = |table| Expanded::new(table, KINDS[i], &terms.index, sizes);
            tables[i].map(expand).transpose()
        };
        Ok(Self {
            grid: terms.index.grid,
            query: expanded(0)?,
            key: expanded(1)?,
            bias: expanded(2)?,
            value: expanded(3)?,
            scale: terms.scale.unwrap_or(scale) as f32,
            skip_first: terms.skip_first,
        })
    }

    /// Returns what tiles of scores must have round them.
    pub(super) fn margin(&self) -> Margin {
        if self.query.is_none() && self.key.is_none() && self.value.is_none() {
            return Margin::default();
        }
        self.grid.margin(self.key.is_some())
    }

    /// Adds the terms to a tile of scores.
    ///
    /// # Safety
    /// The rows must be those of the place, and the tile have [`Terms::margin`].
    pub(super) unsafe fn add_scores(
        &self,
        head: usize,
        place: Place,
        (q, k): (Rows, Rows),
        tile: &mut Tile,
        memory: &mut Vec<f32>,
    ) {
        if self.skip_first {
            keep_first(place, tile, memory);
        }
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(table) = &self.query {
                table
                    .head(head)
                    .spread(self.grid, place, self.scale, q, tile);
            }
            if let Some(table) = &self.key {
                table
                    .head(head)
                    .spread(self.grid, place, self.scale, k, tile);
            }
        }
        if let Some(table) = &self.bias {
            let table = table.head(head).rows;
            for i in 0..place.queries {
                let at = self.grid.by_query(place.first_query + i, place.first_key);
                add(tile.row(i), &table[at..at + place.keys]);
            }
        }
        if self.skip_first {
            restore_first(place, tile, memory);
        }
    }

    /// Adds the value table's part of the results; changes the tile's margin.
    ///
    /// # Safety
    /// As for [`Terms::add_scores`]; nothing else touches the results.
    pub(super) unsafe fn add_values(
        &self,
        head: usize,
        place: Place,
        probs: &mut Tile,
        out: RowsMut,
    ) {
        if let Some(table) = &self.value {
            probs.clear_margin();
            // SAFETY: the caller's promise.
            unsafe { table.head(head).gather(self.grid, place, 1.0, probs, out) };
        }
    }

    /// Adds the value table's part of the gradient of the probabilities.
    ///
    /// # Safety
    /// Like [`Terms::add_scores`].
    pub(super) unsafe fn add_value_scores(
        &self,
        head: usize,
        place: Place,
        grad: Rows,
        grads: &mut Tile,
    ) {
        if let Some(table) = &self.value {
            // SAFETY: the caller's promise.
            unsafe { table.head(head).spread(self.grid, place, 1.0, grad, grads) };
        }
    }

    /// Adds to the value table's gradient.
    ///
    /// # Safety
    /// Like [`Terms::add_scores`]; no other task works on the part's head and chunk.
    pub(super) unsafe fn add_value_grads(
        &self,
        head: usize,
        chunk: usize,
        place: Place,
        probs: &mut Tile,
        grad: Rows,
        parts: &Parts,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(table) = &self.value
                && let Some(part) = parts.of(Kind::Value, head, chunk)
            {
                probs.clear_margin();
                let table = table.head(head);
                table.add_grad(self.grid, place, 1.0, probs, grad, part);
            }
        }
    }

    /// Adds the contributions of a tile with the gradient of the scores to the gradients of queries, keys and tables;
    /// zeroes the parts of the tile excluded by `skip_first`.
    ///
    /// # Safety
    /// As for [`Terms::add_scores`]; nothing else touches the gradients, and no other task works on the part's head and
    /// chunk.
    pub(super) unsafe fn add_score_grads(
        &self,
        (head, chunk): (usize, usize),
        place: Place,
        grads: &mut Tile,
        (q, k): (Rows, Rows),
        (dq, dk): (RowsMut, RowsMut),
        parts: &Parts,
    ) {
        if self.skip_first {
            zero_first(place, grads);
        }
        grads.clear_margin();
        let sides = [
            (&self.query, Kind::Query, q, dq),
            (&self.key, Kind::Key, k, dk),
        ];
        for (table, kind, x, dx) in sides {
            let Some(table) = table else { continue };
            let table = table.head(head);
            // SAFETY: the caller's promise.
            unsafe {
                table.gather(self.grid, place, self.scale, grads, dx);
                if let Some(part) = parts.of(kind, head, chunk) {
                    table.add_grad(self.grid, place, self.scale, grads, x, part);
                }
            }
        }
        // SAFETY: as above.
        if self.bias.is_some()
            && let Some(part) = unsafe { parts.of(Kind::Bias, head, chunk) }
        {
            for i in 0..place.queries {
                let at = self.grid.by_query(place.first_query + i, place.first_key);
                add(&mut part[at..at + place.keys], grads.row(i));
            }
        }
    }
}

/// Copies the scores of the first query and of the first key, where the tile has them.
fn keep_first(place: Place, tile: &mut Tile, memory: &mut Vec<f32>) {
    memory.clear();
    if place.first_key == 0 {
        memory.extend((0..place.queries).map(|i| tile.row(i)[0]));
    }
    if place.first_query == 0 {
        memory.extend_from_slice(tile.row(0));
    }
}

/// Puts back what [`keep_first`] has copied.
fn restore_first(place: Place, tile: &mut Tile, memory: &[f32]) {
    let mut row = memory;
    if place.first_key == 0 {
        let (column, rest) = memory.split_at(place.queries);
        for (i, &score) in column.iter().enumerate() {
            tile.row(i)[0] = score;
        }
        row = rest;
    }
    if place.first_query == 0 {
        tile.row(0).copy_from_slice(row);
    }
}

/// Zeroes the first query's row and the first key's column.
fn zero_first(place: Place, tile: &mut Tile) {
    if place.first_key == 0 {
        for i in 0..place.queries {
            tile.row(i)[0] = 0.0;
        }
    }
    if place.first_query == 0 {
        tile.row(0).fill(0.0);
    }
}

/// The gradients of expanded tables while they are formed: each head's in a few chunks of the batch.
pub(super) struct Parts {
    chunks: usize,
    heads: usize,
    /// In the order of [`KINDS`]; (heads, chunks, distances, width) each, `None` if not needed.
    of: [Option<Part>; 4],
}

struct Part {
    data: Vec<f32>,
    start: *mut f32,
    /// Of one chunk of one head.
    size: usize,
    width: usize,
}

// SAFETY: the pointer is into `data`, which moves along; whoever writes through it says why no two tasks meet.
unsafe impl Send for Part {}
unsafe impl Sync for Part {}

impl Parts {
    /// At most this many sequences' gradients are formed at once for one head.
    const CHUNKS: usize = 4;

    /// For the tables that need a gradient.
    pub(super) fn new(wanted: [bool; 4], index: &RelativeIndex, sizes: &Sizes) -> Self {
        let none_wanted = wanted == [false; 4];
        let chunks = if none_wanted {
            sizes.batch
        } else {
            Self::CHUNKS.min(sizes.batch)
        };
        let part = |i: usize| {
            wanted[i].then(|| {
                let width = KINDS[i].width(sizes);
                let size = index.grid.distances() * width;
                let mut data = vec![0f32; sizes.heads * chunks * size];
                let start = data.as_mut_ptr();
                Part {
                    data,
                    start,
                    size,
                    width,
                }
            })
        };
        Self {
            chunks,
            heads: sizes.heads,
            of: [part(0), part(1), part(2), part(3)],
        }
    }

    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Returns the part of a head and a chunk.
    ///
    /// # Safety
    /// Nothing else may work on it meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn of(&self, kind: Kind, head: usize, chunk: usize) -> Option<&mut [f32]> {
        let part = self.of[kind as usize].as_ref()?;
        assert!(head < self.heads && chunk < self.chunks);
        // SAFETY: it lies inside the data, which nobody else reads or writes there.
        Some(unsafe {
            let start = part.start.add((head * self.chunks + chunk) * part.size);
            std::slice::from_raw_parts_mut(start, part.size)
        })
    }

    /// Returns the gradients of the tables themselves: those of the distances that share a row added up, always in the
    /// same order.
    pub(super) fn collect(
        self,
        index: &RelativeIndex,
        tables: [Option<&Tensor>; 4],
    ) -> Result<[Option<Tensor>; 4]> {
        let mut grads = [None, None, None, None];
        for (i, (part, table)) in self.of.into_iter().zip(tables).enumerate() {
            if let (Some(part), Some(table)) = (part, table) {
                let by = match KINDS[i] {
                    Kind::Key => By::Key,
                    _ => By::Query,
                };
                grads[i] = Some(part.collect(self.chunks, index, by, table)?);
            }
        }
        Ok(grads)
    }
}

impl Part {
    fn collect(
        self,
        chunks: usize,
        index: &RelativeIndex,
        by: By,
        table: &Tensor,
    ) -> Result<Tensor> {
        let (rows, columns) = table.dims2()?;
        let width = self.width;
        // Each head's first, (heads, rows, width), in f64: a row may be that of thousands of distances.
        let per_head = self.data.par_chunks((chunks * self.size).max(1));
        let per_head = per_head.map(|parts| {
            let mut sums = vec![0f64; rows * width];
            for part in parts.chunks_exact(self.size) {
                for (grad, row) in part.chunks_exact(width).zip(ordered(index, by)) {
                    let sums = &mut sums[row as usize * width..][..width];
                    for (sum, &grad) in sums.iter_mut().zip(grad) {
                        *sum += f64::from(grad);
                    }
                }
            }
            sums
        });
        let per_head: Vec<Vec<f64>> = per_head.collect();
        let mut grad = vec![0f32; rows * columns];
        let shared = columns == width;
        for (row, grad) in grad.chunks_exact_mut(columns).enumerate() {
            let sums = per_head.iter().map(|sums| &sums[row * width..][..width]);
            match shared {
                true => {
                    for (i, grad) in grad.iter_mut().enumerate() {
                        *grad = sums.clone().map(|sums| sums[i]).sum::<f64>() as f32;
                    }
                }
                false => {
                    for (grad, sum) in grad.iter_mut().zip(sums.flatten()) {
                        *grad = *sum as f32;
                    }
                }
            }
        }
        storage::tensor(grad, table.shape())
    }
}
