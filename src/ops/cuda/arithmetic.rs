//! Sums and multiples.

use candle_core::Tensor;

use super::{Fresh, Gpu, Grid, args, pointer, suffix};
use crate::Result;
use crate::ops::tape;

/// As [`super::super::scale`].
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

/// A contiguous `x` times `factor`.
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

/// As [`super::super::add`], for two of one shape and dtype.
pub(in crate::ops) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let result = plus(&a, &b)?;
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

/// The sum of two contiguous tensors of one shape and dtype.
fn plus(a: &Tensor, b: &Tensor) -> Result<Fresh> {
    let gpu = Gpu::of(a.device())?;
    let (n, dtype) = (a.elem_count(), a.dtype());
    let y = gpu.for_overwrite(a.shape(), dtype)?;
    if n > 0 {
        let kernel = format!("add_{}", suffix(dtype));
        let arguments = args![y.ptr(), pointer(a)?, pointer(b)?, n as u64];
        // SAFETY: all three are n elements of that dtype.
        unsafe { gpu.launch("arithmetic", &kernel, Grid::elements(n), arguments)? };
    }
    Ok(y)
}
