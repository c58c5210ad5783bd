//! I-BERT (Kim et al. 2021, arXiv:2101.01321): RoBERTa that can compute in integers alone, the nonlinear functions too.
//!
//! In float mode, which is how it opens, it is RoBERTa, whose checkpoints carry the ranges and the rounded weights along. The
//! config's key `quant_mode` turns on the arithmetic of [`ops::integer`](crate::ops::integer): 8-bit weights and activations,
//! 32-bit sums, and ranges that training moves along. `force_dequant` ("gelu", "softmax", "layernorm" or "nonlinear") leaves
//! some functions in floats. The head stays in floats.
//!
//! Hardware for 8-bit integers is emulated, to learn what it would compute: that is slower than floats, on a GPU too, whose
//! tensors the processor rounds.
//!
//! Two things are as in transformers rather than as the paper has them: blocks take the embeddings' step for that of their
//! input, whatever the block before them gave, and what a residual connection adds gets no gradient, so that segments and
//! positions learn nothing in this mode. Fine-tune in floats first.

mod activation;
mod block;
mod embeddings;
mod layers;

use std::sync::Arc;

use candle_core::{Device, Tensor};

use self::activation::QuantAct;
use self::block::IntegerBlock;
use self::embeddings::IntegerEmbeddings;
use super::bert::BertConfig;
use super::roberta;
use crate::model::nn::{Block, MOST_LAYERS, Positions, Spec, Transformer, check_layers_up_to};
use crate::model::{Architecture, Config, Family, Init, WeightBuilder};
use crate::{Error, Result};

const EMBEDDING_BITS: u32 = 8;
const EMBEDDING_ACT_BITS: u32 = 16;
const ACT_BITS: u32 = 8;
const SOFTMAX_BITS: u32 = 16;
const LN_INPUT_BITS: u32 = 22;

/// `IBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "ibert",
    class: "IBertForMaskedLM",
    synonyms: &["IBertModel"],
    base: "ibert",
    carried: &[
        "_integer",
        "_scaling_factor",
        ".x_min",
        ".x_max",
        "LayerNorm.shift",
    ],
    defaults: r#"{"pad_token_id": 1}"#,
    build,
    ..roberta::FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let spec = Spec {
        base: "ibert",
        ..roberta::spec(config)?
    };
    if config.get("quant_mode") == Some(&true.into()) {
        return Ok(Box::new(in_integers(&spec, config, weights)?));
    }
    let model = spec.build(weights)?;
    carry_ranges(&spec, config, &weights.pp(spec.base))?;
    Ok(Box::new(model))
}

/// Which functions stay in floats.
#[derive(Clone, Copy, Debug)]
struct Floats {
    gelu: bool,
    softmax: bool,
    layer_norm: bool,
}

impl Floats {
    fn new(config: &Config) -> Result<Self> {
        let name = match config.get("force_dequant") {
            None | Some(serde_json::Value::Null) => "none",
            Some(value) => value.as_str().unwrap_or_default(),
        };
        let known = ["none", "gelu", "softmax", "layernorm", "nonlinear"];
        if !known.contains(&name) {
            return Err(Error::Config(format!(
                "force_dequant is {:?}; it may be {}",
                config.get("force_dequant"),
                known.join(", ")
            )));
        }
        let is = |function: &str| name == "nonlinear" || name == function;
        Ok(Self {
            gelu: is("gelu"),
            softmax: is("softmax"),
            layer_norm: is("layernorm"),
        })
    }
}

/// Returns the model that computes in integers.
fn in_integers(spec: &Spec, config: &Config, weights: &WeightBuilder) -> Result<Transformer> {
    let values: BertConfig = config.parse()?;
    if !matches!(spec.positions, Positions::AfterPadding { .. }) || values.hidden_act != "gelu" {
        return Err(Error::Config(
            "quant_mode is set, which I-BERT only supports with absolute positions and GELU: position_embedding_type must be \"absolute\", and hidden_act \"gelu\""
                .to_owned(),
        ));
    }
    spec.check()?;
    // Rounding takes several operations more in each place.
    check_layers_up_to("num_hidden_layers", spec.places.len(), MOST_LAYERS / 2)?;
    let floats = Floats::new(config)?;
    let base = weights.pp(spec.base);
    let at = base.pp("embeddings");
    let input = QuantAct::new(&at.pp("output_activation"), ACT_BITS)?;
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let at = base.pp(format!("encoder.layer.{place}"));
        let block = spec.block(weights, place)?;
        Ok(Arc::new(IntegerBlock::new(&at, block, &input, floats)?))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    let embeddings = spec.embeddings(weights)?;
    let embeddings = IntegerEmbeddings::new(&at, &embeddings, &input, floats)?;
    if input.step().is_err() {
        weights.note("quant_mode is set, but the ranges of its activations have not been measured: call calibrate, or train it");
    }
    Ok(Transformer {
        embeddings: Box::new(embeddings),
        ..spec.build_with(weights, blocks)?
    })
}

/// The activations of a layer whose ranges are kept.
const ACTIVATIONS: [&str; 12] = [
    "attention.self.query_activation",
    "attention.self.key_activation",
    "attention.self.value_activation",
    "attention.self.softmax.act",
    "attention.self.output_activation",
    "attention.output.ln_input_act",
    "attention.output.output_activation",
    "pre_intermediate_act",
    "intermediate.output_activation",
    "pre_output_act",
    "output.ln_input_act",
    "output.output_activation",
];

/// Keeps what the integer arithmetic would need, as it is before any calibration: transformers expects it in a file.
fn carry_ranges(spec: &Spec, config: &Config, weights: &WeightBuilder) -> Result<()> {
    let zeros =
        |at: &WeightBuilder, name: &str, shape: &[usize]| at.carry_drawn(name, shape, Init::Zeros);
    let range = |at: &WeightBuilder| -> Result<()> {
        zeros(at, "act_scaling_factor", &[1])?;
        // What is seen widens an empty range.
        for (name, end) in [("x_min", -1e-5f32), ("x_max", 1e-5)] {
            at.carry_value(name, Tensor::new(&[end], &Device::Cpu)?)?;
        }
        Ok(())
    };
    let norm = |at: &WeightBuilder| -> Result<()> {
        zeros(at, "shift", &[1])?;
        range(&at.pp("activation"))
    };
    let linear = |at: &WeightBuilder, inner: usize, outer: usize| -> Result<()> {
        zeros(at, "weight_integer", &[outer, inner])?;
        zeros(at, "bias_integer", &[outer])?;
        zeros(at, "fc_scaling_factor", &[outer])
    };
    let (hidden, inner) = (spec.sizes.hidden, spec.sizes.intermediate);
    let embeddings = weights.pp("embeddings");
    let values: BertConfig = config.parse()?;
    for (name, rows) in [
        ("word_embeddings", values.vocab_size),
        ("position_embeddings", values.max_position_embeddings),
        ("token_type_embeddings", values.type_vocab_size),
    ] {
        zeros(&embeddings.pp(name), "weight_integer", &[rows, hidden])?;
        zeros(&embeddings.pp(name), "weight_scaling_factor", &[1])?;
    }
    for name in ["embeddings_act1", "embeddings_act2", "output_activation"] {
        range(&embeddings.pp(name))?;
    }
    norm(&embeddings.pp("LayerNorm"))?;
    for place in &spec.places {
        let layer = weights.pp(format!("encoder.layer.{place}"));
        for name in ACTIVATIONS {
            range(&layer.pp(name))?;
        }
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            norm(&layer.pp(name))?;
        }
        for name in ["self.query", "self.key", "self.value", "output.dense"] {
            linear(&layer.pp("attention").pp(name), hidden, hidden)?;
        }
        linear(&layer.pp("intermediate.dense"), hidden, inner)?;
        linear(&layer.pp("output.dense"), inner, hidden)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
