//! The metrics of an evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::TrainingArguments;
use crate::{Error, Result};

/// The result of an evaluation.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// # let config = Config::new("roberta").set("vocab_size", tokenizer.len()).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let examples = vec![Example::from(tokenizer.encode("a spiral galaxy is a galaxy")?)];
/// let loader = DataLoader::new(examples, MaskingCollator::new(&tokenizer).mlm_probability(0.5), 8)?;
/// let metrics = evaluate(&model, &loader)?;
/// assert_eq!(metrics.perplexity(), metrics.loss.exp());
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EvalMetrics {
    /// The mean loss of the masked tokens, in nats: every counted token weighs the same, whatever its batch.
    pub loss: f64,
    /// The number of masked tokens that counted.
    pub counted: usize,
    /// The number of examples.
    pub samples: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The results of [`Trainer::compute_metrics`](super::Trainer::compute_metrics), by name.
    #[serde(default, with = "finite")]
    pub computed: BTreeMap<String, f64>,
}

impl EvalMetrics {
    /// Returns e to the power of the loss: the number of equally likely tokens among which the model would have to choose.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// Examples per second.
    pub fn samples_per_second(&self) -> f64 {
        self.samples as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Returns the metric of that name, with or without "eval_" before it: "loss", "perplexity", or a computed one.
    pub fn get(&self, name: &str) -> Option<f64> {
        match name.strip_prefix("eval_").unwrap_or(name) {
            "loss" => Some(self.loss),
            "perplexity" => Some(self.perplexity()),
            name => self.computed.get(name).copied(),
        }
    }

    /// Returns the names of all metrics.
    fn names(&self) -> String {
        let names = self.computed.keys().map(String::as_str);
        let names: Vec<&str> = ["loss", "perplexity"].into_iter().chain(names).collect();
        names.join(", ")
    }
}

impl std::fmt::Debug for EvalMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "EvalMetrics(loss {:.4}, perplexity {:.2}, ",
            self.loss,
            self.perplexity(),
        )?;
        for (name, value) in &self.computed {
            write!(f, "{name} {value:.4}, ")?;
        }
        write!(
            f,
            "{} masked tokens of {} examples in {:.1} s)",
            self.counted, self.samples, self.seconds
        )
    }
}

/// The metric that decides which model is best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metric {
    name: String,
    greater_is_better: bool,
}

impl Metric {
    /// Returns the metric that the arguments name.
    pub(super) fn of_best(args: &TrainingArguments) -> Self {
        let name = &args.metric_for_best_model;
        Self {
            name: name.strip_prefix("eval_").unwrap_or(name).to_owned(),
            greater_is_better: args.larger_is_better(),
        }
    }

    /// Checks that it is one that evaluations have without further ado.
    pub(super) fn check_known(&self) -> Result<()> {
        match self.name.as_str() {
            "loss" | "perplexity" | "accuracy" => Ok(()),
            name => Err(Error::argument(
                "metric_for_best_model",
                format!(
                    "there is no metric {name:?}; there are \"loss\", \"perplexity\" and \"accuracy\", and those of the trainer's compute_metrics"
                ),
            )),
        }
    }

    /// Returns whether it is computed from the predictions at masked positions.
    pub(super) fn needs_predictions(&self) -> bool {
        self.name == "accuracy"
    }

    /// Returns its value in an evaluation.
    ///
    /// # Errors
    /// [`Error::Argument`] when the evaluation has no such metric.
    pub(super) fn of(&self, metrics: &EvalMetrics) -> Result<f64> {
        metrics.get(&self.name).ok_or_else(|| {
            Error::argument(
                "metric_for_best_model",
                format!(
                    "there is no metric {:?}; the evaluation gave {} (compute_metrics of the trainer adds others)",
                    self.name,
                    metrics.names()
                ),
            )
        })
    }

    /// Returns whether `now` is better than `before`.
    pub(super) fn is_better(&self, now: f64, before: f64) -> bool {
        match self.greater_is_better {
            true => now > before,
            false => now < before,
        }
    }

    /// Returns a number that is smaller for better values.
    pub(super) fn cost(&self, value: f64) -> f64 {
        match self.greater_is_better {
            true => -value,
            false => value,
        }
    }

    pub(super) fn greater_is_better(&self) -> bool {
        self.greater_is_better
    }
}

/// Numbers that may not be finite, for which JSON has no number: null.
mod finite {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Values = BTreeMap<String, Option<f64>>;

    pub(super) fn serialize<S: Serializer>(
        values: &BTreeMap<String, f64>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        let finite = |value: &f64| Some(*value).filter(|value| value.is_finite());
        let values = values
            .iter()
            .map(|(name, value)| (name.clone(), finite(value)));
        values.collect::<Values>().serialize(s)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(
        d: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let values = Values::deserialize(d)?.into_iter();
        Ok(values
            .map(|(name, value)| (name, value.unwrap_or(f64::NAN)))
            .collect())
    }
}
