//! Products with one number that is learned.

use candle_core::Tensor;

use super::naive;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Returns `x · factor`, where `factor` is a tensor of the graph with one element: give a parameter by
/// [`param_rows`](super::param_rows).
pub fn scale_by(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    if factor.elem_count() != 1 {
        return Err(Error::argument(
            "factor",
            format!("shape {:?}, but must be one number", factor.dims()),
        ));
    }
    if !storage::is_cpu_f32(x) || !storage::is_cpu_f32(factor) {
        return naive::scale_by(x, factor);
    }
    let (x, factor) = (x.contiguous()?, factor.contiguous()?);
    let number = |factor: &Tensor| storage::with(factor, |factor| f64::from(factor[0]));
    let y = super::scale(&x.detach(), number(&factor)?)?;
    let y = storage::with(&y, <[f32]>::to_vec)?;
    let args = [&x, &factor];
    tape::record("scale_by", &args, y, x.shape(), move |args, _, grad| {
        let (x, factor) = (args[0], args[1]);
        let dx = match x.track_op() {
            true => Some(super::scale(grad, number(factor)?)?),
            false => None,
        };
        let df = match factor.track_op() {
            true => {
                let sum = storage::with2(x, grad, |x, grad| {
                    let products = x.iter().zip(grad);
                    products
                        .map(|(&x, &dy)| f64::from(x) * f64::from(dy))
                        .sum::<f64>()
                })?;
                Some(storage::tensor(vec![sum as f32], factor.shape())?)
            }
            false => None,
        };
        Ok(vec![dx, df])
    })
}
