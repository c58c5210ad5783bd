//! Sums, differences and multiples of tensors, for the places between the larger operations.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::Tensor;
use rayon::prelude::*;

use super::parallel::{CHUNK, for_overwrite};
use super::simd::simd_fn;
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// Returns `x · factor`.
pub fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return cuda::scale(x, factor);
    }
    if !storage::is_cpu_f32(x) {
        return Ok((x * factor)?);
    }
    let times = move |x: &Tensor| {
        storage::with(x, |x| {
            let mut out = for_overwrite(x.len());
            out.par_chunks_mut(CHUNK)
                .zip(x.par_chunks(CHUNK))
                .for_each(|(out, x)| {
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = x * factor as f32;
                    }
                });
            out
        })
    };
    let x = x.contiguous()?;
    tape::record("scale", &[&x], times(&x)?, x.shape(), move |_, _, grad| {
        Ok(vec![Some(storage::tensor(times(grad)?, grad.shape())?)])
    })
}

/// Returns `a + b`, of one shape.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(a, []) && crate::ops::cuda::takes(b, []) && a.shape() == b.shape() {
        return cuda::add(a, b);
    }
    if !storage::is_cpu_f32(a) || !storage::is_cpu_f32(b) || a.shape() != b.shape() {
        return Ok((a + b)?);
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let sum = sum(&a, &b)?;
    tape::record("add", &[&a, &b], sum, a.shape(), |args, _, grad| {
        let of = |arg: &Tensor| arg.track_op().then(|| grad.clone());
        Ok(vec![of(args[0]), of(args[1])])
    })
}

/// Returns `a - b`, of one shape.
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    add(a, &scale(b, -1.0)?)
}

/// Returns the elements of `a + b`, both on the CPU, contiguous and of one shape.
fn sum(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    storage::with2(a, b, |a, b| {
        let mut sum = for_overwrite(a.len());
        sum.par_chunks_mut(CHUNK)
            .zip(a.par_chunks(CHUNK))
            .zip(b.par_chunks(CHUNK))
            .for_each(|((sum, a), b)| add_into(sum, a, b));
        sum
    })
}

simd_fn! {
    fn add_into(sum: &mut [f32], a: &[f32], b: &[f32]) {
        for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
            *sum = a + b;
        }
    }
}
