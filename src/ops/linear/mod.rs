//! Affine maps, by themselves or fused with the following activation.

#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod grouped;
mod kept;

use std::sync::Mutex;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::parallel::{add_rows, column_sums, for_overwrite};
use super::simd::simd_fn;
use super::{Activation, Param, activation, naive};
use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::{matmul, matmul_bias};
use crate::ops::graph::{storage, tape};
use crate::{Error, Result};

/// Returns `x · weightᵀ + bias` over the last dimension of `x`; `weight` is (out, in), `bias` (out).
pub fn linear(x: &Tensor, weight: &Param, bias: Option<&Param>) -> Result<Tensor> {
    linear_act(x, weight, bias, Activation::Linear)
}

/// Checks that the bias has a number for each of the map's outputs.
fn check_bias(weight: &Param, bias: Option<&Param>, out: usize) -> Result<()> {
    if let Some(bias) = bias.filter(|bias| bias.shape().dims() != [out]) {
        return Err(Error::Weights(format!(
            "{} has shape {:?}, but {} has {out} outputs",
            bias.name(),
            bias.shape(),
            weight.name()
        )));
    }
    Ok(())
}

/// Returns `activation(x · weightᵀ + bias)`.
pub fn linear_act(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    activation: Activation,
) -> Result<Tensor> {
    let (out, width) = weight.shape().dims2()?;
    let dims = x.dims();
    if dims.last() != Some(&width) {
        return Err(Error::argument(
            "x",
            format!(
                "shape {dims:?}, but {} of shape {:?} needs {width} in the last place",
                weight.name(),
                weight.shape()
            ),
        ));
    }
    check_bias(weight, bias, out)?;
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, [weight].into_iter().chain(bias)) {
        let shape = [&dims[..dims.len() - 1], &[out]].concat();
        return cuda::linear_act(x, weight, bias, activation, shape);
    }
    if x.elem_count() == 0 || !is_fused(x, weight, bias) {
        return naive::linear_act(x, weight, bias, activation);
    }
    let shape = [&dims[..dims.len() - 1], &[out]].concat();
    let x = x.contiguous()?;
    let anchor = tape::anchor(weight, bias);
    let args = [&x, &anchor];
    let keep = tape::tracked(&args);
    if !keep && let Some(y) = kept::forward(&x, weight, bias, activation)? {
        return storage::tensor(y, &shape.into());
    }
    let (y, before) = forward(&x, weight, bias, activation, keep)?;

    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let before = Mutex::new(before);
    tape::record("linear", &args, y, shape, move |args, _, dy| {
        let x = args[0];
        if activation == Activation::Linear {
            let dx = storage::with(dy, |dy| {
                if let Some(bias) = bias.as_ref().filter(|_| wants_bias) {
                    bias.update_grad(|db, fresh| column_sums(dy, out, db, fresh))?;
                }
                products(x, &weight, wants_weight, dy)
            })??;
            return Ok(vec![dx]);
        }
        let taken = before
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        // Only a second backward pass over the same graph finds it gone.
        let mut dy_before = match taken {
            Some(kept) => kept,
            None => forward(x, &weight, bias.as_ref(), Activation::Linear, false)?.0,
        };
        let sums = storage::with(dy, |dy| {
            activation_backward(activation, &mut dy_before, dy, out, wants_bias)
        })?;
        if let Some(bias) = bias.as_ref().filter(|_| wants_bias) {
            bias.update_grad(|db, fresh| add_rows(db, &sums, fresh))?;
        }
        let dx = products(x, &weight, wants_weight, &dy_before)?;
        Ok(vec![dx])
    })
}

fn is_fused(x: &Tensor, weight: &Param, bias: Option<&Param>) -> bool {
    storage::is_cpu_f32(x)
        && weight.is_cpu_f32()
        && bias.is_none_or(|bias| bias.dtype() == DType::F32)
}

/// Returns the result, and with `keep` the input of the activation (without an activation the result itself is enough).
fn forward(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    activation: Activation,
    keep: bool,
) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
    let (out, width) = weight.shape().dims2()?;
    let rows = x.elem_count() / width;
    let bias = bias.map(|bias| bias.own_var().as_tensor());
    storage::with2(x, weight.own_var(), |x, w| -> Result<_> {
        let mut y = for_overwrite(rows * out);
        let plain = activation == Activation::Linear;
        let (size, x, w) = ((rows, width, out), (x, false), (w, true));
        match bias {
            Some(bias) if plain => {
                storage::with(bias, |bias| matmul_bias(size, bias, &mut y, x, w))?;
            }
            _ => matmul(size, Accumulate::Overwrite, &mut y, x, w),
        }
        if plain {
            return Ok((y, None));
        }
        let zeros;
        let bias = match bias {
            Some(bias) => bias,
            None => {
                zeros = Tensor::zeros(out, DType::F32, weight.device())?;
                &zeros
            }
        };
        storage::with(bias, |bias| {
            const ROWS: usize = 8;
            if keep {
                let mut before = y;
                let mut y = for_overwrite(before.len());
                before
                    .par_chunks_mut(ROWS * out)
                    .zip(y.par_chunks_mut(ROWS * out))
                    .for_each(|(before, y)| {
                        for (before, y) in before.chunks_mut(out).zip(y.chunks_mut(out)) {
                            add(before, bias);
                            activation::values(activation, before, y);
                        }
                    });
                (y, Some(before))
            } else {
                y.par_chunks_mut(ROWS * out).for_each_init(
                    || vec![0f32; out],
                    |before, y| {
                        for y in y.chunks_mut(out) {
                            before.copy_from_slice(y);
                            add(before, bias);
                            activation::values(activation, before, y);
                        }
                    },
                );
                (y, None)
            }
        })
    })?
}

/// Turns `before` into the gradient before the activation; its column sums by blocks of rows where they are wanted.
fn activation_backward(
    activation: Activation,
    before: &mut [f32],
    dy: &[f32],
    out: usize,
    wants_sums: bool,
) -> Vec<f32> {
    const ROWS: usize = 32;
    let block = ROWS * out;
    let mut sums = vec![
        0f32;
        if wants_sums {
            before.len().div_ceil(block) * out
        } else {
            0
        }
    ];
    let blocks = before.par_chunks_mut(block).zip(dy.par_chunks(block));
    if wants_sums {
        blocks
            .zip(sums.par_chunks_mut(out))
            .for_each(|((before, dy), sums)| {
                activation::gradients(activation, before, dy);
                add_rows(sums, before, false);
            });
    } else {
        blocks.for_each(|(before, dy)| activation::gradients(activation, before, dy));
    }
    sums
}

/// Returns the two products of the backward pass: the weight's gradient into its place, the input's returned.
fn products(x: &Tensor, weight: &Param, wants_weight: bool, dy: &[f32]) -> Result<Option<Tensor>> {
    let (out, width) = weight.shape().dims2()?;
    let rows = dy.len() / out;
    if wants_weight {
        storage::with(x, |x| {
            weight.update_grad(|dw, fresh| {
                matmul(
                    (out, rows, width),
                    Accumulate::fresh(fresh),
                    dw,
                    (dy, true),
                    (x, false),
                );
            })
        })??;
    }
    if !x.track_op() {
        return Ok(None);
    }
    let mut dx = for_overwrite(rows * width);
    storage::with(weight.own_var(), |w| {
        matmul(
            (rows, out, width),
            Accumulate::Overwrite,
            &mut dx,
            (dy, false),
            (w, false),
        );
    })?;
    Ok(Some(storage::tensor(dx, x.shape())?))
}

simd_fn! {
    fn add(y: &mut [f32], bias: &[f32]) {
        for (y, bias) in y.iter_mut().zip(bias) {
            *y += bias;
        }
    }
}
