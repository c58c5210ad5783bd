//! What a model says about the masked tokens of a dataset.

use super::EvalMetrics;
use crate::Result;

/// What the model says about one masked token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct MaskedPrediction {
    /// The example, in the order of the data.
    pub example: usize,
    /// The position in the padded example.
    pub position: usize,
    /// The true token.
    pub label: u32,
    /// The most probable token.
    pub predicted: u32,
    /// The negative log-probability of the true token, in nats.
    pub loss: f32,
    /// How many tokens are more probable than the true one: 0 if it is the most probable.
    pub rank: u32,
}

/// What [`Trainer::predict`](super::Trainer::predict) returns.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// # let config = Config::new("roberta").set("vocab_size", tokenizer.len()).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let examples = vec![Example::from(tokenizer.encode("a spiral galaxy is a galaxy")?)];
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path();
/// let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
/// let mut trainer = Trainer::new(&model, TrainingArguments::new(out), &examples, None, collator);
/// let output = trainer.predict(&examples)?;
/// assert!(output.top_k_accuracy(tokenizer.len()) == 1.0);
/// assert_eq!(masked_accuracy(&output)?, [("accuracy", output.accuracy())]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct PredictionOutput {
    /// The masked tokens, in order.
    pub tokens: Vec<MaskedPrediction>,
    /// The loss over them.
    pub metrics: EvalMetrics,
}

impl PredictionOutput {
    /// Returns the part of the masked tokens whose most probable token is the true one.
    pub fn accuracy(&self) -> f64 {
        let right = self
            .tokens
            .iter()
            .filter(|token| token.predicted == token.label);
        right.count() as f64 / self.tokens.len().max(1) as f64
    }

    /// Returns the part of the masked tokens whose true token is among the `k` most probable.
    pub fn top_k_accuracy(&self, k: usize) -> f64 {
        let among = self.tokens.iter().filter(|token| (token.rank as usize) < k);
        among.count() as f64 / self.tokens.len().max(1) as f64
    }
}

/// Gives the accuracy at the masked positions under the name "accuracy": for
/// [`Trainer::compute_metrics`](super::Trainer::compute_metrics).
///
/// # Errors
/// None; the type is that of metrics that may fail.
pub fn masked_accuracy(predictions: &PredictionOutput) -> Result<[(&'static str, f64); 1]> {
    Ok([("accuracy", predictions.accuracy())])
}

impl std::fmt::Debug for PredictionOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "PredictionOutput({} masked tokens, {:.1}% right, perplexity {:.2})",
            self.tokens.len(),
            100.0 * self.accuracy(),
            self.metrics.perplexity()
        )
    }
}
