//! Operations without their own kernel, composed of candle's: each is still one node of the graph, so the backward pass
//! stays our own.

use candle_core::{DType, Tensor, Var};

use super::{Fresh, compute_dtype, copied, prepared};
use crate::Result;
use crate::ops::graph::tape;
use crate::ops::{Param, no_grad};

/// Returns `f` of `args` and `params`, which must only use candle's operations; it receives the arguments in f32.
///
/// Only the arguments are kept: the backward pass goes through `f` once more.
pub(in crate::ops) fn composed(
    name: &'static str,
    args: &[&Tensor],
    params: &[&Param],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let dtype = compute_dtype(args[0]);
    let args: Vec<Tensor> = args
        .iter()
        .map(|x| prepared(x, dtype))
        .collect::<Result<_>>()?;
    let plain: Vec<Tensor> = args.iter().map(wide).collect::<Result<_>>()?;
    let y = no_grad(|| f(&plain))?.to_dtype(dtype)?.contiguous()?;
    let params: Vec<Param> = params.iter().map(|&param| param.clone()).collect();
    let anchor = params.iter().map(Param::tensor).find(Tensor::track_op);
    let count = args.len();
    let inputs: Vec<&Tensor> = args.iter().chain(&anchor).collect();
    tape::record(
        name,
        &inputs,
        copied(&y)?,
        y.shape(),
        move |args, _, grad| {
            let leaves = args[..count].iter().map(|arg| match arg.track_op() {
                true => Ok(Var::from_tensor(&wide(arg)?)?.into_inner()),
                false => wide(arg),
            });
            let leaves: Vec<Tensor> = leaves.collect::<Result<_>>()?;
            let through = (f(&leaves)? * wide(grad)?)?.sum_all()?;
            let mut found = through.backward()?;
            for param in &params {
                param.absorb(&mut found)?;
            }
            let of = |(arg, leaf): (&&Tensor, &Tensor)| -> Result<Option<Tensor>> {
                if !arg.track_op() {
                    return Ok(None);
                }
                Ok(Some(match found.get(leaf) {
                    Some(grad) => grad.detach().to_dtype(arg.dtype())?.contiguous()?,
                    None => arg.zeros_like()?,
                }))
            };
            args[..count].iter().zip(&leaves).map(of).collect()
        },
    )
}

/// Returns `x` in f32, outside of any graph.
fn wide(x: &Tensor) -> Result<Tensor> {
    Ok(x.detach().to_dtype(DType::F32)?)
}

/// Returns `f` of `x` in f32 whatever [`autocast`](crate::ops::autocast) asks for, the result in what it asks for:
/// where rounding would add up.
pub(in crate::ops) fn in_f32(
    x: &Tensor,
    f: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let dtype = compute_dtype(x);
    let x = prepared(x, DType::F32)?;
    let y = crate::ops::autocast(crate::ops::Precision::F32, || f(&x))?;
    prepared(&y, dtype)
}

/// Returns the value of a parameter in the graph, in the activations' dtype.
pub(in crate::ops) fn param_rows(param: &Param) -> Result<Tensor> {
    let tensor = param.tensor();
    let dtype = super::wanted_dtype().unwrap_or(tensor.dtype());
    if !tensor.track_op() {
        return prepared(&tensor, dtype);
    }
    let param = param.clone();
    let copy = copied(&tensor)?;
    let shape = tensor.shape().clone();
    let rows = tape::record("param_rows", &[&tensor], copy, shape, move |_, _, grad| {
        param.add_grad(&grad.to_dtype(DType::F32)?)?;
        Ok(vec![])
    })?;
    prepared(&rows, dtype)
}

/// Returns the sum of all elements, in f32.
pub(in crate::ops) fn sum_all(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let sum = wide(&x)?.flatten_all()?.sum_all()?;
    tape::record("sum_all", &[&x], copied(&sum)?, (), |args, _, grad| {
        let (dtype, shape) = (args[0].dtype(), args[0].shape());
        let spread = grad.to_dtype(dtype)?.broadcast_as(shape)?;
        Ok(vec![Some(
            Fresh::new(copied(&spread)?, shape).into_tensor(),
        )])
    })
}
