//! Parameters used in the graph like activations.

use candle_core::Tensor;

use crate::Result;
use crate::ops::Param;
use crate::ops::graph::tape;
use crate::ops::graph::tape::Data;
use crate::ops::parallel::add_rows;

/// Returns the value of `param` as a tensor of the graph, whose gradient goes into the parameter: latents, prompts and
/// tables of positions, which other operations take like any activation.
pub fn param_rows(param: &Param) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(&param.value(), [param]) {
        return crate::ops::cuda::param_rows(param);
    }
    let tensor = param.tensor();
    if !tensor.track_op() || !param.is_cpu_f32() {
        return Ok(tensor);
    }
    let shape = param.shape().clone();
    let param = param.clone();
    let copy = Data::copied(&tensor)?;
    tape::record("param_rows", &[&tensor], copy, shape, move |_, _, grad| {
        crate::ops::graph::storage::with(grad, |grad| {
            param.update_grad(|sums, fresh| match fresh {
                true => sums.copy_from_slice(grad),
                false => add_rows(sums, grad, false),
            })
        })??;
        Ok(vec![])
    })
}
