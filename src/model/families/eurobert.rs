//! EuroBERT (Boizard et al. 2025, arXiv:2503.05500): an encoder in Llama's manner, with grouped heads, for European languages.
//!
//! Its vocabulary of 128,256 tokens is where most of the time and memory of a training step go.

use std::sync::Arc;

use serde::Deserialize;

use super::{bert, modernbert};
use crate::model::nn::{
    Block, Embeddings, Encoder, GatedBlock, GatedFeedForward, Gates, Ids, Linear, Lookup, Norm,
    Order, PredictionHead, Projection, RotaryAttention, Transformer, numbered,
};
use crate::model::{Architecture, Config, Family, Init, WeightBuilder};
use crate::ops::{Activation, RotaryPairs};
use crate::{Error, Result};

/// `EuroBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "eurobert",
    class: "EuroBertForMaskedLM",
    synonyms: &["EuroBertModel"],
    base: "model",
    body: &["embed_tokens.", "layers.", "norm."],
    ignored: &["rotary_emb.inv_freq"],
    defaults: r#"{"tie_word_embeddings": false}"#,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct EuroBertConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: String,
    initializer_range: f64,
    rms_norm_eps: f64,
    pad_token_id: u32,
    attention_bias: bool,
    attention_dropout: f64,
    mlp_bias: bool,
    rope_theta: f64,
}

impl Default for EuroBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 128_256,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".to_owned(),
            initializer_range: 0.02,
            rms_norm_eps: 1e-5,
            pad_token_id: 128_001,
            attention_bias: false,
            attention_dropout: 0.0,
            mlp_bias: false,
            rope_theta: 10_000.0,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: EuroBertConfig = config.parse()?;
    let (hidden, heads, vocab) = (
        values.hidden_size,
        values.num_attention_heads,
        values.vocab_size,
    );
    super::check_sizes(vocab, hidden, heads)?;
    let kv_heads = values.num_key_value_heads.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::Config(format!(
            "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )));
    }
    let size = values.head_dim.unwrap_or(hidden / heads);
    let theta = modernbert::theta(config, None)?.unwrap_or(values.rope_theta);
    let angles = modernbert::angles(theta, size, RotaryPairs::Half)?;
    let activation = Activation::from_name(&values.hidden_act)?;
    let (std, inner) = (values.initializer_range, values.intermediate_size);
    let init = Init::Normal(std);
    let base = weights.pp("model");

    let block = |place: String| -> Result<Arc<dyn Block>> {
        let weights = base.pp(format!("layers.{place}"));
        let (attention, mlp) = (weights.pp("self_attn"), weights.pp("mlp"));
        let (wide, narrow) = (heads.saturating_mul(size), kv_heads.saturating_mul(size));
        let part = |name: &str, shape: (usize, usize)| {
            Linear::with_init(&attention.pp(name), shape, init, values.attention_bias)
        };
        let gate = |name: &str, shape: (usize, usize)| {
            Linear::with_init(&mlp.pp(name), shape, init, values.mlp_bias)
        };
        let norm = |name: &str| Norm::rms(&weights.pp(name), hidden, values.rms_norm_eps);
        Ok(Arc::new(GatedBlock {
            attention: RotaryAttention {
                projection: Projection::Separate([
                    part("q_proj", (hidden, wide))?,
                    part("k_proj", (hidden, narrow))?,
                    part("v_proj", (hidden, narrow))?,
                ]),
                output: part("o_proj", (wide, hidden))?,
                heads,
                kv_heads,
                head_size: size,
                angles: Arc::clone(&angles),
                band: None,
                dropout: values.attention_dropout,
            },
            attention_norm: Some(norm("input_layernorm")?),
            attention_dropout: 0.0,
            feed_forward: GatedFeedForward {
                gates: Gates::Separate(
                    gate("gate_proj", (hidden, inner))?,
                    gate("up_proj", (hidden, inner))?,
                ),
                activation,
                dropout: 0.0,
                output: gate("down_proj", (inner, hidden))?,
            },
            output_norm: norm("post_attention_layernorm")?,
            output_dropout: 0.0,
            order: Order::PreNorm,
        }))
    };
    let padding = Some(values.pad_token_id).filter(|&id| (id as usize) < vocab);
    let init_words = padding.map_or(init, |row| Init::NormalExceptRow(std, row));
    let words = base.pp("embed_tokens");
    let tied = config.tie_word_embeddings();
    let word = words.word_table(tied, "lm_head.weight", (vocab, hidden), init_words)?;
    let blocks = numbered("num_hidden_layers", values.num_hidden_layers)?
        .into_iter()
        .map(block);
    let encoder = Encoder {
        blocks: blocks.collect::<Result<_>>()?,
        norm: Some(Norm::rms(&base.pp("norm"), hidden, values.rms_norm_eps)?),
    };
    let tied = config.tie_word_embeddings().then_some(&word);
    // The reference takes the setting of the feed-forward maps for the head too.
    let bias = values.mlp_bias.then_some("lm_head.bias");
    let (decoder, bias) = weights.decoder("lm_head", bias, tied, (vocab, hidden), std)?;
    Ok(Box::new(Transformer {
        embeddings: Box::new(Embeddings {
            lookups: vec![Lookup {
                table: word,
                ids: Ids::Tokens,
                padding,
            }],
            norm: None,
            dropout: 0.0,
            projection: None,
        }),
        encoder,
        head: Box::new(PredictionHead {
            transform: None,
            decoder,
            bias,
        }),
        prepare: None,
        max_positions: None,
    }))
}
