//! RemBERT (Chung et al. 2020, arXiv:2010.12821): BERT in 110 languages, with narrow embeddings for its input and a wide,
//! separate matrix for its output, which is where most of its weights are.

use serde::Deserialize;

use super::bert;
use crate::Result;
use crate::model::nn::{HeadNames, Sizes, Spec};
use crate::model::{Architecture, Config, Family, WeightBuilder};

/// `RemBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "rembert",
    class: "RemBertForMaskedLM",
    synonyms: &["RemBertModel"],
    base: "rembert",
    defaults: r#"{"vocab_size": 250300, "hidden_size": 1152, "num_hidden_layers": 32, "num_attention_heads": 18,
        "intermediate_size": 4608, "input_embedding_size": 256, "output_embedding_size": 1664, "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0, "tie_word_embeddings": false}"#,
    build,
    ..bert::FAMILY
};

const HEAD: HeadNames = HeadNames {
    transform: Some(("cls.predictions.dense", "cls.predictions.LayerNorm")),
    decoder: "cls.predictions.decoder",
    bias: Some("cls.predictions.decoder.bias"),
};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Widths {
    input_embedding_size: usize,
    output_embedding_size: usize,
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let spec = bert::spec(config)?;
    let widths: Widths = config.parse()?;
    let spec = Spec {
        base: "rembert",
        sizes: Sizes {
            embedding: widths.input_embedding_size,
            output: widths.output_embedding_size,
            ..spec.sizes
        },
        projection: Some("encoder.embedding_hidden_mapping_in"),
        head: HEAD,
        ..spec
    };
    Ok(Box::new(spec.build(weights)?))
}
