//! Means over stretches of a sequence.

use candle_core::Tensor;
use rayon::prelude::*;

use super::naive;
use super::parallel::{add_rows, for_overwrite, rows_per_task};
use super::simd::simd_fn;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Returns the means over `count` equally long segments of dimension 1: (b, n, ...) becomes (b, count, ...). `n` must
/// be a multiple of `count`.
pub fn mean_segments(x: &Tensor, count: usize) -> Result<Tensor> {
    let n = x.dim(1)?;
    if count == 0 || n % count != 0 {
        return Err(Error::argument(
            "count",
            format!("{n} positions can't be cut into {count} equal segments"),
        ));
    }
    let len = n / count;
    let mut shape = x.dims().to_vec();
    shape[1] = count;
    if x.elem_count() == 0 {
        return storage::empty(x, shape);
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return crate::ops::cuda::composed("mean_segments", &[x], &[], move |args| {
            naive::mean_segments(&args[0], count)
        });
    }
    if !storage::is_cpu_f32(x) {
        return naive::mean_segments(x, count);
    }
    let x = x.contiguous()?;
    let width: usize = shape[2..].iter().product();
    let factor = 1.0 / len as f32;
    let y = storage::with(&x, |x| {
        let mut y = for_overwrite(x.len() / len);
        y.par_chunks_mut(width)
            .zip(x.par_chunks(len * width))
            .with_min_len(rows_per_task(len * width))
            .for_each(|(y, x)| {
                add_rows(y, x, true);
                y.iter_mut().for_each(|y| *y *= factor);
            });
        y
    })?;
    tape::record("mean_segments", &[&x], y, shape, move |args, _, grad| {
        let dx = storage::with(grad, |grad| {
            let mut dx = for_overwrite(args[0].elem_count());
            dx.par_chunks_mut(len * width)
                .zip(grad.par_chunks(width))
                .with_min_len(rows_per_task(len * width))
                .for_each(|(dx, grad)| {
                    let (first, others) = dx.split_at_mut(width);
                    multiple(first, grad, factor);
                    others
                        .chunks_mut(width)
                        .for_each(|row| row.copy_from_slice(first));
                });
            dx
        })?;
        Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
    })
}

simd_fn! {
    fn multiple(out: &mut [f32], x: &[f32], factor: f32) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * factor;
        }
    }
}
