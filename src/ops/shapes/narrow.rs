//! A part of a tensor along one dimension.

use candle_core::Tensor;
use candle_core::shape::Dim;
use rayon::prelude::*;

use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::naive;
use crate::ops::parallel::{for_overwrite, rows_per_task};

/// Returns `len` positions of `x` from `start` on along dimension `dim`. A part that is contiguous is not copied.
pub fn narrow(x: &Tensor, dim: impl Dim, start: usize, len: usize) -> Result<Tensor> {
    let dim = dim.to_index(x.shape(), "narrow")?;
    if x.elem_count() == 0 || len == 0 {
        return storage::empty(x, x.narrow(dim, start, len)?.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return super::cuda::narrow(x, dim, start, len);
    }
    if !storage::is_cpu_f32(x) {
        return naive::narrow(x, dim, start, len);
    }
    let x = x.contiguous()?;
    let part = x.narrow(dim, start, len)?;
    let before = x.shape().clone();
    let piece = Piece::new(x.dims(), dim, start, len);
    let widened = move |grad: &Tensor| -> Result<Tensor> {
        let mut dx = vec![0f32; before.elem_count()];
        storage::with(grad, |grad| piece.put(grad, &mut dx))?;
        storage::tensor(dx, &before)
    };
    if part.is_contiguous() {
        return tape::view("narrow", &x, part, widened);
    }
    let y = storage::with(&x, |x| piece.take(x))?;
    tape::record("narrow", &[&x], y, part.shape(), move |_, _, grad| {
        Ok(vec![Some(widened(grad)?)])
    })
}

/// The same `len` elements from `start` on in each row of `row` elements.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Piece {
    pub row: usize,
    pub start: usize,
    pub len: usize,
}

impl Piece {
    /// Returns `len` positions from `start` on along dimension `dim` of a tensor with these dimensions.
    pub(in crate::ops) fn new(dims: &[usize], dim: usize, start: usize, len: usize) -> Self {
        let inner: usize = dims[dim + 1..].iter().product();
        Self {
            row: dims[dim] * inner,
            start: start * inner,
            len: len * inner,
        }
    }

    /// Returns the pieces of all rows of `x`, one after the other.
    pub(in crate::ops) fn take(self, x: &[f32]) -> Vec<f32> {
        if self.len == 0 {
            return Vec::new();
        }
        let mut out = for_overwrite(x.len() / self.row * self.len);
        out.par_chunks_mut(self.len)
            .zip(x.par_chunks(self.row))
            .with_min_len(rows_per_task(self.len))
            .for_each(|(out, x)| out.copy_from_slice(&x[self.start..][..self.len]));
        out
    }

    /// Writes what [`Piece::take`] returns to where it was taken from.
    pub(in crate::ops) fn put(self, pieces: &[f32], x: &mut [f32]) {
        if self.len == 0 {
            return;
        }
        x.par_chunks_mut(self.row)
            .zip(pieces.par_chunks(self.len))
            .with_min_len(rows_per_task(self.len))
            .for_each(|(x, piece)| x[self.start..][..self.len].copy_from_slice(piece));
    }
}
