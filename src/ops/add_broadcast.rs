//! Sums with a tensor that is the same for all of a batch.

use candle_core::Tensor;
use rayon::prelude::*;

use super::naive;
use super::parallel::{CHUNK, add_rows, column_sums, for_overwrite};
use super::simd::simd_fn;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Returns `x + y`, where the shape of `y` is the end of that of `x`: position vectors (n, h) for all of a batch (b, n,
/// h), a bias for all rows.
pub fn add_broadcast(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !x.dims().ends_with(y.dims()) {
        return Err(Error::argument(
            "y",
            format!("shape {:?} is not the end of {:?}", y.dims(), x.dims()),
        ));
    }
    if x.shape() == y.shape() {
        return super::add(x, y);
    }
    if x.elem_count() == 0 {
        return storage::empty(x, x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) && crate::ops::cuda::takes(y, []) {
        return crate::ops::arithmetic::cuda::add_broadcast(x, y);
    }
    if !storage::is_cpu_f32(x) || !storage::is_cpu_f32(y) {
        return naive::add_broadcast(x, y);
    }
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    let width = y.elem_count();
    let sum = storage::with2(&x, &y, |x, y| {
        // Pieces that lie within one repetition of y.
        let piece = width.min(CHUNK);
        let mut sum = for_overwrite(x.len());
        sum.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .with_min_len((CHUNK / width).max(1))
            .for_each(|(sum, x)| {
                sum.par_chunks_mut(piece)
                    .zip(x.par_chunks(piece))
                    .zip(y.par_chunks(piece))
                    .for_each(|((sum, x), y)| add(sum, x, y));
            });
        sum
    })?;
    tape::record(
        "add_broadcast",
        &[&x, &y],
        sum,
        x.shape(),
        move |args, _, grad| {
            let dy = match args[1].track_op() {
                true => {
                    let mut dy = for_overwrite(width);
                    storage::with(grad, |grad| sum_repetitions(grad, &mut dy))?;
                    Some(storage::tensor(dy, args[1].shape())?)
                }
                false => None,
            };
            Ok(vec![args[0].track_op().then(|| grad.clone()), dy])
        },
    )
}

/// Adds up the repetitions of `sums`'s length that `data` consists of.
fn sum_repetitions(data: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    if width < CHUNK {
        return column_sums(data, width, sums, true);
    }
    sums.par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(i, sums)| {
            sums.fill(0.0);
            for repetition in data.chunks_exact(width) {
                let from = &repetition[i * CHUNK..][..sums.len()];
                add_rows(sums, from, false);
            }
        });
}

simd_fn! {
    fn add(sum: &mut [f32], x: &[f32], y: &[f32]) {
        for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
            *sum = x + y;
        }
    }
}
