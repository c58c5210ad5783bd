//! The arithmetic of a run: which batches make up which step.

use serde::{Deserialize, Serialize};

use super::{IntervalStrategy, TrainingArguments};
use crate::collate::MlmBatch;
use crate::model::Values;
use crate::{Error, Result};

/// The relation between steps, batches and epochs. A step's batches depend only on its number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) batches_per_epoch: usize,
    /// The batches of a step, those of all ranks together.
    pub(super) accumulation: usize,
    pub(super) max_steps: usize,
}

/// The position of a step's batches in the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) epoch: u64,
    /// The first batch, counted within the epoch.
    pub(super) batch: usize,
    /// The first batch, counted over the whole run: the number of its forward pass.
    pub(super) pass: u64,
}

impl Plan {
    /// Returns the plan of a run on `ranks` ranks with this many batches in an epoch. For a stream, whose epochs have
    /// no known length, the whole run counts as one epoch.
    pub(super) fn new(
        args: &TrainingArguments,
        batches_per_epoch: Option<usize>,
        ranks: usize,
    ) -> Result<Self> {
        let accumulation = args.batches_per_step(ranks)?;
        let batches_per_epoch = match (batches_per_epoch, args.max_steps) {
            (Some(batches), _) => batches,
            (None, Some(steps)) => steps.saturating_mul(accumulation).max(1),
            (None, None) => {
                return Err(Error::argument(
                    "max_steps",
                    "the number of batches in a stream is not known: set the number of steps",
                ));
            }
        };
        if batches_per_epoch == 0 {
            return Err(Error::Dataset(
                "an epoch has no batches: with dataloader_drop_last the training data must fill at least one".to_owned(),
            ));
        }
        let mut plan = Self {
            batches_per_epoch,
            accumulation,
            max_steps: 0,
        };
        plan.max_steps = args.max_steps.unwrap_or_else(|| {
            let steps = args.num_train_epochs * plan.steps_per_epoch() as f64;
            (steps.ceil() as usize).max(1)
        });
        Ok(plan)
    }

    /// An epoch's last step may have fewer batches than the others.
    pub(super) fn steps_per_epoch(&self) -> usize {
        self.batches_per_epoch.div_ceil(self.accumulation)
    }

    /// Returns where the batches of the step after `done` steps begin.
    pub(super) fn position(&self, done: usize) -> Position {
        let epoch = done / self.steps_per_epoch();
        let batch = done % self.steps_per_epoch() * self.accumulation;
        Position {
            epoch: epoch as u64,
            batch,
            pass: (epoch * self.batches_per_epoch + batch) as u64,
        }
    }

    /// Returns how many batches the step after `done` steps has.
    pub(super) fn batches(&self, done: usize) -> usize {
        let left = self.batches_per_epoch - self.position(done).batch;
        left.min(self.accumulation)
    }

    /// Returns whether the batch of that number within its epoch is `rank`'s: a step's batches are dealt out in turn,
    /// from the first rank on.
    pub(super) fn is_dealt_to(&self, batch: usize, rank: usize, ranks: usize) -> bool {
        batch % self.accumulation % ranks == rank
    }

    /// Returns the epochs that `done` steps are, the last one in part.
    pub(super) fn epoch(&self, done: usize) -> f64 {
        let at = self.position(done);
        at.epoch as f64 + at.batch as f64 / self.batches_per_epoch as f64
    }

    pub(super) fn ends_epoch(&self, done: usize) -> bool {
        done > 0 && (done.is_multiple_of(self.steps_per_epoch()) || done == self.max_steps)
    }

    /// Returns whether something that happens every `interval` steps under `strategy` falls due after `done` steps.
    pub(super) fn is_due(&self, strategy: IntervalStrategy, interval: usize, done: usize) -> bool {
        match strategy {
            // Evaluations decide over the best.
            IntervalStrategy::No | IntervalStrategy::Best => false,
            IntervalStrategy::Steps => done > 0 && done.is_multiple_of(interval),
            IntervalStrategy::Epoch => self.ends_epoch(done),
        }
    }
}

/// Returns a digest of a batch: the same data, tokenizer, order, masks and batch size give the same.
pub(super) fn fingerprint(batch: &MlmBatch) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |number: i64| {
        hasher.update(&number.to_le_bytes());
    };
    add(batch.batch as i64);
    add(batch.seq as i64);
    batch.input_ids.iter().for_each(|&id| add(i64::from(id)));
    batch.labels.iter().for_each(|&label| add(label));
    for (name, column) in &batch.columns {
        hasher.update(name.as_bytes());
        match &column.values {
            Values::Ids(ids) => ids.iter().for_each(|id| {
                hasher.update(&id.to_le_bytes());
            }),
            Values::Floats(values) => values.iter().for_each(|value| {
                hasher.update(&value.to_le_bytes());
            }),
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(batches: usize, accumulation: usize, epochs: f64) -> Plan {
        let args = TrainingArguments::new("out")
            .gradient_accumulation_steps(accumulation)
            .epochs(epochs);
        Plan::new(&args, Some(batches), 1).unwrap()
    }

    #[test]
    fn the_last_step_of_an_epoch_may_be_short() {
        let plan = plan(13, 3, 2.0);
        assert_eq!((plan.steps_per_epoch(), plan.max_steps), (5, 10));
        let at = |done| (plan.position(done).epoch, plan.position(done).batch);
        assert_eq!(
            [at(0), at(4), at(5), at(9)],
            [(0, 0), (0, 12), (1, 0), (1, 12)]
        );
        assert_eq!(plan.position(5).pass, 13);
        assert!(plan.ends_epoch(5) && plan.ends_epoch(10) && !plan.ends_epoch(6));
        assert_eq!(plan.epoch(10), 2.0);
    }

    #[test]
    fn every_batch_goes_to_one_rank_and_steps_stay_the_same() {
        let args = TrainingArguments::new("out")
            .per_device_train_batch_size(2)
            .global_batch_size(10);
        for ranks in 1..=4 {
            let plan = Plan::new(&args, Some(13), ranks).unwrap();
            assert_eq!(plan.accumulation, 5);
            assert_eq!(
                [plan.batches(0), plan.batches(2), plan.batches(3)],
                [5, 3, 5]
            );
            for batch in 0..13 {
                let whose = (0..ranks).filter(|&rank| plan.is_dealt_to(batch, rank, ranks));
                assert_eq!(whose.collect::<Vec<_>>(), [batch % 5 % ranks]);
            }
        }
        // Each rank has its accumulation.
        let args = TrainingArguments::new("out").gradient_accumulation_steps(3);
        assert_eq!(Plan::new(&args, Some(13), 4).unwrap().accumulation, 12);
    }

    #[test]
    fn fractions_of_an_epoch_round_up_to_whole_steps() {
        assert_eq!(plan(10, 1, 0.25).max_steps, 3);
        assert_eq!(plan(10, 4, 2.5).max_steps, 8);
        assert_eq!(plan(1, 1, 1e-9).max_steps, 1);
    }
}
