//! Vocabularies that grow or shrink: tables whose length is that of the vocabulary get another one.

use super::masked_lm::MaskedLm;
use super::vocabulary::Resize;
use crate::{Error, Result};

/// How [`MaskedLm::resize_token_embeddings`] makes a vocabulary larger or smaller. A number of tokens alone serves too.
///
/// ```
/// use cloze::model::ResizeEmbeddings;
/// let resize = ResizeEmbeddings::new(50_269).pad_to_multiple_of(64);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizeEmbeddings {
    tokens: usize,
    pad_to_multiple_of: Option<usize>,
    mean_resizing: bool,
}

impl ResizeEmbeddings {
    /// Requests a vocabulary of this many tokens, usually the tokenizer's `len()`.
    pub fn new(tokens: usize) -> Self {
        Self {
            tokens,
            pad_to_multiple_of: None,
            mean_resizing: true,
        }
    }

    /// Rounds the number of tokens up to a multiple of `multiple` (default: not).
    #[must_use]
    pub fn pad_to_multiple_of(mut self, multiple: usize) -> Self {
        self.pad_to_multiple_of = Some(multiple);
        self
    }

    /// Sets whether new tokens are initialized near the mean of the existing ones (default: yes), or randomly, as in a
    /// new model.
    #[must_use]
    pub fn mean_resizing(mut self, mean: bool) -> Self {
        self.mean_resizing = mean;
        self
    }
}

impl From<usize> for ResizeEmbeddings {
    fn from(tokens: usize) -> Self {
        Self::new(tokens)
    }
}

impl MaskedLm {
    /// Resizes the vocabulary: call it after a tokenizer's `add_tokens` with the tokenizer's `len()`. Returns the
    /// number of tokens.
    ///
    /// Embeddings, decoder and biases get new rows at the end, or lose their last rows. New rows are drawn from a
    /// normal distribution around the mean of all rows, with a billionth of their covariance, as in transformers 5, so
    /// that the model's predictions change as little as possible; a new bias is the mean bias.
    ///
    /// Clones that were made before keep the old vocabulary, and their weights are no longer shared: make trainers and
    /// optimizers afterwards.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let mut tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 270)?;
    /// # let config = Config::new("roberta").set("vocab_size", tokenizer.len()).set("hidden_size", 16)
    /// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
    /// let mut model = MaskedLm::from_config(&config, 42)?;
    /// tokenizer.add_tokens(&["quasar", "blazar"])?;
    /// model.resize_token_embeddings(tokenizer.len())?;
    /// assert_eq!(model.vocab_size(), tokenizer.len());
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// # Errors
    /// When there would be no tokens, or the family's tables do not follow its `vocab_size`.
    pub fn resize_token_embeddings(
        &mut self,
        resize: impl Into<ResizeEmbeddings>,
    ) -> Result<usize> {
        let resize = resize.into();
        let tokens = match resize.pad_to_multiple_of {
            Some(0) => {
                let message = "must be at least 1";
                return Err(Error::argument("pad_to_multiple_of", message));
            }
            Some(multiple) => resize.tokens.next_multiple_of(multiple),
            None => resize.tokens,
        };
        if tokens == 0 {
            let message = "a vocabulary has at least 1 token";
            return Err(Error::argument("new_num_tokens", message));
        }
        let old = self.vocab_size();
        if tokens != old {
            let std = self.config().get("initializer_range");
            let std = std.and_then(serde_json::Value::as_f64).unwrap_or(0.02);
            self.rebuild(Resize {
                old,
                new: tokens,
                fresh: (!resize.mean_resizing).then_some(std),
            })?;
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::model::draws::normal;
    use crate::model::vocabulary::around_the_mean;
    use crate::model::{Config, ModelInputs, SUPPORTED_MODEL_TYPES};

    /// Returns the logits of a few tokens, of the first `vocab` of the vocabulary.
    fn logits(model: &MaskedLm, vocab: usize) -> Vec<f32> {
        let inputs = ModelInputs::new((0..6).map(|i| 5 + i).collect(), (1, 6)).unwrap();
        let logits = model.forward(inputs).unwrap();
        let logits = logits.narrow(2, 0, vocab).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_familys_vocabulary_grows_shrinks_and_reloads() {
        for model_type in SUPPORTED_MODEL_TYPES {
            let mut model = MaskedLm::from_config(&Config::small(model_type), 1).unwrap();
            if model.main_input() != "input_ids" {
                continue;
            }
            let old = model.vocab_size();
            let before = logits(&model, old);
            let frozen = model.params()[0].name().to_owned();
            model.freeze(&frozen);
            let resize = ResizeEmbeddings::new(old + 3).pad_to_multiple_of(8);
            let new = (old + 3).next_multiple_of(8);
            assert_eq!(model.resize_token_embeddings(resize).unwrap(), new);
            assert_eq!(model.vocab_size(), new, "{model_type}");
            assert!(
                !model.param(&frozen).unwrap().is_trainable(),
                "{model_type}"
            );
            let worst = before.iter().zip(logits(&model, old));
            let worst = worst.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{model_type}: {worst}");
            let folder = tempfile::tempdir().unwrap();
            model.save_pretrained(folder.path()).unwrap();
            let opened = MaskedLm::from_pretrained(folder.path().to_string_lossy()).unwrap();
            assert_eq!(
                opened.load_report().missing,
                Vec::<String>::new(),
                "{model_type}"
            );
            assert_eq!(logits(&opened, new), logits(&model, new), "{model_type}");
            model.resize_token_embeddings(old).unwrap();
            let worst = before.iter().zip(logits(&model, old));
            let worst = worst.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{model_type} back: {worst}");
            assert_eq!(model.vocab_size(), old);
        }
    }

    #[test]
    fn new_tokens_have_the_mean_bias_and_may_start_anywhere() {
        let mut model = MaskedLm::from_config(&Config::small("bert"), 1).unwrap();
        let bias = model.param("cls.predictions.bias").unwrap().clone();
        let values: Vec<f32> = (0..100).map(|i| i as f32 / 100.0).collect();
        bias.set(&Tensor::from_vec(values, 100, &Device::Cpu).unwrap())
            .unwrap();
        let mut random = model.clone();
        model.resize_token_embeddings(102).unwrap();
        let grown: Vec<f32> = model
            .param("cls.predictions.bias")
            .unwrap()
            .value()
            .to_vec1()
            .unwrap();
        assert!((grown[100] - 0.495).abs() < 1e-4 && (grown[101] - 0.495).abs() < 1e-4);
        assert_eq!(model.config().get("vocab_size"), Some(&102.into()));
        let resize = ResizeEmbeddings::new(102).mean_resizing(false);
        random.resize_token_embeddings(resize).unwrap();
        let rows = |model: &MaskedLm| -> Vec<Vec<f32>> {
            let table = model
                .param("bert.embeddings.word_embeddings.weight")
                .unwrap();
            table.value().to_vec2().unwrap()
        };
        let distance =
            |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum() };
        let (near, far) = (rows(&model), rows(&random));
        assert!(distance(&near[100], &near[101]) < 1e-4);
        assert!(distance(&far[100], &far[101]) > 1e-2);
        assert!(model.resize_token_embeddings(0).is_err());
    }

    #[test]
    fn new_rows_have_the_mean_and_a_billionth_of_the_covariance() {
        let values: Vec<f32> = normal(400, 300.0, 7);
        let mixed: Vec<f32> = values
            .chunks(2)
            .flat_map(|pair| [pair[0] + 5e3, 0.5 * pair[0] + pair[1]])
            .collect();
        let table = Tensor::from_vec(mixed, (200, 2), &Device::Cpu).unwrap();
        let moments = |rows: &Tensor| -> Vec<f64> {
            let rows = rows.to_dtype(DType::F64).unwrap();
            let mean = rows.mean_keepdim(0).unwrap();
            let away = rows.broadcast_sub(&mean).unwrap();
            let covariance = away.t().unwrap().matmul(&away).unwrap();
            let covariance = (covariance / rows.dim(0).unwrap() as f64).unwrap();
            let of = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            [of(mean), of(covariance)].concat()
        };
        let old = moments(&table);
        let new = moments(&around_the_mean(&table, 4000, 3).unwrap());
        for i in 0..2 {
            assert!((new[i] - old[i]).abs() < 2e-3, "{new:?} {old:?}");
        }
        for i in 2..6 {
            let expected = 1e-9 * old[i];
            // Four standard errors of a sample of 4000, and the rounding of numbers around 5000 in f32.
            let most = 4.0 * 1e-9 * (old[2] * old[5]).sqrt().max(old[2]) / 4000f64.sqrt();
            assert!((new[i] - expected).abs() < most + 2e-7, "{new:?} {old:?}");
        }
    }
}
