//! Affine maps: a product by cuBLAS, then one pass for bias and activation.

use candle_core::{DType, Shape, Tensor};

use crate::Result;
use crate::ops::cuda::{
    Fresh, Gpu, args, column_grid, compute_dtype, lock, pointer, pointer_or_null, prepared, size,
    suffix,
};
use crate::ops::gemm::cublas::{Matrix, gemm};
use crate::ops::gemm::cublas_lt::{Epilogue, gemm_with};
use crate::ops::graph::tape;
use crate::ops::{Activation, Param};
use std::sync::Mutex;

/// Like [`crate::ops::linear_act`], for arguments whose shapes have been checked.
pub(in crate::ops) fn linear_act(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    activation: Activation,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let shape = shape.into();
    let dtype = compute_dtype(x);
    if shape.elem_count() == 0 {
        return crate::ops::cuda::nothing(shape, dtype, x.device());
    }
    let gpu = Gpu::of(x.device())?;
    let x = prepared(x, dtype)?;
    let anchor = tape::anchor(weight, bias);
    let args = [&x, &anchor];
    let plain = activation == Activation::Linear;
    let keep = tape::tracked(&args) && !plain;
    let (y, before) = forward(&gpu, &x, weight, bias, activation, keep)?;

    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let before = Mutex::new(before);
    tape::record("linear", &args, y.storage, shape, move |args, _, dy| {
        let x = args[0];
        let (out, width) = weight.shape().dims2()?;
        let rows = x.elem_count() / width;
        let wanted = bias.as_ref().filter(|_| wants_bias);
        if plain {
            let dx = products(&gpu, x, &weight, wants_weight, pointer(dy)?, wanted)?;
            return Ok(vec![dx]);
        }
        let taken = lock(&before).take();
        // Only a second backward pass over the same graph finds it gone.
        let before = match taken {
            Some(kept) => kept,
            None => forward(&gpu, x, &weight, None, Activation::Linear, false)?.0,
        };
        let bias_value = bias.as_ref().map(Param::value);
        activation_backward(
            &gpu,
            before.ptr(),
            (pointer(dy)?, before.ptr()),
            dtype,
            (rows, out),
            activation,
            (pointer_or_null(bias_value.as_ref())?, wanted),
        )?;
        let dx = products(&gpu, x, &weight, wants_weight, before.ptr(), None)?;
        Ok(vec![dx])
    })
}

/// Returns the result, and with `keep` the product that bias and activation were applied to.
fn forward(
    gpu: &Gpu,
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    activation: Activation,
    keep: bool,
) -> Result<(Fresh, Option<Fresh>)> {
    let dtype = x.dtype();
    let (out, width) = weight.shape().dims2()?;
    let rows = x.elem_count() / width;
    let w = weight.rounded(dtype)?;
    let product = gpu.for_overwrite((rows, out), dtype)?;
    let sizes = (rows, width, out);
    let y = Matrix::new(product.ptr(), dtype, out);
    let from = Matrix::new(pointer(x)?, dtype, width);
    let by = Matrix::new(pointer(&w)?, dtype, width).t();
    let plain = activation == Activation::Linear;
    if let Some(bias) = bias.filter(|_| plain) {
        let bias = bias.rounded(dtype)?;
        let epilogue = Epilogue::AddBias(pointer(&bias)?);
        // SAFETY: x is (rows, width), w (out, width), the product (rows, out), the bias (out); all are contiguous and of that
        // dtype.
        if unsafe { gemm_with(gpu, sizes, 0.0, y, from, by, epilogue)? } {
            return Ok((product, None));
        }
    }
    // SAFETY: as above.
    unsafe { gemm(gpu, sizes, (1.0, 0.0), y, from, by)? };
    if bias.is_none() && plain {
        return Ok((product, None));
    }
    let bias = bias.map(Param::value);
    let y = match keep {
        true => Some(gpu.for_overwrite((rows, out), dtype)?),
        false => None,
    };
    let target = y.as_ref().unwrap_or(&product).ptr();
    let kernel = format!("bias_act_forward_{}", suffix(dtype));
    let arguments = args![
        target,
        product.ptr(),
        pointer_or_null(bias.as_ref())?,
        size(rows)?,
        size(out)?,
        code(activation)
    ];
    // SAFETY: source and target (which may be one) are (rows, out) of that dtype, the bias `out` floats.
    unsafe {
        gpu.launch(
            "activation",
            &kernel,
            column_grid((rows, out), dtype, 32, 65_535)?,
            arguments,
        )?
    };
    Ok(match y {
        Some(y) => (y, Some(product)),
        None => (product, None),
    })
}

/// Writes the gradient before the activation to `dx`, (rows, width), of the same dtype as `dy` and `x` and possibly one
/// of them; with the bias's gradient if that is wanted.
pub(in crate::ops) fn activation_backward(
    gpu: &Gpu,
    dx: u64,
    (dy, x): (u64, u64),
    dtype: DType,
    (rows, width): (usize, usize),
    activation: Activation,
    (bias, wanted): (u64, Option<&Param>),
) -> Result<()> {
    // As many blocks as run at once, four on a multiprocessor: a few more would wait for all of these.
    let columns = column_grid((rows, width), dtype, 64, 1)?.blocks.0;
    let most = (4 * gpu.multiprocessors()? / columns).clamp(1, 64);
    let grid = column_grid((rows, width), dtype, 64, most)?;
    let (rows, width) = (size(rows)?, size(width)?);
    let parts = grid.blocks.1;
    let partials = match wanted {
        Some(_) => Some(gpu.for_overwrite((parts as usize, width as usize), DType::F32)?),
        None => None,
    };
    let kernel = format!("bias_act_backward_{}", suffix(dtype));
    let sums = partials.as_ref().map_or(0, Fresh::ptr);
    let arguments = args![dx, sums, dy, x, bias, rows, width, code(activation)];
    // SAFETY: dx, dy and x are (rows, width) of that dtype, the bias (if any) `width` floats, and there is a row of sums for
    // each row of blocks.
    unsafe { gpu.launch("activation", &kernel, grid, arguments)? };
    match partials {
        Some(partials) => {
            crate::ops::cuda::reduce_parts(gpu, &partials, (parts, width), wanted, None)
        }
        None => Ok(()),
    }
}

/// Returns the two products of the backward pass: the weight's gradient into its place, the input's returned. On the
/// way the gradient of `bias` goes into its place, the sum of the rows of `dy`.
fn products(
    gpu: &Gpu,
    x: &Tensor,
    weight: &Param,
    wants_weight: bool,
    dy: u64,
    bias: Option<&Param>,
) -> Result<Option<Tensor>> {
    let dtype = x.dtype();
    let (out, width) = weight.shape().dims2()?;
    let rows = x.elem_count() / width;
    let dy = Matrix::new(dy, dtype, out);
    let mut bias = bias;
    if wants_weight {
        let x = Matrix::new(pointer(x)?, dtype, width);
        let sizes = (out, rows, width);
        let sums = gpu.for_overwrite(out, DType::F32)?;
        let mut summed = false;
        weight.update_grad_tensor(|dw, fresh| {
            let dw = Matrix::new(pointer(dw)?, DType::F32, width);
            let beta = if fresh { 0.0 } else { 1.0 };
            // SAFETY: dw is (out, width) of f32, dy (rows, out) and x (rows, width) of the activations' dtype; the sums are
            // `out` floats.
            unsafe {
                let epilogue = Epilogue::SumRows(sums.ptr());
                summed = bias.is_some() && gemm_with(gpu, sizes, beta, dw, dy.t(), x, epilogue)?;
                match summed {
                    true => Ok(()),
                    false => gemm(gpu, sizes, (1.0, beta), dw, dy.t(), x),
                }
            }
        })?;
        if summed {
            crate::ops::cuda::reduce_parts(gpu, &sums, (1, size(out)?), bias.take(), None)?;
        }
    }
    if let Some(bias) = bias {
        crate::ops::cuda::bias_gradient(gpu, dy, (rows, out), bias)?;
    }
    if !x.track_op() {
        return Ok(None);
    }
    let dx = gpu.for_overwrite(x.shape(), dtype)?;
    let w = weight.rounded(dtype)?;
    // SAFETY: dx is (rows, width), dy (rows, out) and w (out, width), all of the activations' dtype.
    unsafe {
        gemm(
            gpu,
            (rows, out, width),
            (1.0, 0.0),
            Matrix::new(dx.ptr(), dtype, width),
            dy,
            Matrix::new(pointer(&w)?, dtype, width),
        )?;
    }
    Ok(Some(dx.into_tensor()))
}

/// Returns the kernels' name of the function.
pub(in crate::ops) fn code(activation: Activation) -> u32 {
    match activation {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
        Activation::Silu => 3,
        Activation::Tanh => 4,
        Activation::Linear => 5,
        Activation::Sigmoid => 6,
        Activation::ReluSquared => 7,
        Activation::QuickGelu => 8,
        Activation::Laplace => 9,
    }
}
