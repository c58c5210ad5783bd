//! Dimensions in another order.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::naive;
use crate::ops::parallel::{for_overwrite, rows_per_task};
use crate::{Error, Result};

/// Returns `x` with its dimensions in the order `dims`, copied so that the result is contiguous: dimension `i` of the result
/// is dimension `dims[i]` of `x`.
pub fn permute(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let mut sorted = dims.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..x.rank()) {
        return Err(Error::argument(
            "dims",
            format!(
                "{dims:?} is not a permutation of the {} dimensions",
                x.rank()
            ),
        ));
    }
    if dims.is_sorted() {
        return Ok(x.contiguous()?);
    }
    if x.elem_count() == 0 {
        return storage::empty(x, x.permute(dims)?.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return super::cuda::permute(x, dims);
    }
    if !storage::is_cpu_f32(x) {
        return naive::permute(x, dims);
    }
    let x = x.contiguous()?;
    let mut back = vec![0; dims.len()];
    for (to, &from) in dims.iter().enumerate() {
        back[from] = to;
    }
    let shape: Vec<usize> = dims.iter().map(|&dim| x.dims()[dim]).collect();
    let y = permuted(&x, dims)?;
    tape::record("permute", &[&x], y, shape, move |args, _, grad| {
        let dx = permuted(grad, &back)?;
        Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
    })
}

/// Rows that are formed together where their elements lie apart in x: neighbours among them come from the same lines.
const TOGETHER: usize = 16;

/// Returns the elements of the contiguous `x` in the order in which they stand after `dims`.
pub(in crate::ops) fn permuted(x: &Tensor, dims: &[usize]) -> Result<Vec<f32>> {
    // (size, distance in x) of each dimension of the result.
    let all: Vec<(usize, usize)> = (dims.iter())
        .map(|&dim| (x.dims()[dim], x.stride()[dim]))
        .collect();
    let mut out = for_overwrite(x.elem_count());
    let Some((&(width, step), outer)) = all.split_last() else {
        return storage::with(x, <[f32]>::to_vec);
    };
    if out.is_empty() {
        return Ok(out);
    }
    let rows = rows_per_task(width).next_multiple_of(TOGETHER);
    storage::with(x, |x| {
        out.par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(task, out)| {
                let mut at = Odometer::new(outer, task * rows);
                let mut next = || {
                    let offset = at.offset;
                    at.advance();
                    offset
                };
                if step == 1 {
                    for row in out.chunks_mut(width) {
                        row.copy_from_slice(&x[next()..][..width]);
                    }
                    return;
                }
                for rows in out.chunks_mut(TOGETHER * width) {
                    let starts: Vec<usize> = (0..rows.len() / width).map(|_| next()).collect();
                    for column in 0..width {
                        for (row, start) in rows.chunks_exact_mut(width).zip(&starts) {
                            row[column] = x[start + column * step];
                        }
                    }
                }
            });
    })?;
    Ok(out)
}

/// The offsets in x of the result's rows, in order.
struct Odometer<'a> {
    dims: &'a [(usize, usize)],
    index: Vec<usize>,
    offset: usize,
}

impl<'a> Odometer<'a> {
    fn new(dims: &'a [(usize, usize)], mut row: usize) -> Self {
        let mut index = vec![0; dims.len()];
        let mut offset = 0;
        for (index, &(size, step)) in index.iter_mut().zip(dims).rev() {
            *index = row % size;
            offset += *index * step;
            row /= size;
        }
        Self {
            dims,
            index,
            offset,
        }
    }

    fn advance(&mut self) {
        for (index, &(size, step)) in self.index.iter_mut().zip(self.dims).rev() {
            *index += 1;
            self.offset += step;
            if *index < size {
                return;
            }
            self.offset -= size * step;
            *index = 0;
        }
    }
}
