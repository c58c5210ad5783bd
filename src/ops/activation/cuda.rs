//! Element-wise functions.

use candle_core::Tensor;

use crate::Result;
use crate::ops::Activation;
use crate::ops::cuda::{Gpu, args, column_grid, compute_dtype, pointer, prepared, size, suffix};
use crate::ops::graph::tape;
use crate::ops::linear::cuda::{activation_backward, code};

/// Like [`Activation::apply`].
pub(in crate::ops) fn activation(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let dtype = compute_dtype(x);
    let gpu = Gpu::of(x.device())?;
    let x = prepared(x, dtype)?;
    let width = x.dims().last().copied().unwrap_or(1);
    let rows = x.elem_count() / width.max(1);
    let y = gpu.for_overwrite(x.shape(), dtype)?;
    if x.elem_count() > 0 {
        let kernel = format!("bias_act_forward_{}", suffix(dtype));
        let arguments = args![
            y.ptr(),
            pointer(&x)?,
            0u64,
            size(rows)?,
            size(width)?,
            code(activation)
        ];
        // SAFETY: both are rows · width elements of that dtype.
        unsafe {
            gpu.launch(
                "activation",
                &kernel,
                column_grid((rows, width), dtype, 32, 65_535)?,
                arguments,
            )?
        };
    }
    tape::record(
        "activation",
        &[&x],
        y.storage,
        x.shape(),
        move |args, _, dy| {
            let dx = gpu.for_overwrite(dy.shape(), dtype)?;
            if dy.elem_count() > 0 {
                let given = (pointer(dy)?, pointer(args[0])?);
                activation_backward(
                    &gpu,
                    dx.ptr(),
                    given,
                    dtype,
                    (rows, width),
                    activation,
                    (0, None),
                )?;
            }
            Ok(vec![Some(dx.into_tensor())])
        },
    )
}
