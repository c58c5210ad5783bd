//! What happened in a training run.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::EvalMetrics;

/// One optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepRecord {
    /// The step, counted from 1.
    pub step: usize,
    /// The mean loss over all masked tokens of the step's batches, before the update. Not a number if nothing was masked.
    pub loss: f32,
    /// The learning rate of this step's update.
    pub learning_rate: f64,
    /// The global norm of the gradients before clipping; infinite in a step of fp16 training that was left out because the
    /// gradients overflowed.
    pub grad_norm: f32,
    /// Masked tokens that the loss is the mean of.
    pub counted: usize,
    /// Tokens that went through the model, padding not counted.
    pub tokens: usize,
    /// The floating-point operations of the model in this step, by [`ModelFlops`](crate::model::ModelFlops); 0
    /// where they are not known.
    pub flops: f64,
    /// How long the step took, in seconds. On a GPU, which is not waited for after every step, the mean over those that were
    /// under way together.
    pub seconds: f64,
}

impl StepRecord {
    /// Tokens per second of this step.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Returns whether the weights were left as they were, because the gradients overflowed in fp16.
    pub fn is_skipped(&self) -> bool {
        !self.grad_norm.is_finite()
    }
}

/// The values logged every [`logging_steps`](super::TrainingArguments::logging_steps), as in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogRecord {
    /// The step, counted from 1.
    pub step: usize,
    /// The epochs done.
    pub epoch: f64,
    /// The mean loss of the steps since the last log.
    pub loss: f32,
    /// The learning rate of the last of them.
    pub learning_rate: f64,
    /// The gradient norm of the last of them; infinite if that was left out.
    #[serde(with = "norm")]
    pub grad_norm: f32,
    /// The scale of the loss after the last of them, in fp16 training.
    #[serde(default)]
    pub loss_scale: Option<f64>,
    /// How many of them were left out because their gradients overflowed.
    #[serde(default)]
    pub skipped_steps: usize,
}

/// An evaluation during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// After which step.
    pub step: usize,
    /// The epochs done.
    pub epoch: f64,
    /// The measurements.
    pub metrics: EvalMetrics,
}

/// All that a training run recorded; what [`Trainer::train`](super::Trainer::train) returns. A resumed run's history
/// begins with the steps before the checkpoint.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// # let config = Config::new("roberta").set("vocab_size", tokenizer.len()).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let examples = vec![Example::from(tokenizer.encode("a spiral galaxy is a galaxy")?); 16];
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path();
/// let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
/// let arguments = TrainingArguments::new(out).epochs(2);
/// let history = Trainer::new(&model, arguments, &examples, collator).train()?;
/// // Two epochs of two batches of 8.
/// assert_eq!((history.step(), history.losses().len()), (4, 4));
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct History {
    /// Every optimizer step.
    #[serde(with = "columns")]
    pub steps: Vec<StepRecord>,
    /// Every log.
    pub logs: Vec<LogRecord>,
    /// Every evaluation.
    pub evaluations: Vec<Evaluation>,
    /// The epochs done.
    pub epoch: f64,
    /// Time spent in training, evaluations and checkpoints included, in seconds.
    pub seconds: f64,
    /// Whether the run was interrupted before its end.
    pub interrupted: bool,
    /// Whether early stopping or a callback ended the run before its last step.
    pub stopped_early: bool,
    /// The step of the best evaluation whose model was saved.
    pub best_step: Option<usize>,
    /// The floating-point operations that the device can do at best in a second, if that is known.
    pub peak_flops: Option<f64>,
    /// The most memory of the device that tensors took at once, in bytes; `None` on the CPU.
    pub peak_device_memory: Option<u64>,
}

impl History {
    /// Returns the number of optimizer steps taken.
    pub fn step(&self) -> usize {
        self.steps.last().map_or(0, |step| step.step)
    }

    /// Returns the loss of every step; NaN where nothing was masked.
    pub fn losses(&self) -> Vec<f32> {
        self.steps.iter().map(|step| step.loss).collect()
    }

    /// Returns the mean loss over all steps, as transformers reports it at the end of training.
    pub fn train_loss(&self) -> f32 {
        mean_loss(&self.steps)
    }

    /// Tokens per second over the steps, evaluations and checkpoints left out.
    pub fn tokens_per_second(&self) -> f64 {
        let tokens: usize = self.steps.iter().map(|step| step.tokens).sum();
        let seconds: f64 = self.steps.iter().map(|step| step.seconds).sum();
        tokens as f64 / seconds.max(f64::MIN_POSITIVE)
    }

    /// Model FLOPs utilisation over the steps: the model's arithmetic per second, as a fraction of the device's peak.
    /// `None` where either is not known; see [`peak_tflops`](super::TrainingArguments::peak_tflops).
    pub fn mfu(&self) -> Option<f64> {
        mfu(&self.steps, self.peak_flops)
    }

    /// Returns how many steps were left out because their gradients overflowed in fp16.
    pub fn skipped_steps(&self) -> usize {
        self.steps.iter().filter(|step| step.is_skipped()).count()
    }

    /// Returns the last evaluation.
    pub fn last_evaluation(&self) -> Option<&Evaluation> {
        self.evaluations.last()
    }

    /// Logs and evaluations in the order of their steps, in transformers' words (`log_history`).
    pub fn log_history(&self) -> Vec<Value> {
        let logs = self.logs.iter().map(|log| (log.step, log_entry(log)));
        let evaluations = self.evaluations.iter();
        let evaluations = evaluations.map(|of| (of.step, evaluation_entry(of)));
        let mut all: Vec<(usize, Value)> = logs.chain(evaluations).collect();
        // Stable: at the same step the log comes first.
        all.sort_by_key(|(step, _)| *step);
        all.into_iter().map(|(_, entry)| entry).collect()
    }
}

/// Returns a log in transformers' words.
pub(super) fn log_entry(log: &LogRecord) -> Value {
    let mut entry = json!({
        "loss": log.loss, "grad_norm": log.grad_norm, "learning_rate": log.learning_rate,
        "epoch": log.epoch, "step": log.step,
    });
    if let Some(scale) = log.loss_scale {
        entry["loss_scale"] = json!(scale);
        entry["skipped_steps"] = json!(log.skipped_steps);
    }
    entry
}

/// Returns an evaluation in transformers' words.
pub(super) fn evaluation_entry(evaluation: &Evaluation) -> Value {
    let metrics = &evaluation.metrics;
    let mut entry = json!({
        "eval_loss": metrics.loss, "eval_runtime": metrics.seconds,
        "eval_samples_per_second": metrics.samples_per_second(),
        "epoch": evaluation.epoch, "step": evaluation.step,
    });
    for (name, value) in &metrics.computed {
        entry[format!("eval_{name}")] = json!(value);
    }
    entry
}

/// Bytes in GiB.
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Model FLOPs utilisation of `steps` on a device with that peak.
pub(crate) fn mfu(steps: &[StepRecord], peak: Option<f64>) -> Option<f64> {
    let flops: f64 = steps.iter().map(|step| step.flops).sum();
    let seconds: f64 = steps.iter().map(|step| step.seconds).sum();
    let mfu = flops / seconds / peak?;
    (flops > 0.0 && seconds > 0.0).then_some(mfu)
}

/// Returns the mean loss of the steps in which anything was masked.
pub(super) fn mean_loss(steps: &[StepRecord]) -> f32 {
    let counted = steps.iter().filter(|step| step.counted > 0);
    let sum: f64 = counted.clone().map(|step| f64::from(step.loss)).sum();
    (sum / counted.count().max(1) as f64) as f32
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match (self.interrupted, self.stopped_early) {
            (true, _) => ", interrupted",
            (_, true) => ", stopped early",
            _ => "",
        };
        write!(
            f,
            "History: {} steps, {:.2} epochs{how}, {:.1} s, {:.0} tokens/s, ",
            self.step(),
            self.epoch,
            self.seconds,
            self.tokens_per_second(),
        )?;
        if let Some(mfu) = self.mfu() {
            write!(f, "{:.1}% MFU, ", 100.0 * mfu)?;
        }
        if let Some(peak) = self.peak_device_memory {
            write!(f, "at most {:.1} GiB on the device, ", gib(peak))?;
        }
        if self.skipped_steps() > 0 {
            write!(f, "{} steps left out, ", self.skipped_steps())?;
        }
        write!(f, "mean loss {:.4}", self.train_loss())?;
        for Evaluation {
            step,
            epoch,
            metrics,
        } in &self.evaluations
        {
            write!(
                f,
                "\n  step {step}, epoch {epoch:.2}: evaluation loss {:.4}, perplexity {:.2}",
                metrics.loss,
                metrics.perplexity()
            )?;
        }
        Ok(())
    }
}

/// A norm that may be infinite, which JSON has no number for: null.
mod norm {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(norm: &f32, s: S) -> Result<S::Ok, S::Error> {
        norm.is_finite().then_some(*norm).serialize(s)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<f32, D::Error> {
        Ok(Option::deserialize(d)?.unwrap_or(f32::INFINITY))
    }
}

/// Steps as columns: a tenth of the size of a list of records.
mod columns {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::StepRecord;

    #[derive(Default, Serialize, Deserialize)]
    struct Columns {
        /// Nothing was masked where there is none.
        loss: Vec<Option<f32>>,
        learning_rate: Vec<f64>,
        /// JSON has no number for an infinite one.
        grad_norm: Vec<Option<f32>>,
        counted: Vec<usize>,
        tokens: Vec<usize>,
        /// Not in the files of earlier versions.
        #[serde(default)]
        flops: Vec<f64>,
        seconds: Vec<f64>,
    }

    pub(super) fn serialize<S: Serializer>(steps: &[StepRecord], s: S) -> Result<S::Ok, S::Error> {
        Columns {
            loss: steps
                .iter()
                .map(|step| Some(step.loss).filter(|loss| !loss.is_nan()))
                .collect(),
            learning_rate: steps.iter().map(|step| step.learning_rate).collect(),
            grad_norm: steps
                .iter()
                .map(|step| Some(step.grad_norm).filter(|norm| norm.is_finite()))
                .collect(),
            counted: steps.iter().map(|step| step.counted).collect(),
            tokens: steps.iter().map(|step| step.tokens).collect(),
            flops: steps.iter().map(|step| step.flops).collect(),
            seconds: steps.iter().map(|step| step.seconds).collect(),
        }
        .serialize(s)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<Vec<StepRecord>, D::Error> {
        let mut columns = Columns::deserialize(d)?;
        let count = columns.loss.len();
        if columns.flops.is_empty() {
            columns.flops = vec![0.0; count];
        }
        let lengths = [
            columns.learning_rate.len(),
            columns.grad_norm.len(),
            columns.counted.len(),
            columns.tokens.len(),
            columns.flops.len(),
            columns.seconds.len(),
        ];
        if lengths.iter().any(|&length| length != count) {
            return Err(serde::de::Error::custom(
                "the columns of the steps are not equally long",
            ));
        }
        let record = |i: usize| StepRecord {
            step: i + 1,
            loss: match columns.counted[i] {
                0 => f32::NAN,
                _ => columns.loss[i].unwrap_or(f32::NAN),
            },
            learning_rate: columns.learning_rate[i],
            grad_norm: columns.grad_norm[i].unwrap_or(f32::INFINITY),
            counted: columns.counted[i],
            tokens: columns.tokens[i],
            flops: columns.flops[i],
            seconds: columns.seconds[i],
        };
        Ok((0..count).map(record).collect())
    }
}
