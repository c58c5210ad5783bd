//! Gated feed-forward layers.

use candle_core::{D, Tensor};

use crate::Result;
use crate::ops::cuda::{Gpu, Grid, args, compute_dtype, pointer, prepared, size, suffix};
use crate::ops::graph::tape;
use crate::ops::linear::cuda::code;
use crate::ops::{Activation, Gate};

/// Like [`crate::ops::gated()`], for rows that have halves.
pub(in crate::ops) fn gated(x: &Tensor, activation: Activation, gate: Gate) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let n = x.elem_count() / 2;
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = half;
    let gpu = Gpu::of(x.device())?;
    let dtype = compute_dtype(x);
    let x = prepared(x, dtype)?;
    let second = u32::from(gate == Gate::Second);
    let y = gpu.for_overwrite(&shape[..], dtype)?;
    let (grid, columns) = (Grid::elements(n), size(half)?);
    let arguments = args![
        y.ptr(),
        pointer(&x)?,
        n as u64,
        columns,
        code(activation),
        second
    ];
    let kernel = format!("gated_forward_{}", suffix(dtype));
    // SAFETY: y is n elements of that dtype in rows of `half`, x twice as many.
    unsafe { gpu.launch("gated", &kernel, grid, arguments)? };
    tape::record("gated", &[&x], y.storage, shape, move |args, _, dy| {
        let dx = gpu.for_overwrite(args[0].shape(), dtype)?;
        let arguments = args![
            dx.ptr(),
            pointer(dy)?,
            pointer(args[0])?,
            n as u64,
            columns,
            code(activation),
            second
        ];
        let kernel = format!("gated_backward_{}", suffix(dtype));
        // SAFETY: as forward.
        unsafe { gpu.launch("gated", &kernel, grid, arguments)? };
        Ok(vec![Some(dx.into_tensor())])
    })
}
