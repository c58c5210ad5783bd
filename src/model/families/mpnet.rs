//! MPNet (Song et al. 2020, arXiv:2004.09297): RoBERTa with a bias for the distance between two tokens; the base of many
//! models of sentences.

use std::sync::Arc;

use super::{bert, roberta};
use crate::Result;
use crate::model::nn::{Block, LayerNames, PositionScores, Spec};
use crate::model::{Architecture, Config, Family, Init, WeightBuilder};

/// `MPNetForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "mpnet",
    class: "MPNetForMaskedLM",
    synonyms: &["MPNetModel"],
    base: "mpnet",
    // The padding is token 1 in transformers, whatever pad_token_id says.
    defaults: r#"{"vocab_size": 30527, "relative_attention_num_buckets": 32}"#,
    build,
    ..roberta::FAMILY
};

const PADDING: u32 = 1;

const LAYERS: LayerNames = LayerNames {
    query: "encoder.layer.{}.attention.attn.q",
    key: "encoder.layer.{}.attention.attn.k",
    value: "encoder.layer.{}.attention.attn.v",
    attention_output: "encoder.layer.{}.attention.attn.o",
    attention_norm: "encoder.layer.{}.attention.LayerNorm",
    ..bert::LAYERS
};

#[derive(serde::Deserialize)]
struct Buckets {
    relative_attention_num_buckets: usize,
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let config = &config.clone().set("position_embedding_type", "absolute");
    let Buckets {
        relative_attention_num_buckets: buckets,
    } = config.parse()?;
    let spec = Spec {
        base: "mpnet",
        pad: Some(PADDING),
        streams: Vec::new(),
        layers: LAYERS,
        ..roberta::spec(config)?
    };
    let table = weights.pp("mpnet.encoder.relative_attention_bias");
    let shape = (buckets, spec.sizes.heads);
    let scores = PositionScores::Buckets {
        table: table.param("weight", shape, Init::Normal(spec.std))?,
    };
    let block = |place: &String| {
        let mut block = spec.block(weights, place)?;
        block.attention.position_scores = Some(scores.clone());
        Ok(Arc::new(block) as Arc<dyn Block>)
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}
