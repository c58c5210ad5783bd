//! The sum of all elements.

use candle_core::Tensor;
use rayon::prelude::*;

use super::naive;
use super::parallel::CHUNK;
use super::simd::{self, simd_fn};
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// Returns the sum of all elements of `x`, a number (shape `[]`): of the losses of single texts, say.
pub fn sum_all(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(Tensor::zeros((), x.dtype(), x.device())?);
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return crate::ops::cuda::sum_all(x);
    }
    if !storage::is_cpu_f32(x) {
        return naive::sum_all(x);
    }
    let x = x.contiguous()?;
    // Pieces by themselves, then in order and in f64: the same with any number of threads.
    let total: f64 = storage::with(&x, |x| {
        let parts: Vec<f32> = x.par_chunks(CHUNK).map(piece).collect();
        parts.into_iter().map(f64::from).sum()
    })?;
    tape::record("sum_all", &[&x], vec![total as f32], (), |args, _, grad| {
        let grad = grad.to_scalar::<f32>()?;
        let dx = vec![grad; args[0].elem_count()];
        Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
    })
}

simd_fn! {
    fn piece(x: &[f32]) -> f32 {
        simd::sum(x, |x| x)
    }
}
