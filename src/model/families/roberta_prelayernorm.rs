//! RoBERTa-PreLayerNorm, in which Wettig et al. 2022 (arXiv:2202.08005) asked how much to mask: RoBERTa that normalizes
//! before its layers instead of after them.

use super::{bert, roberta};
use crate::Result;
use crate::model::nn::{LayerNames, Order, Spec};
use crate::model::{Architecture, Config, Family, WeightBuilder};

/// `RobertaPreLayerNormForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "roberta-prelayernorm",
    class: "RobertaPreLayerNormForMaskedLM",
    synonyms: &["RobertaPreLayerNormModel"],
    base: "roberta_prelayernorm",
    body: &["embeddings.", "encoder.", "LayerNorm.", "pooler."],
    defaults: r#"{"vocab_size": 50265, "pad_token_id": 1}"#,
    build,
    ..roberta::FAMILY
};

const LAYERS: LayerNames = LayerNames {
    attention_norm: "encoder.layer.{}.attention.LayerNorm",
    output_norm: "encoder.layer.{}.intermediate.LayerNorm",
    ..bert::LAYERS
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let spec = Spec {
        base: "roberta_prelayernorm",
        layers: LAYERS,
        order: Order::PreNorm,
        final_norm: Some("LayerNorm"),
        ..roberta::spec(config)?
    };
    Ok(Box::new(spec.build(weights)?))
}
