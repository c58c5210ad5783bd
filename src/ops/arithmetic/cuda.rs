//! Sums, products and multiples.

use candle_core::backend::BackendStorage;
use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::cuda::{
    Fresh, Gpu, Grid, args, column_grid, compute_dtype, on_storage, pointer, prepared, size, suffix,
};
use crate::ops::graph::tape;

/// Like [`crate::ops::scale`].
pub(in crate::ops) fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    let result = times(&x, factor)?;
    tape::record(
        "scale",
        &[&x],
        result.storage,
        x.shape(),
        move |_, _, grad| Ok(vec![Some(times(grad, factor)?.into_tensor())]),
    )
}

/// Returns a contiguous `x` times `factor`.
fn times(x: &Tensor, factor: f64) -> Result<Fresh> {
    let gpu = Gpu::of(x.device())?;
    let (n, dtype) = (x.elem_count(), x.dtype());
    let y = gpu.for_overwrite(x.shape(), dtype)?;
    if n > 0 {
        let kernel = format!("scale_{}", suffix(dtype));
        let arguments = args![y.ptr(), pointer(x)?, n as u64, factor as f32];
        // SAFETY: both are n elements of that dtype.
        unsafe { gpu.launch("arithmetic", &kernel, Grid::elements(n), arguments)? };
    }
    Ok(y)
}

/// Like [`crate::ops::add`], for two of one shape.
pub(in crate::ops) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = match a.dtype() == b.dtype() {
        true => a.dtype(),
        false => compute_dtype(a),
    };
    let (a, b) = (prepared(a, dtype)?, prepared(b, dtype)?);
    let result = combined("add", &a, &b)?;
    tape::record(
        "add",
        &[&a, &b],
        result.storage,
        a.shape(),
        |args, _, grad| {
            let of = |arg: &Tensor| arg.track_op().then(|| grad.clone());
            Ok(vec![of(args[0]), of(args[1])])
        },
    )
}

/// Returns the sum ("add") or product ("mul") of two contiguous tensors of one shape and dtype.
fn combined(operation: &str, a: &Tensor, b: &Tensor) -> Result<Fresh> {
    let gpu = Gpu::of(a.device())?;
    let (n, dtype) = (a.elem_count(), a.dtype());
    let y = gpu.for_overwrite(a.shape(), dtype)?;
    if n > 0 {
        let kernel = format!("{operation}_{}", suffix(dtype));
        let arguments = args![y.ptr(), pointer(a)?, pointer(b)?, n as u64];
        // SAFETY: all three are n elements of that dtype.
        unsafe { gpu.launch("arithmetic", &kernel, Grid::elements(n), arguments)? };
    }
    Ok(y)
}

/// Like [`crate::ops::mul`], for two of one shape.
pub(in crate::ops) fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = compute_dtype(a);
    let (a, b) = (prepared(a, dtype)?, prepared(b, dtype)?);
    let result = combined("mul", &a, &b)?;
    tape::record(
        "mul",
        &[&a, &b],
        result.storage,
        a.shape(),
        |args, _, grad| {
            let with = |of: usize, other: usize| -> Result<Option<Tensor>> {
                match args[of].track_op() {
                    true => Ok(Some(combined("mul", grad, args[other])?.into_tensor())),
                    false => Ok(None),
                }
            };
            Ok(vec![with(0, 1)?, with(1, 0)?])
        },
    )
}

/// Like [`crate::ops::add_broadcast()`], for shapes that fit.
pub(in crate::ops) fn add_broadcast(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let dtype = compute_dtype(x);
    let (x, y) = (prepared(x, dtype)?, prepared(y, dtype)?);
    let (n, period) = (x.elem_count(), y.elem_count());
    let sum = gpu.for_overwrite(x.shape(), dtype)?;
    let kernel = format!("add_repeated_{}", suffix(dtype));
    let arguments = args![
        sum.ptr(),
        pointer(&x)?,
        pointer(&y)?,
        n as u64,
        period as u64
    ];
    // SAFETY: sum and x are n elements of that dtype, y `period`, of which n is a multiple.
    unsafe { gpu.launch("arithmetic", &kernel, Grid::elements(n), arguments)? };
    tape::record(
        "add_broadcast",
        &[&x, &y],
        sum.storage,
        x.shape(),
        move |args, _, grad| {
            let dy = match args[1].track_op() {
                true => {
                    let dy = column_sums(&gpu, grad, (n / period, period))?.into_tensor();
                    let dy = on_storage(&dy, |storage, layout| storage.to_dtype(layout, dtype))?;
                    Some(Fresh::new(dy, args[1].shape()).into_tensor())
                }
                false => None,
            };
            Ok(vec![args[0].track_op().then(|| grad.clone()), dy])
        },
    )
}

/// Returns the sums of the columns of a contiguous (rows, width), in f32.
fn column_sums(gpu: &Gpu, x: &Tensor, (rows, width): (usize, usize)) -> Result<Fresh> {
    let grid = column_grid((rows, width), x.dtype(), 64, 64)?;
    let parts = grid.blocks.1;
    let partials = gpu.for_overwrite((parts as usize, width), DType::F32)?;
    let kernel = format!("column_sums_{}", suffix(x.dtype()));
    let columns = size(width)?;
    let arguments = args![partials.ptr(), pointer(x)?, size(rows)?, columns, columns];
    // SAFETY: x is (rows, width) of its dtype, and there is a row of sums for each row of blocks.
    unsafe { gpu.launch("activation", &kernel, grid, arguments)? };
    let sums = gpu.for_overwrite(width, DType::F32)?;
    let grid = Grid::new((columns.div_ceil(32), 1, 1), (32, 8, 1));
    let arguments = args![
        sums.ptr(),
        0u64,
        partials.ptr(),
        parts,
        columns,
        columns,
        0u32,
        0u32
    ];
    // SAFETY: the partials are parts · width floats, the sums `width`.
    unsafe { gpu.launch("reduce", "reduce_parts", grid, arguments)? };
    Ok(sums)
}

/// Like [`crate::ops::mul_rows`], for rows of `width` and as many factors.
pub(in crate::ops) fn mul_rows(x: &Tensor, factors: &Tensor, width: usize) -> Result<Tensor> {
    let dtype = compute_dtype(x);
    let x = prepared(x, dtype)?;
    let factors = factors.detach().to_device(x.device())?;
    let factors = factors.to_dtype(DType::F32)?.contiguous()?;
    let scaled = move |x: &Tensor| -> Result<Fresh> {
        let gpu = Gpu::of(x.device())?;
        let n = x.elem_count();
        let y = gpu.for_overwrite(x.shape(), dtype)?;
        if n > 0 {
            let kernel = format!("mul_rows_{}", suffix(dtype));
            let arguments = args![
                y.ptr(),
                pointer(x)?,
                pointer(&factors)?,
                n as u64,
                width as u64
            ];
            // SAFETY: y and x are n elements of that dtype, and there is a float for each `width` of them.
            unsafe { gpu.launch("arithmetic", &kernel, Grid::elements(n), arguments)? };
        }
        Ok(y)
    };
    let y = scaled(&x)?;
    tape::record(
        "mul_rows",
        &[&x],
        y.storage,
        x.shape(),
        move |_, _, grad| Ok(vec![Some(scaled(grad)?.into_tensor())]),
    )
}
