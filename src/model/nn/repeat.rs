use candle_core::Tensor;

use crate::{Result, ops};

/// Returns `x` (...) once for each example of a batch, (batch, ...), for learned inputs such as latents and prompts.
pub(crate) fn repeated(x: &Tensor, batch: usize) -> Result<Tensor> {
    let shape = [&[batch], x.dims()].concat();
    ops::add_broadcast(&Tensor::zeros(shape, x.dtype(), x.device())?, x)
}
