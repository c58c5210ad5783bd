//! Nomic BERT (Nussbaum et al. 2024, arXiv:2402.01613): BERT with rotary positions and gated feed-forward maps, for texts of
//! 2048 tokens.

use std::sync::Arc;

use serde::Deserialize;

use super::{bert, modernbert};
use crate::model::nn::{
    Block, GatedBlock, GatedFeedForward, Gates, HeadNames, Linear, Norm, Order, Positions,
    Projection, RotaryAttention, Spec,
};
use crate::model::{Architecture, Config, Family, Init, WeightBuilder};
use crate::ops::{Activation, RotaryPairs};
use crate::{Error, Result};

/// `NomicBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "nomic_bert",
    class: "NomicBertForMaskedLM",
    synonyms: &["NomicBertForPreTraining", "NomicBertModel"],
    base: "nomic_bert",
    body: &["embeddings.", "emb_ln.", "encoder."],
    // Checkpoints of the first release have BERT's prefix; those of modules in transformers have other names inside.
    renames: &[
        ("bert.embeddings.LayerNorm.", "bert.emb_ln."),
        ("transform.LayerNorm.", "transform.layer_norm."),
    ],
    ignored: &["position_ids", "rotary_emb.inv_freq"],
    aliases: &[
        ("n_embd", "hidden_size"),
        ("n_inner", "intermediate_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_positions", "max_position_embeddings"),
        ("layer_norm_epsilon", "layer_norm_eps"),
        ("attn_pdrop", "attention_probs_dropout_prob"),
        ("resid_pdrop", "hidden_dropout_prob"),
        ("activation_function", "hidden_act"),
    ],
    defaults: r#"{"vocab_size": 30528, "max_position_embeddings": 2048, "hidden_act": "silu", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0}"#,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct NomicConfig {
    hidden_act: String,
    head_dim: Option<usize>,
    rotary_emb_base: f64,
    rotary_emb_fraction: f64,
    rotary_emb_interleaved: bool,
    prenorm: bool,
    qkv_proj_bias: bool,
    mlp_fc1_bias: bool,
    mlp_fc2_bias: bool,
}

impl Default for NomicConfig {
    fn default() -> Self {
        Self {
            hidden_act: "silu".to_owned(),
            head_dim: None,
            rotary_emb_base: 1000.0,
            rotary_emb_fraction: 1.0,
            rotary_emb_interleaved: false,
            prenorm: false,
            qkv_proj_bias: false,
            mlp_fc1_bias: false,
            mlp_fc2_bias: false,
        }
    }
}

const HEAD: HeadNames = HeadNames {
    transform: Some((
        "cls.predictions.transform.dense",
        "cls.predictions.transform.layer_norm",
    )),
    ..bert::HEAD
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: NomicConfig = config.parse()?;
    if values.prenorm {
        return Err(Error::Config(
            "prenorm is set: only Nomic BERT that normalizes after its layers is supported"
                .to_owned(),
        ));
    }
    // The first release says which gate it is.
    let activation = match values.hidden_act.as_str() {
        "swiglu" => Activation::Silu,
        "geglu" => Activation::Gelu,
        other => Activation::from_name(other)?,
    };
    let known = config.clone().set("hidden_act", "silu");
    let spec = bert::spec(&known)?;
    let Positions::Table { .. } = spec.positions else {
        return Err(Error::Config(
            "Nomic BERT has rotary positions, and no position_embedding_type".to_owned(),
        ));
    };
    let spec = Spec {
        base: "nomic_bert",
        activation,
        positions: Positions::InAttention { most: None },
        embedding_norm: Some("emb_ln"),
        head: HEAD,
        head_activation: activation,
        ..spec
    };
    spec.check()?;
    let (hidden, heads) = (spec.sizes.hidden, spec.sizes.heads);
    let size = values.head_dim.unwrap_or(hidden / heads);
    let rotated = (size as f64 * values.rotary_emb_fraction) as usize;
    let theta = modernbert::theta(config, None)?.unwrap_or(values.rotary_emb_base);
    let pairs = match values.rotary_emb_interleaved {
        true => RotaryPairs::Interleaved,
        false => RotaryPairs::Half,
    };
    let angles = modernbert::angles(theta, rotated.min(size), pairs)?;
    let init = Init::Normal(spec.std);
    let (wide, inner) = (heads.saturating_mul(size), spec.sizes.intermediate);
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let weights = weights.pp(spec.base).pp(format!("encoder.layers.{place}"));
        let map = |name: &str, shape: (usize, usize), bias: bool| {
            Linear::with_init(&weights.pp(name), shape, init, bias)
        };
        let norm = |name: &str| Norm::layer(&weights.pp(name), hidden, spec.eps);
        let bias = values.qkv_proj_bias;
        Ok(Arc::new(GatedBlock {
            attention: RotaryAttention {
                projection: Projection::Fused(map(
                    "attn.Wqkv",
                    (hidden, wide.saturating_mul(3)),
                    bias,
                )?),
                output: map("attn.out_proj", (wide, hidden), bias)?,
                heads,
                kv_heads: heads,
                head_size: size,
                angles: Arc::clone(&angles),
                band: None,
                dropout: spec.dropout.attention,
            },
            attention_norm: Some(norm("norm1")?),
            attention_dropout: spec.dropout.attended,
            feed_forward: GatedFeedForward {
                gates: Gates::Separate(
                    map("mlp.fc12", (hidden, inner), values.mlp_fc1_bias)?,
                    map("mlp.fc11", (hidden, inner), values.mlp_fc1_bias)?,
                ),
                activation,
                dropout: 0.0,
                output: map("mlp.fc2", (inner, hidden), values.mlp_fc2_bias)?,
            },
            output_norm: norm("norm2")?,
            output_dropout: spec.dropout.output,
            order: Order::PostNorm,
        }))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}
