//! Products of activations, and of groups of features with their weights.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::cuda::{
    Gpu, args, bias_gradient, column_grid, compute_dtype, pointer, prepared, size, suffix,
};
use crate::ops::gemm::cublas::{Heads, Matrix, gemm, gemm_heads};
use crate::ops::graph::tape;
use crate::ops::linear::cuda::code;
use crate::ops::{Activation, Param};

/// Like [`crate::ops::matmul()`], for operands that fit: (batch, m, k) times (batch, k, n).
pub(in crate::ops) fn matmul(
    (a, a_t): (&Tensor, bool),
    (b, b_t): (&Tensor, bool),
    (batch, m, k, n): (usize, usize, usize, usize),
    shape: Vec<usize>,
) -> Result<Tensor> {
    let dtype = compute_dtype(a);
    let (a, b) = (prepared(a, dtype)?, prepared(b, dtype)?);
    let y = Gpu::of(a.device())?.for_overwrite(shape.clone(), dtype)?;
    multiply((batch, m, k, n), y.ptr(), (&a, a_t), (&b, b_t))?;
    tape::record(
        "matmul",
        &[&a, &b],
        y.storage,
        shape,
        move |args, _, grad| {
            let gpu = Gpu::of(grad.device())?;
            let [a, b] = [(args[0], a_t), (args[1], b_t)];
            let t = |(x, transposed): (_, bool)| (x, !transposed);
            let grad = (grad, false);
            // As on the CPU.
            let da = match a.0.track_op() {
                true => {
                    let da = gpu.for_overwrite(a.0.shape(), dtype)?;
                    match a_t {
                        false => multiply((batch, m, n, k), da.ptr(), grad, t(b))?,
                        true => multiply((batch, k, n, m), da.ptr(), b, t(grad))?,
                    }
                    Some(da.into_tensor())
                }
                false => None,
            };
            let db = match b.0.track_op() {
                true => {
                    let db = gpu.for_overwrite(b.0.shape(), dtype)?;
                    match b_t {
                        false => multiply((batch, k, m, n), db.ptr(), t(a), grad)?,
                        true => multiply((batch, n, m, k), db.ptr(), t(grad), a)?,
                    }
                    Some(db.into_tensor())
                }
                false => None,
            };
            Ok(vec![da, db])
        },
    )
}

/// Writes (batch, m, k) times (batch, k, n) to `y`, all of one dtype; an operand with `true` is stored transposed.
fn multiply(
    (batch, m, k, n): (usize, usize, usize, usize),
    y: u64,
    (a, a_t): (&Tensor, bool),
    (b, b_t): (&Tensor, bool),
) -> Result<()> {
    let gpu = Gpu::of(a.device())?;
    let dtype = a.dtype();
    let operand = |ptr: u64, (rows, cols): (usize, usize), transposed: bool| {
        let matrix = match transposed {
            false => Matrix::new(ptr, dtype, cols),
            true => Matrix::new(ptr, dtype, rows).t(),
        };
        Heads {
            matrix,
            per_sequence: rows * cols,
            per_head: rows * cols,
        }
    };
    let (a, b) = (
        operand(pointer(a)?, (m, k), a_t),
        operand(pointer(b)?, (k, n), b_t),
    );
    let y = operand(y, (m, n), false);
    // SAFETY: each operand is `batch` matrices of these sizes, one behind the other; y belongs to the caller alone.
    unsafe { gemm_heads(&gpu, (batch, 1), (m, k, n), (1.0, 0.0), y, a, b) }
}

/// Like [`crate::ops::linear_grouped()`], for sizes that fit: of `groups` groups of `width` features, `out` each.
pub(in crate::ops) fn linear_grouped(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    (rows, groups, width, out): (usize, usize, usize, usize),
    shape: Vec<usize>,
) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let dtype = compute_dtype(x);
    let x = prepared(x, dtype)?;
    let (all_in, all_out) = (groups * width, groups * out);
    let y = gpu.for_overwrite(shape.clone(), dtype)?;
    let at = move |ptr: u64, dtype: DType, elements: usize| {
        ptr + (elements * dtype.size_in_bytes()) as u64
    };
    let w = weight.rounded(dtype)?;
    for group in 0..groups {
        let y = Matrix::new(at(y.ptr(), dtype, group * out), dtype, all_out);
        let x = Matrix::new(at(pointer(&x)?, dtype, group * width), dtype, all_in);
        let w = Matrix::new(at(pointer(&w)?, dtype, group * out * width), dtype, width).t();
        // SAFETY: a group is a block of columns of x and y, and a block of rows of w.
        unsafe { gemm(&gpu, (rows, width, out), (1.0, 0.0), y, x, w)? };
    }
    if let Some(bias) = bias {
        let bias = bias.value();
        let kernel = format!("bias_act_forward_{}", suffix(dtype));
        let linear = code(Activation::Linear);
        let arguments = args![
            y.ptr(),
            y.ptr(),
            pointer(&bias)?,
            size(rows)?,
            size(all_out)?,
            linear
        ];
        let grid = column_grid((rows, all_out), dtype, 32, 65_535)?;
        // SAFETY: y is (rows, groups · out) of that dtype, the bias as many floats as that has columns.
        unsafe { gpu.launch("activation", &kernel, grid, arguments)? };
    }
    let anchor = tape::anchor(weight, bias);
    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let args = [&x, &anchor];
    tape::record(
        "linear_grouped",
        &args,
        y.storage,
        shape,
        move |args, _, dy| {
            let x = args[0];
            let of_dy = Matrix::new(pointer(dy)?, dtype, all_out);
            if let Some(bias) = bias.as_ref().filter(|_| wants_bias) {
                bias_gradient(&gpu, of_dy, (rows, all_out), bias)?;
            }
            let part =
                |group: usize| Matrix::new(at(of_dy.ptr, dtype, group * out), dtype, all_out);
            if wants_weight {
                weight.update_grad_tensor(|dw, fresh| {
                    let beta = if fresh { 0.0 } else { 1.0 };
                    for group in 0..groups {
                        let first = at(pointer(dw)?, DType::F32, group * out * width);
                        let dw = Matrix::new(first, DType::F32, width);
                        let x = Matrix::new(at(pointer(x)?, dtype, group * width), dtype, all_in);
                        // SAFETY: as forward, with the gradient in f32.
                        unsafe {
                            gemm(
                                &gpu,
                                (out, rows, width),
                                (1.0, beta),
                                dw,
                                part(group).t(),
                                x,
                            )?
                        };
                    }
                    Ok(())
                })?;
            }
            if !x.track_op() {
                return Ok(vec![]);
            }
            let dx = gpu.for_overwrite(x.shape(), dtype)?;
            let w = weight.rounded(dtype)?;
            for group in 0..groups {
                let dx = Matrix::new(at(dx.ptr(), dtype, group * width), dtype, all_in);
                let w = Matrix::new(at(pointer(&w)?, dtype, group * out * width), dtype, width);
                // SAFETY: as forward.
                unsafe { gemm(&gpu, (rows, out, width), (1.0, 0.0), dx, part(group), w)? };
            }
            Ok(vec![Some(dx.into_tensor())])
        },
    )
}
