//! What an evaluation measures.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The result of an evaluation.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
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
}

impl EvalMetrics {
    /// e to the loss: over how many equally likely tokens the model hesitates, so to speak.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// Examples per second.
    pub fn samples_per_second(&self) -> f64 {
        self.samples as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

impl std::fmt::Debug for EvalMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "EvalMetrics(loss {:.4}, perplexity {:.2}, {} masked tokens of {} examples in {:.1} s)",
            self.loss,
            self.perplexity(),
            self.counted,
            self.samples,
            self.seconds
        )
    }
}

/// What the best model is chosen by. Smaller is better for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    Loss,
    Perplexity,
}

impl Metric {
    /// By its name in [`metric_for_best_model`](super::TrainingArguments::metric_for_best_model), with or without the
    /// reference's prefix.
    pub(super) fn from_name(name: &str) -> Result<Self> {
        match name.strip_prefix("eval_").unwrap_or(name) {
            "loss" => Ok(Self::Loss),
            "perplexity" => Ok(Self::Perplexity),
            _ => Err(Error::argument(
                "metric_for_best_model",
                format!("there is no metric {name:?}; there are \"loss\" and \"perplexity\""),
            )),
        }
    }

    pub(super) fn of(self, metrics: &EvalMetrics) -> f64 {
        match self {
            Self::Loss => metrics.loss,
            Self::Perplexity => metrics.perplexity(),
        }
    }
}
