//! The pseudo-inverse by Newton's iteration (Nyströmformer).

use candle_core::{D, Tensor};

use super::{add_broadcast, checkpoint, matmul, naive, scale};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::graph::tape::Data;
use crate::{Error, Result};

/// Approximates the pseudo-inverse of each matrix in `a` (..., m, m) by six steps of a Newton-like iteration of third order
/// (Razavi et al. 2014), from `aᵀ` over the largest sum of a column in all of `a`, as transformers does: matrices of one
/// batch influence one another by this much.
///
/// Only `a` is kept: the backward pass goes through the steps again.
pub fn newton_pinv(a: &Tensor) -> Result<Tensor> {
    let square = matches!(a.dims().split_last_chunk::<2>(), Some((_, [m, n])) if m == n);
    if !square || a.elem_count() == 0 {
        return Err(Error::argument(
            "a",
            format!("shape {:?} has no square matrices", a.dims()),
        ));
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(a, []) {
        return crate::ops::cuda::in_f32(a, |a| checkpoint(a, &[], steps));
    }
    if !storage::is_cpu_f32(a) {
        return naive::newton_pinv(a);
    }
    checkpoint(a, &[], steps)
}

fn steps(a: &Tensor) -> Result<Tensor> {
    let unit = Tensor::eye(a.dim(D::Minus1)?, a.dtype(), a.device())?;
    let mut z = start(a)?;
    for _ in 0..naive::NEWTON_STEPS {
        // Z/4 (13I - AZ (15I - AZ (7I - AZ)))
        let az = matmul(a, &z, false, false)?;
        let mut inner = minus(&unit, 7.0, &az)?;
        for factor in [15.0, 13.0] {
            inner = minus(&unit, factor, &matmul(&az, &inner, false, false)?)?;
        }
        z = scale(&matmul(&z, &inner, false, false)?, 0.25)?;
    }
    Ok(z)
}

/// Returns `factor · unit - x`.
fn minus(unit: &Tensor, factor: f64, x: &Tensor) -> Result<Tensor> {
    add_broadcast(&scale(x, -1.0)?, &(unit * factor)?)
}

/// Returns `aᵀ` over the largest sum of a column. Sums that are equally large share its gradient.
fn start(a: &Tensor) -> Result<Tensor> {
    let plain = a.detach();
    let sums = plain.sum_keepdim(D::Minus2)?;
    let largest = sums.flatten_all()?.max(0)?;
    let z = plain.t()?.contiguous()?.broadcast_div(&largest)?;
    let data = Data::copied(&z)?;
    tape::record(
        "newton_start",
        &[a],
        data,
        z.shape(),
        move |args, _, grad| {
            let of_transpose = grad.t()?.contiguous()?.broadcast_div(&largest)?;
            let along = (&of_transpose * args[0].detach())?.sum_all()?;
            let reached = sums.broadcast_eq(&largest)?.to_dtype(grad.dtype())?;
            let share = (along / (&largest * reached.sum_all()?)?)?;
            let da = of_transpose.broadcast_sub(&reached.broadcast_mul(&share)?)?;
            Ok(vec![Some(da)])
        },
    )
}
