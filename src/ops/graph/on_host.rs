//! Operations that the processor computes wherever their tensors are: inputs on a GPU are copied to the host, and the
//! result back.
//!
//! For arithmetic that emulates other hardware step by step and does not justify its own kernel.

use candle_core::{DType, Device, Shape, Tensor};

use super::tape::Data;
use super::{storage, tape};
use crate::Result;

/// Returns a copy of the elements of `x` in f32, whatever its device and dtype.
pub(in crate::ops) fn values(x: &Tensor) -> Result<Vec<f32>> {
    let here = x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    storage::with(&here.contiguous()?, <[f32]>::to_vec)
}

/// Returns `values` in the shape and dtype of `other`, and on its device, outside of any graph.
pub(in crate::ops) fn like(values: Vec<f32>, other: &Tensor) -> Result<Tensor> {
    let here = storage::tensor(values, other.shape())?;
    Ok(here.to_device(other.device())?.to_dtype(other.dtype())?)
}

/// Like [`tape::record`], of a result that was worked out here, which goes to the device of the arguments.
///
/// `backward(args, gradient of the result)` gives the gradients of all arguments, in their order.
pub(in crate::ops) fn record(
    name: &'static str,
    args: &[&Tensor],
    result: Vec<f32>,
    shape: impl Into<Shape>,
    backward: impl Fn(&[&Tensor], &[f32]) -> Result<Vec<Vec<f32>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let data = Data::on(result, args[0].device())?;
    tape::record(name, args, data, shape, move |args, _, grad| {
        let found = backward(args, &values(grad)?)?;
        let of = |(arg, grad): (&&Tensor, Vec<f32>)| Ok(Some(like(grad, arg)?));
        args.iter().zip(found).map(of).collect()
    })
}
