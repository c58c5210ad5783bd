//! Training: arguments, the loop, the optimizer and its schedule, checkpoints, events and the history.
//!
//! [`Trainer`] does the whole of it. A loop by hand takes the same parts, and the same steps:
//!
//! ```
//! use cloze::prelude::*;
//! use cloze::train::evaluate;
//!
//! # fn main() -> cloze::Result<()> {
//! let texts = ["a spiral galaxy", "a barred spiral galaxy", "a spiral staircase", "a galaxy of stars"];
//! let tokenizer = Tokenizer::train_bpe(texts, 300)?;
//! let examples: Vec<Example> = tokenizer.encode_batch(&texts)?.into_iter().map(Example::from).collect();
//! # let config = Config::new("roberta").set("vocab_size", tokenizer.len()).set("hidden_size", 16)
//! #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
//! let model = MaskedLm::from_config(&config, 42)?;
//! let loader = DataLoader::new(examples, MaskingCollator::new(&tokenizer).mlm_probability(0.5), 2)?;
//! let before = evaluate(&model, &loader)?;
//!
//! let epochs = 5;
//! let schedule = Schedule::linear(5e-3, 0, epochs * loader.len());
//! let mut optimizer = AdamW::new(&model).weight_decay(0.01);
//! let shuffled = loader.clone().shuffle(42);
//! let mut step = 0;
//! for epoch in 0..epochs {
//!     for batch in shuffled.epoch(epoch as u64) {
//!         let loss = model.loss(&batch?, &Context::train(42, step as u64))?;
//!         model.backward(&loss.mean()?)?;
//!         optimizer.clip_grad_norm(1.0)?;
//!         optimizer.step(schedule.lr(step))?;
//!         optimizer.zero_grad();
//!         step += 1;
//!     }
//! }
//! assert!(evaluate(&model, &loader)?.perplexity() < before.perplexity());
//! # Ok(())
//! # }
//! ```

mod adafactor;
mod arguments;
mod checkpoint;
mod choice;
mod data;
mod early_stopping;
mod evaluate;
mod event;
#[cfg(test)]
mod every_family;
mod exchange;
mod grad_scaler;
mod history;
#[cfg(feature = "hub")]
mod hub;
mod lion;
mod live_training;
mod lora;
mod loss_plot;
mod make_optimizer;
mod metrics;
mod optimizer;
mod optimizer_name;
mod out_of_memory;
mod overlap;
mod param_group;
mod peak_flops;
mod plan;
mod plateau;
mod precision;
mod prediction;
mod progress_bar;
mod progress_lines;
mod recipe;
pub(crate) mod report;
mod reports;
mod rules;
mod run;
mod saving;
mod schedule;
mod sgd;
mod shards;
#[cfg(test)]
mod speech;
mod step;
mod strategy;
mod tensorboard;
#[cfg(test)]
mod tests;
mod trainer;

pub use adafactor::{Adafactor, AdafactorRule};
pub use arguments::TrainingArguments;
pub use checkpoint::latest_checkpoint;
pub use data::{IntoTrainingData, TrainingData};
pub use evaluate::evaluate;
pub use event::{Callback, Control, Event, TrainState};
pub use exchange::sum_gradients;
pub use grad_scaler::GradScaler;
pub use history::{Evaluation, History, LogRecord, StepRecord};
pub(crate) use history::{gib, mfu};
#[cfg(feature = "hub")]
pub use hub::PushToHubCallback;
pub use lion::{Lion, LionRule};
pub(crate) use live_training::is_shown_above;
pub use live_training::{LiveTraining, training_display};
pub use lora::{Adapters, Lora, LoraOptimizer};
pub use loss_plot::LossPlot;
pub use metrics::EvalMetrics;
pub use optimizer::AdamW;
pub use optimizer_name::OptimizerName;
pub use param_group::ParamGroup;
pub use peak_flops::peak_flops;
pub use plateau::ReduceLrOnPlateau;
pub use prediction::{
    MaskedPrediction, PredictionOutput, SpokenPrediction, error_rates, masked_accuracy,
};
pub use recipe::{Recipe, Resume};
pub use rules::{Optimizer, RuleOptimizer, Update, UpdateRule};
pub use schedule::{Ramp, Schedule, SchedulerKwargs, SchedulerType, ThresholdMode, get_scheduler};
pub use sgd::{Sgd, SgdRule};
pub use strategy::{HubStrategy, IntervalStrategy, SaveStrategy};
pub use trainer::Trainer;
