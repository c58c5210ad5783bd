//! Layer normalization, with the residual connection and dropout before it.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::cuda::{
    Fresh, Gpu, Grid, args, compute_dtype, pointer, pointer_or_null, prepared, reduce_parts, size,
    suffix,
};
use crate::ops::graph::tape;
use crate::ops::{Dropout, Param};

/// Returns the normalized `residual + dropout(x)`, for arguments whose shapes have been checked.
pub(in crate::ops) fn layer_norm(
    x: &Tensor,
    residual: Option<&Tensor>,
    weight: &Param,
    bias: Option<&Param>,
    eps: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let dtype = compute_dtype(x);
    if x.elem_count() == 0 {
        return crate::ops::cuda::nothing(x.shape(), dtype, x.device());
    }
    let gpu = Gpu::of(x.device())?;
    let x = prepared(x, dtype)?;
    let residual = residual.map(|r| prepared(r, dtype)).transpose()?;
    let width = size(weight.elem_count())?;
    let rows = size(x.elem_count() / weight.elem_count())?;

    let y = gpu.for_overwrite(x.shape(), dtype)?;
    let statistics = gpu.for_overwrite((2, rows as usize), DType::F32)?;
    let (w, b) = (weight.value(), bias.map(Param::value));
    let arguments = args![
        y.ptr(),
        mean(&statistics),
        rstd(&statistics, rows),
        pointer(&x)?,
        pointer_or_null(residual.as_ref())?,
        pointer(&w)?,
        pointer_or_null(b.as_ref())?,
        rows,
        width,
        eps as f32,
        dropout.p,
        dropout.key,
    ];
    let kernel = format!("layer_norm_forward_{}", suffix(dtype));
    let grid = Grid::rows(rows, width, 8, 4);
    // SAFETY: x, residual and y are (rows, width) of that dtype, weight and bias `width` floats, the statistics 2 · rows.
    unsafe { gpu.launch("layer_norm", &kernel, grid, arguments)? };

    let anchor = tape::anchor(weight, bias);
    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let has_residual = residual.is_some();
    let mut args = vec![&x];
    args.extend(&residual);
    args.push(&anchor);
    tape::record(
        "layer_norm",
        &args,
        y.storage,
        x.shape(),
        move |args, _, dy| {
            let (x, residual) = (args[0], has_residual.then(|| args[1]));
            let grid = backward_grid(rows, width);
            let parts = grid.blocks.0;
            let partials = match wants_weight || wants_bias {
                true => Some(gpu.for_overwrite((parts as usize, 2 * width as usize), DType::F32)?),
                false => None,
            };
            let sum = gpu.for_overwrite(x.shape(), dtype)?;
            let dx = match dropout.is_active() {
                true => Some(gpu.for_overwrite(x.shape(), dtype)?),
                false => None,
            };
            let w = weight.value();
            let arguments = args![
                sum.ptr(),
                dx.as_ref().map_or(0, Fresh::ptr),
                partials.as_ref().map_or(0, Fresh::ptr),
                pointer(dy)?,
                pointer(x)?,
                pointer_or_null(residual)?,
                pointer(&w)?,
                mean(&statistics),
                rstd(&statistics, rows),
                rows,
                width,
                dropout.p,
                dropout.key,
            ];
            let kernel = format!("layer_norm_backward_{}", suffix(dtype));
            // SAFETY: as forward; the gradients have x's size, and there are two rows of sums per block.
            unsafe { gpu.launch("layer_norm", &kernel, grid, arguments)? };
            if let Some(partials) = &partials {
                let first = Some(&weight).filter(|_| wants_weight);
                let second = bias.as_ref().filter(|_| wants_bias);
                reduce_parts(&gpu, partials, (parts, width), first, Some(second))?;
            }
            let sum = sum.into_tensor();
            let dx = dx.map_or_else(|| sum.clone(), Fresh::into_tensor);
            Ok(vec![Some(dx), has_residual.then_some(sum)])
        },
    )
}

fn mean(statistics: &Fresh) -> u64 {
    statistics.ptr()
}

fn rstd(statistics: &Fresh, rows: u32) -> u64 {
    statistics.ptr() + u64::from(rows) * size_of::<f32>() as u64
}

/// Blocks that each process many rows, so that there are few partial sums.
fn backward_grid(rows: u32, width: u32) -> Grid {
    const MOST_BLOCKS: u32 = 528;
    let most = (49_152 / (16 * width)).clamp(1, 8);
    let grid = Grid::rows(rows, width, most, 16);
    Grid {
        blocks: (grid.blocks.0.min(MOST_BLOCKS), 1, 1),
        ..grid
    }
}
