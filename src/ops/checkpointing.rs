//! Layers whose intermediate results are formed again in the backward pass instead of being kept for it.

use candle_core::{DType, Tensor};

use super::precision::precision;
use super::tape::Data;
use super::{Param, autocast, backward, no_grad, storage, tape};
use crate::{Error, Result};

/// `f(x)`, of which only `x` is kept for the backward pass: that runs `f` once more, which costs a forward pass and saves
/// all that lies between. Mirrors `torch.utils.checkpoint`.
///
/// `params` are all parameters that `f` uses. `f` must compute the same every time: dropout whose keys were drawn outside
/// of it does. The second run has the precision that [`autocast`] has set for the first.
pub fn checkpoint(
    x: &Tensor,
    params: &[Param],
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let fits = storage::is_cpu_f32(x) || x.device().is_cuda();
    let anchor = anchor(params);
    if !fits || !x.track_op() && anchor.is_none() {
        // Where nothing learns there is nothing whose gradient could need the parts again.
        return f(x);
    }
    let (x, precision) = (x.contiguous()?, precision());
    let y = no_grad(|| f(&x.detach()))?.contiguous()?;
    let values = Data::copied(&y)?;
    let params = params.to_vec();
    let mut args = vec![&x];
    args.extend(&anchor);
    tape::record(
        "checkpoint",
        &args,
        values,
        y.shape(),
        move |args, _, grad| {
            let dx = autocast(precision, || again(args[0], &params, &f, grad))?;
            Ok(vec![dx])
        },
    )
}

/// The first of `params` that wants a gradient here and now.
fn anchor(params: &[Param]) -> Option<Tensor> {
    params.iter().map(Param::tensor).find(Tensor::track_op)
}

/// Runs `f` with a graph of its own and `grad` back through it: into the parameters, and to `x`, whose gradient is
/// returned if it wants one.
fn again(
    x: &Tensor,
    params: &[Param],
    f: impl Fn(&Tensor) -> Result<Tensor>,
    grad: &Tensor,
) -> Result<Option<Tensor>> {
    let input = Param::new("input", &x.detach())?;
    input.set_trainable(x.track_op());
    let y = f(&input.tensor())?;
    if !y.track_op() {
        return Err(Error::argument(
            "backward",
            "inside of no_grad a layer that was not kept can't be formed again; call it outside",
        ));
    }
    let leaves = [params, std::slice::from_ref(&input)].concat();
    check_leaves(&y, &leaves)?;
    // A number that hands `grad` on to y.
    let grad = grad.clone();
    let number = Data::copied(&Tensor::zeros((), DType::F32, y.device())?)?;
    let end = tape::record("checkpoint", &[&y], number, (), move |_, _, _| {
        Ok(vec![Some(grad.clone())])
    })?;
    backward(&end, &leaves)?;
    Ok(input.grad())
}

/// That the gradients of all variables behind `y` have a place to go to.
fn check_leaves(y: &Tensor, leaves: &[Param]) -> Result<()> {
    let known = |node: &Tensor| leaves.iter().any(|leaf| leaf.var().id() == node.id());
    let variables = || y.sorted_nodes().into_iter().filter(|n| n.is_variable());
    match variables().find(|node| !known(node)) {
        None => Ok(()),
        Some(node) => Err(Error::Weights(format!(
            "a checkpointed layer uses a parameter of shape {:?} that is not among those it was given with: its gradient would be lost",
            node.dims()
        ))),
    }
}
