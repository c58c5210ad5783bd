//! Funnel Transformer (Dai et al. 2020, arXiv:2006.03236): every block of the encoder halves the sequence, and a decoder
//! brings it back to its length; cheaper on long texts.
//!
//! Pooling takes padding for text, so that only texts of one length share a batch. The tokenizer gives the first token of a
//! text the segment 2, which counts as the same as any other. Checkpoints called `-base` have no decoder and fill no masks.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::bert;
use crate::model::nn::{
    self, Block, Embed, Embeddings, FeedForward, Head, Ids, Linear, Lookup, Norm, Pass,
    PredictionHead, check_layers,
};
use crate::model::{
    Architecture, Config, Context, Family, Init, ModelFlops, ModelInputs, Sharing, WeightBuilder,
};
use crate::ops::{
    self, Activation, AttentionMask, AttentionOptions, Param, RelativeIndex, RelativeTerms,
};
use crate::{Error, Result};

/// `FunnelForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "funnel",
    class: "FunnelForMaskedLM",
    synonyms: &["FunnelForPreTraining", "FunnelModel"],
    base: "funnel",
    body: &["embeddings.", "encoder.", "decoder."],
    aliases: &[
        ("hidden_size", "d_model"),
        ("num_attention_heads", "n_head"),
    ],
    ignored: &["discriminator_predictions."],
    defaults: "{}",
    sharing: Sharing::OneLength,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Values {
    vocab_size: usize,
    block_sizes: Vec<usize>,
    block_repeats: Option<Vec<usize>>,
    num_decoder_layers: usize,
    d_model: usize,
    n_head: usize,
    d_head: usize,
    d_inner: usize,
    hidden_act: String,
    hidden_dropout: f64,
    attention_dropout: f64,
    activation_dropout: f64,
    initializer_range: f64,
    initializer_std: Option<f64>,
    layer_norm_eps: f64,
    pooling_type: String,
    attention_type: String,
    separate_cls: bool,
    truncate_seq: bool,
    pool_q_only: bool,
    pad_token_id: Option<u32>,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            block_sizes: vec![4, 4, 4],
            block_repeats: None,
            num_decoder_layers: 2,
            d_model: 768,
            n_head: 12,
            d_head: 64,
            d_inner: 3072,
            hidden_act: "gelu_new".to_owned(),
            hidden_dropout: 0.1,
            attention_dropout: 0.1,
            activation_dropout: 0.0,
            initializer_range: 0.1,
            initializer_std: None,
            layer_norm_eps: 1e-9,
            pooling_type: "mean".to_owned(),
            attention_type: "relative_shift".to_owned(),
            separate_cls: true,
            truncate_seq: true,
            pool_q_only: true,
            pad_token_id: None,
        }
    }
}

impl Values {
    fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Config(text));
        if self.vocab_size == 0 || self.n_head == 0 || self.d_head == 0 || self.d_inner == 0 {
            return wrong("vocab_size, n_head, d_head and d_inner must be positive".to_owned());
        }
        if self.d_model == 0 || !self.d_model.is_multiple_of(2) {
            return wrong(format!(
                "d_model {} must be even: positions are pairs of a sine and a cosine",
                self.d_model
            ));
        }
        if self.n_head.checked_mul(self.d_head).is_none() {
            return wrong("n_head times d_head is too large".to_owned());
        }
        // As many halvings as a length can have.
        if !(1..=32).contains(&self.block_sizes.len()) || self.block_sizes.contains(&0) {
            return wrong(format!(
                "block_sizes {:?} must name 1 to 32 blocks, each of one layer or more",
                self.block_sizes
            ));
        }
        let repeats = self.repeats();
        if repeats.len() != self.block_sizes.len() || repeats.contains(&0) {
            return wrong(format!(
                "block_repeats {repeats:?} must contain a positive number for each of the {} blocks",
                self.block_sizes.len()
            ));
        }
        let applied = self.block_sizes.iter().zip(&repeats);
        let applied = applied.fold(0usize, |sum, (size, times)| {
            sum.saturating_add(size.saturating_mul(*times))
        });
        check_layers(
            "the sum of block_sizes (times block_repeats) and num_decoder_layers",
            applied.saturating_add(self.num_decoder_layers),
        )?;
        if !["mean", "max"].contains(&self.pooling_type.as_str()) {
            return wrong(format!(
                "unknown pooling_type {:?}; known are mean and max",
                self.pooling_type
            ));
        }
        if !["relative_shift", "factorized"].contains(&self.attention_type.as_str()) {
            return wrong(format!(
                "unknown attention_type {:?}; known are relative_shift and factorized",
                self.attention_type
            ));
        }
        if let Some(pad) = self.pad_token_id
            && pad as usize >= self.vocab_size
        {
            return wrong(format!(
                "pad_token_id {pad} is outside the vocabulary of {}",
                self.vocab_size
            ));
        }
        Ok(())
    }

    fn repeats(&self) -> Vec<usize> {
        let repeats = self.block_repeats.clone();
        repeats.unwrap_or_else(|| vec![1; self.block_sizes.len()])
    }

    fn linear(
        &self,
        weights: &WeightBuilder,
        from: usize,
        to: usize,
        bias: bool,
    ) -> Result<Linear> {
        let std = (self.initializer_std).unwrap_or_else(|| (1.0 / (from + to) as f64).sqrt());
        match bias {
            true => Linear::new(weights, from, to, std),
            false => Linear::without_bias(weights, from, to, std),
        }
    }

    fn layer(&self, weights: &WeightBuilder) -> Result<Layer> {
        let (width, heads, size) = (self.d_model, self.n_head, self.d_head);
        let (own, fed) = (weights.pp("attention"), weights.pp("ffn"));
        let map = |name: &str, bias| self.linear(&own.pp(name), width, heads * size, bias);
        let uniform = Init::Uniform(0.0, self.initializer_range);
        let bias = |name: &str| own.param(name, (heads, size), uniform);
        Ok(Layer {
            query: map("q_head", false)?,
            key: map("k_head", true)?,
            value: map("v_head", true)?,
            word_bias: bias("r_w_bias")?,
            position_bias: bias("r_r_bias")?,
            kernel: own.param("r_kernel", (width, heads, size), uniform)?,
            segment_bias: bias("r_s_bias")?,
            segments: own.param("seg_embed", (2, heads, size), uniform)?,
            attended: self.linear(&own.pp("post_proj"), heads * size, width, true)?,
            attention_norm: Norm::layer(&own.pp("layer_norm"), width, self.layer_norm_eps)?,
            feed_forward: FeedForward {
                intermediate: self.linear(&fed.pp("linear_1"), width, self.d_inner, true)?,
                activation: Activation::from_name(&self.hidden_act)?,
                activation_dropout: self.activation_dropout,
                output: self.linear(&fed.pp("linear_2"), self.d_inner, width, true)?,
                dropout: self.hidden_dropout,
            },
            output_norm: Norm::layer(&fed.pp("layer_norm"), width, self.layer_norm_eps)?,
            heads,
            head_size: size,
            attention_dropout: self.attention_dropout,
            dropout: self.hidden_dropout,
        })
    }

    fn embeddings(&self, weights: &WeightBuilder) -> Result<Embeddings> {
        let std = self.initializer_std.unwrap_or(1.0);
        let init = match self.pad_token_id {
            Some(row) => Init::NormalExceptRow(std, row),
            None => Init::Normal(std),
        };
        let shape = (self.vocab_size, self.d_model);
        let aliases: &[&str] = &[DECODER_WEIGHT];
        let table = weights.pp("word_embeddings");
        Ok(Embeddings {
            lookups: vec![Lookup {
                table: table.param_or_alias("weight", aliases, shape, init)?,
                ids: Ids::Tokens,
                padding: self.pad_token_id,
            }],
            norm: Some(Norm::layer(
                &weights.pp("layer_norm"),
                self.d_model,
                self.layer_norm_eps,
            )?),
            dropout: self.hidden_dropout,
            projection: None,
        })
    }
}

const DECODER_WEIGHT: &str = "lm_head.weight";

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: Values = config.parse()?;
    values.check()?;
    let base = weights.pp("funnel");
    let first = "attention.q_head.weight";
    if weights.holds(&format!("funnel.encoder.blocks.0.0.{first}"))
        && values.num_decoder_layers > 0
        && !weights.holds(&format!("funnel.decoder.layers.0.{first}"))
    {
        return Err(Error::Weights(
            "this checkpoint has an encoder but no decoder, so that it can't fill masks: Funnel's models called -base are such; take the one without -base"
                .to_owned(),
        ));
    }
    let blocks = values.block_sizes.iter().enumerate();
    let blocks = blocks.map(|(block, &size)| {
        let layers = (0..size)
            .map(|layer| values.layer(&base.pp(format!("encoder.blocks.{block}.{layer}"))));
        layers.collect::<Result<Vec<_>>>()
    });
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    let decoder = (0..values.num_decoder_layers)
        .map(|layer| values.layer(&base.pp(format!("decoder.layers.{layer}"))));
    let decoder = decoder.collect::<Result<Vec<_>>>()?;
    let embeddings = values.embeddings(&base.pp("embeddings"))?;
    let word = &embeddings.lookups[0].table;
    let (matrix, bias) = weights.decoder(
        "lm_head",
        Some("lm_head.bias"),
        config.tie_word_embeddings().then_some(word),
        (values.vocab_size, values.d_model),
        values.initializer_std.unwrap_or(0.02),
    )?;
    Ok(Box::new(Funnel {
        repeats: values.repeats(),
        blocks,
        decoder,
        embeddings,
        head: PredictionHead {
            transform: None,
            decoder: matrix,
            bias,
        },
        shape: Shape {
            separate_first: values.separate_cls,
            truncate: values.truncate_seq,
            pool_queries_only: values.pool_q_only,
            maximum: values.pooling_type == "max",
        },
        width: values.d_model,
        dropout: values.hidden_dropout,
    }))
}

/// How a model pools.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Whether the first token is kept separate.
    separate_first: bool,
    /// Whether the last token is dropped when the first is kept separate, so that the length stays a power of two.
    truncate: bool,
    /// Whether keys and values of a block's first layer are those before the pooling.
    pool_queries_only: bool,
    /// Whether the larger of two is taken instead of their mean.
    maximum: bool,
}

#[derive(Debug)]
struct Funnel {
    embeddings: Embeddings,
    blocks: Vec<Vec<Layer>>,
    /// How often each layer of a block is applied.
    repeats: Vec<usize>,
    decoder: Vec<Layer>,
    head: PredictionHead,
    shape: Shape,
    width: usize,
    /// The probability of dropout of the positions.
    dropout: f64,
}

impl Architecture for Funnel {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let embedded = self.embeddings.forward(inputs, context)?;
        let device = embedded.device().clone();
        let start = Level::new(inputs);
        let pass = &Pass::new(AttentionMask::None, context);
        let looks = Looks {
            positions: Positions::new(inputs.seq, self.width, context, self.dropout, &device)?,
            shape: self.shape,
            device: &device,
        };
        let mut level = start.clone();
        let mut x = embedded.clone();
        let mut skip = None;
        let mut applied = 0;
        for (at, (block, &repeats)) in self.blocks.iter().zip(&self.repeats).enumerate() {
            let least = if self.shape.separate_first { 2 } else { 1 };
            let pooled = at > 0 && level.seq > least;
            let mut first = None;
            if pooled {
                let (next, pool) = level.pooled(self.shape);
                let keys = match self.shape.pool_queries_only {
                    true => &level,
                    false => &next,
                };
                first = Some(Arc::new(looks.look(&next, keys, Some(pool))?));
                level = next;
            }
            let others = Arc::new(looks.look(&level, &level, None)?);
            for layer in block {
                for _ in 0..repeats {
                    let look = first.take().unwrap_or_else(|| others.clone());
                    x = layer.run(look, &x, pass)?;
                    applied += 1;
                    // As transformers counts: after as many applications as the first block has layers.
                    if applied == self.blocks[0].len() {
                        skip = Some(x.clone());
                        // What follows adds up its gradients by itself, whether or not it is formed again for them.
                        x = ops::reshape(&x, x.shape())?;
                    }
                }
            }
        }
        let skip = skip.unwrap_or(embedded);
        let x = match self.blocks.len() {
            1 => x,
            blocks => self.stretch(&x, 1 << (blocks - 1), inputs.seq)?,
        };
        let mut x = ops::add(&x, &skip)?;
        if self.decoder.is_empty() {
            return Ok(x);
        }
        let looks = Looks {
            positions: Positions::new(inputs.seq, self.width, context, self.dropout, &device)?,
            ..looks
        };
        let look = Arc::new(looks.look(&start, &start, None)?);
        for layer in &self.decoder {
            x = layer.run(look.clone(), &x, pass)?;
        }
        Ok(x)
    }

    fn head(&self) -> &dyn Head {
        &self.head
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn flops(&self) -> Option<ModelFlops> {
        let blocks = self.blocks.iter().zip(&self.repeats).enumerate();
        let blocks = blocks.flat_map(|(at, (layers, &repeats))| {
            let layers = layers.iter().map(move |layer| (layer, at));
            layers.flat_map(move |layer| std::iter::repeat_n(layer, repeats))
        });
        let layers = blocks.chain(self.decoder.iter().map(|layer| (layer, 0)));
        let (per_token, per_pair) = layers.fold((0.0, 0.0), |(tokens, pairs), (layer, at)| {
            // What remains of a sequence in that block.
            let part = 0.5f64.powi(at as i32);
            let flops = layer.flops();
            (
                tokens + part * flops.per_token as f64,
                pairs + part * part * flops.per_pair as f64,
            )
        });
        Some(ModelFlops {
            per_token: per_token as u64,
            per_pair: per_pair as u64,
            per_counted: 2 * self.head.weights() as u64,
        })
    }
}

impl Funnel {
    /// Repeats every row but a separate first one `times` times, up to `seq` rows; zero where there are too few.
    fn stretch(&self, x: &Tensor, times: usize, seq: usize) -> Result<Tensor> {
        let (batch, short, width) = x.dims3()?;
        let first = usize::from(self.shape.separate_first);
        let source = |at: usize| match at.checked_sub(first) {
            None => 0,
            Some(at) => first + at / times,
        };
        let rows = (0..batch).flat_map(|row| {
            (0..seq).map(move |at| (row * short + source(at).min(short - 1)) as u32)
        });
        let rows = Tensor::from_vec(rows.collect::<Vec<_>>(), batch * seq, &Device::Cpu)?;
        let stretched = ops::reshape(&ops::select_rows(x, &rows)?, (batch, seq, width))?;
        if (0..seq).all(|at| source(at) < short) {
            return Ok(stretched);
        }
        let there = (0..batch).flat_map(|_| (0..seq).map(|at| f32::from(source(at) < short)));
        let there = Tensor::from_vec(there.collect::<Vec<_>>(), (batch, seq), x.device())?;
        ops::mul_rows(&stretched, &there)
    }
}

/// The state of the tokens at some depth of the encoder.
#[derive(Clone, Debug)]
struct Level {
    batch: usize,
    seq: usize,
    /// 1 for tokens, 0 for padding.
    mask: Vec<u32>,
    /// The segments.
    types: Vec<u32>,
    /// The first token's position.
    origin: i64,
    /// From one position to the next.
    step: usize,
}

/// How a sequence is pooled.
#[derive(Debug)]
struct Pool {
    /// Its length before.
    seq: usize,
    /// Which two tokens each pooled one is made of.
    pairs: Vec<(usize, usize)>,
}

impl Level {
    fn new(inputs: &ModelInputs) -> Self {
        let (batch, seq) = inputs.shape();
        let types = inputs.token_type_ids.clone();
        Self {
            batch,
            seq,
            mask: inputs.attention_mask.clone(),
            types: types.unwrap_or_else(|| vec![0; batch * seq]),
            origin: 0,
            step: 1,
        }
    }

    fn pooled(&self, shape: Shape) -> (Self, Pool) {
        // A separate first token stands twice in front, so that it is pooled with itself.
        let (twice, cut) = match shape.separate_first {
            true => (1, usize::from(shape.truncate)),
            false => (0, 0),
        };
        let count = self.seq + twice - cut;
        let token = |at: usize| at.saturating_sub(twice);
        let pairs: Vec<(usize, usize)> = (0..count)
            .step_by(2)
            .map(|at| (token(at), token((at + 1).min(count - 1))))
            .collect();
        let of_rows = |values: &[u32], of: &dyn Fn(u32, u32) -> u32| {
            let rows = values.chunks(self.seq);
            let pooled = rows.flat_map(|row| pairs.iter().map(|&(a, b)| of(row[a], row[b])));
            pooled.collect::<Vec<_>>()
        };
        let step = 2 * self.step;
        let next = Self {
            batch: self.batch,
            seq: pairs.len(),
            mask: of_rows(&self.mask, &u32::min),
            types: of_rows(&self.types, &|first, _| first),
            origin: if shape.separate_first {
                1 - step as i64
            } else {
                0
            },
            step,
        };
        let seq = self.seq;
        (next, Pool { seq, pairs })
    }
}

/// Sines and cosines of all distances that a sequence can have, dropped out once for all layers.
#[derive(Debug)]
struct Positions {
    /// (2 · farthest + 1, width)
    table: Tensor,
    farthest: i64,
}

impl Positions {
    fn new(
        seq: usize,
        width: usize,
        context: &Context,
        dropout: f64,
        device: &Device,
    ) -> Result<Self> {
        use rayon::prelude::*;
        let farthest = 2 * seq as i64;
        let (rows, half) = (2 * farthest as usize + 1, width / 2);
        let mut values = vec![0f32; rows * width];
        // In single precision, as transformers has it.
        let frequencies = (0..half).map(|at| 1.0 / 10_000f32.powf(at as f32 / half as f32));
        let frequencies: Vec<f32> = frequencies.collect();
        let each = values.par_chunks_mut(width).enumerate();
        each.for_each(|(row, to)| {
            let distance = (row as i64 - farthest) as f32;
            let (sines, cosines) = to.split_at_mut(half);
            for ((sine, cosine), frequency) in sines.iter_mut().zip(cosines).zip(&frequencies) {
                (*sine, *cosine) = (distance * frequency).sin_cos();
            }
        });
        let table = Tensor::from_vec(values, (rows, width), device)?;
        Ok(Self {
            table: ops::dropout(&table, context.dropout(dropout))?,
            farthest,
        })
    }

    /// Returns the rows of `count` distances from `low` on, `step` apart.
    fn rows(&self, low: i64, step: usize, count: usize) -> Result<Tensor> {
        let row = |at: usize| {
            let distance = low + (step * at) as i64;
            (distance + self.farthest).clamp(0, 2 * self.farthest) as u32
        };
        let rows: Vec<u32> = (0..count).map(row).collect();
        ops::select_rows(&self.table, &Tensor::from_vec(rows, count, &Device::Cpu)?)
    }
}

/// What makes [`Look`]s of one pass.
struct Looks<'a> {
    positions: Positions,
    shape: Shape,
    device: &'a Device,
}

/// All that a layer must know of its queries and keys.
#[derive(Debug)]
struct Look {
    /// The rows of the two tokens that each query is made of, (batch · queries) each, where queries are pooled.
    pool: Option<(Tensor, Tensor)>,
    shape: Shape,
    mask: AttentionMask,
    index: RelativeIndex,
    /// The vectors of the index's distances, (rows, width).
    positions: Tensor,
    /// For each query, from "other segment" and "same segment" to the segments of the batch: (batch · queries, 2, segments).
    same: Tensor,
    /// 1 for the segment of each key, (batch, keys, segments).
    segments: Tensor,
}

/// The segment that counts as the same as any other.
const ANY_SEGMENT: u32 = 2;

impl Pool {
    /// Returns the rows of the first and of the second token of each pair, (batch · pairs) each.
    fn rows(&self, batch: usize) -> Result<(Tensor, Tensor)> {
        let rows = |of: fn(&(usize, usize)) -> usize| -> Result<Tensor> {
            let rows = (0..batch).flat_map(|row| {
                let pairs = self.pairs.iter();
                pairs.map(move |pair| (row * self.seq + of(pair)) as u32)
            });
            let rows = rows.collect::<Vec<_>>();
            Ok(Tensor::from_vec(
                rows,
                batch * self.pairs.len(),
                &Device::Cpu,
            )?)
        };
        Ok((rows(|pair| pair.0)?, rows(|pair| pair.1)?))
    }
}

impl Looks<'_> {
    fn look(&self, queries: &Level, keys: &Level, pool: Option<Pool>) -> Result<Look> {
        let offset = queries.origin - keys.origin;
        let low = offset - (keys.step * (keys.seq - 1)) as i64;
        let count = queries.step / keys.step * (queries.seq - 1) + keys.seq;
        let step = keys.step as i64;
        let lengths = (queries.seq, keys.seq);
        let index = RelativeIndex::linear(lengths, offset, queries.step, keys.step, |distance| {
            ((distance - low) / step) as u32
        })?;
        let pool = pool.map(|pool| pool.rows(queries.batch));
        let mask = match keys.mask.contains(&0) {
            true => AttentionMask::Keys(ops::upload(
                &keys.mask,
                (keys.batch, keys.seq),
                self.device,
            )?),
            false => AttentionMask::None,
        };
        let mut all = keys.types.clone();
        all.sort_unstable();
        all.dedup();
        Ok(Look {
            pool: pool.transpose()?,
            shape: self.shape,
            mask,
            index,
            positions: self.positions.rows(low, keys.step, count)?,
            same: self.same(queries, &all)?,
            segments: self.segments(keys, &all)?,
        })
    }

    /// Returns whether a token takes part in what is left out for a separate first one.
    fn counts(&self, at: usize) -> bool {
        at > 0 || !self.shape.separate_first
    }

    fn same(&self, queries: &Level, all: &[u32]) -> Result<Tensor> {
        let mut values = Vec::with_capacity(2 * queries.types.len() * all.len());
        for (place, &own) in queries.types.iter().enumerate() {
            let counts = self.counts(place % queries.seq);
            for wanted in [false, true] {
                values.extend(all.iter().map(|&other| {
                    let same = own == other || own == ANY_SEGMENT || other == ANY_SEGMENT;
                    f32::from(counts && same == wanted)
                }));
            }
        }
        let shape = (queries.types.len(), 2, all.len());
        Ok(Tensor::from_vec(values, shape, self.device)?)
    }

    fn segments(&self, keys: &Level, all: &[u32]) -> Result<Tensor> {
        let values = keys.types.iter().enumerate().flat_map(|(place, own)| {
            let counts = self.counts(place % keys.seq);
            all.iter()
                .map(move |other| f32::from(counts && own == other))
        });
        let shape = (keys.batch, keys.seq, all.len());
        Ok(Tensor::from_vec(
            values.collect::<Vec<_>>(),
            shape,
            self.device,
        )?)
    }
}

/// A layer's parameters.
#[derive(Clone, Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    /// What is added to queries where they meet keys, (heads, head size).
    word_bias: Param,
    /// What is added to queries where they meet positions.
    position_bias: Param,
    /// From positions to what queries meet, (width, heads, head size).
    kernel: Param,
    /// What is added to queries where they meet segments.
    segment_bias: Param,
    /// What queries meet for keys of another segment and for those of the same, (2, heads, head size).
    segments: Param,
    attended: Linear,
    attention_norm: Norm,
    feed_forward: FeedForward,
    output_norm: Norm,
    heads: usize,
    head_size: usize,
    attention_dropout: f64,
    dropout: f64,
}

impl Layer {
    fn run(&self, look: Arc<Look>, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let layer = self.clone();
        nn::run(Arc::new(Step { layer, look }), x, pass)
    }

    fn flops(&self) -> ModelFlops {
        let maps = [&self.query, &self.key, &self.value, &self.attended];
        let maps = maps.into_iter().map(Linear::weights).sum::<usize>();
        ModelFlops {
            per_token: 2 * (maps + self.feed_forward.weights()) as u64,
            per_pair: 6 * (self.heads * self.head_size) as u64,
            per_counted: 0,
        }
    }

    /// Returns what the heads gather.
    ///
    /// A head's features are followed by one for each segment of the batch: 1 in a key of that segment, and in a query what
    /// it has to say of keys of that segment. Their products are the scores of segments.
    fn attend(&self, queries: &Tensor, keys: &Tensor, look: &Look, pass: &Pass) -> Result<Tensor> {
        let (heads, size) = (self.heads, self.head_size);
        let (batch, count, _) = queries.dims3()?;
        let (rows, kinds) = (batch * count, look.same.dims3()?.2);
        let scale = 1.0 / (size as f64).sqrt();
        let query = self.query.forward(queries)?;
        let with = |bias: &Param| -> Result<Tensor> {
            let bias = ops::reshape(&ops::param_rows(bias)?, heads * size)?;
            ops::add_broadcast(&query, &bias)
        };

        let segments = ops::reshape(&with(&self.segment_bias)?, (rows, heads, size))?;
        let segments = ops::permute(&segments, &[1, 0, 2])?;
        let vectors = ops::permute(&ops::param_rows(&self.segments)?, &[1, 0, 2])?;
        let segments = ops::matmul(&segments, &vectors, false, true)?;
        let segments = ops::permute(&segments, &[1, 0, 2])?;
        let segments = ops::matmul(&segments, &look.same, false, false)?;
        let segments = ops::reshape(&segments, (batch, count, heads, kinds))?;
        let query = ops::reshape(&with(&self.word_bias)?, (batch, count, heads, size))?;
        let query = ops::concat(&[&query, &segments], 3)?;
        let query = ops::reshape(&query, (batch, count, heads * (size + kinds)))?;

        let (_, count, _) = keys.dims3()?;
        let key = ops::reshape(&self.key.forward(keys)?, (batch, count, heads, size))?;
        let segments = look.segments.unsqueeze(2)?.repeat((1, 1, heads, 1))?;
        let key = ops::concat(&[&key, &segments], 3)?;
        let key = ops::reshape(&key, (batch, count, heads * (size + kinds)))?;
        let value = self.value.forward(keys)?;

        let options = AttentionOptions {
            scale,
            dropout: pass.context.dropout(self.attention_dropout),
            mask: look.mask.clone(),
            ..AttentionOptions::new(heads, size)
        };
        let terms = self.terms(look, kinds, scale)?;
        ops::relative_attention(&query, &key, &value, &terms, &options)
    }

    /// Returns the terms of positions. Queries come with the words' bias; what that makes wrong here is a number for each
    /// distance.
    fn terms(&self, look: &Look, kinds: usize, scale: f64) -> Result<RelativeTerms> {
        let (heads, size) = (self.heads, self.head_size);
        let (rows, width) = look.positions.dims2()?;
        let kernel = ops::reshape(&ops::param_rows(&self.kernel)?, (width, heads * size))?;
        let vectors = ops::matmul(&look.positions, &kernel, false, false)?;
        let vectors = ops::reshape(&vectors, (rows, heads, size))?;
        let bias = ops::sub(
            &ops::param_rows(&self.position_bias)?,
            &ops::param_rows(&self.word_bias)?,
        )?;
        let bias = ops::reshape(&bias, (heads, size, 1))?;
        let numbers = ops::matmul(&ops::permute(&vectors, &[1, 0, 2])?, &bias, false, false)?;
        let numbers = ops::permute(&ops::reshape(&numbers, (heads, rows))?, &[1, 0])?;
        let nothing = Tensor::zeros((rows, heads, kinds), vectors.dtype(), vectors.device())?;
        let vectors = ops::concat(&[&vectors, &nothing], 2)?;
        Ok(RelativeTerms {
            query_table: Some(ops::reshape(&vectors, (rows, heads * (size + kinds)))?),
            bias_table: Some(ops::scale(&numbers, scale)?),
            skip_first: look.shape.separate_first,
            ..RelativeTerms::new(look.index.clone())
        })
    }
}

/// A layer with what it must know of a pass.
#[derive(Debug)]
struct Step {
    layer: Layer,
    look: Arc<Look>,
}

impl Block for Step {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (layer, context) = (&self.layer, &pass.context);
        let pooled = match &self.look.pool {
            Some(pool) => Some(self.pooled(x, pool)?),
            None => None,
        };
        let queries = pooled.as_ref().unwrap_or(x);
        let keys = match self.look.shape.pool_queries_only {
            true => x,
            false => queries,
        };
        let attended = layer.attend(queries, keys, &self.look, pass)?;
        let attended = layer.attended.forward(&attended)?;
        let dropout = context.dropout(layer.dropout);
        let y = (layer.attention_norm).forward_residual(&attended, queries, dropout)?;
        let fed = layer.feed_forward.forward(&y, context)?;
        let dropout = context.dropout(layer.feed_forward.dropout);
        layer.output_norm.forward_residual(&fed, &y, dropout)
    }

    fn params(&self) -> Vec<Param> {
        let layer = &self.layer;
        let maps = [&layer.query, &layer.key, &layer.value, &layer.attended];
        let own = [
            &layer.word_bias,
            &layer.position_bias,
            &layer.kernel,
            &layer.segment_bias,
            &layer.segments,
        ];
        let mut params: Vec<Param> = maps.into_iter().flat_map(Linear::params).collect();
        params.extend(own.into_iter().cloned());
        params.extend(layer.attention_norm.params());
        params.extend(layer.feed_forward.params());
        params.extend(layer.output_norm.params());
        params
    }

    fn flops(&self) -> ModelFlops {
        self.layer.flops()
    }
}

impl Step {
    fn pooled(&self, x: &Tensor, (first, second): &(Tensor, Tensor)) -> Result<Tensor> {
        let (batch, _, width) = x.dims3()?;
        let (first, second) = (ops::select_rows(x, first)?, ops::select_rows(x, second)?);
        let pooled = match self.look.shape.maximum {
            true => {
                let more = ops::activate(&ops::sub(&second, &first)?, Activation::Relu)?;
                ops::add(&first, &more)?
            }
            false => ops::scale(&ops::add(&first, &second)?, 0.5)?,
        };
        let count = pooled.dims2()?.0 / batch;
        ops::reshape(&pooled, (batch, count, width))
    }
}
