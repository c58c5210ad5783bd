//! Convolutions over time, feature by feature.

use candle_core::backend::BackendStorage;
use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::convolution::depthwise_conv::Sizes;
use crate::ops::cuda::{
    Fresh, Gpu, Grid, args, compute_dtype, on_storage, pointer, prepared, size, suffix,
};
use crate::ops::graph::tape;

/// Like [`crate::ops::depthwise_conv()`], for sizes that fit.
pub(in crate::ops) fn depthwise_conv(x: &Tensor, w: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let gpu = Gpu::of(x.device())?;
    let dtype = compute_dtype(x);
    let (x, w) = (prepared(x, dtype)?, prepared(w, dtype)?);
    let Sizes {
        batch,
        len,
        out,
        width,
        channels,
        kernel,
        pad,
    } = sizes;
    let shape = (batch, out, width);
    let y = gpu.for_overwrite(shape, dtype)?;
    let numbers = [len, out, width, width / channels, kernel, pad].map(size);
    let [len, out, width, each, kernel, pad] = numbers;
    let (len, out, width, each, kernel, pad) = (len?, out?, width?, each?, kernel?, pad?);
    let run = move |name: &str, gpu: &Gpu, to: &Fresh, from: &Tensor, w: &Tensor| -> Result<()> {
        let n = to.shape.elem_count();
        let (from, w) = (pointer(from)?, pointer(w)?);
        let arguments = args![
            to.ptr(),
            from,
            w,
            n as u64,
            len,
            out,
            width,
            each,
            kernel,
            pad
        ];
        let name = format!("depthwise_{name}_{}", suffix(dtype));
        // SAFETY: x is (batch, len, width), y (batch, out, width) of that dtype, w a kernel for each `each` features.
        unsafe { gpu.launch("convolution", &name, Grid::elements(n), arguments) }
    };
    run("forward", &gpu, &y, &x, &w)?;
    tape::record(
        "depthwise_conv",
        &[&x, &w],
        y.storage,
        shape,
        move |args, _, dy| {
            let (x, w) = (args[0], args[1]);
            let dx = match x.track_op() {
                true => {
                    let dx = gpu.for_overwrite(x.shape(), dtype)?;
                    run("backward_input", &gpu, &dx, dy, w)?;
                    Some(dx.into_tensor())
                }
                false => None,
            };
            let dw = match w.track_op() {
                true => {
                    let dw = gpu.for_overwrite(w.shape(), DType::F32)?;
                    let (grad, given, sequences) = (pointer(dy)?, pointer(x)?, size(batch)?);
                    let arguments = args![
                        dw.ptr(),
                        grad,
                        given,
                        sequences,
                        len,
                        out,
                        width,
                        each,
                        kernel,
                        pad
                    ];
                    let name = format!("depthwise_backward_kernel_{}", suffix(dtype));
                    let grid = Grid::new((size(w.elem_count())?, 1, 1), (256, 1, 1));
                    // SAFETY: as forward; the gradient is a float for each place of each kernel, of which there is a block.
                    unsafe { gpu.launch("convolution", &name, grid, arguments)? };
                    let dw = dw.into_tensor();
                    let dw = on_storage(&dw, |storage, layout| storage.to_dtype(layout, dtype))?;
                    Some(Fresh::new(dw, w.shape()).into_tensor())
                }
                false => None,
            };
            Ok(vec![dx, dw])
        },
    )
}

/// Like [`crate::ops::dynamic_conv()`], for sizes that fit.
pub(in crate::ops) fn dynamic_conv(v: &Tensor, kernels: &Tensor) -> Result<Tensor> {
    let gpu = Gpu::of(v.device())?;
    let dtype = compute_dtype(v);
    let (v, kernels) = (prepared(v, dtype)?, prepared(kernels, dtype)?);
    let (_, len, width) = v.dims3()?;
    let (_, _, heads, kernel) = kernels.dims4()?;
    let (len, features, d) = (size(len)?, size(width)?, size(width / heads)?);
    let (kernel, pad) = (size(kernel)?, size((kernel - 1) / 2)?);
    let y = gpu.for_overwrite(v.shape(), dtype)?;
    let run = move |name: &str, gpu: &Gpu, to: &Fresh, a: &Tensor, b: &Tensor| -> Result<()> {
        let n = to.shape.elem_count();
        let (a, b) = (pointer(a)?, pointer(b)?);
        let arguments = args![to.ptr(), a, b, n as u64, len, features, d, kernel, pad];
        let name = format!("dynamic_{name}_{}", suffix(dtype));
        // SAFETY: v and y are (batch, len, width) of that dtype, the kernels (batch, len, width / d, kernel).
        unsafe { gpu.launch("convolution", &name, Grid::elements(n), arguments) }
    };
    run("forward", &gpu, &y, &v, &kernels)?;
    tape::record(
        "dynamic_conv",
        &[&v, &kernels],
        y.storage,
        v.shape(),
        move |args, _, dy| {
            let of = |i: usize, name: &str, other: &Tensor| -> Result<Option<Tensor>> {
                if !args[i].track_op() {
                    return Ok(None);
                }
                let grad = gpu.for_overwrite(args[i].shape(), dtype)?;
                run(name, &gpu, &grad, dy, other)?;
                Ok(Some(grad.into_tensor()))
            };
            Ok(vec![
                of(0, "backward_value", args[1])?,
                of(1, "backward_kernel", args[0])?,
            ])
        },
    )
}
