//! DeBERTa (He et al. 2020, arXiv:2006.03654): attention in which a token's content meets the other's content, and the
//! distance between the two meets both.
//!
//! Published checkpoints store the masked-LM head under one of two names, `cls.predictions` or
//! `lm_predictions.lm_head`. Either is read, and saved again under the same name; the load report says which.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::{bert, xlm};
use crate::model::nn::{
    Block, Embed, Embeddings, FeedForward, HeadNames, Linear, Norm, Pass, Positions, Sizes, Spec,
    Transformer,
};
use crate::model::{
    Architecture, Config, Context, Family, Init, ModelFlops, ModelInputs, WeightBuilder,
};
use crate::ops::{
    self, AttentionOptions, Conv1d, Dropout, FusedLayout, Param, RelativeIndex, RelativeTerms,
};
use crate::{Error, Result};

/// `DebertaForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "deberta",
    class: "DebertaForMaskedLM",
    synonyms: &["DebertaForPreTraining", "DebertaModel"],
    base: "deberta",
    ignored: &[
        "position_ids",
        "mask_predictions.",
        // Tables of a config with position_biased_input, in files of one without.
        "embeddings.position_embeddings.",
    ],
    defaults: r#"{"vocab_size": 50265, "type_vocab_size": 0, "layer_norm_eps": 1e-7}"#,
    build,
    ..bert::FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: Values = config.parse()?;
    if values.talking_head {
        return Err(Error::Config(
            "talking_head is set: no published DeBERTa mixes its heads, and this library doesn't"
                .to_owned(),
        ));
    }
    let kinds = values.kinds()?;
    let distances = match values.relative_attention {
        true => Some(values.farthest()?),
        false => None,
    };
    let projections = |weights: &WeightBuilder, spec: &Spec| -> Result<Projections> {
        let hidden = spec.sizes.hidden;
        Ok(Projections::Fused {
            map: Linear::without_bias(&weights.pp("in_proj"), hidden, 3 * hidden, spec.std)?,
            query_bias: weights.param("q_bias", hidden, Init::Zeros)?,
            value_bias: weights.param("v_bias", hidden, Init::Zeros)?,
        })
    };
    let positions = |weights: &WeightBuilder, spec: &Spec, _: &Projections| {
        let (hidden, std) = (spec.sizes.hidden, spec.std);
        let key = |weights: WeightBuilder| Linear::without_bias(&weights, hidden, hidden, std);
        let query = |weights: WeightBuilder| Linear::new(&weights, hidden, hidden, std);
        let key = kinds.c2p.then(|| key(weights.pp("pos_proj")));
        let query = kinds.p2c.then(|| query(weights.pp("pos_q_proj")));
        Ok((key.transpose()?, query.transpose()?))
    };
    Plan {
        values: &values,
        distances: distances.map(|span| Span {
            rows: span,
            buckets_up_to: None,
        }),
        // Whatever the kinds are called.
        parts: 1 + kinds.named,
        projections: &projections,
        positions: &positions,
        normed: false,
        conv: None,
    }
    .build(config, weights)
}

/// Settings of both versions besides those of BERT.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct Values {
    pub relative_attention: bool,
    max_relative_positions: i64,
    max_position_embeddings: usize,
    position_biased_input: bool,
    pos_att_type: Value,
    embedding_size: Option<usize>,
    hidden_dropout_prob: f64,
    talking_head: bool,
    legacy: bool,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            relative_attention: false,
            max_relative_positions: -1,
            max_position_embeddings: 512,
            position_biased_input: true,
            pos_att_type: Value::Null,
            embedding_size: None,
            hidden_dropout_prob: 0.1,
            talking_head: false,
            legacy: true,
        }
    }
}

/// Which products with distances there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kinds {
    /// Queries meet the distance's key.
    pub c2p: bool,
    /// Keys meet the distance's query.
    pub p2c: bool,
    /// How many kinds the config names, known or not.
    named: usize,
}

impl Values {
    /// Reads `pos_att_type`, a list or names with "|" between them.
    pub(super) fn kinds(&self) -> Result<Kinds> {
        let names: Vec<String> = match &self.pos_att_type {
            Value::Null => Vec::new(),
            Value::String(names) => {
                let names = names.to_lowercase();
                names
                    .split('|')
                    .map(|name| name.trim().to_owned())
                    .collect()
            }
            Value::Array(names) => names
                .iter()
                .map(|name| name.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| misread(&self.pos_att_type))?,
            other => return Err(misread(other)),
        };
        let has = |name: &str| names.iter().any(|other| other == name);
        Ok(Kinds {
            c2p: has("c2p"),
            p2c: has("p2c"),
            named: names.len(),
        })
    }

    /// Returns the distance from which on all share a row, where there are no buckets.
    pub(super) fn farthest(&self) -> Result<usize> {
        let farthest = match self.max_relative_positions {
            ..1 => self.max_position_embeddings,
            farthest => usize::try_from(farthest).unwrap_or(usize::MAX),
        };
        bounded("max_relative_positions", farthest)
    }
}

fn misread(value: &Value) -> Error {
    Error::Config(format!(
        "pos_att_type must be a list of names such as [\"c2p\", \"p2c\"], or \"c2p|p2c\", not {value}"
    ))
}

/// Returns `value` if it can be the number of rows to each side of a table of distances.
pub(super) fn bounded(name: &str, value: usize) -> Result<usize> {
    const MOST: usize = 1 << 20;
    if (1..=MOST).contains(&value) {
        return Ok(value);
    }
    Err(Error::Config(format!(
        "{name} {value} must be from 1 to {MOST}"
    )))
}

/// How distances become rows of the table, which has `2 · rows` of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub rows: usize,
    /// Where distances are put in buckets: that from which on all share the last.
    pub buckets_up_to: Option<usize>,
}

impl Span {
    /// Returns the first of the table's rows that sequences of `seq` tokens need, their number, and the index into them.
    fn index(self, seq: usize) -> (usize, usize, RelativeIndex) {
        let rows = self.rows as u32;
        let all = match self.buckets_up_to {
            Some(farthest) => RelativeIndex::log_buckets(seq, seq, rows, farthest as u32),
            None => RelativeIndex::clipped(seq, seq, -i64::from(rows), i64::from(rows) - 1),
        };
        let row = |distance: i64| match usize::try_from(distance) {
            Ok(after) => all.get(after, 0),
            Err(_) => all.get(0, distance.unsigned_abs() as usize),
        };
        let last = seq as i64 - 1;
        let (low, high) = (-last..=last)
            .map(row)
            .fold((u32::MAX, 0), |(low, high), row| {
                (low.min(row), high.max(row))
            });
        let index = RelativeIndex::new(seq, seq, |distance| row(distance) - low);
        (low as usize, (high - low + 1) as usize, index)
    }
}

/// The convolution after the first block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convolution {
    pub width: usize,
    pub groups: usize,
    pub activation: ops::Activation,
}

type Project<'a> = dyn Fn(&WeightBuilder, &Spec) -> Result<Projections> + 'a;
type Position<'a> =
    dyn Fn(&WeightBuilder, &Spec, &Projections) -> Result<(Option<Linear>, Option<Linear>)> + 'a;

/// The differences between the two versions.
pub(super) struct Plan<'a> {
    pub values: &'a Values,
    /// How distances count, where attention is relative.
    pub distances: Option<Span>,
    /// The number of products that scores add up.
    pub parts: usize,
    /// Makes the projections at the attention's place.
    pub projections: &'a Project<'a>,
    /// Makes the maps from the table of distances to what queries and what keys meet.
    pub positions: &'a Position<'a>,
    /// Whether the table of distances is normalized.
    pub normed: bool,
    pub conv: Option<Convolution>,
}

/// The head's other name.
const LM_HEAD: HeadNames = HeadNames {
    transform: Some((
        "lm_predictions.lm_head.dense",
        "lm_predictions.lm_head.LayerNorm",
    )),
    decoder: "lm_predictions.lm_head.decoder",
    bias: Some("lm_predictions.lm_head.bias"),
};

/// Returns the names of the checkpoint's head, and whether its matrix is the word table whatever the config says.
fn head(values: &Values, weights: &WeightBuilder) -> (HeadNames, bool) {
    let holds = |head: &HeadNames| {
        let dense = head.transform.map_or("", |(dense, _)| dense);
        weights.holds(&format!("{dense}.weight"))
    };
    let (legacy, other) = (holds(&bert::HEAD), holds(&LM_HEAD));
    if legacy {
        weights.note("the masked-LM head was read from cls.predictions");
        (bert::HEAD, false)
    } else if other {
        weights.note(
            "the masked-LM head was read from lm_predictions.lm_head, and is saved under that name",
        );
        (LM_HEAD, true)
    } else {
        weights.note(
            "the checkpoint has no masked-LM head (neither cls.predictions nor lm_predictions.lm_head): fill_mask gives random tokens until the model has been trained",
        );
        match values.legacy {
            true => (bert::HEAD, false),
            false => (LM_HEAD, true),
        }
    }
}

impl Plan<'_> {
    /// Takes all weights and puts the model together.
    pub(super) fn build(
        &self,
        config: &Config,
        weights: &WeightBuilder,
    ) -> Result<Box<dyn Architecture>> {
        let config = &config.clone().set("position_embedding_type", "absolute");
        let spec = bert::spec(config)?;
        let width = self.values.embedding_size.unwrap_or(spec.sizes.hidden);
        let (head, always_tied) = head(self.values, weights);
        let spec = Spec {
            base: "deberta",
            sizes: Sizes {
                embedding: width,
                output: width,
                ..spec.sizes
            },
            positions: match self.values.position_biased_input {
                true => spec.positions,
                false => Positions::InAttention { most: None },
            },
            embedding_norm: None,
            head,
            tied: spec.tied || always_tied,
            ..spec
        };
        spec.check()?;
        let hidden = spec.sizes.hidden;
        let base = weights.pp(spec.base);
        let own = base.pp("embeddings");
        let map = || Linear::without_bias(&own.pp("embed_proj"), width, hidden, spec.std);
        let embeddings = DisentangledEmbeddings {
            sum: spec.embeddings(weights)?,
            map: (width != hidden).then(map).transpose()?,
            norm: Norm::layer(&own.pp("LayerNorm"), hidden, spec.eps)?,
            dropout: spec.dropout.embeddings,
        };
        let blocks = (spec.places.iter().enumerate())
            .map(|(at, place)| {
                let at = if at == 0 { self.conv } else { None };
                Ok(Arc::new(self.block(&spec, &base, place, at)?) as Arc<dyn Block>)
            })
            .collect::<Result<_>>()?;
        let head = spec.head(weights, &embeddings.sum.lookups[0].table)?;
        Ok(Box::new(Transformer {
            encoder: spec.encoder(weights, blocks)?,
            embeddings: Box::new(embeddings),
            head: Box::new(head),
            prepare: Some(prepare),
            max_positions: spec.max_positions(),
        }))
    }

    fn block(
        &self,
        spec: &Spec,
        base: &WeightBuilder,
        place: &str,
        conv: Option<Convolution>,
    ) -> Result<DisentangledBlock> {
        let Sizes {
            hidden,
            heads,
            intermediate,
            ..
        } = spec.sizes;
        let encoder = base.pp("encoder");
        let at = encoder.pp(format!("layer.{place}"));
        let attention = at.pp("attention.self");
        let linear = |name: &str, from, to| Linear::new(&at.pp(name), from, to, spec.std);
        let norm = |weights: WeightBuilder| Norm::layer(&weights, hidden, spec.eps);
        let projections = (self.projections)(&attention, spec)?;
        let distances = |span: Span| -> Result<Distances> {
            let shape = (2 * span.rows, hidden);
            let table = encoder.pp("rel_embeddings");
            let table = table.param("weight", shape, Init::Normal(spec.std))?;
            let normed = self.normed.then(|| norm(encoder.pp("LayerNorm")));
            let (key, query) = (self.positions)(&attention, spec, &projections)?;
            Ok(Distances {
                span,
                table,
                norm: normed.transpose()?,
                dropout: self.values.hidden_dropout_prob,
                key,
                query,
            })
        };
        let distances = self.distances.map(distances).transpose()?;
        if self.normed && distances.is_none() {
            // transformers makes the normalization of a table that it then has no use for.
            let idle = encoder.pp("LayerNorm");
            idle.carry_drawn("weight", hidden, Init::Ones)?;
            idle.carry_drawn("bias", hidden, Init::Zeros)?;
        }
        let conv = conv.map(|conv| conv.layer(&encoder.pp("conv"), spec));
        Ok(DisentangledBlock {
            projections,
            distances,
            heads,
            head_size: hidden / heads,
            parts: self.parts,
            attention_dropout: spec.dropout.attention,
            attended: linear("attention.output.dense", hidden, hidden)?,
            attended_dropout: spec.dropout.attended,
            attention_norm: norm(at.pp("attention.output.LayerNorm"))?,
            feed_forward: FeedForward {
                intermediate: linear("intermediate.dense", hidden, intermediate)?,
                activation: spec.activation,
                activation_dropout: 0.0,
                output: linear("output.dense", intermediate, hidden)?,
                dropout: spec.dropout.output,
            },
            output_norm: norm(at.pp("output.LayerNorm"))?,
            conv: conv.transpose()?,
        })
    }
}

/// The name of the token mask among a pass's inputs; present if the batch has padding.
const TOKENS: &str = "tokens";

fn prepare(inputs: &ModelInputs, device: &Device) -> Result<BTreeMap<&'static str, Tensor>> {
    let mut prepared = BTreeMap::new();
    if inputs.has_padding() {
        prepared.insert(TOKENS, xlm::tokens(inputs, device)?);
    }
    Ok(prepared)
}

/// The sum of the embeddings, projected to the encoder's width and then normalized; zero at padding.
#[derive(Debug)]
struct DisentangledEmbeddings {
    sum: Embeddings,
    map: Option<Linear>,
    norm: Norm,
    dropout: f64,
}

impl Embed for DisentangledEmbeddings {
    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let mut x = self.sum.sum(inputs)?;
        if let Some(map) = &self.map {
            x = map.forward(&x)?;
        }
        let mut x = self.norm.forward(&x)?;
        if inputs.has_padding() {
            x = ops::mul_rows(&x, &xlm::tokens(inputs, x.device())?)?;
        }
        ops::dropout(&x, context.dropout(self.dropout))
    }
}

/// The maps to queries, keys and values.
#[derive(Clone, Debug)]
pub(super) enum Projections {
    /// One map, whose result has query, key and value of each head side by side; biases of queries and values.
    Fused {
        map: Linear,
        query_bias: Param,
        value_bias: Param,
    },
    /// A map for each.
    Separate {
        query: Linear,
        key: Linear,
        value: Linear,
    },
}

impl Projections {
    fn params(&self) -> Vec<Param> {
        match self {
            Self::Fused {
                map,
                query_bias,
                value_bias,
            } => [map.params(), vec![query_bias.clone(), value_bias.clone()]].concat(),
            Self::Separate { query, key, value } => {
                [query.params(), key.params(), value.params()].concat()
            }
        }
    }

    fn weights(&self) -> usize {
        match self {
            Self::Fused { map, .. } => map.weights(),
            Self::Separate { query, key, value } => {
                query.weights() + key.weights() + value.weights()
            }
        }
    }

    /// Returns what the heads gather for `x`.
    fn attend(
        &self,
        x: &Tensor,
        terms: Option<RelativeTerms>,
        options: &AttentionOptions,
    ) -> Result<Tensor> {
        match self {
            Self::Fused {
                map,
                query_bias,
                value_bias,
            } => {
                let qkv = map.forward(x)?;
                let heads = options.heads;
                let width = qkv.dim(2)? / (3 * heads);
                let part = |bias: &Param| -> Result<Tensor> {
                    ops::reshape(&ops::param_rows(bias)?, (heads, 1, width))
                };
                let keys = Tensor::zeros((heads, 1, width), qkv.dtype(), qkv.device())?;
                let biases = [&part(query_bias)?, &keys, &part(value_bias)?];
                let biases = ops::reshape(&ops::concat(&biases, 1)?, 3 * heads * width)?;
                let qkv = ops::add_broadcast(&qkv, &biases)?;
                let layout = FusedLayout::PerHead;
                match terms {
                    Some(terms) => ops::relative_attention_fused(&qkv, layout, &terms, options),
                    None => ops::attention_fused(&qkv, layout, options),
                }
            }
            Self::Separate { query, key, value } => {
                let (query, key) = (query.forward(x)?, key.forward(x)?);
                let value = value.forward(x)?;
                match terms {
                    Some(terms) => ops::relative_attention(&query, &key, &value, &terms, options),
                    None => ops::attention_with(&query, &key, &value, options),
                }
            }
        }
    }
}

/// The vectors of distances, which all blocks share, and what a block makes of them.
#[derive(Debug)]
struct Distances {
    span: Span,
    table: Param,
    norm: Option<Norm>,
    dropout: f64,
    /// The map to what queries meet.
    key: Option<Linear>,
    /// The map to what keys meet.
    query: Option<Linear>,
}

impl Distances {
    /// Returns the terms for sequences of `seq` tokens. Only rows that such a sequence needs are mapped.
    fn terms(&self, seq: usize, context: &Context) -> Result<RelativeTerms> {
        let dropout = context.dropout(self.dropout);
        let (first, count, index) = self.span.index(seq);
        let terms = RelativeTerms::new(index);
        if self.key.is_none() && self.query.is_none() {
            return Ok(terms);
        }
        let rows: Vec<u32> = (first..first + count).map(|row| row as u32).collect();
        let rows = Tensor::from_vec(rows, count, &Device::Cpu)?;
        let mut vectors = ops::embedding(&rows, &self.table, None)?;
        if let Some(norm) = &self.norm {
            vectors = norm.forward(&vectors)?;
        }
        let vectors = ops::dropout(&vectors, dropout)?;
        let map = |map: &Linear| map.forward(&vectors);
        Ok(RelativeTerms {
            query_table: self.key.as_ref().map(map).transpose()?,
            key_table: self.query.as_ref().map(map).transpose()?,
            ..terms
        })
    }

    fn params(&self) -> Vec<Param> {
        let maps = self.key.iter().chain(&self.query).flat_map(Linear::params);
        let norm = self.norm.iter().flat_map(Norm::params);
        maps.chain(norm).chain([self.table.clone()]).collect()
    }
}

impl Convolution {
    fn layer(&self, weights: &WeightBuilder, spec: &Spec) -> Result<ConvolutionLayer> {
        let (hidden, own) = (spec.sizes.hidden, weights.pp("conv"));
        if self.width.is_multiple_of(2) || self.width > 4096 {
            return Err(Error::Config(format!(
                "conv_kernel_size {} must be odd and at most 4095: the convolution keeps the sequence's length",
                self.width
            )));
        }
        if self.groups == 0 || !hidden.is_multiple_of(self.groups) {
            return Err(Error::Config(format!(
                "hidden_size {hidden} is not a multiple of conv_groups {}",
                self.groups
            )));
        }
        let inputs = hidden / self.groups;
        let bound = 1.0 / ((inputs * self.width) as f64).sqrt();
        Ok(ConvolutionLayer {
            weight: own.param(
                "weight",
                (hidden, inputs, self.width),
                Init::Uniform(-bound, bound),
            )?,
            bias: own.param("bias", hidden, Init::Uniform(-bound, bound))?,
            norm: Norm::layer(&weights.pp("LayerNorm"), hidden, spec.eps)?,
            dropout: spec.dropout.output,
            shape: *self,
        })
    }
}

/// A convolution over the embeddings, which is added to the first block's output.
#[derive(Debug)]
struct ConvolutionLayer {
    weight: Param,
    bias: Param,
    norm: Norm,
    dropout: f64,
    shape: Convolution,
}

impl ConvolutionLayer {
    fn forward(&self, x: &Tensor, y: &Tensor, pass: &Pass) -> Result<Tensor> {
        let conv = Conv1d {
            stride: 1,
            pad: self.shape.width / 2,
            groups: self.shape.groups,
        };
        let tokens = pass.inputs.get(TOKENS);
        let only_tokens = |x: Tensor| match tokens {
            Some(tokens) => ops::mul_rows(&x, tokens),
            None => Ok(x),
        };
        let out = ops::conv1d(x, &ops::param_rows(&self.weight)?, conv)?;
        let out = only_tokens(ops::add_broadcast(&out, &ops::param_rows(&self.bias)?)?)?;
        let out = ops::dropout(&out, pass.context.dropout(self.dropout))?;
        let out = ops::activate(&out, self.shape.activation)?;
        only_tokens(self.norm.forward_residual(&out, y, Dropout::NONE)?)
    }
}

/// A block whose attention also looks at distances.
#[derive(Debug)]
struct DisentangledBlock {
    projections: Projections,
    distances: Option<Distances>,
    heads: usize,
    head_size: usize,
    /// The number of products that scores add up.
    parts: usize,
    attention_dropout: f64,
    attended: Linear,
    attended_dropout: f64,
    attention_norm: Norm,
    feed_forward: FeedForward,
    output_norm: Norm,
    conv: Option<ConvolutionLayer>,
}

impl Block for DisentangledBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let seq = pass.mask.longest(x.dim(1)?);
        let terms = self.distances.as_ref();
        let terms = terms.map(|distances| distances.terms(seq, context));
        let options = AttentionOptions {
            scale: 1.0 / ((self.head_size * self.parts) as f64).sqrt(),
            dropout: context.dropout(self.attention_dropout),
            mask: pass.mask.clone(),
            ..AttentionOptions::new(self.heads, self.head_size)
        };
        let attended = self.projections.attend(x, terms.transpose()?, &options)?;
        let attended = self.attended.forward(&attended)?;
        let dropout = context.dropout(self.attended_dropout);
        let y = self
            .attention_norm
            .forward_residual(&attended, x, dropout)?;
        let fed = self.feed_forward.forward(&y, context)?;
        let dropout = context.dropout(self.feed_forward.dropout);
        let y = self.output_norm.forward_residual(&fed, &y, dropout)?;
        match &self.conv {
            Some(conv) => conv.forward(x, &y, pass),
            None => Ok(y),
        }
    }

    fn takes_packed(&self) -> bool {
        self.conv.is_none()
    }

    fn params(&self) -> Vec<Param> {
        let distances = self.distances.iter().flat_map(Distances::params);
        let conv = self.conv.iter().flat_map(|conv| {
            let own = [conv.weight.clone(), conv.bias.clone()];
            own.into_iter().chain(conv.norm.params())
        });
        [
            self.projections.params(),
            distances.collect(),
            self.attended.params(),
            self.attention_norm.params(),
            self.feed_forward.params(),
            self.output_norm.params(),
            conv.collect(),
        ]
        .concat()
    }

    fn flops(&self) -> ModelFlops {
        let conv = self.conv.as_ref();
        let maps = self.projections.weights()
            + self.attended.weights()
            + self.feed_forward.weights()
            + conv.map_or(0, |conv| conv.weight.elem_count());
        let products = self.distances.as_ref().map_or(0, |distances| {
            distances.key.iter().chain(&distances.query).count()
        });
        ModelFlops {
            per_token: 2 * maps as u64,
            per_pair: ((4 + 2 * products) * self.heads * self.head_size) as u64,
            per_counted: 0,
        }
    }
}
