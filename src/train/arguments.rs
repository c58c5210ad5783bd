//! Every setting of a training run, with the names and defaults of transformers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::choice::{self, Problem};
use super::optimizer_name::OptimizerName;
use super::schedule::{Schedule, SchedulerKwargs, SchedulerType};
use super::strategy::{HubStrategy, IntervalStrategy};
use crate::base::number::Number;
use crate::{Error, Result};

/// Declares the arguments once: the field, how it is set where that is not by its own type, and its default.
macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident: $type:ty $(, $how:ident $(($arg:ty))?)? = $default:expr;)*) => {
        /// The settings of a [`Trainer`](super::Trainer), named and preset as in `transformers`.
        ///
        /// Every field has a setter of the same name. A setting with several choices, such as when to evaluate, takes
        /// its enum or the name used by transformers:
        ///
        /// ```
        /// use cloze::train::TrainingArguments;
        ///
        /// let args = TrainingArguments::new("eli5_mlm")
        ///     .learning_rate(2e-5)
        ///     .epochs(3)
        ///     .weight_decay(0.01)
        ///     .eval_strategy("epoch")
        ///     .lr_scheduler_type("cosine");
        /// assert_eq!(args.per_device_train_batch_size, 8);
        /// # args.validate()?;
        /// # Ok::<(), cloze::Error>(())
        /// ```
        ///
        /// An unknown name is reported when the arguments are checked, before a run begins.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        #[non_exhaustive]
        pub struct TrainingArguments {
            /// The folder that checkpoints are written to, each in its own `checkpoint-STEP`. It is made when needed.
            pub output_dir: PathBuf,
            $($(#[$doc])* pub $name: $type,)*
            /// What could not be read.
            #[serde(skip)]
            problems: Vec<Problem>,
        }

        impl Default for TrainingArguments {
            fn default() -> Self {
                Self { output_dir: PathBuf::new(), $($name: $default,)* problems: Vec::new() }
            }
        }

        impl TrainingArguments {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(mut self, $name: arguments!(@arg $type $(, $how $(($arg))?)?)) -> Self {
                    arguments!(@set self, $name $(, $how)?);
                    self
                }
            )*

            /// The names of all arguments.
            pub const NAMES: &[&str] = &["output_dir", $(stringify!($name),)*];
        }
    };
    (@arg $type:ty) => { $type };
    (@arg $type:ty, from ($arg:ty)) => { $arg };
    (@arg $type:ty, some ($arg:ty)) => { $arg };
    (@arg $type:ty, choice) => { impl TryInto<$type, Error: std::fmt::Display> };
    (@arg $type:ty, number) => { impl Number };
    (@arg $type:ty, some_number) => { impl Number };
    (@set $self:ident, $name:ident) => { $self.$name = $name };
    (@set $self:ident, $name:ident, from) => { $self.$name = $name.into() };
    (@set $self:ident, $name:ident, some) => { $self.$name = Some($name.into()) };
    (@set $self:ident, $name:ident, choice) => {
        choice::choose(
            $name,
            (stringify!($name), &mut $self.$name),
            &mut $self.problems,
        )
    };
    (@set $self:ident, $name:ident, number) => { $self.$name = $name.number() };
    (@set $self:ident, $name:ident, some_number) => { $self.$name = Some($name.number()) };
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
    /// The number of examples in a step of all ranks together: a multiple of
    /// [`per_device_train_batch_size`](Self::per_device_train_batch_size). It replaces
    /// [`gradient_accumulation_steps`](Self::gradient_accumulation_steps), which applies to each rank. With it, a run
    /// takes the same steps on any number of ranks, and can resume on a different number. Default: not set.
    global_batch_size: Option<usize>, from (usize) = None;
    /// Whether each of several ranks keeps only its part of the optimizer's state (ZeRO-1): the moments then take 1/N
    /// of the memory, for the same exchange. Checkpoints equal those of an unsharded run. For f32 weights on the CPU.
    /// Default: no.
    shard_optimizer: bool = false;
    /// Whether several ranks exchange gradients during the last backward pass of a step, which helps if the network is
    /// slower than memory and a core is free. A large table that is tied to the decoder is sent when the decoder's part
    /// is complete, followed by the few rows that were looked up; its sums are then formed in another order. Default:
    /// no.
    overlap_exchange: bool = false;
    /// How often to go over the training data; fractions end within an epoch. Default: 3.
    num_train_epochs: f64, number = 3.0;
    /// Whether products in training and evaluation take bf16 operands, where the model's device has a unit for it; weights,
    /// gradients, optimizer state and sums stay f32. Elsewhere products stay f32, which is said once. Default: no.
    bf16: bool = false;
    /// Whether they take fp16 operands, on a GPU; the loss is then scaled as by [`GradScaler`](super::GradScaler), and a step
    /// whose gradients overflow is left out and counted. bf16 needs none of that. Default: no.
    fp16: bool = false;
    /// Whether products of f32 on a GPU may round their operands to TF32. Default: as [`crate::ops::set_tf32`] has set it, and
    /// otherwise no.
    tf32: Option<bool>, from (bool) = None;
    /// Whether the encoder's blocks keep only their inputs for the backward pass and are run once more in it: the same
    /// numbers with much less memory, for about a third more time. Default: no.
    gradient_checkpointing: bool = false;
    /// The floating-point operations that the model's device can do at best at the run's precision, in 10^12 per second: what
    /// [`History::mfu`](super::History::mfu) compares with. Default: known by the GPU's name.
    peak_tflops: Option<f64>, from (f64) = None;
    /// The number of optimizer steps, in place of [`num_train_epochs`](Self::num_train_epochs). Default: not set.
    max_steps: Option<usize>, from (usize) = None;
    /// The decoupled weight decay, on all weights but biases and normalization. Default: 0.
    weight_decay: f64 = 0.0;
    /// The decay rate of AdamW's first moment. Default: 0.9.
    adam_beta1: f64 = 0.9;
    /// The decay rate of AdamW's second moment. Default: 0.999.
    adam_beta2: f64 = 0.999;
    /// AdamW's epsilon, added to the root of the second moment. Default: 1e-8.
    adam_epsilon: f64 = 1e-8;
    /// The optimizer: "adamw_torch", "adafactor", "lion_32bit" or "sgd". Default: AdamW.
    optim: OptimizerName, choice = OptimizerName::AdamW;
    /// Settings of the optimizer beyond those of AdamW, as "momentum=0.9, nesterov=true" (SGD: momentum, dampening, nesterov;
    /// Adafactor: `scale_parameter`, `relative_step`, `warmup_init`, `clip_threshold`, `decay_rate`, beta1). Default: none.
    optim_args: String, from (impl Into<String>) = String::new();
    /// The factor on the learning rate from each layer to the one below it, as in
    /// [`ParamGroup::layerwise`](super::ParamGroup::layerwise). Default: not set.
    layerwise_lr_decay: Option<f64>, from (f64) = None;
    /// Gradients whose global norm is larger are scaled down to it; 0 turns clipping off. Default: 1.
    max_grad_norm: f64 = 1.0;
    /// The part of the labels' weight that is spread evenly over the vocabulary, in training and in evaluation. Default: 0.
    label_smoothing_factor: f64 = 0.0;
    /// How the learning rate changes from step to step. Default: linear, down to 0.
    lr_scheduler_type: SchedulerType, choice = SchedulerType::Linear;
    /// Further arguments of some schedules.
    lr_scheduler_kwargs: SchedulerKwargs = SchedulerKwargs::default();
    /// Steps in which the learning rate rises from 0 to its peak; a number below 1 is a part of all steps, rounded up. When
    /// 0, [`warmup_ratio`](Self::warmup_ratio) decides. Default: 0.
    warmup_steps: f64, number = 0.0;
    /// The same as a part of all steps, rounded up. Default: 0.
    warmup_ratio: f64 = 0.0;
    /// The seed of dropout and, unless [`data_seed`](Self::data_seed) is set, of the data's order. Default: 42.
    seed: u64 = 42;
    /// The seed of the data's order. Default: [`seed`](Self::seed).
    data_seed: Option<u64>, from (u64) = None;
    /// Whether training batches are made of examples of similar lengths, which reduces padding. Default: no.
    group_by_length: bool = false;
    /// Whether to leave out an epoch's last batch when it is not full. Default: no.
    dataloader_drop_last: bool = false;
    /// When to log the loss. Default: steps.
    logging_strategy: IntervalStrategy, choice = IntervalStrategy::Steps;
    /// Steps between two logs; a number below 1 is a part of all steps, rounded up. Default: 500.
    logging_steps: f64, number = 500.0;
    /// Whether to log the first step too. Default: no.
    logging_first_step: bool = false;
    /// Where TensorBoard's event files go. Default: a folder below `runs` in the output folder, called by the time and the
    /// machine, if the run writes checkpoints.
    logging_dir: Option<PathBuf>, some (impl Into<PathBuf>) = None;
    /// Where to report besides `history.jsonl` in the output folder: "tensorboard" or "none". Default: TensorBoard.
    report_to: String, from (impl Into<String>) = "tensorboard".to_owned();
    /// When to evaluate. Default: never.
    eval_strategy: IntervalStrategy, choice = IntervalStrategy::No;
    /// Steps between two evaluations; a number below 1 is a part of all steps, rounded up. Default:
    /// [`logging_steps`](Self::logging_steps).
    eval_steps: Option<f64>, some_number = None;
    /// How long to train before evaluations fall due: in epochs if there is one each epoch, in steps otherwise. Default: 0.
    eval_delay: f64, number = 0.0;
    /// Whether to evaluate before the first step too. Default: no.
    eval_on_start: bool = false;
    /// When to write a checkpoint. Default: steps; the last step is then saved too.
    save_strategy: IntervalStrategy, choice = IntervalStrategy::Steps;
    /// Steps between two checkpoints; a number below 1 is a part of all steps, rounded up. Default: 500.
    save_steps: f64, number = 500.0;
    /// Whether checkpoints contain only the model, which reduces their size by more than half: no run can resume from
    /// them. Default: no.
    save_only_model: bool = false;
    /// How many checkpoints to keep; the oldest go first, the best never. Default: all.
    save_total_limit: Option<usize>, from (usize) = None;
    /// Whether the model ends with the weights of its best checkpoint. Default: no.
    load_best_model_at_end: bool = false;
    /// The metric that decides which checkpoint is best: "loss", "perplexity", "accuracy" (of the masked tokens), or a
    /// metric returned by [`Trainer::compute_metrics`](super::Trainer::compute_metrics). Default: "loss".
    metric_for_best_model: String, from (impl Into<String>) = "loss".to_owned();
    /// Whether a larger metric is better. Default: no for perplexity and names that end with "loss", yes for all others.
    greater_is_better: Option<bool>, from (bool) = None;
    /// Stops after this many consecutive evaluations without improvement. Default: never.
    early_stopping_patience: Option<usize>, from (usize) = None;
    /// By how much the metric must change to count as an improvement. Default: 0.
    early_stopping_threshold: f64 = 0.0;
    /// Whether the model goes to the Hub: at every checkpoint, in the background, and at the end (see
    /// [`hub_strategy`](Self::hub_strategy)). Default: no.
    push_to_hub: bool = false;
    /// What is pushed during training: "every_save", or with "end" nothing before the end. Default: every checkpoint.
    hub_strategy: HubStrategy, choice = HubStrategy::EverySave;
    /// The repository for it, `owner/name` or one's own `name`. Default: the name of the output folder.
    hub_model_id: String, from (impl Into<String>) = String::new();
    /// Whether a repository that is made for it is private. Default: as the owner's settings say.
    hub_private_repo: Option<bool>, from (bool) = None;
}

impl TrainingArguments {
    /// Returns the defaults, with checkpoints in `output_dir`.
    pub fn new(output_dir: impl Into<PathBuf>) -> Self {
        Self {
            output_dir: output_dir.into(),
            ..Self::default()
        }
    }

    /// Sets [`num_train_epochs`](Self::num_train_epochs).
    #[must_use]
    pub fn epochs(self, epochs: impl Number) -> Self {
        self.num_train_epochs(epochs)
    }

    /// Returns the earlier name of [`eval_strategy`](Self::eval_strategy) in transformers.
    #[must_use]
    pub fn evaluation_strategy(
        self,
        strategy: impl TryInto<IntervalStrategy, Error: std::fmt::Display>,
    ) -> Self {
        self.eval_strategy(strategy)
    }

    /// Returns whether a larger value of [`metric_for_best_model`](Self::metric_for_best_model) is better.
    pub fn larger_is_better(&self) -> bool {
        let name = &self.metric_for_best_model;
        let falls = name.ends_with("loss") || name.ends_with("perplexity");
        self.greater_is_better.unwrap_or(!falls)
    }

    /// Steps between two evaluations, as they were set.
    fn between_evaluations(&self) -> f64 {
        self.eval_steps.unwrap_or(self.logging_steps)
    }

    /// Returns the steps between two logs in a run of `training_steps` steps.
    pub fn logging_interval(&self, training_steps: usize) -> usize {
        interval(self.logging_steps, training_steps)
    }

    /// Returns the steps between two evaluations in a run of `training_steps` steps: the value set, or the number of
    /// steps between two logs.
    pub fn eval_interval(&self, training_steps: usize) -> usize {
        interval(self.between_evaluations(), training_steps)
    }

    /// Returns the steps between two checkpoints in a run of `training_steps` steps.
    pub fn save_interval(&self, training_steps: usize) -> usize {
        interval(self.save_steps, training_steps)
    }

    /// Returns how many batches a step of `ranks` ranks has, all together.
    ///
    /// # Errors
    /// If the global batch size is not a multiple of a batch, or is too small for this many ranks.
    pub fn batches_per_step(&self, ranks: usize) -> Result<usize> {
        let Some(global) = self.global_batch_size else {
            return Ok(self.gradient_accumulation_steps * ranks);
        };
        let batch = self.per_device_train_batch_size;
        let refuse = |message: String| Err(Error::argument("global_batch_size", message));
        if self.gradient_accumulation_steps != 1 {
            return refuse(format!(
                "it determines the number of batches in a step, and so does gradient_accumulation_steps ({}); set only one of them",
                self.gradient_accumulation_steps
            ));
        }
        if global == 0 || !global.is_multiple_of(batch) {
            return refuse(format!(
                "{global} examples are not a whole number of batches of {batch} (per_device_train_batch_size); give a multiple"
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

    /// Returns the seed of the data's order.
    pub fn order_seed(&self) -> u64 {
        self.data_seed.unwrap_or(self.seed)
    }

    /// Returns the schedule of a run of `training_steps` steps.
    pub fn schedule(&self, training_steps: usize) -> Result<Schedule> {
        let part = |ratio: f64| (training_steps as f64 * ratio).ceil() as usize;
        let warmup = match self.warmup_steps {
            0.0 => part(self.warmup_ratio),
            ratio if ratio < 1.0 => part(ratio),
            steps => steps as usize,
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

    /// Checks that the settings make sense and fit each other. A [`Trainer`](super::Trainer) does so before it begins.
    ///
    /// # Errors
    /// [`Error::Argument`] with the first that does not, and what to do.
    pub fn validate(&self) -> Result<()> {
        if let Some(Problem { name, message }) = self.problems.first() {
            return Err(Error::argument(name, message.clone()));
        }
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
            ("save_total_limit", self.save_total_limit),
            ("early_stopping_patience", self.early_stopping_patience),
        ];
        for (name, value) in at_least_1 {
            check(value != Some(0), name, || "must be at least 1".to_owned())?;
        }
        for (name, steps) in [
            ("logging_steps", self.logging_steps),
            ("eval_steps", self.between_evaluations()),
            ("save_steps", self.save_steps),
        ] {
            let makes_sense = steps > 0.0 && (steps < 1.0 || steps.fract() == 0.0);
            check(makes_sense && steps.is_finite(), name, || {
                format!(
                    "{steps} is not valid; give a whole number of steps, or a fraction of all steps between 0 and 1"
                )
            })?;
        }
        let not_negative = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("warmup_steps", self.warmup_steps),
            ("max_grad_norm", self.max_grad_norm),
            ("adam_epsilon", self.adam_epsilon),
            ("early_stopping_threshold", self.early_stopping_threshold),
            ("eval_delay", self.eval_delay),
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
                    "{} is not a fraction of all steps; give a number from 0 to 1 (or use warmup_steps)",
                    self.warmup_ratio
                )
            },
        )?;
        let smoothing = self.label_smoothing_factor;
        check(
            (0.0..=1.0).contains(&smoothing),
            "label_smoothing_factor",
            || format!("{smoothing} is not a fraction; give a number from 0 to 1"),
        )?;
        let epochs = self.num_train_epochs;
        check(
            self.max_steps.is_some() || (epochs > 0.0 && epochs.is_finite()),
            "num_train_epochs",
            || format!("{epochs} epochs are too few; give a number above 0, or set max_steps"),
        )?;
        let peak = self.peak_tflops.unwrap_or(1.0);
        check(peak > 0.0 && peak.is_finite(), "peak_tflops", || {
            format!("{peak} is not a valid rate; give a number above 0, or leave it out")
        })?;
        let decay = self.layerwise_lr_decay.unwrap_or(1.0);
        check(
            decay > 0.0 && decay.is_finite(),
            "layerwise_lr_decay",
            || format!("{decay} is not allowed; give a number above 0, usually just below 1"),
        )?;
        super::optimizer_name::settings(self.optim, &self.optim_args)?;
        // Of any length: what can be wrong with a schedule are its rates.
        self.schedule(1).map(drop)
    }

    fn validate_strategies(&self) -> Result<()> {
        use IntervalStrategy::{Best, No, Steps};
        for (name, strategy) in [
            ("logging_strategy", self.logging_strategy),
            ("eval_strategy", self.eval_strategy),
        ] {
            check(strategy != Best, name, || {
                "\"best\" is a strategy for checkpoints only; choose no, steps or epoch".to_owned()
            })?;
        }
        check(
            self.save_strategy == No || !self.output_dir.as_os_str().is_empty(),
            "output_dir",
            || "checkpoints need a folder; name one, or set save_strategy to No".to_owned(),
        )?;
        check(!(self.bf16 && self.fp16), "fp16", || {
            "bf16 and fp16 exclude each other; set only one of them".to_owned()
        })?;
        let name = self.metric_for_best_model.trim_start_matches("eval_");
        let worse = ["loss", "perplexity"].contains(&name) && self.larger_is_better();
        check(!worse, "greater_is_better", || {
            format!("a larger {name} is worse, so this would keep the worst model; don't set it")
        })?;
        let known = ["tensorboard", "none", "all"].contains(&self.report_to.as_str());
        check(known, "report_to", || {
            format!(
                "{:?} is not a known destination; choose \"tensorboard\" or \"none\"",
                self.report_to
            )
        })?;
        if self.lr_scheduler_type == SchedulerType::ReduceLrOnPlateau {
            check(self.eval_strategy != No, "lr_scheduler_type", || {
                "reduce_lr_on_plateau watches evaluations; set eval_strategy to Epoch or Steps"
                    .to_owned()
            })?;
        }
        if self.save_strategy == Best {
            check(self.eval_strategy != No, "save_strategy", || {
                "the best model is chosen by evaluations; set eval_strategy to Epoch or Steps"
                    .to_owned()
            })?;
        }
        if self.early_stopping_patience.is_some() {
            check(self.eval_strategy != No, "early_stopping_patience", || {
                "early stopping watches evaluations; set eval_strategy to Epoch or Steps".to_owned()
            })?;
        }
        if self.load_best_model_at_end {
            let name = "load_best_model_at_end";
            check(self.eval_strategy != No, name, || {
                "the best model is chosen by evaluations; set eval_strategy to Epoch or Steps"
                    .to_owned()
            })?;
            let best = self.save_strategy == Best;
            check(
                best || self.save_strategy == self.eval_strategy,
                name,
                || {
                    format!(
                        "the best model must have been saved when it was evaluated, but eval_strategy is {:?} and save_strategy {:?}; make them equal, or set save_strategy to Best",
                        self.eval_strategy, self.save_strategy
                    )
                },
            )?;
            let (save, eval) = (self.save_steps, self.between_evaluations());
            // Parts are compared to a millionth.
            let whole = |steps: f64| match save < 1.0 && eval < 1.0 {
                true => (steps * 1e6).round(),
                false => steps,
            };
            let fit = (save < 1.0) == (eval < 1.0) && whole(save) % whole(eval) == 0.0;
            check(best || self.eval_strategy != Steps || fit, name, || {
                format!(
                    "save_steps {save} must be a multiple of eval_steps {eval}, so that every checkpoint was evaluated"
                )
            })?;
        }
        Ok(())
    }
}

/// Returns a number of steps: itself, or the part of `training_steps` that it is.
fn interval(steps: f64, training_steps: usize) -> usize {
    let steps = match steps < 1.0 {
        true => (training_steps as f64 * steps).ceil(),
        false => steps,
    };
    (steps as usize).max(1)
}

fn check(holds: bool, name: &'static str, message: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::argument(name, message()))
    }
}
