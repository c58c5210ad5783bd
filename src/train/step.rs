//! One optimizer step: its gradients, its update, and when its numbers are read.
//!
//! On the CPU losses are read immediately, and a non-finite one ends the run before the weights are updated. On a GPU,
//! reading means waiting for all queued work, after which the GPU idles until the next step is queued. So there losses
//! stay on the device, step after step, until something needs them: a log, an evaluation, a checkpoint, the end of an
//! epoch, or a live display.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::exchange::{self, Live};
use super::metrics::Metric;
use super::optimizer::adamw;
use super::out_of_memory::{self, Use};
use super::overlap::Exchanged;
use super::run::Run;
use super::trainer::check_anything_counted;
use super::{Event, GradScaler, StepRecord, Trainer, TrainingArguments};
use crate::base::interrupt;
use crate::collate::MlmBatch;
use crate::distributed::Group;
use crate::model::Context;
use crate::ops::{self, GradNorm};
use crate::{Error, Result};

/// How long losses may stay unread: short enough for a live display, and too long to cost anything.
const LONGEST: Duration = Duration::from_secs(1);

/// A step that was taken, with the numbers that may still be on the device.
pub(super) struct Taken {
    started: Instant,
    /// What is known without reading; the loss and the norm are not yet.
    record: StepRecord,
    losses: Losses,
    /// How many positions each term counts, all batches together.
    totals: Vec<usize>,
    norm: Norm,
}

/// The losses of the batches, term by term.
enum Losses {
    /// Those of this rank's batches.
    Here(Vec<Part>),
    /// The sums over the batches of all ranks.
    Everywhere(Vec<f64>),
}

/// The result of the backward passes of this rank's batches.
struct Gradients {
    losses: Vec<Part>,
    /// The gradients of all ranks, where they were exchanged during the last pass; those of this rank are in the model
    /// otherwise.
    exchanged: Option<Exchanged>,
}

/// One batch's part of one term of the loss.
struct Part {
    sum: Tensor,
    weight: f64,
    /// The term's number.
    term: usize,
}

enum Norm {
    Known(f64),
    Later(GradNorm),
}

impl Taken {
    /// Returns the sum of each term.
    fn sums(&self) -> Result<Vec<f64>> {
        let parts = match &self.losses {
            Losses::Here(parts) => parts,
            Losses::Everywhere(sums) => return Ok(sums.clone()),
        };
        let mut sums = vec![0.0; self.totals.len()];
        for Part { sum, weight, term } in parts {
            sums[*term] += weight * f64::from(sum.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        }
        Ok(sums)
    }

    fn loss(&self) -> Result<f32> {
        let sums = self.sums()?;
        if self.totals.iter().all(|&total| total == 0) {
            // Nothing was masked: there is no loss.
            return Ok(f32::NAN);
        }
        let means = (sums.iter().zip(&self.totals)).map(|(sum, &total)| sum / total.max(1) as f64);
        let loss = means.sum::<f64>() as f32;
        match loss.is_finite() {
            true => Ok(loss),
            false => Err(Error::NonFiniteLoss {
                step: self.record.step,
                loss,
                learning_rate: self.record.learning_rate,
            }),
        }
    }

    /// Returns the error for a norm that is not finite.
    fn not_finite(&self, norm: f64) -> Error {
        Error::NonFiniteGradient {
            step: self.record.step,
            grad_norm: norm as f32,
            learning_rate: self.record.learning_rate,
        }
    }

    /// Reads what is still on the device.
    fn read(&self) -> Result<StepRecord> {
        let loss = self.loss()?;
        let norm = match &self.norm {
            Norm::Known(norm) => *norm,
            Norm::Later(norm) => norm.value()?,
        };
        let overflowed = matches!(self.norm, Norm::Known(_)) && !norm.is_finite();
        if !overflowed && !(norm as f32).is_finite() {
            return Err(self.not_finite(norm));
        }
        let grad_norm = match overflowed {
            true => f32::INFINITY,
            false => norm as f32,
        };
        Ok(StepRecord {
            loss,
            grad_norm,
            ..self.record
        })
    }
}

impl Trainer {
    /// Takes the next step of `run`, on this rank's batches of it, which are `batches`; `passes` are the numbers of their
    /// forward passes.
    pub(super) fn take_step(
        &self,
        run: &mut Run,
        batches: Result<Vec<MlmBatch>>,
        passes: impl Iterator<Item = u64>,
        started: Instant,
    ) -> Result<()> {
        let ranks = self.ranks()?;
        let learning_rate = run.learning_rate(&Metric::of_best(&self.args));
        if !(learning_rate.is_finite() && learning_rate >= 0.0) {
            return Err(Error::argument(
                "schedule",
                format!(
                    "it returned the learning rate {learning_rate} for step {}; a rate must not be negative",
                    run.step + 1
                ),
            ));
        }
        let (batches, work) = self.announce(&ranks, run, batches)?;
        let group = batches.as_slice();
        let explain = |error| out_of_memory::explain(error, group, Use::Training, &self.args);
        let scale = run.scaler.as_ref().map_or(1.0, GradScaler::get_scale);
        run.reads = work.reads;
        let totals = work.totals;
        let gradients = self.gradients(&ranks, run, group, &totals, passes, scale);
        let mut taken = Taken {
            started,
            record: StepRecord {
                step: run.step + 1,
                loss: 0.0,
                learning_rate,
                grad_norm: 0.0,
                counted: work.counted,
                tokens: work.tokens,
                flops: work.flops,
                seconds: 0.0,
            },
            losses: Losses::Everywhere(Vec::new()),
            totals,
            norm: Norm::Known(0.0),
        };
        self.add_up(&ranks, run, &mut taken, gradients.map_err(explain))?;
        if !self.reads_later {
            taken.loss()?;
        }
        // The optimizer's state is made in the first update.
        self.update(run, &mut taken).map_err(explain)?;
        run.optimizer.zero_grad();
        if run.shards.is_some() {
            self.model.zero_grad();
        }
        run.step += 1;
        run.taken.push(taken);
        Ok(())
    }

    /// Sends the other ranks the contents of this one's batches, and returns those of all ranks together.
    fn announce(
        &self,
        ranks: &Group,
        run: &Run,
        batches: Result<Vec<MlmBatch>>,
    ) -> Result<(Vec<MlmBatch>, Work)> {
        let mine = batches.map(|batches| {
            let reads = interrupt::is_requested() || run.read.elapsed() >= LONGEST;
            let work = self.work(&batches, reads);
            (batches, work)
        });
        let (batches, mine) = match mine {
            Ok((batches, work)) => (batches, Ok(work)),
            Err(error) => (Vec::new(), Err(error)),
        };
        let all = ranks.vote("the batches of a step", mine)?;
        let sum = |mut sum: Work, work: Work| {
            let terms = sum.totals.len().max(work.totals.len());
            sum.totals.resize(terms, 0);
            let totals = sum.totals.iter_mut().zip(work.totals);
            totals.for_each(|(sum, count)| *sum += count);
            sum.counted += work.counted;
            sum.tokens += work.tokens;
            sum.flops += work.flops;
            sum.reads |= work.reads;
            sum
        };
        let all = all.into_iter().reduce(sum);
        let all = all.ok_or_else(|| Error::Distributed("nobody votes".to_owned()))?;
        Ok((batches, all))
    }

    /// Adds up the gradients that the ranks have left in their models and, where numbers are read as they come, their losses.
    fn add_up(
        &self,
        ranks: &Group,
        run: &mut Run,
        taken: &mut Taken,
        gradients: Result<Gradients>,
    ) -> Result<()> {
        if ranks.size() == 1 {
            taken.losses = Losses::Here(gradients?.losses);
            return Ok(());
        }
        let params = self.model.params();
        let mut exchanged = None;
        let mine = gradients.and_then(|gradients| {
            taken.losses = Losses::Here(gradients.losses);
            exchanged = gradients.exchanged;
            let sums = match self.reads_later {
                true => Vec::new(),
                false => bits(taken.sums()?),
            };
            let (live, late) = match &exchanged {
                Some(exchanged) => (exchanged.early.clone(), exchanged.late.clone()),
                None => (Live::here(params), Live::default()),
            };
            Ok((sums, live, late))
        });
        let all = ranks.vote("the gradients of a step", mine)?;
        let late = Live::anywhere(all.iter().map(|(_, _, late)| late));
        let live = Live::anywhere(all.iter().map(|(_, live, _)| live).chain([&late]));
        if !self.reads_later {
            taken.losses = Losses::Everywhere(sum_bits(all.iter().map(|(sums, ..)| sums)));
        }
        let added = match (exchanged, &run.shards) {
            (Some(exchanged), _) => exchanged.finish(ranks, params, &live, &late),
            (None, Some(shards)) => shards.add_up(ranks, &live),
            (None, None) => exchange::add_up(ranks, params, &live),
        };
        ranks.or_abort("adding up the gradients", added)?;
        if let Some(overlap) = &mut run.overlap
            && !overlap.is_agreed()
        {
            overlap.agree(ranks, params)?;
        }
        Ok(())
    }

    /// Replaces the losses of the steps that were taken by those of all ranks.
    fn gather_losses(&self, taken: &mut [Taken]) -> Result<()> {
        let ranks = self.ranks()?;
        if ranks.size() == 1 || !self.reads_later {
            return Ok(());
        }
        let mine: Result<Vec<_>> = taken.iter().map(|step| step.sums().map(bits)).collect();
        let all = ranks.vote("the losses of the last steps", mine)?;
        for (i, step) in taken.iter_mut().enumerate() {
            step.losses = Losses::Everywhere(sum_bits(all.iter().filter_map(|rank| rank.get(i))));
        }
        Ok(())
    }

    /// Returns the contents of the batches of `group`.
    fn work(&self, group: &[MlmBatch], reads: bool) -> Work {
        let mut totals = Vec::new();
        for batch in group {
            let counts = self.model.counts(batch);
            totals.resize(counts.len(), 0);
            totals
                .iter_mut()
                .zip(counts)
                .for_each(|(total, count)| *total += count);
        }
        let flops = self.model.flops().unwrap_or_default();
        let work =
            |batch: &MlmBatch| flops.of_training(tokens(batch), batch.seq, batch.counted_tokens());
        Work {
            totals,
            counted: group.iter().map(MlmBatch::counted_tokens).sum(),
            tokens: group.iter().map(tokens).sum(),
            flops: group.iter().map(work).sum(),
            reads,
        }
    }

    /// Leaves the gradients of the loss of all batches of `group` in the model, `scale` times as large, each term's mean
    /// being over its total; returns what the batches gave to it, where the model is. `passes` decide what dropout drops.
    fn gradients(
        &self,
        ranks: &Arc<Group>,
        run: &mut Run,
        group: &[MlmBatch],
        totals: &[usize],
        passes: impl Iterator<Item = u64>,
        scale: f64,
    ) -> Result<Gradients> {
        let precision = self.precision()?;
        let params = self.model.params();
        let mut losses = Vec::with_capacity(group.len());
        let counts = |batch: &MlmBatch| self.model.counts(batch).iter().any(|&count| count > 0);
        let last = group.iter().rposition(counts);
        let mut exchanged = None;
        for (i, (pass, batch)) in passes.zip(group).enumerate() {
            if !counts(batch) {
                continue;
            }
            let context = Context::train(self.args.seed, pass)
                .gradient_checkpointing(self.args.gradient_checkpointing)
                .label_smoothing(self.args.label_smoothing_factor);
            let loss = ops::autocast(precision, || -> Result<_> {
                let loss = self.model.loss(batch, &context)?;
                if let Some(part) = loss.part_of(totals, scale)? {
                    let backward = || self.model.backward(&part);
                    match run.overlap.as_mut().filter(|_| Some(i) == last) {
                        None => backward()?,
                        Some(overlap) if overlap.is_agreed() => {
                            let done = overlap.exchange(ranks, params, backward);
                            // The others are in the middle of it.
                            exchanged = Some(ranks.or_abort("exchanging gradients", done)?);
                        }
                        Some(overlap) => overlap.learn(params, backward)?,
                    }
                }
                Ok(loss)
            });
            let loss = match &run.overlap {
                Some(overlap) if overlap.is_agreed() => {
                    ranks.or_abort("computing gradients", loss)?
                }
                _ => loss?,
            };
            let terms = loss.terms.into_iter().enumerate();
            losses.extend(terms.map(|(term, of)| Part {
                sum: of.sum.detach(),
                weight: of.weight,
                term,
            }));
        }
        // A rank without a batch that counts exchanges what it has: nothing.
        if let Some(overlap) = run.overlap.as_mut().filter(|overlap| overlap.is_agreed())
            && exchanged.is_none()
        {
            let done = overlap.exchange(ranks, params, || Ok(()));
            exchanged = Some(ranks.or_abort("exchanging gradients", done)?);
        }
        Ok(Gradients { losses, exchanged })
    }

    /// Clips the gradients and moves the weights; not where gradients overflowed because of the loss scale, which is lowered
    /// then.
    fn update(&self, run: &mut Run, taken: &mut Taken) -> Result<()> {
        let (optimizer, max_norm) = (&mut *run.optimizer, self.args.max_grad_norm);
        if let Some(scaler) = &mut run.scaler {
            // The next step's scale hangs on it, so that it is read at once.
            scaler.unscale(optimizer);
            let norm = match &run.shards {
                Some(shards) => {
                    let norm = shards.norm(&*self.ranks()?)?;
                    adamw(optimizer)?.clip_with(norm, max_norm)
                }
                None => optimizer.clip_grad_norm_later(max_norm)?,
            };
            let norm = norm.value()?;
            taken.norm = Norm::Known(norm);
            if !scaler.update(norm) {
                if scaler.is_exhausted() {
                    return Err(taken.not_finite(norm));
                }
                run.skipped += 1;
                return Ok(());
            }
        } else {
            let norm = match &run.shards {
                Some(shards) => {
                    let norm = shards.norm(&*self.ranks()?)?;
                    adamw(optimizer)?.clip_with(norm, max_norm)
                }
                None => optimizer.clip_grad_norm_later(max_norm)?,
            };
            if !self.reads_later {
                let norm = norm.value()?;
                if !(norm as f32).is_finite() {
                    return Err(taken.not_finite(norm));
                }
            }
            taken.norm = Norm::Later(norm);
        }
        optimizer.step(taken.record.learning_rate)?;
        if let Some(shards) = &run.shards {
            let ranks = self.ranks()?;
            let shared = shards.share_weights(&ranks);
            ranks.or_abort("handing weights round", shared)?;
        }
        Ok(())
    }

    /// Returns whether something needs the numbers of the steps that were taken.
    pub(super) fn must_read(&self, run: &Run) -> bool {
        let args: &TrainingArguments = &self.args;
        !self.reads_later
            || run.is_complete()
            || run.plan.ends_epoch(run.step)
            || run.log_is_due(args)
            || run.evaluation_is_due(args, false)
            || run.save_is_due(args, false)
            || run.reads
    }

    /// Reads the losses of the steps that were taken, in order, and reports them.
    ///
    /// # Errors
    /// If one is not finite. The run is then in the state before that step.
    pub(super) fn read_steps(&mut self, run: &mut Run) -> Result<()> {
        let mut taken = std::mem::take(&mut run.taken);
        self.gather_losses(&mut taken)?;
        let mut records = Vec::with_capacity(taken.len());
        let mut failure = None;
        for step in &taken {
            match step.read() {
                Ok(record) => records.push(record),
                Err(error) => {
                    run.step = step.record.step - 1;
                    failure = Some(error);
                    break;
                }
            }
        }
        // On a GPU they went on together until the last was read.
        let together = taken
            .first()
            .map_or(0.0, |first| first.started.elapsed().as_secs_f64());
        let seconds = together / taken.len().max(1) as f64;
        run.read = Instant::now();
        let memory = ops::device_memory(self.model.device()).map(|memory| memory.peak);
        run.history.peak_device_memory = run.history.peak_device_memory.max(memory);
        for record in &mut records {
            record.seconds = seconds;
        }
        run.history.steps.extend(&records);
        for step in records {
            let state = run.state_after(step.step);
            self.emit(Event::StepEnd { state, step })?;
            if run.plan.ends_epoch(step.step) {
                check_anything_counted(&run.history)?;
                self.emit(Event::EpochEnd { state })?;
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// The contents of a step's batches.
#[derive(Serialize, Deserialize)]
struct Work {
    /// The positions that each term of the loss counts.
    totals: Vec<usize>,
    /// The masked tokens, all tokens and operations, as in a [`StepRecord`].
    counted: usize,
    tokens: usize,
    flops: f64,
    /// Whether someone wants to see numbers.
    reads: bool,
}

/// Returns the sums as whole numbers, which pass through JSON even where they are not finite.
fn bits(sums: Vec<f64>) -> Vec<u64> {
    sums.into_iter().map(f64::to_bits).collect()
}

/// Adds up the ranks' sums, term by term, in the order of the ranks.
fn sum_bits<'a>(ranks: impl Iterator<Item = &'a Vec<u64>>) -> Vec<f64> {
    let mut sums = Vec::new();
    for terms in ranks {
        sums.resize(sums.len().max(terms.len()), 0.0);
        let terms = terms.iter().map(|&bits| f64::from_bits(bits));
        sums.iter_mut()
            .zip(terms)
            .for_each(|(sum, term)| *sum += term);
    }
    sums
}

/// Returns the tokens of a batch, padding not counted.
fn tokens(batch: &MlmBatch) -> usize {
    let mask = batch.attention_mask.iter();
    mask.filter(|&&mask| mask != 0).count()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::collate::{BatchKey, Collator, Example, Lanes};
    use crate::distributed;
    use crate::model::{Config, MaskedLm};
    use crate::train::{Callback, Control, History, IntervalStrategy, LogRecord, Schedule};

    const VOCAB: u32 = 90;

    /// Rows of 8 tokens; row i has 1 + i % 3 masked tokens.
    struct Rows;

    impl Collator for Rows {
        fn collate(&self, examples: &[Example], _: BatchKey) -> Result<MlmBatch> {
            let ids: Vec<u32> = examples.iter().flat_map(|e| e.input_ids.clone()).collect();
            let labels = examples.iter().flat_map(|e| e.labels.clone().unwrap());
            MlmBatch::new(ids, (examples.len(), 8))?.with_labels(labels.collect())
        }
    }

    fn rows(count: u32) -> Vec<Example> {
        let row = |i: u32| {
            let ids: Vec<u32> = (0..8)
                .map(|t| 5 + (i * 13 + t * 29) % (VOCAB - 5))
                .collect();
            let mut example = Example::from(ids);
            let label = |t| {
                if t <= i % 3 {
                    i64::from(7 + t + i % 50)
                } else {
                    -100
                }
            };
            example.labels = Some((0..8).map(label).collect());
            example
        };
        (0..count).map(row).collect()
    }

    fn model(seed: u64) -> MaskedLm {
        let config = Config::new("roberta")
            .set("vocab_size", VOCAB)
            .set("hidden_size", 32)
            .set("num_hidden_layers", 2)
            .set("num_attention_heads", 4)
            .set("intermediate_size", 64);
        MaskedLm::from_config(&config, seed).unwrap()
    }

    /// Twelve steps of two batches, three epochs, with warmup, clipping and logs.
    fn args(out: &Path) -> TrainingArguments {
        TrainingArguments::new(out)
            .per_device_train_batch_size(3)
            .gradient_accumulation_steps(2)
            .epochs(3)
            .learning_rate(2e-3)
            .weight_decay(0.1)
            .warmup_steps(3)
            .max_grad_norm(0.8)
            .logging_steps(5)
            .save_steps(1)
    }

    fn trainer(args: TrainingArguments, model: &MaskedLm) -> Trainer {
        Trainer::new(model.clone(), args, rows(23), Rows)
    }

    fn bits(model: &MaskedLm) -> Vec<Vec<u32>> {
        let values = |param: &ops::Param| -> Vec<f32> {
            param.var().flatten_all().unwrap().to_vec1().unwrap()
        };
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        model.params().iter().map(values).map(bits).collect()
    }

    /// Returns all of the steps that a machine's speed does not change.
    fn numbers(history: &History) -> Vec<(usize, u32, u32, u64, usize, usize)> {
        let step = |s: &StepRecord| {
            let bits = (
                s.loss.to_bits(),
                s.grad_norm.to_bits(),
                s.learning_rate.to_bits(),
            );
            (s.step, bits.0, bits.1, bits.2, s.counted, s.tokens)
        };
        history.steps.iter().map(step).collect()
    }

    fn nowhere() -> TrainingArguments {
        args(Path::new("")).save_strategy(IntervalStrategy::No)
    }

    #[test]
    fn scaling_the_loss_by_a_power_of_two_changes_no_bit() {
        let plain = model(1);
        let expected = trainer(nowhere(), &plain).train().unwrap();
        assert_eq!(expected.steps.len(), 12);
        assert!(
            expected.steps.iter().any(|step| step.grad_norm > 0.8),
            "clipping takes part"
        );
        for scaler in [
            GradScaler::new(),
            // The scale changes on the way.
            GradScaler::new().init_scale(0.25).growth_interval(2),
        ] {
            let scaled = model(1);
            let mut trainer = trainer(nowhere(), &scaled);
            trainer.scaler = Some(scaler);
            let history = trainer.train().unwrap();
            assert_eq!(numbers(&history), numbers(&expected));
            assert_eq!(bits(&scaled), bits(&plain));
            assert_eq!(history.skipped_steps(), 0);
        }
    }

    #[test]
    fn ranks_take_the_steps_of_one_process_and_hold_the_same_weights() {
        let args = || {
            nowhere()
                .gradient_accumulation_steps(1)
                .global_batch_size(12)
        };
        let alone = model(1);
        let expected = trainer(args(), &alone).train().unwrap();
        for (ranks, sharded, overlaps) in [
            (2, false, false),
            (3, false, false),
            (4, false, false),
            (3, true, false),
            (3, false, true),
        ] {
            let found = distributed::on_threads(ranks, |group| {
                // Every rank begins with weights of its own; those of the first are taken.
                let trained = model(1 + group.rank() as u64);
                let args = args().shard_optimizer(sharded).overlap_exchange(overlaps);
                let trainer = trainer(args, &trained);
                assert!(trainer.ranks.set(group).is_ok());
                let mut trainer = trainer;
                let history = trainer.train().unwrap();
                let evaluation = trainer.predict(rows(23)).unwrap();
                (history, bits(&trained), evaluation)
            });
            for (history, weights, evaluation) in &found {
                assert_eq!(weights, &found[0].1, "{ranks} ranks");
                assert_eq!(numbers(history), numbers(&found[0].0));
                assert_eq!(evaluation.tokens, found[0].2.tokens);
                assert_eq!(evaluation.tokens.len(), rows(23).len() * 2 - 1);
                for (step, expected) in history.steps.iter().zip(&expected.steps) {
                    assert_eq!(
                        (step.counted, step.tokens),
                        (expected.counted, expected.tokens)
                    );
                    let error = (step.loss / expected.loss - 1.0).abs();
                    assert!(error < 1e-6, "{ranks} ranks, step {}: {error}", step.step);
                }
            }
        }
    }

    #[test]
    fn a_tied_table_is_exchanged_before_its_lookups_which_follow_as_rows() {
        let model = |seed| {
            let config = Config::new("roberta")
                .set("vocab_size", 2100)
                .set("hidden_size", 32)
                .set("num_hidden_layers", 1)
                .set("num_attention_heads", 2)
                .set("intermediate_size", 64);
            MaskedLm::from_config(&config, seed).unwrap()
        };
        let run = |ranks: usize, overlaps: bool| {
            distributed::on_threads(ranks, |group| {
                let trained = model(1);
                let args = nowhere()
                    .gradient_accumulation_steps(1)
                    .global_batch_size(12)
                    .overlap_exchange(overlaps);
                let mut trainer = trainer(args, &trained);
                assert!(trainer.ranks.set(Arc::clone(&group)).is_ok());
                let mut run = Box::new(trainer.begin().unwrap());
                trainer.steps(&mut run).unwrap();
                let split = run.overlap.as_ref().map(|overlap| overlap.split().to_vec());
                let named = |number: &usize| trained.params()[*number].name().to_owned();
                let split: Vec<String> = split.iter().flatten().map(named).collect();
                (
                    numbers(&run.history),
                    bits(&trained),
                    split,
                    group.bytes_received(),
                )
            })
        };
        for ranks in [2, 3] {
            let (plain, overlapped, again) =
                (run(ranks, false), run(ranks, true), run(ranks, true));
            for (rank, (steps, weights, split, _)) in overlapped.iter().enumerate() {
                assert_eq!(split, &["roberta.embeddings.word_embeddings.weight"]);
                assert_eq!(weights, &overlapped[0].1, "rank {rank}");
                assert_eq!(
                    (steps, weights),
                    (&again[rank].0, &again[rank].1),
                    "the same bits again"
                );
                for (step, expected) in steps.iter().zip(&plain[rank].0) {
                    let loss = |step: &(usize, u32, u32, u64, usize, usize)| f32::from_bits(step.1);
                    let error = (loss(step) / loss(expected) - 1.0).abs();
                    assert!(error < 1e-6, "step {}: {error}", step.0);
                    assert_eq!(
                        (step.0, step.4, step.5),
                        (expected.0, expected.4, expected.5)
                    );
                }
                // Nothing was exchanged twice: what comes on top is the rows.
                let (bytes, expected) = (overlapped[rank].3 as f64, plain[rank].3 as f64);
                assert!(bytes < 1.1 * expected, "{bytes} of {expected}");
            }
        }
    }

    /// Returns a scale at which gradients overflow even in f32, until it was halved a few times.
    fn too_large() -> GradScaler {
        GradScaler::new().init_scale(2f64.powi(134))
    }

    #[test]
    fn overflowing_steps_are_skipped_counted_and_logged() {
        let trained = model(1);
        let mut trainer = trainer(nowhere().logging_steps(1), &trained);
        trainer.scaler = Some(too_large());
        let before = bits(&trained);
        let weights = Arc::new(Mutex::new(Vec::new()));
        let (seen, watched) = (Arc::clone(&weights), trained.clone());
        let mut trainer = trainer.callback(move |event: &Event| {
            if let Event::StepEnd { .. } = event {
                seen.lock().unwrap().push(bits(&watched));
            }
            Ok(Control::Continue)
        });
        let history = trainer.train().unwrap();
        let skipped = history.skipped_steps();
        assert!((1..10).contains(&skipped), "{skipped}");
        let left_out: Vec<bool> = history.steps.iter().map(StepRecord::is_skipped).collect();
        assert!(left_out[0], "{left_out:?}");
        let weights = weights.lock().unwrap();
        for step in 0..12 {
            let earlier = if step == 0 {
                &before
            } else {
                &weights[step - 1]
            };
            // The warm-up's first update has a learning rate of 0.
            let stays = left_out[step] || history.steps[step].learning_rate == 0.0;
            assert_eq!(weights[step] == *earlier, stays, "step {}", step + 1);
            assert!(history.steps[step].loss.is_finite());
        }
        // The schedule begins with the first update, as in the reference.
        let schedule = Schedule::linear(2e-3, 3, 12);
        let rates: Vec<f64> = history.steps.iter().map(|s| s.learning_rate).collect();
        let updates = left_out.iter().scan(0, |done, &skipped| {
            let now = *done;
            *done += usize::from(!skipped);
            Some(schedule.lr(now))
        });
        assert_eq!(rates, updates.collect::<Vec<_>>());
        // Each log tells of its own step.
        let logged = |log: &LogRecord| (log.skipped_steps, log.grad_norm.is_finite());
        let logs: Vec<_> = history.logs.iter().map(logged).collect();
        let expected: Vec<_> = left_out.iter().map(|&s| (usize::from(s), !s)).collect();
        assert_eq!(logs, expected);
        assert_eq!(history.logs[0].loss_scale, Some(2f64.powi(133)));
        // JSON has no infinite numbers, and the history must come back from it.
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
        assert!(format!("{history:?}").contains(&format!("{skipped} steps left out")));
    }

    fn stop_after(step: usize) -> impl Callback {
        move |event: &Event| {
            let stop = matches!(event, Event::StepEnd { step: done, .. } if done.step == step);
            Ok(if stop {
                Control::Stop
            } else {
                Control::Continue
            })
        }
    }

    #[test]
    fn a_run_with_loss_scaling_resumes_exactly() {
        let out = tempfile::tempdir().unwrap();
        let scaled = |folder: &Path, model: &MaskedLm| {
            let mut trainer = trainer(args(folder), model);
            trainer.scaler = Some(too_large());
            trainer
        };
        let whole = model(1);
        let expected = scaled(out.path(), &whole).train().unwrap();
        assert!(expected.skipped_steps() > 0);
        for stop in [1, 3, 6, 9] {
            let out = tempfile::tempdir().unwrap();
            scaled(out.path(), &model(1))
                .callback(stop_after(stop))
                .train()
                .unwrap();
            let resumed = model(2);
            let history = scaled(out.path(), &resumed)
                .resume_from_latest_checkpoint()
                .unwrap();
            assert_eq!(
                numbers(&history),
                numbers(&expected),
                "stopped after {stop}"
            );
            assert_eq!(history.logs, expected.logs, "stopped after {stop}");
            assert_eq!(bits(&resumed), bits(&whole), "stopped after {stop}");
        }
    }

    #[test]
    fn gradients_that_stay_non_finite_end_the_run() {
        let broken = model(1);
        let before = bits(&broken);
        let mut trainer = trainer(nowhere(), &broken);
        // One halving too many in one.
        trainer.scaler = Some(too_large().backoff_factor(1e-50));
        let error = trainer.train().unwrap_err();
        assert!(
            matches!(error, Error::NonFiniteGradient { step: 1, .. }),
            "{error:?}"
        );
        assert_eq!(bits(&broken), before);
    }

    #[test]
    fn gradient_checkpointing_does_not_change_a_run() {
        let (plain, frugal) = (model(1), model(1));
        let expected = trainer(nowhere(), &plain).train().unwrap();
        let history = trainer(nowhere().gradient_checkpointing(true), &frugal)
            .train()
            .unwrap();
        assert_eq!(numbers(&history), numbers(&expected));
        assert_eq!(bits(&frugal), bits(&plain));
    }

    /// Returns the events, in order.
    fn listening(trainer: Trainer) -> (Trainer, Arc<Mutex<Vec<String>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let trainer = trainer.callback(move |event: &Event| {
            let state = event.state();
            let name = format!("{event:?}");
            let name = name.split([' ', '{']).next().unwrap_or_default().to_owned();
            let line = format!("{name} {} {:.3}", state.step, state.epoch);
            list.lock().unwrap().push(line);
            Ok(Control::Continue)
        });
        (trainer, told)
    }

    #[test]
    fn losses_read_late_are_equal_and_reported_in_order() {
        let run = |reads_later: bool| {
            let out = tempfile::tempdir().unwrap();
            let model = model(1);
            let mut trainer = trainer(args(out.path()).save_steps(7), &model);
            trainer.reads_later = reads_later;
            let (mut trainer, told) = listening(trainer);
            let history = trainer.train().unwrap();
            let told = told.lock().unwrap().clone();
            (numbers(&history), history.logs, bits(&model), told)
        };
        let (at_once, late) = (run(false), run(true));
        assert!(
            at_once
                .3
                .iter()
                .filter(|e| e.starts_with("StepEnd"))
                .count()
                == 12
        );
        assert!(at_once == late, "{:?}\n{:?}", at_once.3, late.3);
    }

    #[test]
    fn pending_losses_are_read_for_logs_checkpoints_and_ends_of_epochs() {
        let model = model(1);
        let mut trainer = trainer(nowhere(), &model);
        trainer.reads_later = true;
        let mut run = trainer.begin().unwrap();
        let loader = trainer.train_loader().unwrap();
        let mut read_after = Vec::new();
        for step in 1..=12 {
            let at = run.plan.position(run.step);
            let batches = loader.batches_where(at, &Lanes::new(), |_| true).take(2);
            let group: Vec<MlmBatch> = batches.map(Result::unwrap).collect();
            trainer
                .take_step(&mut run, Ok(group), at.pass.., Instant::now())
                .unwrap();
            // Someone who watches is not what this is about.
            (run.read, run.reads) = (Instant::now(), false);
            if trainer.must_read(&run) {
                trainer.read_steps(&mut run).unwrap();
                read_after.push(step);
            }
            trainer.after_step(&mut run).unwrap();
        }
        // Epochs of four steps, logs every five.
        assert_eq!(read_after, [4, 5, 8, 10, 12]);
        assert_eq!(run.history.steps.len(), 12);
        run.reads = true;
        run.step = 1;
        assert!(trainer.must_read(&run), "someone watches");
    }

    #[test]
    fn a_pending_loss_that_is_not_finite_names_its_step_and_changes_nothing() {
        let spoiled = model(1);
        let mut trainer = trainer(nowhere().learning_rate(1e25).warmup_steps(0), &spoiled);
        trainer.reads_later = true;
        let mut run = Box::new(trainer.begin().unwrap());
        let error = trainer.steps(&mut run).unwrap_err();
        let step = match &error {
            Error::NonFiniteLoss { step, .. } | Error::NonFiniteGradient { step, .. } => *step,
            other => panic!("{other:?}"),
        };
        assert_eq!(step, 2, "{error}");
        // The run stands before it, with the steps before it in its history.
        assert_eq!((run.step, run.history.steps.len()), (1, 1));
        assert!(run.taken.is_empty());
        let finite = |param: &ops::Param| {
            let values: Vec<f32> = param.var().flatten_all().unwrap().to_vec1().unwrap();
            values.iter().all(|value| value.is_finite())
        };
        assert!(spoiled.params().iter().all(finite), "no weight was spoiled");
    }
}
