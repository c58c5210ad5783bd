//! The loss of logits that were written down, for heads that are more than one product.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::parallel::for_overwrite;
use super::{storage, tape};
use crate::{Error, Result};

/// Returns the summed negative log-likelihood of `targets` (rows) given `logits` (rows, vocab).
///
/// Where the logits are one product, [`masked_cross_entropy`](super::masked_cross_entropy) does not write them down at all.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (rows, vocab) = logits.dims2()?;
    let ids = targets
        .to_dtype(DType::U32)?
        .flatten_all()?
        .to_vec1::<u32>()?;
    if ids.len() != rows || ids.iter().any(|&id| id as usize >= vocab) {
        return Err(Error::argument(
            "targets",
            format!("{} targets for {rows} rows of {vocab} logits", ids.len()),
        ));
    }
    if !storage::is_cpu_f32(logits) || logits.elem_count() == 0 {
        let targets = Tensor::from_vec(ids, (rows, 1), logits.device())?;
        let logits = logits.to_dtype(DType::F32)?;
        let picked = logits.gather(&targets, 1)?.squeeze(1)?;
        return Ok((logits.log_sum_exp(D::Minus1)? - picked)?.sum_all()?);
    }
    let logits = logits.contiguous()?;
    let sums = storage::with(&logits, |logits| {
        let rows = logits.par_chunks(vocab).map(log_sum_exp);
        rows.collect::<Vec<f32>>()
    })?;
    let loss = storage::with(&logits, |logits| {
        let losses = sums.iter().zip(&ids).zip(logits.chunks(vocab));
        let loss = losses.map(|((sum, &id), row)| f64::from(sum - row[id as usize]));
        loss.sum::<f64>() as f32
    })?;
    tape::record(
        "cross_entropy",
        &[&logits],
        vec![loss],
        (),
        move |args, _, grad| {
            let scale = grad.to_scalar::<f32>()?;
            let mut dx = for_overwrite(args[0].elem_count());
            storage::with(args[0], |logits| {
                dx.par_chunks_mut(vocab)
                    .zip(logits.par_chunks(vocab))
                    .zip(sums.par_iter().zip(&ids))
                    .for_each(|((dx, row), (sum, &id))| {
                        for (dx, logit) in dx.iter_mut().zip(row) {
                            *dx = (logit - sum).exp() * scale;
                        }
                        dx[id as usize] -= scale;
                    });
            })?;
            Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
        },
    )
}

fn log_sum_exp(row: &[f32]) -> f32 {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|x| (x - highest).exp()).sum();
    highest + sum.ln()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn the_loss_and_its_gradient_are_those_of_log_softmax() {
        let values: Vec<f32> = (0..21)
            .map(|i| ((i * 37) % 17) as f32 / 4.0 - 2.0)
            .collect();
        let logits = Var::from_vec(values, (3, 7), &Device::Cpu).unwrap();
        let targets = Tensor::new(&[2u32, 0, 6], &Device::Cpu).unwrap();
        let loss = cross_entropy(logits.as_tensor(), &targets).unwrap();
        let log = candle_nn::ops::log_softmax(logits.as_tensor(), 1).unwrap();
        let naive = log.gather(&targets.unsqueeze(1).unwrap(), 1).unwrap();
        let naive = naive.sum_all().unwrap().neg().unwrap();
        let value = |t: &Tensor| t.to_scalar::<f32>().unwrap();
        assert!((value(&loss) - value(&naive)).abs() < 1e-5);
        let ours = loss.backward().unwrap();
        let theirs = naive.backward().unwrap();
        let difference = (ours.get(&logits).unwrap() - theirs.get(&logits).unwrap()).unwrap();
        let difference = difference.abs().unwrap().max_all().unwrap();
        assert!(value(&difference) < 1e-6);
    }
}
