//! A model's predictions of the masked tokens in a dataset.

use super::EvalMetrics;
use crate::Result;
use crate::audio::SpeechProcessor;
use crate::speech::{character_error_rate, word_error_rate};
use crate::tokenizer::Tokenizer;

/// The model's prediction of one masked token.
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

/// A speech model's transcript of one recording.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SpokenPrediction {
    /// The example, in the order of the data.
    pub example: usize,
    /// The letters that were said.
    pub labels: Vec<u32>,
    /// The most probable letter of each frame, blanks among them.
    pub predicted: Vec<u32>,
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
/// let mut trainer = Trainer::new(&model, TrainingArguments::new(out), &examples, collator);
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
    /// A speech model's transcripts, in order; such a model has no masked tokens.
    pub spoken: Vec<SpokenPrediction>,
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

    /// Returns the texts that were said and those that the model wrote, in order.
    ///
    /// # Errors
    /// When there is nothing spoken, or the tokenizer is not one of letters.
    pub fn transcripts(&self, tokenizer: &Tokenizer) -> Result<(Vec<String>, Vec<String>)> {
        let text = |of: &SpokenPrediction| {
            let said = tokenizer.decode_unfolded(&of.labels, true)?;
            Ok((said, tokenizer.decode(&of.predicted, false)?))
        };
        tokenizer.spoken_letters(&[])?;
        self.spoken.iter().map(text).collect()
    }
}

/// Gives the word and character error rates of a speech model under the names "wer" and "cer": for
/// [`Trainer::compute_metrics`](super::Trainer::compute_metrics). Recordings are read one by one, so that padding plays no
/// part, as [`SpeechRecognizer`](crate::speech::SpeechRecognizer) reads them.
///
/// ```
/// # use cloze::prelude::*;
/// # fn f(trainer: Trainer, processor: SpeechProcessor) -> Trainer {
/// trainer.compute_metrics(error_rates(&processor))
/// # }
/// ```
pub fn error_rates(
    processor: &SpeechProcessor,
) -> impl Fn(&PredictionOutput) -> Result<[(&'static str, f64); 2]> + Send + Sync + 'static {
    let tokenizer = processor.tokenizer().clone();
    move |predictions| {
        let (said, written) = predictions.transcripts(&tokenizer)?;
        Ok([
            ("wer", word_error_rate(&said, &written)?),
            ("cer", character_error_rate(&said, &written)?),
        ])
    }
}

/// Gives the accuracy at the masked positions under the name "accuracy": for
/// [`Trainer::compute_metrics`](super::Trainer::compute_metrics).
///
/// # Errors
/// None; the type is that of metrics that may fail.
///
/// ```
/// use cloze::prelude::*;
/// # fn f(trainer: Trainer) -> cloze::Result<()> {
/// let mut trainer = trainer.compute_metrics(masked_accuracy);
/// println!("{:?}", trainer.evaluate()?.get("accuracy"));
/// # Ok(())
/// # }
/// ```
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
