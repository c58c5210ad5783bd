//! Normalization by the root of the mean square.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::Param;
use crate::ops::cuda::{
    Gpu, Grid, args, compute_dtype, pointer, prepared, reduce_parts, size, suffix,
};
use crate::ops::graph::tape;

/// Like [`crate::ops::rms_norm()`], for arguments whose shapes have been checked.
pub(in crate::ops) fn rms_norm(x: &Tensor, weight: &Param, eps: f64) -> Result<Tensor> {
    let dtype = compute_dtype(x);
    let gpu = Gpu::of(x.device())?;
    let x = prepared(x, dtype)?;
    let width = size(weight.elem_count())?;
    let rows = size(x.elem_count() / weight.elem_count())?;
    let y = gpu.for_overwrite(x.shape(), dtype)?;
    let factors = gpu.for_overwrite(rows as usize, DType::F32)?;
    let w = weight.value();
    let (given, scale) = (pointer(&x)?, pointer(&w)?);
    let arguments = args![
        y.ptr(),
        factors.ptr(),
        given,
        scale,
        rows,
        width,
        eps as f32
    ];
    let kernel = format!("rms_norm_forward_{}", suffix(dtype));
    // SAFETY: x and y are (rows, width) of that dtype, the weight `width` floats, the factors `rows`.
    unsafe {
        gpu.launch(
            "rms_norm",
            &kernel,
            Grid::rows(rows, width, 8, 0),
            arguments,
        )?
    };
    let anchor = tape::anchor(weight, None);
    let weight = weight.clone();
    let wants_weight = weight.tensor().track_op();
    let args = [&x, &anchor];
    tape::record(
        "rms_norm",
        &args,
        y.storage,
        x.shape(),
        move |args, _, dy| {
            let x = args[0];
            let grid = backward_grid(rows, width);
            let parts = grid.blocks.0;
            let partials = gpu.for_overwrite((parts as usize, width as usize), DType::F32)?;
            let dx = gpu.for_overwrite(x.shape(), dtype)?;
            let w = weight.value();
            let (given, grad, scale) = (pointer(x)?, pointer(dy)?, pointer(&w)?);
            let arguments = args![
                dx.ptr(),
                partials.ptr(),
                grad,
                given,
                scale,
                factors.ptr(),
                rows,
                width
            ];
            let kernel = format!("rms_norm_backward_{}", suffix(dtype));
            // SAFETY: as forward; there is a row of sums per block.
            unsafe { gpu.launch("rms_norm", &kernel, grid, arguments)? };
            if wants_weight {
                reduce_parts(&gpu, &partials, (parts, width), Some(&weight), None)?;
            }
            Ok(vec![Some(dx.into_tensor())])
        },
    )
}

/// Blocks that each process many rows, so that there are few partial sums.
fn backward_grid(rows: u32, width: u32) -> Grid {
    let grid = Grid::rows(rows, width, 8, 4);
    Grid {
        blocks: (grid.blocks.0.min(528), 1, 1),
        ..grid
    }
}
