//! Layers whose intermediate results are formed again in the backward pass instead of being kept for it.

use candle_core::{DType, Tensor};

use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::graph::tape::Data;
use crate::ops::precision::precision;
use crate::ops::{Param, autocast, backward, no_grad};
use crate::{Error, Result};

/// Returns `f(x)`, storing only `x` for the backward pass, which runs `f` again: this costs a forward pass and saves
/// all intermediate results. Mirrors `torch.utils.checkpoint`.
///
/// `params` are all parameters that `f` uses. `f` must compute the same every time: dropout whose keys were drawn outside
/// of it does. The second run has the precision that [`autocast`] has set for the first.
pub fn checkpoint(
    x: &Tensor,
    params: &[Param],
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    checkpoint_all(&[x], params, move |xs| f(&xs[0]))
}

/// Like [`checkpoint`], for several tensors, all of which are stored: a decoder's layer also reads the encoder's
/// output.
pub fn checkpoint_all(
    xs: &[&Tensor],
    params: &[Param],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let fits = |x: &&Tensor| storage::is_cpu_f32(x) || x.device().is_cuda();
    let anchor = anchor(params);
    if !xs.iter().all(fits) || !tape::tracked(xs) && anchor.is_none() {
        // Where nothing learns there is nothing whose gradient could need the parts again.
        return f(&xs.iter().map(|&x| x.clone()).collect::<Vec<_>>());
    }
    let xs: Vec<Tensor> = xs
        .iter()
        .map(|x| x.contiguous())
        .collect::<Result<_, _>>()?;
    let (count, precision) = (xs.len(), precision());
    let detached: Vec<Tensor> = xs.iter().map(Tensor::detach).collect();
    let y = no_grad(|| f(&detached))?.contiguous()?;
    let values = Data::copied(&y)?;
    let params = params.to_vec();
    let mut args: Vec<&Tensor> = xs.iter().collect();
    args.extend(&anchor);
    tape::record(
        "checkpoint",
        &args,
        values,
        y.shape(),
        move |args, _, grad| autocast(precision, || recompute(&args[..count], &params, &f, grad)),
    )
}

/// Returns the first of `params` that needs a gradient.
fn anchor(params: &[Param]) -> Option<Tensor> {
    params.iter().map(Param::tensor).find(Tensor::track_op)
}

/// Runs `f` with a separate graph and propagates `grad` back through it: into the parameters, and to `xs`, whose
/// gradients are returned if needed.
fn recompute(
    xs: &[&Tensor],
    params: &[Param],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    grad: &Tensor,
) -> Result<tape::Grads> {
    let input = |x: &&Tensor| {
        let input = Param::new("input", &x.detach())?;
        input.set_trainable(x.track_op());
        Ok(input)
    };
    let inputs: Vec<Param> = xs.iter().map(input).collect::<Result<_>>()?;
    let y = f(&inputs.iter().map(Param::tensor).collect::<Vec<_>>())?;
    if !y.track_op() {
        return Err(Error::argument(
            "backward",
            "inside of no_grad a layer that was not kept can't be formed again; call it outside",
        ));
    }
    let leaves = [params, &inputs[..]].concat();
    check_leaves(&y, &leaves)?;
    // A number that hands `grad` on to y.
    let grad = grad.clone();
    let number = Data::copied(&Tensor::zeros((), DType::F32, y.device())?)?;
    let end = tape::record("checkpoint", &[&y], number, (), move |_, _, _| {
        Ok(vec![Some(grad.clone())])
    })?;
    backward(&end, &leaves)?;
    // An input that nothing was computed from has the gradient 0.
    let gradient = |input: &Param| match input.grad() {
        None if input.is_trainable() => input.value().zeros_like().map(Some),
        found => Ok(found),
    };
    let gradients = inputs.iter().map(gradient);
    Ok(gradients.collect::<candle_core::Result<_>>()?)
}

/// That the gradients of all variables behind `y` have a place to go to.
fn check_leaves(y: &Tensor, leaves: &[Param]) -> Result<()> {
    let known = |node: &Tensor| leaves.iter().any(|leaf| leaf.variable_id() == node.id());
    let variables = || y.sorted_nodes().into_iter().filter(|n| n.is_variable());
    match variables().find(|node| !known(node)) {
        None => Ok(()),
        Some(node) => Err(Error::Weights(format!(
            "a checkpointed layer uses a parameter of shape {:?} that is not among those it was given with: its gradient would be lost",
            node.dims()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn each_of_several_inputs_gets_its_gradient() {
        let input = |from: i32| {
            let values = (from..from + 6).map(|i| (i as f32 * 0.7).sin()).collect();
            let values = Tensor::from_vec(values, (2, 3), &Device::Cpu).unwrap();
            Param::new("x", &values).unwrap()
        };
        let inputs: Vec<Param> = [0, 20, 40].map(input).to_vec();
        // The last is not used.
        let f = |xs: &[Tensor]| crate::ops::mul(&xs[0], &crate::ops::add(&xs[0], &xs[1])?);
        let gradients = |checkpointed: bool| {
            let xs: Vec<Tensor> = inputs
                .iter()
                .map(|x| crate::ops::scale(&x.tensor(), 2.0).unwrap())
                .collect();
            let y = match checkpointed {
                true => checkpoint_all(&xs.iter().collect::<Vec<_>>(), &[], f).unwrap(),
                false => f(&xs).unwrap(),
            };
            backward(&crate::ops::sum_all(&y).unwrap(), &inputs).unwrap();
            let values = |x: &Param| {
                let grad = x
                    .grad()
                    .map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                x.zero_grad();
                grad
            };
            inputs.iter().map(values).collect::<Vec<_>>()
        };
        let (kept, again) = (gradients(false), gradients(true));
        assert_eq!(again[..2], kept[..2]);
        assert!(kept[0].is_some() && kept[1].is_some());
        assert!(again[2].iter().flatten().all(|&g| g == 0.0));
    }
}
