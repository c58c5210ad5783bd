//! The loss of logits that were written down, for heads that are more than one product.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::parallel::for_overwrite;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Returns the summed negative log-likelihood of `targets` (rows) given `logits` (rows, vocab).
///
/// Where the logits are one product, [`masked_cross_entropy`](super::masked_cross_entropy) does not write them down at all.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    smoothed_cross_entropy(logits, targets, 0.0)
}

/// Like [`cross_entropy`], with `smoothing` of the weight spread evenly over the vocabulary (Szegedy et al. 2016): 1 - `smoothing`
/// times the negative log-likelihood of the target, plus `smoothing` times the mean of those of all tokens.
pub fn smoothed_cross_entropy(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
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
        let sums = logits.log_sum_exp(D::Minus1)?;
        if smoothing == 0.0 {
            return Ok((sums - picked)?.sum_all()?);
        }
        let even = (logits.mean(D::Minus1)? * smoothing)?;
        let expected = ((picked * (1.0 - smoothing))? + even)?;
        return Ok((sums - expected)?.sum_all()?);
    }
    let even = smoothing / vocab as f64;
    let logits = logits.contiguous()?;
    let sums = storage::with(&logits, |logits| {
        let rows = logits.par_chunks(vocab).map(log_sum_exp);
        rows.collect::<Vec<f32>>()
    })?;
    let loss = storage::with(&logits, |logits| {
        let losses = sums.iter().zip(&ids).zip(logits.chunks(vocab));
        let loss = losses.map(|((&sum, &id), row)| {
            let of_target = sum - row[id as usize];
            if smoothing == 0.0 {
                return f64::from(of_target);
            }
            let total: f64 = row.iter().map(|&logit| f64::from(logit)).sum();
            (1.0 - smoothing) * f64::from(of_target) + smoothing * f64::from(sum) - even * total
        });
        loss.sum::<f64>() as f32
    })?;
    tape::record(
        "cross_entropy",
        &[&logits],
        vec![loss],
        (),
        move |args, _, grad| {
            let scale = grad.to_scalar::<f32>()?;
            let (even, rest) = (even as f32, (1.0 - smoothing) as f32);
            let mut dx = for_overwrite(args[0].elem_count());
            storage::with(args[0], |logits| {
                dx.par_chunks_mut(vocab)
                    .zip(logits.par_chunks(vocab))
                    .zip(sums.par_iter().zip(&ids))
                    .for_each(|((dx, row), (sum, &id))| {
                        for (dx, logit) in dx.iter_mut().zip(row) {
                            *dx = ((logit - sum).exp() - even) * scale;
                        }
                        dx[id as usize] -= rest * scale;
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
    fn the_loss_and_its_gradient_equal_those_of_log_softmax() {
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

    #[test]
    fn the_smoothed_loss_and_its_gradient_follow_the_formula() {
        let values: Vec<f32> = (0..21)
            .map(|i| ((i * 31) % 17) as f32 / 3.0 - 2.5)
            .collect();
        let targets = Tensor::new(&[2u32, 0, 6], &Device::Cpu).unwrap();
        let formula = |values: &[f32]| -> f64 {
            let rows = values.chunks(7).zip([2, 0, 6]);
            let losses = rows.map(|(row, target)| {
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                let nll: Vec<f64> = row.iter().map(|&x| sum.ln() - f64::from(x)).collect();
                0.7 * nll[target] + 0.3 * nll.iter().sum::<f64>() / 7.0
            });
            losses.sum()
        };
        let logits = Var::from_vec(values.clone(), (3, 7), &Device::Cpu).unwrap();
        let loss = smoothed_cross_entropy(logits.as_tensor(), &targets, 0.3).unwrap();
        let value = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((value - formula(&values)).abs() < 1e-5, "{value}");
        let gradient = loss.backward().unwrap();
        let gradient = gradient.get(&logits).unwrap().flatten_all().unwrap();
        for (i, slope) in gradient.to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[i] += by;
                formula(&values)
            };
            let expected = (moved(0.015625) - moved(-0.015625)) / 0.03125;
            assert!((f64::from(slope) - expected).abs() < 1e-4, "{i}: {slope}");
        }
    }
}
