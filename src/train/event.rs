//! Events of training, and the callbacks that receive them.

use std::path::PathBuf;
use std::time::Duration;

use super::{EvalMetrics, Evaluation, History, LogRecord, StepRecord};
use crate::Result;

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: usize,
    /// Optimizer steps of the whole run.
    pub max_steps: usize,
    /// Epochs done.
    pub epoch: f64,
    /// Epochs of the whole run.
    pub num_train_epochs: f64,
    /// Time spent in training so far, before a resumed checkpoint included.
    pub elapsed: Duration,
    /// The most memory of the device that tensors took at once so far, in bytes; `None` on the CPU.
    pub peak_device_memory: Option<u64>,
}

/// Something that happened in a run. Every event carries the [`TrainState`] at its time.
///
/// ```
/// use cloze::prelude::*;
/// # fn f(trainer: Trainer) -> Trainer {
/// trainer.callback(|event: &Event| {
///     if let Event::Evaluate { state, metrics } = event {
///         println!("step {} of {}: perplexity {:.2}", state.step, state.max_steps, metrics.perplexity());
///     }
///     Ok(Control::Continue)
/// })
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The run begins.
    TrainBegin {
        /// How far it is: beyond step 0 when it was resumed.
        state: TrainState,
        /// The events recorded before a resumed checkpoint.
        history: History,
    },
    /// An optimizer step is done.
    ///
    /// On a GPU, which is not synchronized after every step, this event comes a little later, for all pending steps:
    /// when something else is due, and at least once a second. A request is then granted after the last of them.
    StepEnd {
        /// How far the run was after it.
        state: TrainState,
        /// The measurements.
        step: StepRecord,
    },
    /// A log fell due.
    Log {
        /// How far the run is.
        state: TrainState,
        /// The logged values.
        log: LogRecord,
    },
    /// An epoch is done.
    EpochEnd {
        /// How far the run is.
        state: TrainState,
    },
    /// A batch of an evaluation is done.
    EvaluateStep {
        /// How far the run is.
        state: TrainState,
        /// Batches done.
        done: usize,
        /// Batches of the evaluation.
        total: usize,
    },
    /// An evaluation is done.
    Evaluate {
        /// How far the run is.
        state: TrainState,
        /// The measurements.
        metrics: EvalMetrics,
    },
    /// A checkpoint is complete.
    Save {
        /// How far the run is.
        state: TrainState,
        /// The checkpoint's folder.
        path: PathBuf,
    },
    /// The run is over: at its end, early, or interrupted.
    TrainEnd {
        /// How far the run came.
        state: TrainState,
        /// All that was recorded.
        history: History,
    },
}

impl Event {
    /// Returns its name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::TrainBegin { .. } => "TrainBegin",
            Self::StepEnd { .. } => "StepEnd",
            Self::Log { .. } => "Log",
            Self::EpochEnd { .. } => "EpochEnd",
            Self::EvaluateStep { .. } => "EvaluateStep",
            Self::Evaluate { .. } => "Evaluate",
            Self::Save { .. } => "Save",
            Self::TrainEnd { .. } => "TrainEnd",
        }
    }
}

impl Event {
    /// Returns how far the run was at the event.
    pub fn state(&self) -> &TrainState {
        match self {
            Self::TrainBegin { state, .. }
            | Self::StepEnd { state, .. }
            | Self::Log { state, .. }
            | Self::EpochEnd { state }
            | Self::EvaluateStep { state, .. }
            | Self::Evaluate { state, .. }
            | Self::Save { state, .. }
            | Self::TrainEnd { state, .. } => state,
        }
    }

    /// Returns the evaluation, if the event is one.
    pub fn evaluation(&self) -> Option<Evaluation> {
        match self {
            Self::Evaluate { state, metrics } => Some(Evaluation {
                step: state.step,
                epoch: state.epoch,
                metrics: metrics.clone(),
            }),
            _ => None,
        }
    }
}

/// A callback's request for what should happen next.
///
/// ```
/// use cloze::prelude::*;
/// # fn f(trainer: Trainer) -> Trainer {
/// // Stops when the model is good enough.
/// trainer.callback(|event: &Event| {
///     Ok(match event {
///         Event::Evaluate { metrics, .. } if metrics.perplexity() < 10.0 => Control::Stop,
///         _ => Control::Continue,
///     })
/// })
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control {
    /// Continue.
    #[default]
    Continue,
    /// Evaluate after this step.
    Evaluate,
    /// Write a checkpoint after this step.
    Save,
    /// End the run after this step.
    Stop,
}

/// Listens to a run's events. An error ends the run.
///
/// Closures are callbacks too:
///
/// ```
/// use cloze::train::{Callback, Control, Event};
///
/// fn listen(callback: impl Callback + 'static) {}
///
/// listen(|event: &Event| {
///     if let Event::StepEnd { step, .. } = event {
///         println!("step {}: loss {:.4}", step.step, step.loss);
///     }
///     Ok(Control::Continue)
/// });
/// ```
pub trait Callback: Send {
    /// Called for every event, in order, on the thread that trains.
    fn on_event(&mut self, event: &Event) -> Result<Control>;
}

impl<F: FnMut(&Event) -> Result<Control> + Send> Callback for F {
    fn on_event(&mut self, event: &Event) -> Result<Control> {
        self(event)
    }
}
