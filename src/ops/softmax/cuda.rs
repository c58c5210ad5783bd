//! Softmax over rows, by the kernels that attention has for its scores.

use candle_core::Tensor;

use crate::Result;
use crate::ops::cuda::{Gpu, Grid, args, compute_dtype, pointer, prepared, size, suffix};
use crate::ops::graph::tape;

/// Like [`crate::ops::softmax()`], over rows of `width`.
pub(in crate::ops) fn softmax(x: &Tensor, width: usize) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let dtype = compute_dtype(x);
    let x = prepared(x, dtype)?;
    let (rows, keys) = (size(x.elem_count() / width)?, size(width)?);
    let y = gpu.for_overwrite(x.shape(), dtype)?;
    // Neither dropout, mask nor bias; one head and one query for each row.
    let arguments = args![
        y.ptr(),
        0u64,
        pointer(&x)?,
        0u64,
        0u64,
        rows,
        1u32,
        1u32,
        keys,
        0u64,
        0u64,
        0u64,
        0u64,
        1f32,
        0f32,
        0u64
    ];
    let kernel = format!("softmax_forward_{}", suffix(dtype));
    // SAFETY: both are (rows, keys) of that dtype.
    unsafe { gpu.launch("softmax", &kernel, Grid::rows(rows, keys, 8, 4), arguments)? };
    tape::record("softmax", &[&x], y.storage, x.shape(), move |_, y, grad| {
        let dx = gpu.for_overwrite(y.shape(), dtype)?;
        let (given, probs) = (pointer(grad)?, pointer(y)?);
        let arguments = args![
            dx.ptr(),
            0u64,
            given,
            probs,
            u64::from(rows),
            keys,
            0f32,
            0u64
        ];
        let kernel = format!("softmax_backward_{}", suffix(dtype));
        // SAFETY: all of them are (rows, keys) of that dtype.
        unsafe { gpu.launch("softmax", &kernel, Grid::rows(rows, keys, 4, 8), arguments)? };
        Ok(vec![Some(dx.into_tensor())])
    })
}
