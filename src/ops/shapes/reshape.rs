//! The same elements in another shape.

use candle_core::Tensor;
use candle_core::shape::ShapeWithOneHole;

use crate::Result;
use crate::ops::graph::tape;

/// Returns the elements of `x` in the same order as a tensor of `shape`, one dimension of which may be left open: `((), 3)`.
///
/// Contiguous tensors are not copied.
pub fn reshape(x: &Tensor, shape: impl ShapeWithOneHole) -> Result<Tensor> {
    let x = x.contiguous()?;
    let before = x.shape().clone();
    let view = x.reshape(shape)?;
    tape::view("reshape", &x, view, move |grad| {
        Ok(grad.reshape(before.clone())?)
    })
}
