//! A loss in parts, so that losses of several batches add up to the loss of the whole.

use candle_core::{DType, Tensor};

use crate::{Error, Result, ops};

/// The loss of a batch: the sum over its terms of weight · sum / count. Most families have the one term of the masked
/// tokens.
///
/// ```
/// use cloze::prelude::*;
///
/// # fn f(model: &MaskedLm, batch: &MlmBatch) -> cloze::Result<()> {
/// let loss = model.loss(batch, &Context::train(42, 0))?;
/// println!("{} masked tokens", loss.counted());
/// model.backward(&loss.mean()?)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MlmLoss {
    /// The terms; of every batch of a model the same, in the same order.
    pub terms: Vec<LossTerm>,
}

/// One part of a loss: a mean, kept as its sum and its count.
#[derive(Clone, Debug)]
pub struct LossTerm {
    /// The sum, mostly of negative log-likelihoods: a scalar to differentiate.
    pub sum: Tensor,
    /// The number of positions that count.
    pub count: usize,
    /// The factor on the mean.
    pub weight: f64,
}

impl MlmLoss {
    /// Returns the loss of the masked tokens alone.
    pub fn of_tokens(sum: Tensor, count: usize) -> Self {
        Self {
            terms: vec![LossTerm {
                sum,
                count,
                weight: 1.0,
            }],
        }
    }

    /// Returns the number of masked tokens.
    pub fn counted(&self) -> usize {
        self.terms.first().map_or(0, |term| term.count)
    }

    /// Returns the mean over the counted positions, as `transformers` reports it: a scalar to differentiate.
    ///
    /// # Errors
    /// If no position counts, so there is no mean.
    pub fn mean(&self) -> Result<Tensor> {
        let counts: Vec<usize> = self.terms.iter().map(|term| term.count).collect();
        self.part_of(&counts, 1.0)?.ok_or_else(|| {
            Error::argument(
                "labels",
                "every label is -100, so there is no loss: mask at least one token (is mlm_probability 0?)",
            )
        })
    }

    /// Returns what this batch gives to the loss of several whose terms count `totals` positions together, times `scale`: a
    /// scalar to differentiate. `None` if nothing counts here.
    pub fn part_of(&self, totals: &[usize], scale: f64) -> Result<Option<Tensor>> {
        let mut part: Option<Tensor> = None;
        for (term, &total) in self.terms.iter().zip(totals) {
            if term.count == 0 {
                continue;
            }
            let share = ops::scale(&term.sum, term.weight * scale / total as f64)?;
            part = Some(match part {
                Some(sum) => ops::add(&sum, &share)?,
                None => share,
            });
        }
        Ok(part)
    }

    /// Returns the mean as a number.
    ///
    /// # Errors
    /// Like [`MlmLoss::mean`].
    pub fn value(&self) -> Result<f32> {
        Ok(self.mean()?.to_dtype(DType::F32)?.to_scalar()?)
    }
}
