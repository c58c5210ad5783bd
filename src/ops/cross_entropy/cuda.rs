//! The vocabulary product with its loss, for the rows that count.

use std::sync::Mutex;

use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::Param;
use crate::ops::cuda::{
    Fresh, Gpu, Grid, args, compute_dtype, lock, pointer, pointer_or_null, prepared, size,
    slice_pointer, suffix,
};
use crate::ops::gemm::cublas::{Matrix, gemm};
use crate::ops::graph::tape;

/// Like [`crate::ops::masked_cross_entropy`], for arguments that have been checked.
pub(in crate::ops) fn masked_cross_entropy(
    hidden: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    targets: Vec<u32>,
) -> Result<Tensor> {
    let gpu = Gpu::of(hidden.device())?;
    let dtype = compute_dtype(hidden);
    let hidden = prepared(hidden, dtype)?;
    let anchor = tape::anchor(weight, bias);
    let args = [&hidden, &anchor];
    let rows = targets.len();
    if !tape::tracked(&args) {
        // Nothing to keep: blocks of rows bound the memory, whatever their number.
        const ROWS: usize = 1024;
        let losses = gpu.zeros(rows, DType::F32)?;
        for (i, targets) in targets.chunks(ROWS).enumerate() {
            let hidden = hidden.narrow(0, i * ROWS, targets.len())?;
            let to = losses.ptr() + (i * ROWS * size_of::<f32>()) as u64;
            forward(&gpu, &hidden, weight, bias, targets, to)?;
        }
        return Ok(total(&gpu, &losses, rows)?.into_tensor());
    }
    let losses = gpu.zeros(rows, DType::F32)?;
    let kept = match rows {
        0 => None,
        _ => Some(forward(
            &gpu,
            &hidden,
            weight,
            bias,
            &targets,
            losses.ptr(),
        )?),
    };
    let loss = total(&gpu, &losses, rows)?;
    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let kept = Mutex::new(kept);
    tape::record(
        "masked_cross_entropy",
        &args,
        loss.storage,
        (),
        move |args, _, grad| {
            let hidden = args[0];
            let wanted = bias.as_ref().filter(|_| wants_bias);
            if rows == 0 {
                let reached = [wants_weight.then_some(&weight), wanted];
                return no_rows(&gpu, hidden, &reached);
            }
            let taken = lock(&kept).take();
            // Only a second backward pass over the same graph finds it gone.
            let kept = match taken {
                Some(kept) => kept,
                None => {
                    let again = gpu.for_overwrite(rows, DType::F32)?;
                    forward(&gpu, hidden, &weight, bias.as_ref(), &targets, again.ptr())?
                }
            };
            let (vocab, _) = weight.shape().dims2()?;
            let gradient = kept.into_gradient(&gpu, bias.as_ref(), grad, (rows, vocab))?;
            gradients(&gpu, hidden, &gradient, &weight, wanted, wants_weight)
        },
    )
}

/// Adds the gradients of the weight and of `bias` to them, and returns that of `hidden` (rows, width) if it is wanted;
/// `logits` holds the gradient of the logits.
fn gradients(
    gpu: &Gpu,
    hidden: &Tensor,
    logits: &Fresh,
    weight: &Param,
    bias: Option<&Param>,
    wants_weight: bool,
) -> Result<Vec<Option<Tensor>>> {
    let dtype = hidden.dtype();
    let (rows, _) = hidden.dims2()?;
    let (vocab, width) = weight.shape().dims2()?;
    let logits = Matrix::new(logits.ptr(), dtype, padded(vocab));
    if let Some(bias) = bias {
        crate::ops::cuda::bias_gradient(gpu, logits, (rows, vocab), bias)?;
    }
    if wants_weight {
        let hidden = Matrix::new(pointer(hidden)?, dtype, width);
        weight.update_grad_tensor(|dw, fresh| {
            let dw = Matrix::new(pointer(dw)?, DType::F32, width);
            let beta = if fresh { 0.0 } else { 1.0 };
            let sizes = (vocab, rows, width);
            // SAFETY: dw is (vocab, width) of f32, the gradient (rows, vocab) and hidden (rows, width) of that dtype.
            unsafe { gemm(gpu, sizes, (1.0, beta), dw, logits.t(), hidden) }
        })?;
    }
    if !hidden.track_op() {
        return Ok(vec![]);
    }
    let dx = gpu.for_overwrite(hidden.shape(), dtype)?;
    let w = weight.rounded(dtype)?;
    let target = Matrix::new(dx.ptr(), dtype, width);
    let w = Matrix::new(pointer(&w)?, dtype, width);
    // SAFETY: dx is (rows, width), the gradient (rows, vocab), w (vocab, width), all of that dtype.
    unsafe { gemm(gpu, (rows, vocab, width), (1.0, 0.0), target, logits, w)? };
    Ok(vec![Some(dx.into_tensor())])
}

/// Returns the gradients where no position has a label: zeros, for those operands that need one.
fn no_rows(gpu: &Gpu, hidden: &Tensor, reached: &[Option<&Param>]) -> Result<tape::Grads> {
    for param in reached.iter().flatten() {
        param.update_grad_tensor(|grad, fresh| match fresh {
            // SAFETY: the gradient is one allocation of f32.
            true => unsafe { gpu.zero(pointer(grad)?, grad.elem_count() * size_of::<f32>()) },
            false => Ok(()),
        })?;
    }
    let dx = match hidden.track_op() {
        true => Some(gpu.zeros(hidden.shape(), hidden.dtype())?.into_tensor()),
        false => None,
    };
    Ok(vec![dx])
}

/// The state that the forward pass keeps for the backward pass.
struct Kept {
    /// (rows, vocab), before the bias; the rows lie [`padded`] elements apart.
    logits: Fresh,
    /// (rows): the logarithm of each row's sum of exponentials.
    log_sums: Fresh,
    /// (rows).
    targets: candle_core::cuda_backend::cudarc::driver::CudaSlice<u32>,
}

impl Kept {
    /// Returns the gradient of the logits, in their place.
    fn into_gradient(
        self,
        gpu: &Gpu,
        bias: Option<&Param>,
        grad: &Tensor,
        (rows, vocab): (usize, usize),
    ) -> Result<Fresh> {
        let bias = bias.map(Param::value);
        let arguments = args![
            self.logits.ptr(),
            self.logits.ptr(),
            pointer_or_null(bias.as_ref())?,
            slice_pointer(&self.targets),
            self.log_sums.ptr(),
            pointer(grad)?,
            size(rows)?,
            size(vocab)?,
            size(padded(vocab))?,
        ];
        let kernel = format!("cross_entropy_backward_{}", suffix(self.logits.dtype()));
        // SAFETY: the logits are (rows, vocab), log sums and targets have `rows` elements, the bias `vocab` floats, and the
        // upstream gradient is one float.
        unsafe { gpu.launch("cross_entropy", &kernel, per_row(rows)?, arguments)? };
        Ok(self.logits)
    }
}

/// Returns how far apart the rows of logits lie: products are much slower where rows begin at odd addresses.
fn padded(vocab: usize) -> usize {
    vocab.next_multiple_of(8)
}

/// Returns a block for each row.
fn per_row(rows: usize) -> Result<Grid> {
    Ok(Grid::new((size(rows)?, 1, 1), (512, 1, 1)))
}

/// Writes each row's loss to `losses`, `targets.len()` floats. There must be a row.
fn forward(
    gpu: &Gpu,
    hidden: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    targets: &[u32],
    losses: u64,
) -> Result<Kept> {
    let dtype = hidden.dtype();
    let (rows, width) = hidden.dims2()?;
    let vocab = weight.shape().dims2()?.0;
    let w = weight.rounded(dtype)?;
    let logits = gpu.for_overwrite((rows, padded(vocab)), dtype)?;
    let (product, hidden, w) = (
        Matrix::new(logits.ptr(), dtype, padded(vocab)),
        Matrix::new(pointer(hidden)?, dtype, width),
        (Matrix::new(pointer(&w)?, dtype, width).t(), w),
    );
    // SAFETY: the logits are (rows, vocab), hidden (rows, width), w (vocab, width), all of that dtype.
    unsafe { gemm(gpu, (rows, width, vocab), (1.0, 0.0), product, hidden, w.0)? };
    let log_sums = gpu.for_overwrite(rows, DType::F32)?;
    let targets = gpu.upload(targets)?;
    let bias = bias.map(Param::value);
    let arguments = args![
        losses,
        log_sums.ptr(),
        0u64,
        logits.ptr(),
        pointer_or_null(bias.as_ref())?,
        slice_pointer(&targets),
        size(rows)?,
        size(vocab)?,
        size(padded(vocab))?,
    ];
    let kernel = format!("cross_entropy_forward_{}", suffix(dtype));
    // SAFETY: losses, log sums and targets have `rows` elements, the bias `vocab` floats, and the logits are (rows, vocab).
    unsafe { gpu.launch("cross_entropy", &kernel, per_row(rows)?, arguments)? };
    Ok(Kept {
        logits,
        log_sums,
        targets,
    })
}

/// Returns the sum of all rows' losses: a scalar.
fn total(gpu: &Gpu, losses: &Fresh, rows: usize) -> Result<Fresh> {
    let sum = gpu.zeros((), DType::F32)?;
    if rows > 0 {
        let arguments = args![sum.ptr(), losses.ptr(), size(rows)?, 1f32];
        let grid = Grid::new((1, 1, 1), (256, 1, 1));
        // SAFETY: the losses are `rows` floats, the sum is one.
        unsafe { gpu.launch("reduce", "sum_values", grid, arguments)? };
    }
    Ok(sum)
}
