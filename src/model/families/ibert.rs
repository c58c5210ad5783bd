//! I-BERT (Kim et al. 2021, arXiv:2101.01321) in its float mode: RoBERTa, whose checkpoints carry the ranges and the
//! rounded weights of the integer arithmetic along.

use candle_core::{Device, Tensor};

use super::bert::BertConfig;
use super::roberta;
use crate::model::nn::Spec;
use crate::model::{Architecture, Config, Family, Init, WeightBuilder};
use crate::{Error, Result};

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
    if config.get("quant_mode") == Some(&true.into()) {
        return Err(Error::Config(
            "quant_mode is set: integer arithmetic is not supported; set it to false to train and to fill masks in f32"
                .to_owned(),
        ));
    }
    let spec = Spec {
        base: "ibert",
        ..roberta::spec(config)?
    };
    let model = spec.build(weights)?;
    carry_ranges(&spec, config, &weights.pp(spec.base))?;
    Ok(Box::new(model))
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
