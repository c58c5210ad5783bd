//! ELECTRA's generator (Clark et al. 2020, arXiv:2003.10555): a small BERT with embeddings of another width.
//!
//! Only generators (`google/electra-small-generator`, ...) fill masks; a discriminator's checkpoint lacks the head.

use serde::Deserialize;

use super::bert;
use crate::Result;
use crate::model::nn::{HeadNames, Sizes, Spec};
use crate::model::{Architecture, Config, Family, WeightBuilder};
use crate::ops::Activation;

/// `ElectraForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "electra",
    class: "ElectraForMaskedLM",
    synonyms: &["ElectraForPreTraining", "ElectraModel"],
    base: "electra",
    body: &["embeddings.", "embeddings_project.", "encoder."],
    defaults: r#"{"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}"#,
    build,
    ..bert::FAMILY
};

/// The parts of a generator's head.
pub(super) const HEAD: HeadNames = HeadNames {
    transform: Some((
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
    )),
    decoder: "generator_lm_head",
    bias: Some("generator_lm_head.bias"),
};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Widths {
    embedding_size: usize,
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let spec = bert::spec(config)?;
    let Widths { embedding_size } = config.parse()?;
    let spec = Spec {
        base: "electra",
        sizes: Sizes {
            embedding: embedding_size,
            output: embedding_size,
            ..spec.sizes
        },
        projection: (embedding_size != spec.sizes.hidden).then_some("embeddings_project"),
        head: HEAD,
        // Whatever hidden_act says.
        head_activation: Activation::Gelu,
        ..spec
    };
    Ok(Box::new(spec.build(weights)?))
}
