//! What changes while a run goes on.

use std::time::{Duration, Instant};

use super::early_stopping;
use super::history::mean_loss;
use super::metrics::Metric;
use super::overlap::Overlap;
use super::plan::Plan;
use super::shards::Shards;
use super::step::Taken;
use super::{
    AdamW, GradScaler, History, IntervalStrategy, LogRecord, Schedule, TrainState,
    TrainingArguments,
};
use crate::Result;

/// A run between its first step and its last: all that a checkpoint must hold, the weights aside.
pub(super) struct Run {
    pub(super) plan: Plan,
    /// Digest of the first batch: tells whether a checkpoint belongs to the same data.
    pub(super) data: String,
    pub(super) schedule: Schedule,
    pub(super) optimizer: AdamW,
    /// Of several ranks with sharded state, the parts that the optimizer works on.
    pub(super) shards: Option<Shards>,
    /// Of several ranks that exchange gradients during the backward pass.
    pub(super) overlap: Option<Overlap>,
    /// In fp16 training.
    pub(super) scaler: Option<GradScaler>,
    pub(super) history: History,
    /// Optimizer steps done.
    pub(super) step: usize,
    /// How many of them were left out because gradients overflowed: the schedule does not count these.
    pub(super) skipped: usize,
    /// The last of them, whose numbers have not been read yet.
    pub(super) taken: Vec<Taken>,
    /// Whether somebody wants to see numbers now, for there is an interrupt, or the last ones are old.
    pub(super) reads: bool,
    /// When numbers were read last.
    pub(super) read: Instant,
    /// The steps whose checkpoints this run wrote and kept, oldest first.
    pub(super) saved: Vec<usize>,
    /// Since when time counts, and what was counted before.
    started: Instant,
    before: Duration,
}

impl Run {
    pub(super) fn new(
        args: &TrainingArguments,
        plan: Plan,
        data: String,
        optimizer: AdamW,
    ) -> Result<Self> {
        Ok(Self {
            plan,
            data,
            schedule: args.schedule(plan.max_steps)?,
            optimizer,
            shards: None,
            overlap: None,
            scaler: None,
            history: History::default(),
            step: 0,
            skipped: 0,
            taken: Vec::new(),
            reads: false,
            read: Instant::now(),
            saved: Vec::new(),
            started: Instant::now(),
            before: Duration::ZERO,
        })
    }

    /// Starts the clock where the history's ends.
    pub(super) fn start_clock(&mut self) {
        self.before = Duration::try_from_secs_f64(self.history.seconds).unwrap_or_default();
        self.started = Instant::now();
        self.read = self.started;
    }

    pub(super) fn state(&self) -> TrainState {
        self.state_after(self.step)
    }

    /// How far the run was, or is, after `step` steps.
    pub(super) fn state_after(&self, step: usize) -> TrainState {
        TrainState {
            step,
            max_steps: self.plan.max_steps,
            epoch: self.plan.epoch(step),
            num_train_epochs: self.plan.epoch(self.plan.max_steps),
            elapsed: self.before + self.started.elapsed(),
            peak_device_memory: self.history.peak_device_memory,
        }
    }

    /// The learning rate of the next step.
    pub(super) fn learning_rate(&self) -> f64 {
        self.schedule.lr(self.step - self.skipped)
    }

    /// Brings the history's totals up to date.
    pub(super) fn note_progress(&mut self) {
        let TrainState { epoch, elapsed, .. } = self.state();
        self.history.epoch = epoch;
        self.history.seconds = elapsed.as_secs_f64();
    }

    pub(super) fn is_complete(&self) -> bool {
        self.step >= self.plan.max_steps
    }

    /// Whether the current step is to be logged and has not been.
    pub(super) fn log_is_due(&self, args: &TrainingArguments) -> bool {
        let due = self
            .plan
            .is_due(args.logging_strategy, args.logging_steps, self.step)
            || (args.logging_first_step && self.step == 1);
        due && self.history.logs.last().map(|log| log.step) != Some(self.step)
    }

    /// Whether the model is to be evaluated after the current step and has not been.
    pub(super) fn evaluation_is_due(&self, args: &TrainingArguments, wished: bool) -> bool {
        let due = self
            .plan
            .is_due(args.eval_strategy, args.eval_interval(), self.step);
        let last = self.history.evaluations.last().map(|e| e.step);
        (due || wished) && last != Some(self.step)
    }

    /// Whether a checkpoint is to be written after the current step and has not been.
    pub(super) fn save_is_due(&self, args: &TrainingArguments, wished: bool) -> bool {
        let at_end = args.save_strategy == IntervalStrategy::Steps && self.is_complete();
        let due = self
            .plan
            .is_due(args.save_strategy, args.save_steps, self.step)
            || at_end;
        (due || wished) && self.saved.last() != Some(&self.step)
    }

    /// What the current step's log says.
    pub(super) fn log(&self) -> Option<LogRecord> {
        let logged = self.history.logs.last().map_or(0, |log| log.step);
        let since = self.history.steps.get(logged..)?;
        let last = since.last()?;
        Some(LogRecord {
            step: self.step,
            epoch: self.plan.epoch(self.step),
            loss: mean_loss(since),
            learning_rate: last.learning_rate,
            grad_norm: last.grad_norm,
            loss_scale: self.scaler.as_ref().map(GradScaler::get_scale),
            skipped_steps: since.iter().filter(|step| step.is_skipped()).count(),
        })
    }

    /// The metric of the evaluation after `step`.
    pub(super) fn metric(&self, metric: Metric, step: usize) -> Option<f64> {
        let mut evaluations = self.history.evaluations.iter().rev();
        let evaluation = evaluations.find(|evaluation| evaluation.step == step)?;
        Some(metric.of(&evaluation.metrics))
    }

    /// Makes the current step the best one if it was saved, evaluated and is better.
    pub(super) fn note_best(&mut self, metric: Metric) {
        let Some(now) = self.metric(metric, self.step) else {
            return;
        };
        let best = self
            .history
            .best_step
            .and_then(|step| self.metric(metric, step));
        if self.saved.contains(&self.step) && best.is_none_or(|best| now < best) {
            self.history.best_step = Some(self.step);
        }
    }

    /// Whether the evaluations so far say that going on is of no use.
    pub(super) fn gives_up(&self, args: &TrainingArguments, metric: Metric) -> bool {
        let Some(patience) = args.early_stopping_patience else {
            return false;
        };
        let metrics: Vec<f64> = self
            .history
            .evaluations
            .iter()
            .map(|evaluation| metric.of(&evaluation.metrics))
            .collect();
        early_stopping::is_due(&metrics, patience, args.early_stopping_threshold)
    }
}
