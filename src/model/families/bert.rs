//! BERT (Devlin et al. 2018, arXiv:1810.04805), the common parent.

use serde::Deserialize;

use crate::Result;
use crate::model::nn::{
    Dropouts, HeadNames, LayerNames, Order, Positions, Sizes, Spec, Stream, numbered,
};
use crate::model::{Architecture, Config, Family, Sharing, WeightBuilder};
use crate::ops::Activation;

/// `BertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "bert",
    class: "BertForMaskedLM",
    synonyms: &["BertForPreTraining", "BertModel"],
    base: "bert",
    body: &["embeddings.", "encoder.", "transformer.", "pooler."],
    renames: &[],
    ignored: &["position_ids"],
    carried: &[],
    aliases: &[],
    defaults: r#"{"vocab_size": 30522, "pad_token_id": 0, "type_vocab_size": 2}"#,
    inputs: &[],
    sharing: Sharing::AnyLength,
    build,
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    Ok(Box::new(spec(config)?.build(weights)?))
}

/// The settings in a BERT-like `config.json`. Each family's `defaults` define missing keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct BertConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// The width of the embeddings, where it is another.
    pub embedding_size: Option<usize>,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: String,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub initializer_range: f64,
    pub layer_norm_eps: f64,
    pub pad_token_id: u32,
    pub position_embedding_type: String,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            embedding_size: None,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
            position_embedding_type: "absolute".to_owned(),
        }
    }
}

/// The parts of BERT's blocks.
pub(super) const LAYERS: LayerNames = LayerNames {
    query: "encoder.layer.{}.attention.self.query",
    key: "encoder.layer.{}.attention.self.key",
    value: "encoder.layer.{}.attention.self.value",
    distances: "encoder.layer.{}.attention.self",
    attention_output: "encoder.layer.{}.attention.output.dense",
    attention_norm: "encoder.layer.{}.attention.output.LayerNorm",
    intermediate: "encoder.layer.{}.intermediate.dense",
    output: "encoder.layer.{}.output.dense",
    output_norm: "encoder.layer.{}.output.LayerNorm",
};

/// The parts of BERT's head.
pub(super) const HEAD: HeadNames = HeadNames {
    transform: Some((
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
    )),
    decoder: "cls.predictions.decoder",
    bias: Some("cls.predictions.bias"),
};

/// BERT as `config` describes it.
pub(super) fn spec(config: &Config) -> Result<Spec> {
    let values: BertConfig = config.parse()?;
    let activation = Activation::from_name(&values.hidden_act)?;
    let rows = values.max_position_embeddings;
    Ok(Spec {
        base: "bert",
        sizes: Sizes {
            vocab: values.vocab_size,
            hidden: values.hidden_size,
            embedding: values.hidden_size,
            output: values.hidden_size,
            heads: values.num_attention_heads,
            intermediate: values.intermediate_size,
        },
        activation,
        eps: values.layer_norm_eps,
        std: values.initializer_range,
        table_std: values.initializer_range,
        words: "embeddings.word_embeddings",
        pad: Some(values.pad_token_id),
        dropout: Dropouts {
            embeddings: values.hidden_dropout_prob,
            attention: values.attention_probs_dropout_prob,
            attended: values.hidden_dropout_prob,
            activation: 0.0,
            output: values.hidden_dropout_prob,
        },
        positions: match values.position_embedding_type.as_str() {
            "absolute" => Positions::Table { rows, offset: 0 },
            kind => Positions::Relative {
                rows,
                kind: kind.to_owned(),
                scaled: true,
                after_padding: false,
            },
        },
        position_table: "embeddings.position_embeddings",
        streams: (values.type_vocab_size > 0)
            .then(|| Stream::segments(values.type_vocab_size))
            .into_iter()
            .collect(),
        embedding_norm: Some("embeddings.LayerNorm"),
        projection: None,
        layers: LAYERS,
        places: numbered("num_hidden_layers", values.num_hidden_layers)?,
        order: Order::PostNorm,
        final_norm: None,
        head: HEAD,
        head_activation: activation,
        tied: config.tie_word_embeddings(),
    })
}

/// Returns a pre-norm model of this type, which normalizes before its layers instead of after them and after the
/// embeddings, with these names for the norms of attention and feed-forward layers and for the final one.
pub(super) fn normalized_first(
    spec: Spec,
    [attention_norm, output_norm, last]: [&'static str; 3],
) -> Spec {
    Spec {
        embedding_norm: None,
        layers: LayerNames {
            attention_norm,
            output_norm,
            ..spec.layers
        },
        order: Order::PreNorm,
        final_norm: Some(last),
        ..spec
    }
}
