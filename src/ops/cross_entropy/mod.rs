//! The vocabulary product fused with its cross-entropy loss, for the rows that count.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use std::sync::Mutex;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::parallel::{column_sums, for_overwrite};
use super::simd::{self, simd_fn};
use super::{Param, naive};
use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::matmul;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// The label of a position that does not count towards the loss.
pub const IGNORE_INDEX: i64 = -100;

/// Returns the summed negative log-likelihood (a scalar) of `labels` under `softmax(hidden · weightᵀ + bias)`.
///
/// `hidden` is (rows, width), `weight` (vocab, width), `bias` (vocab), `labels` (rows) of u32, all of which count:
/// select the counted rows first. Labels may stay on the CPU, where they are read. Divide by their number for the mean.
/// The logits are not needed after this call, so their gradient may replace them in memory.
pub fn masked_cross_entropy(
    hidden: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    labels: &Tensor,
) -> Result<Tensor> {
    let targets = checked_targets(hidden, weight, bias, labels)?;
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(hidden, [weight].into_iter().chain(bias)) {
        return cuda::masked_cross_entropy(hidden, weight, bias, targets);
    }
    let fused = storage::is_cpu_f32(hidden)
        && weight.is_cpu_f32()
        && bias.is_none_or(|bias| bias.dtype() == DType::F32);
    if !fused {
        return naive::masked_cross_entropy(hidden, weight, bias, labels);
    }
    let hidden = hidden.contiguous()?;
    let anchor = tape::anchor(weight, bias);
    let args = [&hidden, &anchor];
    if !tape::tracked(&args) {
        // Nothing to keep: blocks of rows bound the memory, whatever their number.
        const ROWS: usize = 128;
        let mut loss = 0.0;
        for (i, targets) in targets.chunks(ROWS).enumerate() {
            let hidden = hidden.narrow(0, i * ROWS, targets.len())?;
            loss += forward(&hidden, weight, bias, targets)?.0;
        }
        return Ok(Tensor::new(loss as f32, hidden.device())?);
    }
    let (loss, kept) = forward(&hidden, weight, bias, &targets)?;
    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let kept = Mutex::new(Some(kept));
    tape::record(
        "masked_cross_entropy",
        &args,
        vec![loss as f32],
        (),
        move |args, _, grad| {
            let hidden = args[0];
            let taken = kept
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .take();
            // Only a second backward pass over the same graph finds it gone.
            let mut kept = match taken {
                Some(kept) => kept,
                None => forward(hidden, &weight, bias.as_ref(), &targets)?.1,
            };
            kept.turn_into_gradient(
                &targets,
                weight.shape().dims2()?.0,
                grad.to_scalar::<f32>()?,
            );
            let bias = bias.as_ref().filter(|_| wants_bias);
            gradients(hidden, &kept.exps, &weight, bias, wants_weight)
        },
    )
}

/// Returns the labels as ids of the vocabulary, once everything is known to fit together.
fn checked_targets(
    hidden: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    labels: &Tensor,
) -> Result<Vec<u32>> {
    let (rows, width) = hidden.dims2()?;
    let (vocab, _) = weight.shape().dims2()?;
    if labels.dims() != [rows] {
        return Err(Error::argument(
            "labels",
            format!("shape {:?}, but there are {rows} rows", labels.dims()),
        ));
    }
    if weight.shape().dims() != [vocab, width] {
        return Err(Error::argument(
            "hidden",
            format!(
                "rows of {width}, but {} has shape {:?}",
                weight.name(),
                weight.shape()
            ),
        ));
    }
    if let Some(bias) = bias.filter(|bias| bias.shape().dims() != [vocab]) {
        return Err(Error::Weights(format!(
            "{} has shape {:?}, but the vocabulary has {vocab} entries",
            bias.name(),
            bias.shape()
        )));
    }
    let targets = labels.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    if let Some(bad) = targets.iter().find(|&&label| label as usize >= vocab) {
        return Err(Error::argument(
            "labels",
            format!(
                "{bad} is outside the vocabulary of {vocab}; rows that do not count must be left out before"
            ),
        ));
    }
    Ok(targets)
}

/// Adds the gradients of the weight and of `bias` to them, and returns that of `hidden` (rows, width) if it is wanted;
/// `logits` is the gradient of the logits, (rows, vocab).
fn gradients(
    hidden: &Tensor,
    logits: &[f32],
    weight: &Param,
    bias: Option<&Param>,
    wants_weight: bool,
) -> Result<Vec<Option<Tensor>>> {
    let (rows, width) = hidden.dims2()?;
    let (vocab, _) = weight.shape().dims2()?;
    if let Some(bias) = bias {
        bias.update_grad(|db, fresh| column_sums(logits, vocab, db, fresh))?;
    }
    if wants_weight {
        let sizes = (vocab, rows, width);
        storage::with(hidden, |hidden| {
            weight.update_grad(|dw, fresh| {
                let into = Accumulate::fresh(fresh);
                matmul(sizes, into, dw, (logits, true), (hidden, false));
            })
        })??;
    }
    if !hidden.track_op() {
        return Ok(vec![]);
    }
    let mut dx = for_overwrite(rows * width);
    storage::with(weight.own_var(), |w| {
        let sizes = (rows, vocab, width);
        matmul(
            sizes,
            Accumulate::Overwrite,
            &mut dx,
            (logits, false),
            (w, false),
        );
    })?;
    Ok(vec![Some(storage::tensor(dx, hidden.shape())?)])
}

/// The state that the forward pass keeps for the backward pass.
struct Kept {
    /// (rows, vocab): exp(logit - largest logit of the row).
    exps: Vec<f32>,
    /// (rows): the reciprocal of the row's sum.
    scales: Vec<f32>,
}

impl Kept {
    /// Turns the exponentials into the gradient of the logits: `grad · (softmax - one-hot)`.
    fn turn_into_gradient(&mut self, targets: &[u32], vocab: usize, grad: f32) {
        self.exps
            .par_chunks_mut(vocab)
            .zip(&self.scales)
            .zip(targets)
            .for_each(|((exps, sum), &target)| {
                scale(exps, grad * sum);
                exps[target as usize] -= grad;
            });
    }
}

fn forward(
    hidden: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    targets: &[u32],
) -> Result<(f64, Kept)> {
    let (rows, width) = hidden.dims2()?;
    let vocab = weight.shape().dims2()?.0;
    let mut exps = for_overwrite(rows * vocab);
    storage::with2(hidden, weight.own_var(), |hidden, weight| {
        matmul(
            (rows, width, vocab),
            Accumulate::Overwrite,
            &mut exps,
            (hidden, false),
            (weight, true),
        );
    })?;
    let mut scales = vec![0f32; rows];
    let mut losses = vec![0f64; rows];
    let mut exponentiate = |bias: Option<&[f32]>| {
        exps.par_chunks_mut(vocab)
            .zip(&mut scales)
            .zip(&mut losses)
            .zip(targets)
            .for_each(|(((row, scale), loss), &target)| {
                if let Some(bias) = bias {
                    add(row, bias);
                }
                let top = largest(row);
                let picked = f64::from(row[target as usize]) - f64::from(top);
                let sum = exp_and_sum(row, top);
                *scale = 1.0 / sum;
                *loss = f64::from(sum).ln() - picked;
            });
    };
    match bias {
        Some(bias) => storage::with(bias.own_var(), |bias| exponentiate(Some(bias)))?,
        None => exponentiate(None),
    }
    Ok((losses.iter().sum(), Kept { exps, scales }))
}

simd_fn! {
    fn add(row: &mut [f32], bias: &[f32]) {
        for (x, bias) in row.iter_mut().zip(bias) {
            *x += bias;
        }
    }
}

simd_fn! {
    fn largest(row: &[f32]) -> f32 {
        simd::max(row)
    }
}

simd_fn! {
    fn scale(row: &mut [f32], factor: f32) {
        for x in row.iter_mut() {
            *x *= factor;
        }
    }
}

simd_fn! {
    /// Replaces each x by exp(x - top) and returns their sum, taken by blocks so that long rows keep their precision.
    fn exp_and_sum(row: &mut [f32], top: f32) -> f32 {
        let mut total = 0f64;
        for block in row.chunks_mut(2048) {
            for x in block.iter_mut() {
                *x = simd::exp(*x - top);
            }
            total += f64::from(simd::sum(block, |x| x));
        }
        total as f32
    }
}
