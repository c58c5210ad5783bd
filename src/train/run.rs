//! The state of a run in progress.

use std::time::{Duration, Instant};

use super::early_stopping;
use super::history::mean_loss;
use super::metrics::Metric;
use super::overlap::Overlap;
use super::plan::Plan;
use super::shards::Shards;
use super::step::Taken;
use super::{
    Evaluation, GradScaler, History, IntervalStrategy, LogRecord, Optimizer, Schedule, StepRecord,
    TrainState, TrainingArguments,
};
use crate::collate::Lanes;

/// A run between its first step and its last: everything in a checkpoint except the weights.
pub(super) struct Run {
    pub(super) plan: Plan,
    /// Digest of the first batch, to check whether a checkpoint belongs to the same data.
    pub(super) data: String,
    pub(super) schedule: Schedule,
    pub(super) optimizer: Box<dyn Optimizer>,
    /// Of several ranks with sharded state, the parts that the optimizer works on.
    pub(super) shards: Option<Shards>,
    /// Of several ranks that exchange gradients during the backward pass.
    pub(super) overlap: Option<Overlap>,
    /// For a stream, the positions of the lanes read here after the last step.
    pub(super) lanes: Lanes,
    /// In fp16 training.
    pub(super) scaler: Option<GradScaler>,
    pub(super) history: History,
    /// Optimizer steps done.
    pub(super) step: usize,
    /// How many of them were left out because gradients overflowed: the schedule does not count these.
    pub(super) skipped: usize,
    /// The last of them, whose numbers have not been read yet.
    pub(super) taken: Vec<Taken>,
    /// Whether someone wants to see numbers now, because of an interrupt or because the last ones are old.
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
        plan: Plan,
        data: String,
        optimizer: Box<dyn Optimizer>,
        schedule: Schedule,
    ) -> Self {
        Self {
            plan,
            data,
            schedule,
            optimizer,
            shards: None,
            overlap: None,
            lanes: Lanes::new(),
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
        }
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

    /// Returns how far the run was, or is, after `step` steps.
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

    /// Returns the learning rate of the next step.
    pub(super) fn learning_rate(&self, metric: &Metric) -> f64 {
        let Some(plateau) = self.schedule.plateau() else {
            return self.schedule.lr(self.step - self.skipped);
        };
        let mut plateau = plateau.greater_is_better(metric.greater_is_better());
        let metrics = self
            .evaluations()
            .filter_map(|e| metric.of(&e.metrics).ok());
        metrics.for_each(|metric| plateau.step(metric));
        plateau.lr()
    }

    /// Returns the evaluations during training, without the one before the first step.
    fn evaluations(&self) -> impl DoubleEndedIterator<Item = &Evaluation> {
        self.history.evaluations.iter().filter(|e| e.step > 0)
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

    /// Returns whether the current step is to be logged and has not been.
    pub(super) fn log_is_due(&self, args: &TrainingArguments) -> bool {
        let every = args.logging_interval(self.plan.max_steps);
        let due = self.plan.is_due(args.logging_strategy, every, self.step)
            || (args.logging_first_step && self.step == 1);
        due && self.history.logs.last().map(|log| log.step) != Some(self.step) && self.has_loss()
    }

    /// Returns whether the model is to be evaluated after the current step and has not been.
    pub(super) fn evaluation_is_due(&self, args: &TrainingArguments, wished: bool) -> bool {
        let every = args.eval_interval(self.plan.max_steps);
        let trained = match args.eval_strategy {
            IntervalStrategy::Epoch => self.plan.epoch(self.step),
            _ => self.step as f64,
        };
        let due =
            trained >= args.eval_delay && self.plan.is_due(args.eval_strategy, every, self.step);
        let last = self.history.evaluations.last().map(|e| e.step);
        (due || wished) && last != Some(self.step)
    }

    /// Returns whether a checkpoint is to be written after the current step and has not been.
    pub(super) fn save_is_due(&self, args: &TrainingArguments, wished: bool) -> bool {
        let due = match args.save_strategy {
            IntervalStrategy::Best => self.is_best(&Metric::of_best(args)),
            IntervalStrategy::Steps if self.is_complete() => true,
            strategy => {
                let every = args.save_interval(self.plan.max_steps);
                self.plan.is_due(strategy, every, self.step)
            }
        };
        (due || wished) && self.saved.last() != Some(&self.step)
    }

    /// Returns the steps that have not been logged.
    fn since_log(&self) -> &[StepRecord] {
        let logged = self.history.logs.last().map_or(0, |log| log.step);
        self.history.steps.get(logged..).unwrap_or_default()
    }

    /// Returns whether anything was masked since the last log, as far as numbers have been read: without, there is no
    /// loss to log.
    fn has_loss(&self) -> bool {
        let since = self.since_log();
        let unread = self.history.steps.len() < self.step;
        unread || since.iter().any(|step| step.counted > 0)
    }

    /// Returns the log of the current step.
    pub(super) fn log(&self) -> Option<LogRecord> {
        let since = self.since_log();
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

    /// Returns the metric of the evaluation after `step`.
    pub(super) fn metric(&self, metric: &Metric, step: usize) -> Option<f64> {
        let evaluation = self.evaluations().rev().find(|e| e.step == step)?;
        metric.of(&evaluation.metrics).ok()
    }

    /// Returns whether the evaluation after the current step is better than all before it.
    fn is_best(&self, metric: &Metric) -> bool {
        let Some(now) = self.metric(metric, self.step) else {
            return false;
        };
        let before = self.evaluations().filter(|e| e.step < self.step);
        let mut before = before.filter_map(|e| metric.of(&e.metrics).ok());
        !now.is_nan() && before.all(|before| before.is_nan() || metric.is_better(now, before))
    }

    /// Makes the current step the best one if it was saved, evaluated and is better.
    pub(super) fn note_best(&mut self, metric: &Metric) {
        let Some(now) = self.metric(metric, self.step) else {
            return;
        };
        let best = self
            .history
            .best_step
            .and_then(|step| self.metric(metric, step));
        if self.saved.contains(&self.step) && best.is_none_or(|best| metric.is_better(now, best)) {
            self.history.best_step = Some(self.step);
        }
    }

    /// Returns whether the evaluations so far say that going on is of no use.
    pub(super) fn gives_up(&self, args: &TrainingArguments, metric: &Metric) -> bool {
        let Some(patience) = args.early_stopping_patience else {
            return false;
        };
        let metrics = self
            .evaluations()
            .filter_map(|e| metric.of(&e.metrics).ok());
        let metrics: Vec<f64> = metrics.map(|value| metric.cost(value)).collect();
        early_stopping::is_due(&metrics, patience, args.early_stopping_threshold)
    }
}
