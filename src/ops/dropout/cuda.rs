//! Dropout.

use candle_core::Tensor;

use crate::Result;
use crate::ops::Dropout;
use crate::ops::cuda::{Fresh, Gpu, Grid, args, compute_dtype, pointer, prepared, suffix};
use crate::ops::graph::tape;

/// Like [`crate::ops::dropout`], for dropout that is active.
pub(in crate::ops) fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let x = prepared(x, compute_dtype(x))?;
    let y = apply(&gpu, &x, dropout)?;
    tape::record("dropout", &[&x], y.storage, x.shape(), move |_, _, grad| {
        Ok(vec![Some(apply(&gpu, grad, dropout)?.into_tensor())])
    })
}

/// Returns a contiguous `x` times the factors of its elements' indices.
fn apply(gpu: &Gpu, x: &Tensor, dropout: Dropout) -> Result<Fresh> {
    let n = x.elem_count();
    let y = gpu.for_overwrite(x.shape(), x.dtype())?;
    if n > 0 {
        let kernel = format!("dropout_{}", suffix(x.dtype()));
        let arguments = args![y.ptr(), pointer(x)?, n as u64, dropout.p, dropout.key];
        // SAFETY: both are n elements of that dtype.
        unsafe { gpu.launch("dropout", &kernel, Grid::elements(n), arguments)? };
    }
    Ok(y)
}
