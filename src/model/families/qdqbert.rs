//! QDQBERT (Wu et al. 2020, arXiv:2004.09602): BERT whose products are those of 8-bit integers, so that what is trained is what
//! an inference engine computes.
//!
//! With its quantizers off, which is how it opens, it is BERT under its own class, and any BERT checkpoint opens as one. The
//! config's key `quant_mode` turns them on: the inputs of every map, its weights (row by row), both sides of the products in
//! attention and both sides of the residual sums are rounded to 8 bits. Gradients pass through the rounding. The head stays as
//! it is.
//!
//! Ranges are those that [`MaskedLm::calibrate`](crate::model::MaskedLm::calibrate) has measured, which are saved as NVIDIA's
//! toolkit names them (`query._input_quantizer._amax`); before that, each pass measures its own.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use super::bert;
use crate::model::nn::{Block, Linear, Pass, TransformerBlock};
use crate::model::{Architecture, Config, Context, Family, Measured, ModelFlops, WeightBuilder};
use crate::ops::{self, AttentionMask, Param, QuantRange};
use crate::{Error, Result};

/// The levels of all quantizers.
const BITS: u32 = 8;

/// `QDQBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "qdqbert",
    class: "QDQBertForMaskedLM",
    synonyms: &["QDQBertModel"],
    carried: &["._amax"],
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
        let at = weights.pp(spec.base).pp(format!("encoder.layer.{place}"));
        Ok(Arc::new(QuantizedBlock::new(&at, block)?))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}

/// Rounds to 8 bits, within a range that was measured or else that of what it is given.
#[derive(Debug)]
struct Quantizer {
    /// The largest magnitude.
    range: Measured,
    /// Whether each row of the first dimension has its own.
    rows: bool,
}

impl Quantizer {
    /// Returns the quantizer of activations named by `weights`.
    fn new(weights: &WeightBuilder) -> Result<Self> {
        let range = weights.measured("_amax", (), None)?;
        Ok(Self { range, rows: false })
    }

    fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        if context.is_calibrating() {
            self.measure(x)?;
            return Ok(x.clone());
        }
        let range = match self.range.get() {
            None if self.rows => QuantRange::DynamicRows,
            None => QuantRange::Dynamic,
            Some(range) if self.rows => QuantRange::FixedRows(range.flatten_all()?.to_vec1()?),
            // What was all zeros when it was measured has the smallest range there is.
            Some(range) => QuantRange::Fixed(range.to_scalar::<f32>()?.max(f32::MIN_POSITIVE)),
        };
        ops::fake_quantize(x, &range, BITS)
    }

    /// Widens the range to that of `x`.
    fn measure(&self, x: &Tensor) -> Result<()> {
        let here = x.detach().to_device(&Device::Cpu)?;
        let magnitudes = here.to_dtype(DType::F32)?.abs()?;
        let most = match self.rows {
            true => magnitudes.max_keepdim(D::Minus1)?,
            false => magnitudes.max_all()?,
        };
        let most = match self.range.get() {
            Some(before) => before.maximum(&most)?,
            None => most,
        };
        self.range.set(Some(most));
        Ok(())
    }
}

/// A map whose input and weights are rounded.
#[derive(Debug)]
struct QuantizedLinear {
    map: Linear,
    input: Quantizer,
    weight: Quantizer,
}

impl QuantizedLinear {
    /// Returns `map`, named by `weights`, with its quantizers.
    fn new(weights: &WeightBuilder, map: &Linear) -> Result<Self> {
        let rows = map.params()[0].shape().dims()[0];
        let at = weights.pp("_weight_quantizer");
        Ok(Self {
            map: map.clone(),
            input: Quantizer::new(&weights.pp("_input_quantizer"))?,
            weight: Quantizer {
                range: at.measured("_amax", (rows, 1), None)?,
                rows: true,
            },
        })
    }

    /// Returns the map of `x` (batch, seq, in).
    fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        let (batch, seq, width) = x.dims3()?;
        let params = self.map.params();
        let weight = ops::param_rows(&params[0])?;
        let weight = self.weight.forward(&weight, context)?;
        let x = self.input.forward(x, context)?;
        let x = ops::reshape(&x, (batch * seq, width))?;
        let mut y = ops::matmul(&x, &weight, false, true)?;
        if let Some(bias) = params.get(1) {
            y = ops::add_broadcast(&y, &ops::param_rows(bias)?)?;
        }
        let out = y.dim(1)?;
        ops::reshape(&y, (batch, seq, out))
    }
}

/// A sum of two rounded operands.
#[derive(Debug)]
struct QuantizedSum {
    local: Quantizer,
    residual: Quantizer,
    dropout: f64,
}

impl QuantizedSum {
    fn new(weights: &WeightBuilder, dropout: f64) -> Result<Self> {
        Ok(Self {
            local: Quantizer::new(&weights.pp("add_local_input_quantizer"))?,
            residual: Quantizer::new(&weights.pp("add_residual_input_quantizer"))?,
            dropout,
        })
    }

    /// Returns the sum of `x`, with dropout, and `residual`.
    fn forward(&self, x: &Tensor, residual: &Tensor, context: &Context) -> Result<Tensor> {
        let x = ops::dropout(x, context.dropout(self.dropout))?;
        ops::add(
            &self.local.forward(&x, context)?,
            &self.residual.forward(residual, context)?,
        )
    }
}

/// A block of BERT with quantizers before every product and sum.
#[derive(Debug)]
struct QuantizedBlock {
    block: TransformerBlock,
    /// The maps to queries, keys and values, and what their results meet before they are multiplied.
    projections: [(QuantizedLinear, Quantizer); 3],
    probabilities: Quantizer,
    attention_output: QuantizedLinear,
    attention_sum: QuantizedSum,
    intermediate: QuantizedLinear,
    output: QuantizedLinear,
    output_sum: QuantizedSum,
}

impl QuantizedBlock {
    /// Returns `block`, named by `weights`, with its quantizers.
    fn new(weights: &WeightBuilder, block: TransformerBlock) -> Result<Self> {
        let (attention, fed) = (&block.attention, &block.feed_forward);
        let at = weights.pp("attention.self");
        let projection = |name: &str, map, operand: &str| -> Result<_> {
            let map = QuantizedLinear::new(&at.pp(name), map)?;
            let operand = at.pp(format!("matmul_{operand}_input_quantizer"));
            Ok((map, Quantizer::new(&operand)?))
        };
        let linear = |name: &str, map| QuantizedLinear::new(&weights.pp(name), map);
        let sum = |name: &str, dropout| QuantizedSum::new(&weights.pp(name), dropout);
        Ok(Self {
            projections: [
                projection("query", &attention.query, "q")?,
                projection("key", &attention.key, "k")?,
                projection("value", &attention.value, "v")?,
            ],
            probabilities: Quantizer::new(&at.pp("matmul_a_input_quantizer"))?,
            attention_output: linear("attention.output.dense", &block.attention_output)?,
            attention_sum: sum("attention.output", block.attention_dropout)?,
            intermediate: linear("intermediate.dense", &fed.intermediate)?,
            output: linear("output.dense", &fed.output)?,
            output_sum: sum("output", fed.dropout)?,
            block,
        })
    }

    /// Returns the context vectors of `x` (batch, seq, hidden), up to the output projection.
    fn attend(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let attention = &self.block.attention;
        let (batch, seq, _) = x.dims3()?;
        let (heads, size) = (attention.heads, attention.head_size);
        let context = &pass.context;
        let split = |(map, operand): &(QuantizedLinear, Quantizer)| -> Result<Tensor> {
            let y = ops::reshape(&map.forward(x, context)?, (batch, seq, heads, size))?;
            operand.forward(&ops::permute(&y, &[0, 2, 1, 3])?, context)
        };
        let [query, key, value] = &self.projections;
        let (query, key, value) = (split(query)?, split(key)?, split(value)?);
        let scores = ops::matmul(&query, &key, false, true)?;
        let scores = ops::scale(&scores, 1.0 / (size as f64).sqrt())?;
        let probabilities = ops::softmax(&masked(&scores, &pass.mask)?)?;
        let probabilities = ops::dropout(&probabilities, context.dropout(attention.dropout))?;
        let probabilities = self.probabilities.forward(&probabilities, context)?;
        let attended = ops::matmul(&probabilities, &value, false, false)?;
        let attended = ops::permute(&attended, &[0, 2, 1, 3])?;
        ops::reshape(&attended, (batch, seq, heads * size))
    }
}

/// Returns `scores` (batch, heads, queries, keys) with those of padding so low that e to it is zero, and finite in every dtype.
pub(super) fn masked(scores: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
    let AttentionMask::Keys(seen) = mask else {
        return Ok(scores.clone());
    };
    let (batch, heads, queries, keys) = scores.dims4()?;
    let seen: Vec<Vec<u32>> = seen.to_vec2()?;
    let score = |&seen: &u32| if seen == 0 { -1e4f32 } else { 0.0 };
    let rows = seen.iter().flat_map(|row| {
        let row: Vec<f32> = row.iter().map(score).collect();
        std::iter::repeat_n(row, heads * queries).flatten()
    });
    let shape = (batch, heads, queries, keys);
    let low = Tensor::from_vec(rows.collect(), shape, scores.device())?;
    ops::add(scores, &low.to_dtype(scores.dtype())?)
}

impl Block for QuantizedBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (block, context) = (&self.block, &pass.context);
        let attended = self.attend(x, pass)?;
        let attended = self.attention_output.forward(&attended, context)?;
        let sum = self.attention_sum.forward(&attended, x, context)?;
        let x = block.attention_norm.forward(&sum)?;
        let fed = &block.feed_forward;
        let inner = self.intermediate.forward(&x, context)?;
        let inner = ops::activate(&inner, fed.activation)?;
        let inner = ops::dropout(&inner, context.dropout(fed.activation_dropout))?;
        let fed = self.output.forward(&inner, context)?;
        let sum = self.output_sum.forward(&fed, &x, context)?;
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
    use crate::model::{Config, Context, MaskedLm, ModelInputs};

    fn inputs() -> ModelInputs {
        let inputs = ModelInputs::new((5..17).collect(), (2, 6)).unwrap();
        inputs
            .with_attention_mask(vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
            .unwrap()
    }

    fn difference(a: &MaskedLm, b: &MaskedLm) -> f32 {
        let difference = a.forward(inputs()).unwrap() - b.forward(inputs()).unwrap();
        let difference = difference.unwrap().abs().unwrap().max_all().unwrap();
        difference.to_scalar().unwrap()
    }

    /// The name of a quantizer of the first block, after the common prefix.
    fn amax(model: &MaskedLm, name: &str) -> Option<Vec<f32>> {
        let name = format!("bert.encoder.layer.0.{name}._amax");
        let found = model.measured().iter().find(|of| of.name() == name);
        let value = found.unwrap_or_else(|| panic!("{name}")).get()?;
        Some(value.flatten_all().unwrap().to_vec1().unwrap())
    }

    #[test]
    fn calibration_measures_float_ranges_and_is_saved() {
        // Weights as large as trained ones.
        let config = Config::small("qdqbert").set("initializer_range", 0.2);
        let float = MaskedLm::from_config(&config, 1).unwrap();
        assert!(float.calibrate([inputs()]).is_err());
        let mut model = float.clone();
        model.set_quant_mode(true).unwrap();
        assert_eq!(amax(&model, "output.dense._input_quantizer"), None);
        let dynamic = difference(&float, &model);
        assert!(dynamic > 0.0 && dynamic < 0.5, "{dynamic}");
        // A batch that fails leaves all as it was, and so does none.
        let long = ModelInputs::new(vec![5; 9999], (1, 9999)).unwrap();
        assert!(model.calibrate([inputs(), long]).is_err());
        assert!(model.calibrate(Vec::<ModelInputs>::new()).is_err());
        assert_eq!(amax(&model, "output.dense._input_quantizer"), None);

        assert_eq!(model.calibrate([inputs()]).unwrap(), 1);
        // All of the batch's probabilities, values of a mask's among them, lie below one; weights have a range for each row.
        let probabilities = amax(&model, "attention.self.matmul_a_input_quantizer").unwrap();
        assert!(probabilities.len() == 1 && probabilities[0] > 0.1 && probabilities[0] <= 1.0);
        let param = "bert.encoder.layer.0.attention.self.key.weight";
        let weight = model
            .param(param)
            .unwrap()
            .value()
            .to_vec2::<f32>()
            .unwrap();
        let rows = weight
            .iter()
            .map(|row| row.iter().fold(0f32, |a, w| a.max(w.abs())));
        let found = amax(&model, "attention.self.key._weight_quantizer").unwrap();
        assert_eq!(found, rows.collect::<Vec<_>>());
        // The three maps of the attention read the same.
        let [q, k] = ["query", "key"]
            .map(|of| amax(&model, &format!("attention.self.{of}._input_quantizer")));
        assert!(q.is_some() && q == k);
        let static_ = difference(&float, &model);
        assert!(static_ > 0.0 && static_ < 0.5, "{static_}");

        // Saved with the model, carried through its float mode, and read again.
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        model.save_pretrained(at("quantized")).unwrap();
        let mut opened = MaskedLm::from_pretrained(at("quantized")).unwrap();
        assert!(opened.load_report().unexpected.is_empty());
        assert_eq!(difference(&model, &opened), 0.0);
        opened.set_quant_mode(false).unwrap();
        assert_eq!(difference(&float, &opened), 0.0);
        opened.save_pretrained(at("float")).unwrap();
        let mut again = MaskedLm::from_pretrained(at("float")).unwrap();
        again.set_quant_mode(true).unwrap();
        assert_eq!(difference(&model, &again), 0.0);

        // Weights that grow beyond the range are cut; measuring anew follows them.
        let before = amax(&model, "output.dense._weight_quantizer");
        let dense = "bert.encoder.layer.0.output.dense.weight";
        let dense = model.param(dense).unwrap();
        dense.set(&(dense.value() * 3.0).unwrap()).unwrap();
        let mut float = model.clone();
        float.set_quant_mode(false).unwrap();
        let cut = difference(&float, &model);
        assert_eq!(amax(&model, "output.dense._weight_quantizer"), before);
        model.calibrate([inputs()]).unwrap();
        let fresh = difference(&float, &model);
        assert!(fresh < 0.5 * cut, "{fresh} {cut}");
    }

    #[test]
    fn gradients_pass_through_the_rounding() {
        let config = Config::small("qdqbert").set("quant_mode", true);
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let labels = vec![7, -100, 9, -100, -100, 4, 8, -100, 5, 6, -100, -100];
        let inputs = inputs().with_labels(labels).unwrap();
        let loss = model.loss(&inputs, &Context::train(3, 1)).unwrap();
        model.backward(&loss.mean().unwrap()).unwrap();
        assert!(model.params().iter().all(|param| param.grad().is_some()));
        let relative = config.set("position_embedding_type", "relative_key");
        assert!(MaskedLm::from_config(&relative, 1).is_err());
    }
}
