//! ModernBERT (Warner et al. 2024, arXiv:2412.13663): rotary positions, gated feed-forward maps, and two layers in three that
//! see a window only, so that long texts cost little more than short ones.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::bert;
use crate::model::nn::{
    Angles, Block, Embeddings, Encoder, GatedBlock, GatedFeedForward, Gates, Ids, Linear, Lookup,
    Norm, Order, PredictionHead, Projection, RotaryAttention, Transformer, numbered,
};
use crate::model::{Architecture, Config, Family, Init, WeightBuilder};
use crate::ops::{Activation, Band, Gate, RotaryPairs};
use crate::{Error, Result};

/// `ModernBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "modernbert",
    class: "ModernBertForMaskedLM",
    synonyms: &["ModernBertModel"],
    base: "model",
    body: &["embeddings.", "layers.", "final_norm."],
    defaults: "{}",
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct ModernBertConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_activation: String,
    initializer_range: f64,
    initializer_cutoff_factor: f64,
    norm_eps: f64,
    norm_bias: bool,
    pad_token_id: u32,
    attention_bias: bool,
    attention_dropout: f64,
    layer_types: Option<Vec<String>>,
    global_attn_every_n_layers: usize,
    local_attention: usize,
    global_rope_theta: f64,
    local_rope_theta: Option<f64>,
    embedding_dropout: f64,
    mlp_bias: bool,
    mlp_dropout: f64,
    decoder_bias: bool,
    classifier_bias: bool,
    classifier_activation: String,
}

impl Default for ModernBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50368,
            hidden_size: 768,
            intermediate_size: 1152,
            num_hidden_layers: 22,
            num_attention_heads: 12,
            hidden_activation: "gelu".to_owned(),
            initializer_range: 0.02,
            initializer_cutoff_factor: 2.0,
            norm_eps: 1e-5,
            norm_bias: false,
            pad_token_id: 50283,
            attention_bias: false,
            attention_dropout: 0.0,
            layer_types: None,
            global_attn_every_n_layers: 3,
            local_attention: 128,
            global_rope_theta: 160_000.0,
            local_rope_theta: None,
            embedding_dropout: 0.0,
            mlp_bias: false,
            mlp_dropout: 0.0,
            decoder_bias: true,
            classifier_bias: false,
            classifier_activation: "gelu".to_owned(),
        }
    }
}

const LOCAL_THETA: f64 = 10_000.0;

impl ModernBertConfig {
    /// Returns whether each layer sees everything.
    fn is_global(&self) -> Result<Vec<bool>> {
        let layers = numbered("num_hidden_layers", self.num_hidden_layers)?.len();
        let Some(types) = &self.layer_types else {
            let every = self.global_attn_every_n_layers.max(1);
            return Ok((0..layers).map(|layer| layer % every == 0).collect());
        };
        if types.len() != layers {
            return Err(Error::Config(format!(
                "layer_types names {} layers, but num_hidden_layers is {layers}",
                types.len()
            )));
        }
        let is_global = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(true),
            "sliding_attention" => Ok(false),
            other => Err(Error::Config(format!(
                "unknown layer type {other:?}; known are full_attention and sliding_attention"
            ))),
        };
        types.iter().map(is_global).collect()
    }
}

/// Returns the base of the rotary angles in `rope_parameters`, newer files' place for it: under `kind` where kinds of layers
/// differ.
///
/// # Errors
/// When it is no number, or the angles are to be scaled, which is not supported.
pub(super) fn theta(config: &Config, kind: Option<&str>) -> Result<Option<f64>> {
    let mut parameters = config.get("rope_parameters");
    if let Some(kind) = kind {
        parameters = parameters.and_then(|parameters| parameters.get(kind));
    }
    let Some(parameters) = parameters.filter(|parameters| !parameters.is_null()) else {
        return Ok(None);
    };
    let scaling = [parameters.get("rope_type"), config.get("rope_scaling")];
    for scaling in scaling.into_iter().flatten() {
        if scaling.as_str() != Some("default") && !scaling.is_null() {
            return Err(Error::Config(format!(
                "rotary positions that are scaled ({scaling}) are not supported"
            )));
        }
    }
    match parameters.get("rope_theta") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(theta) => Ok(Some(theta)),
            None => Err(Error::Config(format!(
                "rope_theta is {value}, but it must be a number"
            ))),
        },
    }
}

/// Returns rotary angles of the base `theta`, for heads of `width` features.
///
/// # Errors
/// When the base is not above 0: its powers would be none.
pub(super) fn angles(theta: f64, width: usize, pairs: RotaryPairs) -> Result<Arc<Angles>> {
    match theta > 0.0 {
        true => Ok(Arc::new(Angles::new(theta, width, pairs))),
        false => Err(Error::Config(format!(
            "the base of the rotary angles is {theta}, but it must be above 0"
        ))),
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: ModernBertConfig = config.parse()?;
    let (hidden, heads) = (values.hidden_size, values.num_attention_heads);
    super::check_sizes(values.vocab_size, hidden, heads)?;
    let global = theta(config, Some("full_attention"))?.unwrap_or(values.global_rope_theta);
    let local = theta(config, Some("sliding_attention"))?;
    let local = local.or(values.local_rope_theta).unwrap_or(LOCAL_THETA);
    let angles = |theta: f64| angles(theta, hidden / heads, RotaryPairs::Half);
    let parts = Parts {
        inward: Init::TruncatedNormal(values.initializer_range, values.initializer_cutoff_factor),
        outward: Init::TruncatedNormal(
            values.initializer_range / (2.0 * values.num_hidden_layers.max(1) as f64).sqrt(),
            values.initializer_cutoff_factor,
        ),
        activation: Activation::from_name(&values.hidden_activation)?,
        angles: [angles(local)?, angles(global)?],
        tied: config.tie_word_embeddings(),
        values: &values,
    };
    let base = weights.pp("model");
    let embeddings = parts.embeddings(&base.pp("embeddings"))?;
    let blocks = (values.is_global()?.into_iter().enumerate())
        .map(|(layer, global)| {
            let block = parts.block(&base.pp(format!("layers.{layer}")), layer, global)?;
            Ok(Arc::new(block) as Arc<dyn Block>)
        })
        .collect::<Result<_>>()?;
    let norm = Some(parts.norm(&base.pp("final_norm"))?);
    let dense = Linear::with_init(
        &weights.pp("head.dense"),
        (hidden, hidden),
        parts.outward,
        values.classifier_bias,
    )?;
    let activation = Activation::from_name(&values.classifier_activation)?;
    let transform = Some((dense, activation, parts.norm(&weights.pp("head.norm"))?));
    let word = parts.tied.then_some(&embeddings.lookups[0].table);
    let bias = values.decoder_bias.then_some("decoder.bias");
    let shape = (values.vocab_size, hidden);
    let (decoder, bias) =
        weights.decoder("decoder", bias, word, shape, values.initializer_range)?;
    Ok(Box::new(Transformer {
        embeddings: Box::new(embeddings),
        encoder: Encoder { blocks, norm },
        head: Box::new(PredictionHead {
            transform,
            decoder,
            bias,
        }),
        prepare: None,
        max_positions: None,
    }))
}

/// Makes the parts of a model of these sizes.
struct Parts<'a> {
    values: &'a ModernBertConfig,
    /// Whether the product with the vocabulary is by the table of words.
    tied: bool,
    /// How maps into the inner features begin, and maps out of them.
    inward: Init,
    outward: Init,
    activation: Activation,
    /// The angles of local layers, and of those that see everything.
    angles: [Arc<Angles>; 2],
}

impl Parts<'_> {
    fn norm(&self, weights: &WeightBuilder) -> Result<Norm> {
        let (width, eps) = (self.values.hidden_size, self.values.norm_eps);
        match self.values.norm_bias {
            true => Norm::layer(weights, width, eps),
            false => Norm::layer_without_bias(weights, width, eps),
        }
    }

    fn embeddings(&self, weights: &WeightBuilder) -> Result<Embeddings> {
        let values = self.values;
        let words = weights.pp("tok_embeddings");
        let shape = (values.vocab_size, values.hidden_size);
        let padding = Some(values.pad_token_id).filter(|&id| (id as usize) < values.vocab_size);
        Ok(Embeddings {
            lookups: vec![Lookup {
                table: words.word_table(self.tied, "decoder.weight", shape, self.inward)?,
                ids: Ids::Tokens,
                padding,
            }],
            norm: Some(self.norm(&weights.pp("norm"))?),
            dropout: values.embedding_dropout,
            projection: None,
        })
    }

    fn block(&self, weights: &WeightBuilder, layer: usize, global: bool) -> Result<GatedBlock> {
        let values = self.values;
        let (hidden, inner) = (values.hidden_size, values.intermediate_size);
        let (attention, mlp) = (weights.pp("attn"), weights.pp("mlp"));
        let map = |weights: &WeightBuilder, shape: (usize, usize), init: Init, bias: bool| {
            Linear::with_init(weights, shape, init, bias)
        };
        let attention_norm = (layer > 0).then(|| self.norm(&weights.pp("attn_norm")));
        Ok(GatedBlock {
            attention: RotaryAttention {
                projection: Projection::Fused(map(
                    &attention.pp("Wqkv"),
                    (hidden, hidden.saturating_mul(3)),
                    self.inward,
                    values.attention_bias,
                )?),
                output: map(
                    &attention.pp("Wo"),
                    (hidden, hidden),
                    self.outward,
                    values.attention_bias,
                )?,
                heads: values.num_attention_heads,
                kv_heads: values.num_attention_heads,
                head_size: hidden / values.num_attention_heads,
                angles: Arc::clone(&self.angles[usize::from(global)]),
                band: (!global).then(|| Band::both(values.local_attention / 2)),
                dropout: values.attention_dropout,
            },
            attention_norm: attention_norm.transpose()?,
            attention_dropout: values.attention_dropout,
            feed_forward: GatedFeedForward {
                gates: Gates::Fused(
                    map(
                        &mlp.pp("Wi"),
                        (hidden, inner.saturating_mul(2)),
                        self.inward,
                        values.mlp_bias,
                    )?,
                    Gate::First,
                ),
                activation: self.activation,
                dropout: values.mlp_dropout,
                output: map(
                    &mlp.pp("Wo"),
                    (inner, hidden),
                    self.outward,
                    values.mlp_bias,
                )?,
            },
            output_norm: self.norm(&weights.pp("mlp_norm"))?,
            output_dropout: 0.0,
            order: Order::PreNorm,
        })
    }
}
