//! The layout of heads and tiles of scores in memory.

use candle_core::{Layout, Tensor};

use crate::Result;
use crate::ops::gemm::Strides;
use crate::ops::graph::storage;

/// The layout of the heads' rows in a buffer: feature c of row i of head h of sequence b is element
/// `start + b · batch + i · row + h · head + c`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub start: usize,
    pub batch: usize,
    pub row: usize,
    pub head: usize,
}

impl View {
    /// Of a contiguous (batch, rows, heads · width) tensor.
    pub(super) fn contiguous(rows: usize, heads: usize, width: usize) -> Self {
        Self {
            start: 0,
            batch: rows * heads * width,
            row: heads * width,
            head: width,
        }
    }

    /// Of a (batch, rows, heads · width) tensor; `None` if the features of a row do not lie side by side.
    fn of(layout: &Layout, width: usize) -> Option<Self> {
        match layout.stride() {
            &[batch, row, column] if column == 1 || layout.dims()[2] == 1 => Some(Self {
                start: layout.start_offset(),
                batch,
                row,
                head: width,
            }),
            _ => None,
        }
    }

    /// Returns where a row of a head begins.
    pub(super) fn at(&self, batch: usize, head: usize, row: usize) -> usize {
        self.start + batch * self.batch + head * self.head + row * self.row
    }
}

/// The heads of a tensor for reading.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub data: &'a [f32],
    pub view: View,
}

impl Heads<'_> {
    /// Returns the rows of one head from `first` on.
    pub(super) fn rows(&self, batch: usize, head: usize, first: usize) -> Rows {
        Rows {
            start: self.data[self.view.at(batch, head, first)..].as_ptr(),
            stride: self.view.row,
        }
    }
}

/// Returns `x` itself if its rows can be read where they lie, or else a contiguous copy of it.
pub(super) fn readable(x: &Tensor) -> Result<Tensor> {
    let readable = View::of(x.layout(), 1).is_some();
    Ok(if readable { x.clone() } else { x.contiguous()? })
}

/// Gives `f` the heads of a tensor of which [`readable`] said that its rows can be read, each `width` wide.
pub(super) fn with_heads<T>(x: &Tensor, width: usize, f: impl FnOnce(Heads) -> T) -> Result<T> {
    storage::with_layout(x, |data, layout| {
        View::of(layout, width)
            .map(|view| f(Heads { data, view }))
            .ok_or(candle_core::Error::RequiresContiguous { op: "attention" })
    })?
    .map_err(Into::into)
}

/// The rows of one head.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub start: *const f32,
    pub stride: usize,
}

impl Rows {
    /// Returns the rows from `first` on.
    ///
    /// # Safety
    /// There must be that many.
    pub(super) unsafe fn skip(self, first: usize) -> Self {
        Self {
            // SAFETY: the caller's promise.
            start: unsafe { self.start.add(first * self.stride) },
            stride: self.stride,
        }
    }

    /// As an operand of a product.
    pub(super) fn operand(self) -> (*const f32, Strides) {
        (self.start, Strides::rows(self.stride))
    }

    /// Transposed, as an operand of a product.
    pub(super) fn transposed(self) -> (*const f32, Strides) {
        (self.start, Strides::rows(self.stride).t())
    }
}

/// The rows of one head for writing.
#[derive(Clone, Copy)]
pub(super) struct RowsMut {
    pub start: *mut f32,
    pub stride: usize,
}

impl RowsMut {
    /// Returns the rows from `first` on.
    ///
    /// # Safety
    /// There must be that many.
    pub(super) unsafe fn skip(self, first: usize) -> Self {
        Self {
            // SAFETY: the caller's promise.
            start: unsafe { self.start.add(first * self.stride) },
            stride: self.stride,
        }
    }

    /// Zeroes `count` rows of `width`.
    ///
    /// # Safety
    /// They must exist, and belong only to the caller.
    pub(super) unsafe fn zero(self, count: usize, width: usize) {
        for i in 0..count {
            // SAFETY: the caller's promise.
            unsafe { self.skip(i).start.write_bytes(0, width) };
        }
    }

    /// As the target of a product.
    pub(super) fn target(self) -> (*mut f32, Strides) {
        (self.start, Strides::rows(self.stride))
    }
}

/// A buffer whose rows tasks share, each writing other ones.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    start: *mut f32,
    view: View,
}

// SAFETY: whoever writes through it says why no two tasks touch the same element.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(data: &mut [f32], view: View) -> Self {
        Self {
            start: data.as_mut_ptr(),
            view,
        }
    }

    /// Returns the same buffer with the rows of `view`.
    pub(super) fn seen_as(self, view: View) -> Self {
        Self { view, ..self }
    }

    /// Returns the rows of one head from `first` on.
    ///
    /// # Safety
    /// They must lie inside the buffer.
    pub(super) unsafe fn rows(self, batch: usize, head: usize, first: usize) -> RowsMut {
        RowsMut {
            // SAFETY: the caller's promise.
            start: unsafe { self.start.add(self.view.at(batch, head, first)) },
            stride: self.view.row,
        }
    }
}

/// Room round a tile of scores, into which products along its diagonals spill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Margin {
    /// Before the first row and after every row.
    pub columns: usize,
    /// Before the first row and after the last.
    pub rows: usize,
}

/// A tile of scores, with its margin; its memory serves one tile after another.
#[derive(Default)]
pub(super) struct Tile {
    data: Vec<f32>,
    front: usize,
    rows: usize,
    width: usize,
    margin: Margin,
}

impl Tile {
    /// Allocates `rows` of `width` scores, uninitialised.
    pub(super) fn shape(&mut self, rows: usize, width: usize, margin: Margin) {
        (self.rows, self.width, self.margin) = (rows, width, margin);
        self.front = margin.rows * self.pitch() + margin.columns;
        let len = self.front + (rows + margin.rows) * self.pitch();
        if self.data.len() < len {
            self.data.resize(len, 0.0);
        }
    }

    /// From one row to the next.
    pub(super) fn pitch(&self) -> usize {
        self.width + self.margin.columns
    }

    /// Returns the first score.
    pub(super) fn start(&mut self) -> *mut f32 {
        self.at(0)
    }

    /// Returns the element `offset` after the first score, which must lie inside the margin.
    pub(super) fn at(&mut self, offset: isize) -> *mut f32 {
        let index = self.front.wrapping_add_signed(offset);
        assert!(index < self.data.len(), "a product leaves a tile's margin");
        // SAFETY: just checked.
        unsafe { self.data.as_mut_ptr().add(index) }
    }

    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        let start = self.front + row * self.pitch();
        &mut self.data[start..start + self.width]
    }

    /// Zeroes the margin.
    pub(super) fn clear_margin(&mut self) {
        if self.margin == Margin::default() {
            return;
        }
        let pitch = self.pitch();
        let (front, rest) = self.data.split_at_mut(self.front);
        let (rows, back) = rest.split_at_mut(self.rows * pitch);
        front.fill(0.0);
        for row in rows.chunks_exact_mut(pitch) {
            row[self.width..].fill(0.0);
        }
        back[..self.margin.rows * pitch].fill(0.0);
    }
}
