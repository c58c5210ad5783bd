//! ALBERT (Lan et al. 2019, arXiv:1909.11942): BERT whose layers share their weights, with narrower embeddings.
//!
//! Small files for what they do; the time of a step is that of a BERT of as many layers.

use serde::Deserialize;

use super::bert;
use crate::model::nn::{Dropouts, HeadNames, LayerNames, Positions, Sizes, Spec, check_layers};
use crate::model::{Architecture, Config, Family, WeightBuilder};
use crate::{Error, Result};

/// `AlbertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "albert",
    class: "AlbertForMaskedLM",
    synonyms: &["AlbertForPreTraining", "AlbertModel"],
    base: "albert",
    defaults: r#"{"vocab_size": 30000, "embedding_size": 128, "hidden_size": 4096, "num_hidden_layers": 12,
        "num_attention_heads": 64, "intermediate_size": 16384, "hidden_act": "gelu_new", "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0}"#,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Sharing {
    embedding_size: usize,
    num_hidden_layers: usize,
    num_hidden_groups: usize,
    inner_group_num: usize,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            embedding_size: 128,
            num_hidden_layers: 12,
            num_hidden_groups: 1,
            inner_group_num: 1,
        }
    }
}

const LAYERS: LayerNames = LayerNames {
    query: "encoder.albert_layer_groups.{}.attention.query",
    key: "encoder.albert_layer_groups.{}.attention.key",
    value: "encoder.albert_layer_groups.{}.attention.value",
    distances: "encoder.albert_layer_groups.{}.attention",
    attention_output: "encoder.albert_layer_groups.{}.attention.dense",
    attention_norm: "encoder.albert_layer_groups.{}.attention.LayerNorm",
    intermediate: "encoder.albert_layer_groups.{}.ffn",
    output: "encoder.albert_layer_groups.{}.ffn_output",
    output_norm: "encoder.albert_layer_groups.{}.full_layer_layer_norm",
};

const HEAD: HeadNames = HeadNames {
    transform: Some(("predictions.dense", "predictions.LayerNorm")),
    decoder: "predictions.decoder",
    bias: Some("predictions.bias"),
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let spec = bert::spec(config)?;
    let sharing: Sharing = config.parse()?;
    let spec = Spec {
        base: "albert",
        sizes: Sizes {
            embedding: sharing.embedding_size,
            output: sharing.embedding_size,
            ..spec.sizes
        },
        dropout: Dropouts {
            output: 0.0,
            ..spec.dropout
        },
        positions: match spec.positions {
            Positions::Relative {
                rows,
                kind,
                after_padding,
                ..
            } => Positions::Relative {
                rows,
                kind,
                scaled: false,
                after_padding,
            },
            positions => positions,
        },
        projection: Some("encoder.embedding_hidden_mapping_in"),
        layers: LAYERS,
        places: places(&sharing)?,
        head: HEAD,
        ..spec
    };
    Ok(Box::new(spec.build(weights)?))
}

/// Returns the group and the place in it that each application of a block takes its weights from.
fn places(sharing: &Sharing) -> Result<Vec<String>> {
    let Sharing {
        num_hidden_layers: layers,
        num_hidden_groups: groups,
        inner_group_num: inner,
        ..
    } = *sharing;
    if groups == 0 || groups > layers {
        return Err(Error::Config(format!(
            "num_hidden_groups {groups} must be from 1 to num_hidden_layers {layers}"
        )));
    }
    check_layers(
        "num_hidden_layers times inner_group_num",
        layers.saturating_mul(inner),
    )?;
    let place = |layer: usize| {
        let group = layer * groups / layers;
        (0..inner).map(move |place| format!("{group}.albert_layers.{place}"))
    };
    Ok((0..layers).flat_map(place).collect())
}
