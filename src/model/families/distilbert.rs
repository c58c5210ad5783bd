//! DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without segments, under its own names.

use serde::Deserialize;

use super::bert;
use crate::Result;
use crate::model::nn::{Dropouts, HeadNames, LayerNames, Order, Positions, Sizes, Spec, numbered};
use crate::model::{Architecture, Config, Family, Init, WeightBuilder};
use crate::ops::Activation;

/// `DistilBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "distilbert",
    class: "DistilBertForMaskedLM",
    synonyms: &["DistilBertModel"],
    base: "distilbert",
    aliases: &[
        ("hidden_size", "dim"),
        ("num_attention_heads", "n_heads"),
        ("num_hidden_layers", "n_layers"),
    ],
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct DistilBertConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    sinusoidal_pos_embds: bool,
    n_layers: usize,
    n_heads: usize,
    dim: usize,
    hidden_dim: usize,
    dropout: f64,
    attention_dropout: f64,
    activation: String,
    initializer_range: f64,
    pad_token_id: u32,
}

impl Default for DistilBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            max_position_embeddings: 512,
            sinusoidal_pos_embds: false,
            n_layers: 6,
            n_heads: 12,
            dim: 768,
            hidden_dim: 3072,
            dropout: 0.1,
            attention_dropout: 0.1,
            activation: "gelu".to_owned(),
            initializer_range: 0.02,
            pad_token_id: 0,
        }
    }
}

const LAYERS: LayerNames = LayerNames {
    query: "transformer.layer.{}.attention.q_lin",
    key: "transformer.layer.{}.attention.k_lin",
    value: "transformer.layer.{}.attention.v_lin",
    attention_output: "transformer.layer.{}.attention.out_lin",
    attention_norm: "transformer.layer.{}.sa_layer_norm",
    intermediate: "transformer.layer.{}.ffn.lin1",
    output: "transformer.layer.{}.ffn.lin2",
    output_norm: "transformer.layer.{}.output_layer_norm",
    ..bert::LAYERS
};

const HEAD: HeadNames = HeadNames {
    transform: Some(("vocab_transform", "vocab_layer_norm")),
    decoder: "vocab_projector",
    bias: Some("vocab_projector.bias"),
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: DistilBertConfig = config.parse()?;
    let activation = Activation::from_name(&values.activation)?;
    let rows = values.max_position_embeddings;
    let spec = Spec {
        base: "distilbert",
        sizes: Sizes {
            vocab: values.vocab_size,
            hidden: values.dim,
            embedding: values.dim,
            output: values.dim,
            heads: values.n_heads,
            intermediate: values.hidden_dim,
        },
        activation,
        // transformers hard-codes it.
        eps: 1e-12,
        std: values.initializer_range,
        table_std: values.initializer_range,
        words: "embeddings.word_embeddings",
        pad: Some(values.pad_token_id),
        dropout: Dropouts {
            embeddings: values.dropout,
            attention: values.attention_dropout,
            attended: 0.0,
            activation: 0.0,
            output: values.dropout,
        },
        positions: Positions::Table { rows, offset: 0 },
        position_table: "embeddings.position_embeddings",
        streams: Vec::new(),
        embedding_norm: Some("embeddings.LayerNorm"),
        projection: None,
        layers: LAYERS,
        places: numbered("n_layers", values.n_layers)?,
        order: Order::PostNorm,
        final_norm: None,
        head: HEAD,
        head_activation: activation,
        tied: config.tie_word_embeddings(),
    };
    if values.sinusoidal_pos_embds {
        let name = "distilbert.embeddings.position_embeddings.weight";
        let table = weights.param(name, (rows, values.dim), Init::Sinusoidal)?;
        table.set_trainable(false);
    }
    Ok(Box::new(spec.build(weights)?))
}
