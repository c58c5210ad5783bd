//! QDQBERT (Wu et al. 2020, arXiv:2004.09602): BERT whose products are those of 8-bit integers, so that what is trained is what
//! an inference engine computes.
//!
//! With its quantizers off, which is how it opens, it is BERT under its own class, and any BERT checkpoint opens as one. The
//! config's key `quant_mode` turns them on: the inputs of every map, its weights (row by row), both sides of the products in
//! attention and both sides of the residual sums are rounded to 8 bits, in ranges that are measured in each pass. Gradients
//! pass through the rounding. The head stays as it is.
//!
//! Fine-tune in floats first, then turn the quantizers on and train for a little longer:
//!
//! ```
//! use cloze::model::{Config, MaskedLm, ModelInputs};
//! # let folder = tempfile::tempdir().unwrap();
//! # let name = folder.path().to_str().unwrap();
//! let config = Config::new("qdqbert")
//!     .set("vocab_size", 100)
//!     .set("hidden_size", 16)
//!     .set("num_hidden_layers", 1)
//!     .set("num_attention_heads", 2)
//!     .set("intermediate_size", 32);
//! let float = MaskedLm::from_config(&config, 42)?;
//! float.save_pretrained(name)?;
//! // The same weights, as integers see them.
//! let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
//! let text = text.replacen('{', "{\"quant_mode\": true,", 1);
//! std::fs::write(folder.path().join("config.json"), text).unwrap();
//! let quantized = MaskedLm::from_pretrained(name)?;
//! let inputs = ModelInputs::new(vec![2, 7, 8, 3], (1, 4))?;
//! let difference = (float.forward(&inputs)? - quantized.forward(&inputs)?)?.abs()?.max_all()?;
//! let difference = difference.to_scalar::<f32>()?;
//! assert!(difference > 0.0 && difference < 0.1);
//! # Ok::<(), cloze::Error>(())
//! ```

use std::sync::Arc;

use candle_core::Tensor;

use super::bert;
use crate::model::nn::{Block, Linear, Pass, TransformerBlock};
use crate::model::{Architecture, Config, Family, ModelFlops, WeightBuilder};
use crate::ops::{self, AttentionMask, Param, QuantRange};
use crate::{Error, Result};

/// The levels of all quantizers.
const BITS: u32 = 8;

/// `QDQBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "qdqbert",
    class: "QDQBertForMaskedLM",
    synonyms: &["QDQBertModel"],
    // The config's class takes 1 for granted, though the vocabulary is BERT's.
    defaults: r#"{"pad_token_id": 1}"#,
    build,
    ..bert::FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let spec = bert::spec(config)?;
    if config.get("quant_mode") != Some(&true.into()) {
        return Ok(Box::new(spec.build(weights)?));
    }
    spec.check()?;
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let block = spec.block(weights, place)?;
        if block.attention.position_scores.is_some() {
            return Err(Error::Config(
                "quant_mode is set with relative positions, which are not quantized: position_embedding_type must be \"absolute\""
                    .to_owned(),
            ));
        }
        Ok(Arc::new(QuantizedBlock { block }))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}

/// A block of BERT with quantizers before every product and sum.
#[derive(Debug)]
struct QuantizedBlock {
    block: TransformerBlock,
}

/// Returns what 8-bit integers see of `x`.
fn quantize(x: &Tensor) -> Result<Tensor> {
    ops::fake_quantize(x, &QuantRange::Dynamic, BITS)
}

/// Returns the map `map` of `x` (batch, seq, in), both rounded.
fn linear(map: &Linear, x: &Tensor) -> Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    let params = map.params();
    let weight = ops::param_rows(&params[0])?;
    let weight = ops::fake_quantize(&weight, &QuantRange::DynamicRows, BITS)?;
    let x = ops::reshape(&quantize(x)?, (batch * seq, width))?;
    let mut y = ops::matmul(&x, &weight, false, true)?;
    if let Some(bias) = params.get(1) {
        y = ops::add_broadcast(&y, &ops::param_rows(bias)?)?;
    }
    let out = y.dim(1)?;
    ops::reshape(&y, (batch, seq, out))
}

impl QuantizedBlock {
    /// Returns the context vectors of `x` (batch, seq, hidden), up to the output projection.
    fn attend(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let attention = &self.block.attention;
        let (batch, seq, _) = x.dims3()?;
        let (heads, size) = (attention.heads, attention.head_size);
        let split = |map: &Linear| -> Result<Tensor> {
            let y = ops::reshape(&linear(map, x)?, (batch, seq, heads, size))?;
            quantize(&ops::permute(&y, &[0, 2, 1, 3])?)
        };
        let (query, key) = (split(&attention.query)?, split(&attention.key)?);
        let value = split(&attention.value)?;
        let scores = ops::matmul(&query, &key, false, true)?;
        let mut scores = ops::scale(&scores, 1.0 / (size as f64).sqrt())?;
        if let AttentionMask::Keys(seen) = &pass.mask {
            let seen: Vec<Vec<u32>> = seen.to_vec2()?;
            // Low enough that e to it is zero, and finite in every dtype.
            let score = |&seen: &u32| if seen == 0 { -1e4f32 } else { 0.0 };
            let rows = seen.iter().flat_map(|row| {
                let row: Vec<f32> = row.iter().map(score).collect();
                std::iter::repeat_n(row, heads * seq).flatten()
            });
            let mask = Tensor::from_vec(rows.collect(), (batch, heads, seq, seq), scores.device())?;
            scores = ops::add(&scores, &mask.to_dtype(scores.dtype())?)?;
        }
        let probabilities = ops::softmax(&scores)?;
        let dropout = pass.context.dropout(attention.dropout);
        let probabilities = quantize(&ops::dropout(&probabilities, dropout)?)?;
        let attended = ops::matmul(&probabilities, &value, false, false)?;
        let attended = ops::permute(&attended, &[0, 2, 1, 3])?;
        ops::reshape(&attended, (batch, seq, heads * size))
    }

    /// Returns the sum of two rounded sides.
    fn residual(x: &Tensor, residual: &Tensor, pass: &Pass, dropout: f64) -> Result<Tensor> {
        let x = ops::dropout(x, pass.context.dropout(dropout))?;
        ops::add(&quantize(&x)?, &quantize(residual)?)
    }
}

impl Block for QuantizedBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let block = &self.block;
        let attended = linear(&block.attention_output, &self.attend(x, pass)?)?;
        let sum = Self::residual(&attended, x, pass, block.attention_dropout)?;
        let x = block.attention_norm.forward(&sum)?;
        let fed = &block.feed_forward;
        let inner = ops::activate(&linear(&fed.intermediate, &x)?, fed.activation)?;
        let inner = ops::dropout(&inner, pass.context.dropout(fed.activation_dropout))?;
        let sum = Self::residual(&linear(&fed.output, &inner)?, &x, pass, fed.dropout)?;
        block.output_norm.forward(&sum)
    }

    fn params(&self) -> Vec<Param> {
        self.block.params()
    }

    fn flops(&self) -> ModelFlops {
        self.block.flops()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use crate::model::{Config, Context, MaskedLm, ModelInputs};

    /// A model with NVIDIA's quantizers, and what it made of a batch. Rounding flips where sums are added up in another order,
    /// so that results agree on the whole and not digit by digit.
    #[test]
    fn quantized_logits_are_near_those_of_the_original() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized/qdqbert");
        let io =
            candle_core::safetensors::load(folder.join("io.safetensors"), &Device::Cpu).unwrap();
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(
            folder.join("model.safetensors"),
            copy.path().join("model.safetensors"),
        )
        .unwrap();
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let ids = |name: &str| -> Vec<u32> {
            let ids = io[name].flatten_all().unwrap().to_vec1::<i64>().unwrap();
            ids.into_iter().map(|id| id as u32).collect()
        };
        let shape = io["input_ids"].dims2().unwrap();
        let inputs = ModelInputs::new(ids("input_ids"), shape).unwrap();
        let inputs = inputs.with_attention_mask(ids("attention_mask")).unwrap();
        let inputs = inputs.with_token_type_ids(ids("token_type_ids")).unwrap();
        let labels = io["labels"]
            .flatten_all()
            .unwrap()
            .to_vec1::<i64>()
            .unwrap();
        let inputs = inputs.with_labels(labels).unwrap();
        let mut errors = Vec::new();
        for quantized in [false, true] {
            let config = config.replacen('{', &format!("{{\"quant_mode\": {quantized},"), 1);
            std::fs::write(copy.path().join("config.json"), config).unwrap();
            let model = MaskedLm::from_pretrained(copy.path().to_str().unwrap()).unwrap();
            let logits = model.forward(&inputs).unwrap();
            let difference = (logits - &io["logits"])
                .unwrap()
                .sqr()
                .unwrap()
                .mean_all()
                .unwrap();
            errors.push(difference.to_scalar::<f32>().unwrap().sqrt());
            if quantized {
                let loss = model.loss(&inputs, &Context::eval()).unwrap();
                let expected = io["loss"].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
                assert!((loss.value().unwrap() - expected).abs() < 0.05);
                model.backward(&loss.mean().unwrap()).unwrap();
                let (mut products, mut own, mut theirs) = (0.0, 0.0, 0.0);
                for param in model.params() {
                    let grad = param.grad().unwrap_or_else(|| panic!("{}", param.name()));
                    let expected = &io[&format!("grad.{}", param.name())];
                    let sum = |a: &candle_core::Tensor, b: &candle_core::Tensor| {
                        f64::from(
                            (a * b)
                                .unwrap()
                                .sum_all()
                                .unwrap()
                                .to_scalar::<f32>()
                                .unwrap(),
                        )
                    };
                    products += sum(&grad, expected);
                    own += sum(&grad, &grad);
                    theirs += sum(expected, expected);
                }
                let cosine = products / (own * theirs).sqrt();
                println!("gradients: cosine {cosine:.4}, errors {errors:?}");
                assert!(cosine > 0.97, "{cosine}");
            }
        }
        // Nearer than floats are, and near.
        assert!(
            errors[1] < 0.5 * errors[0] && errors[1] < 0.05,
            "{errors:?}"
        );
    }

    #[test]
    fn training_goes_through_the_rounding() {
        let config = Config::small("qdqbert").set("quant_mode", true);
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let inputs = ModelInputs::new((5..17).collect(), (2, 6)).unwrap();
        let inputs = inputs
            .with_attention_mask(vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
            .unwrap();
        let labels = vec![7, -100, 9, -100, -100, 4, 8, -100, 5, 6, -100, -100];
        let inputs = inputs.with_labels(labels).unwrap();
        let loss = model.loss(&inputs, &Context::train(3, 1)).unwrap();
        model.backward(&loss.mean().unwrap()).unwrap();
        assert!(model.params().iter().all(|param| param.grad().is_some()));
        let relative = config.set("position_embedding_type", "relative_key");
        assert!(MaskedLm::from_config(&relative, 1).is_err());
    }
}
