//! Training: arguments, the loop, the optimizer and its schedule, checkpoints, events and what was measured.
//!
//! [`Trainer`] does the whole of it; [`AdamW`], [`Schedule`] and a
//! [`DataLoader`](crate::collate::DataLoader) are the parts for a loop by hand.

mod arguments;
mod checkpoint;
mod early_stopping;
mod evaluate;
mod event;
mod history;
#[cfg(feature = "hub")]
mod hub;
mod metrics;
mod optimizer;
mod plan;
mod progress_bar;
mod run;
mod saving;
mod schedule;
mod trainer;

pub use arguments::{IntervalStrategy, TrainingArguments};
pub use checkpoint::latest_checkpoint;
pub use evaluate::{MaskedPrediction, Predictions};
pub use event::{Callback, Control, Event, TrainState};
pub use history::{Evaluation, History, LogRecord, StepRecord};
#[cfg(feature = "hub")]
pub use hub::PushToHubCallback;
pub use metrics::EvalMetrics;
pub use optimizer::AdamW;
pub use schedule::{Schedule, SchedulerKwargs, SchedulerType, get_scheduler};
pub use trainer::Trainer;
