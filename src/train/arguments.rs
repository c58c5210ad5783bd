//! Every setting of a training run, with transformers' names and defaults.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, SchedulerKwargs, SchedulerType};
use crate::{Error, Result};

/// When something happens during training, as in transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalStrategy {
    /// Never.
    #[default]
    No,
    /// Every so many optimizer steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
}

/// Declares the arguments once: the field, its default and the method that sets it.
macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident: $type:ty $(, from $arg:ty)? = $default:expr;)*) => {
        /// The settings of a [`Trainer`](super::Trainer), named and preset as in `transformers`.
        ///
        /// Every field has a method of the same name that sets it:
        ///
        /// ```
        /// use cloze::train::{IntervalStrategy, TrainingArguments};
        ///
        /// let args = TrainingArguments::new("eli5_mlm")
        ///     .learning_rate(2e-5)
        ///     .epochs(3)
        ///     .weight_decay(0.01)
        ///     .eval_strategy(IntervalStrategy::Epoch);
        /// assert_eq!(args.per_device_train_batch_size, 8);
        /// # args.validate()?;
        /// # Ok::<(), cloze::Error>(())
        /// ```
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        #[non_exhaustive]
        pub struct TrainingArguments {
            /// The folder that checkpoints are written to, each in its own `checkpoint-STEP`. It is made when needed.
            pub output_dir: PathBuf,
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for TrainingArguments {
            fn default() -> Self {
                Self { output_dir: PathBuf::new(), $($name: $default,)* }
            }
        }

        impl TrainingArguments {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(mut self, $name: arguments!(@arg $type $(, $arg)?)) -> Self {
                    self.$name = $name.into();
                    self
                }
            )*
        }
    };
    (@arg $type:ty) => { $type };
    (@arg $type:ty, $arg:ty) => { $arg };
}

arguments! {
    /// The peak learning rate of AdamW. Default: 5e-5.
    learning_rate: f64 = 5e-5;
    /// Examples in a batch of training. Default: 8.
    per_device_train_batch_size: usize = 8;
    /// Examples in a batch of evaluation. Default: 8.
    per_device_eval_batch_size: usize = 8;
    /// Batches whose gradients add up to one optimizer step. Default: 1.
    ///
    /// The loss of a step is the mean over all counted tokens of its batches, so accumulating equals a larger batch.
    gradient_accumulation_steps: usize = 1;
    /// Examples in a step, those of all ranks together: a multiple of
    /// [`per_device_train_batch_size`](Self::per_device_train_batch_size), and in place of
    /// [`gradient_accumulation_steps`](Self::gradient_accumulation_steps), which is each rank's own. With it a run takes the
    /// same steps on any number of ranks, and goes on on another one. Default: not set.
    global_batch_size: Option<usize>, from usize = None;
    /// Whether each of several ranks keeps the optimizer's state of its part of the weights alone (ZeRO-1): the moments then
    /// take 1/N of the memory, for the same exchange. Checkpoints are those of an unsharded run. For f32 weights on the CPU.
    /// Default: no.
    shard_optimizer: bool = false;
    /// Whether several ranks exchange gradients while the last backward pass of a step goes on, which pays where the network
    /// is slower than memory and a core is free for it. Default: no.
    overlap_exchange: bool = false;
    /// How often to go over the training data; fractions end within an epoch. Default: 3.
    num_train_epochs: f64, from impl Into<f64> = 3.0;
    /// Whether products in training and evaluation take bf16 operands, where the model's device has a unit for it; weights,
    /// gradients, optimizer state and sums stay f32. Elsewhere products stay f32, which is said once. Default: no.
    bf16: bool = false;
    /// Whether they take fp16 operands, on a GPU; the loss is then scaled as by [`GradScaler`](super::GradScaler), and a step
    /// whose gradients overflow is left out and counted. bf16 needs none of that. Default: no.
    fp16: bool = false;
    /// Whether products of f32 on a GPU may round their operands to TF32. Default: as [`crate::ops::set_tf32`] has set it, and
    /// otherwise no.
    tf32: Option<bool>, from bool = None;
    /// Whether the encoder's blocks keep only their inputs for the backward pass and are run once more in it: the same
    /// numbers with much less memory, for about a third more time. Default: no.
    gradient_checkpointing: bool = false;
    /// The floating-point operations that the model's device can do at best at the run's precision, in 10^12 per second: what
    /// [`History::mfu`](super::History::mfu) compares with. Default: known by the GPU's name.
    peak_tflops: Option<f64>, from f64 = None;
    /// The number of optimizer steps, in place of [`num_train_epochs`](Self::num_train_epochs). Default: not set.
    max_steps: Option<usize>, from usize = None;
    /// The decoupled weight decay, on all weights but biases and normalization. Default: 0.
    weight_decay: f64 = 0.0;
    /// The decay rate of AdamW's first moment. Default: 0.9.
    adam_beta1: f64 = 0.9;
    /// The decay rate of AdamW's second moment. Default: 0.999.
    adam_beta2: f64 = 0.999;
    /// What AdamW adds to the root of the second moment. Default: 1e-8.
    adam_epsilon: f64 = 1e-8;
    /// Gradients whose global norm is larger are scaled down to it; 0 turns clipping off. Default: 1.
    max_grad_norm: f64 = 1.0;
    /// How the learning rate changes from step to step. Default: linear, down to 0.
    lr_scheduler_type: SchedulerType = SchedulerType::Linear;
    /// What some schedules need beyond their length.
    lr_scheduler_kwargs: SchedulerKwargs = SchedulerKwargs::default();
    /// Steps in which the learning rate rises from 0 to its peak; when 0, [`warmup_ratio`](Self::warmup_ratio) decides. Default: 0.
    warmup_steps: usize = 0;
    /// The same as a part of all steps, rounded up. Default: 0.
    warmup_ratio: f64 = 0.0;
    /// The seed of dropout and, unless [`data_seed`](Self::data_seed) is set, of the data's order. Default: 42.
    seed: u64 = 42;
    /// The seed of the data's order. Default: [`seed`](Self::seed).
    data_seed: Option<u64>, from u64 = None;
    /// Whether to leave out an epoch's last batch when it is not full. Default: no.
    dataloader_drop_last: bool = false;
    /// When to log the loss. Default: steps.
    logging_strategy: IntervalStrategy = IntervalStrategy::Steps;
    /// Steps between two logs. Default: 500.
    logging_steps: usize = 500;
    /// Whether to log the first step too. Default: no.
    logging_first_step: bool = false;
    /// When to evaluate. Default: never.
    eval_strategy: IntervalStrategy = IntervalStrategy::No;
    /// Steps between two evaluations. Default: [`logging_steps`](Self::logging_steps).
    eval_steps: Option<usize>, from usize = None;
    /// When to write a checkpoint. Default: steps; the last step is then saved too.
    save_strategy: IntervalStrategy = IntervalStrategy::Steps;
    /// Steps between two checkpoints. Default: 500.
    save_steps: usize = 500;
    /// How many checkpoints to keep; the oldest go first, the best never. Default: all.
    save_total_limit: Option<usize>, from usize = None;
    /// Whether the model ends with the weights of its best checkpoint. Default: no.
    load_best_model_at_end: bool = false;
    /// What the best checkpoint is judged by: "loss" or "perplexity". Default: "loss".
    metric_for_best_model: String, from impl Into<String> = "loss".to_owned();
    /// Whether a larger metric is better. Default: no, as befits both metrics.
    greater_is_better: bool = false;
    /// Stops after so many evaluations in a row without improvement. Default: never.
    early_stopping_patience: Option<usize>, from usize = None;
    /// By how much the metric must change to count as an improvement. Default: 0.
    early_stopping_threshold: f64 = 0.0;
    /// Whether the model goes to the Hub: at every checkpoint, in the background, and at the end. Default: no.
    push_to_hub: bool = false;
    /// The repository for it, `owner/name` or one's own `name`. Default: the name of the output folder.
    hub_model_id: String, from impl Into<String> = String::new();
    /// Whether a repository that is made for it is private. Default: as the owner's settings say.
    hub_private_repo: Option<bool>, from bool = None;
}

impl TrainingArguments {
    /// The defaults, with checkpoints in `output_dir`.
    pub fn new(output_dir: impl Into<PathBuf>) -> Self {
        Self {
            output_dir: output_dir.into(),
            ..Self::default()
        }
    }

    /// Short for [`num_train_epochs`](Self::num_train_epochs).
    #[must_use]
    pub fn epochs(self, epochs: impl Into<f64>) -> Self {
        self.num_train_epochs(epochs)
    }

    /// Steps between two evaluations: what was set, or [`logging_steps`](Self::logging_steps).
    pub fn eval_interval(&self) -> usize {
        self.eval_steps.unwrap_or(self.logging_steps)
    }

    /// Returns how many batches a step of `ranks` ranks has, all together.
    ///
    /// # Errors
    /// When the global batch size is no multiple of a batch, or is too small for so many ranks.
    pub fn batches_per_step(&self, ranks: usize) -> Result<usize> {
        let Some(global) = self.global_batch_size else {
            return Ok(self.gradient_accumulation_steps * ranks);
        };
        let batch = self.per_device_train_batch_size;
        let refuse = |message: String| Err(Error::argument("global_batch_size", message));
        if self.gradient_accumulation_steps != 1 {
            return refuse(format!(
                "it decides how many batches a step has, and so does gradient_accumulation_steps ({}); set one of the two",
                self.gradient_accumulation_steps
            ));
        }
        if global == 0 || !global.is_multiple_of(batch) {
            return refuse(format!(
                "{global} examples are no whole number of batches of {batch} (per_device_train_batch_size); give a multiple"
            ));
        }
        if global / batch < ranks {
            return refuse(format!(
                "{global} examples are {} batches of {batch}, too few for {ranks} ranks; lower per_device_train_batch_size, \
                 or start fewer ranks",
                global / batch
            ));
        }
        Ok(global / batch)
    }

    /// The seed of the data's order.
    pub fn order_seed(&self) -> u64 {
        self.data_seed.unwrap_or(self.seed)
    }

    /// The schedule of a run of `training_steps` steps.
    pub fn schedule(&self, training_steps: usize) -> Result<Schedule> {
        let warmup = match self.warmup_steps {
            0 => (training_steps as f64 * self.warmup_ratio).ceil() as usize,
            steps => steps,
        };
        Schedule::new(
            self.lr_scheduler_type,
            self.learning_rate,
            warmup,
            training_steps,
        )
        .kwargs(self.lr_scheduler_kwargs)
        .checked()
    }

    /// Whether the settings make sense and fit each other. A [`Trainer`](super::Trainer) asks before it begins.
    ///
    /// # Errors
    /// [`Error::Argument`] with the first that does not, and what to do.
    pub fn validate(&self) -> Result<()> {
        self.validate_numbers()?;
        self.batches_per_step(1)?;
        self.validate_strategies()
    }

    fn validate_numbers(&self) -> Result<()> {
        let at_least_1 = [
            (
                "per_device_train_batch_size",
                Some(self.per_device_train_batch_size),
            ),
            (
                "per_device_eval_batch_size",
                Some(self.per_device_eval_batch_size),
            ),
            (
                "gradient_accumulation_steps",
                Some(self.gradient_accumulation_steps),
            ),
            ("max_steps", self.max_steps),
            ("logging_steps", Some(self.logging_steps)),
            ("eval_steps", self.eval_steps),
            ("save_steps", Some(self.save_steps)),
            ("save_total_limit", self.save_total_limit),
            ("early_stopping_patience", self.early_stopping_patience),
        ];
        for (name, value) in at_least_1 {
            check(value != Some(0), name, || {
                "0 makes no sense; give at least 1".to_owned()
            })?;
        }
        let not_negative = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("adam_epsilon", self.adam_epsilon),
            ("early_stopping_threshold", self.early_stopping_threshold),
        ];
        for (name, value) in not_negative {
            check(value >= 0.0 && value.is_finite(), name, || {
                format!("{value} is not allowed; give a number that is not negative")
            })?;
        }
        for (name, value) in [
            ("adam_beta1", self.adam_beta1),
            ("adam_beta2", self.adam_beta2),
        ] {
            check((0.0..1.0).contains(&value), name, || {
                format!("{value} is not allowed; give a number from 0 to just below 1")
            })?;
        }
        check(
            (0.0..=1.0).contains(&self.warmup_ratio),
            "warmup_ratio",
            || {
                format!(
                    "{} is not a part of all steps; give a number from 0 to 1 (or use warmup_steps)",
                    self.warmup_ratio
                )
            },
        )?;
        let epochs = self.num_train_epochs;
        check(
            self.max_steps.is_some() || (epochs > 0.0 && epochs.is_finite()),
            "num_train_epochs",
            || format!("{epochs} epochs are no training; give a number above 0, or set max_steps"),
        )?;
        let peak = self.peak_tflops.unwrap_or(1.0);
        check(peak > 0.0 && peak.is_finite(), "peak_tflops", || {
            format!("{peak} is no rate; give a number above 0, or leave it out")
        })?;
        // Of any length: what can be wrong with a schedule are its rates.
        self.schedule(1).map(drop)
    }

    fn validate_strategies(&self) -> Result<()> {
        use IntervalStrategy::{No, Steps};
        check(
            self.save_strategy == No || !self.output_dir.as_os_str().is_empty(),
            "output_dir",
            || "checkpoints need a folder; name one, or set save_strategy to No".to_owned(),
        )?;
        check(!(self.bf16 && self.fp16), "fp16", || {
            "bf16 and fp16 can't both be; leave one out".to_owned()
        })?;
        super::metrics::Metric::from_name(&self.metric_for_best_model)?;
        check(!self.greater_is_better, "greater_is_better", || {
            format!(
                "a larger {} is worse, so this would keep the worst model; leave it out",
                self.metric_for_best_model
            )
        })?;
        if self.early_stopping_patience.is_some() {
            check(self.eval_strategy != No, "early_stopping_patience", || {
                "early stopping watches evaluations; set eval_strategy to Epoch or Steps".to_owned()
            })?;
        }
        if self.load_best_model_at_end {
            let name = "load_best_model_at_end";
            check(self.eval_strategy != No, name, || {
                "without evaluations no model is the best; set eval_strategy to Epoch or Steps"
                    .to_owned()
            })?;
            check(self.eval_strategy == self.save_strategy, name, || {
                format!(
                    "the best model must have been saved when it was evaluated, but eval_strategy is {:?} and save_strategy {:?}; make them equal",
                    self.eval_strategy, self.save_strategy
                )
            })?;
            let interval = self.eval_interval();
            check(
                self.eval_strategy != Steps || self.save_steps.is_multiple_of(interval),
                name,
                || {
                    format!(
                        "save_steps {} must be a multiple of eval_steps {interval}, so that every checkpoint was evaluated",
                        self.save_steps
                    )
                },
            )?;
        }
        Ok(())
    }
}

fn check(holds: bool, name: &'static str, message: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::argument(name, message()))
    }
}
