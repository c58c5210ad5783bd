//! Products element by element, and of rows with numbers.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::naive;
use super::parallel::{CHUNK, for_overwrite, rows_per_task};
use super::simd::simd_fn;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Returns `a · b` element by element, of one shape.
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(Error::argument(
            "b",
            format!("shape {:?}, but a has {:?}", b.dims(), a.dims()),
        ));
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(a, []) && crate::ops::cuda::takes(b, []) {
        return crate::ops::arithmetic::cuda::mul(a, b);
    }
    if !storage::is_cpu_f32(a) || !storage::is_cpu_f32(b) {
        return naive::mul(a, b);
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let y = product(&a, &b)?;
    tape::record("mul", &[&a, &b], y, a.shape(), |args, _, grad| {
        let with = |of: usize, other: usize| -> Result<Option<Tensor>> {
            match args[of].track_op() {
                true => storage::tensor(product(grad, args[other])?, grad.shape()).map(Some),
                false => Ok(None),
            }
        };
        Ok(vec![with(0, 1)?, with(1, 0)?])
    })
}

fn product(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    storage::with2(a, b, |a, b| {
        let mut out = for_overwrite(a.len());
        out.par_chunks_mut(CHUNK)
            .zip(a.par_chunks(CHUNK))
            .zip(b.par_chunks(CHUNK))
            .for_each(|((out, a), b)| multiply(out, a, b));
        out
    })
}

simd_fn! {
    fn multiply(out: &mut [f32], a: &[f32], b: &[f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a * b;
        }
    }
}

/// Multiplies each row of `x` (..., width) by its number in `factors` (f32, as many as there are rows, in any shape), which
/// is a constant: no gradient reaches it. Masks and normalizers that the host computes.
pub fn mul_rows(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let rows: usize = x.dims()[..x.rank() - 1].iter().product();
    if factors.elem_count() != rows {
        return Err(Error::argument(
            "factors",
            format!(
                "shape {:?}, but x of shape {:?} has {rows} rows",
                factors.dims(),
                x.dims()
            ),
        ));
    }
    if x.elem_count() == 0 {
        return storage::empty(x, x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return crate::ops::arithmetic::cuda::mul_rows(x, factors, width);
    }
    if !storage::is_cpu_f32(x) {
        return naive::mul_rows(x, factors);
    }
    let x = x.contiguous()?;
    let factors = factors.to_dtype(DType::F32)?.flatten_all()?;
    let factors = factors.to_vec1::<f32>()?;
    let y = storage::with(&x, |x| scaled_rows(x, width, &factors))?;
    tape::record("mul_rows", &[&x], y, x.shape(), move |_, _, grad| {
        let dx = storage::with(grad, |grad| scaled_rows(grad, width, &factors))?;
        Ok(vec![Some(storage::tensor(dx, grad.shape())?)])
    })
}

fn scaled_rows(x: &[f32], width: usize, factors: &[f32]) -> Vec<f32> {
    let mut out = for_overwrite(x.len());
    if width == 0 {
        return out;
    }
    out.par_chunks_mut(width)
        .zip(x.par_chunks(width))
        .zip(factors)
        .with_min_len(rows_per_task(width))
        .for_each(|((out, x), &factor)| scale_row(out, x, factor));
    out
}

simd_fn! {
    fn scale_row(out: &mut [f32], x: &[f32], factor: f32) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * factor;
        }
    }
}
