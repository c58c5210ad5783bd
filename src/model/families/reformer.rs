//! Reformer (Kitaev et al. 2020, arXiv:2001.04451): long texts in layers that can be undone, in which a token sees the tokens
//! near it, or those whose vectors fall into the same bucket.
//!
//! Texts are padded to a multiple of the layers' chunks. Padding gets its own bucket and moves other tokens to other
//! chunks, so only texts of equal length share a batch.
//!
//! Buckets come of random rotations: the same in every pass where the config has a `hash_seed`, which are then PyTorch's for
//! that seed; new ones from the run's seed in every pass of training where it has none, and always the same in evaluation.
//! To go through a run again, the input `rotations` gives them, the same for every text: for each layer with buckets (heads,
//! head size, hashes, half of the buckets) numbers, one behind the other.
//!
//! transformers saves memory by undoing layers in the backward pass;
//! [`gradient_checkpointing`](crate::model::Context::gradient_checkpointing) does the same here.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use serde::Deserialize;

use super::bert;
use crate::model::nn::{Block, Encoder, Head, Linear, MOST_LAYERS, Norm, Pass, PredictionHead};
use crate::model::{
    Architecture, Config, Context, Family, Init, Input, Masked, ModelFlops, ModelInputs, Per,
    Sharing, WeightBuilder,
};
use crate::ops::{
    self, Activation, AttentionMask, AttentionOptions, Dropout, Param, RowLength, SparsePlan,
};
use crate::{Error, Result};

/// `ReformerForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "reformer",
    class: "ReformerForMaskedLM",
    synonyms: &["ReformerModel"],
    base: "reformer",
    body: &["embeddings.", "encoder."],
    ignored: &[],
    defaults: r#"{"vocab_size": 320, "tie_word_embeddings": false}"#,
    inputs: &[Input {
        name: ROTATIONS,
        per: Per::Place,
        trailing: &[],
        padding: 0,
        masked: Masked::Kept,
    }],
    sharing: Sharing::OneLength,
    build,
    ..bert::FAMILY
};

/// The input with the rotations, and the name by which a pass knows them.
const ROTATIONS: &str = "rotations";
/// (batch, seq): 1 for text, 0 for padding; absent without padding.
const TEXT: &str = "text";

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Buckets {
    Count(usize),
    Factors(Vec<usize>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct ReformerConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    attention_head_size: usize,
    attn_layers: Vec<String>,
    feed_forward_size: usize,
    hidden_act: String,
    hidden_dropout_prob: f64,
    initializer_range: f64,
    layer_norm_eps: f64,
    pad_token_id: u32,
    max_position_embeddings: usize,
    axial_pos_embds: bool,
    axial_pos_shape: Vec<usize>,
    axial_pos_embds_dim: Vec<usize>,
    axial_norm_std: f64,
    hash_seed: Option<u64>,
    num_buckets: Option<Buckets>,
    num_hashes: usize,
    local_attn_chunk_length: usize,
    local_num_chunks_before: usize,
    local_num_chunks_after: usize,
    local_attention_probs_dropout_prob: f64,
    lsh_attn_chunk_length: usize,
    lsh_num_chunks_before: usize,
    lsh_num_chunks_after: usize,
    lsh_attention_probs_dropout_prob: f64,
}

impl Default for ReformerConfig {
    fn default() -> Self {
        let kinds = ["local", "lsh", "local", "lsh", "local", "lsh"];
        Self {
            vocab_size: 320,
            hidden_size: 256,
            num_attention_heads: 12,
            attention_head_size: 64,
            attn_layers: kinds.map(str::to_owned).to_vec(),
            feed_forward_size: 512,
            hidden_act: "relu".to_owned(),
            hidden_dropout_prob: 0.05,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
            max_position_embeddings: 4096,
            axial_pos_embds: true,
            axial_pos_shape: vec![64, 64],
            axial_pos_embds_dim: vec![64, 192],
            axial_norm_std: 1.0,
            hash_seed: None,
            num_buckets: None,
            num_hashes: 1,
            local_attn_chunk_length: 64,
            local_num_chunks_before: 1,
            local_num_chunks_after: 0,
            local_attention_probs_dropout_prob: 0.05,
            lsh_attn_chunk_length: 64,
            lsh_num_chunks_before: 1,
            lsh_num_chunks_after: 0,
            lsh_attention_probs_dropout_prob: 0.0,
        }
    }
}

/// The most rounds of hashing: each takes as long as attention.
const MOST_HASHES: usize = 256;

impl ReformerConfig {
    fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::Config(why));
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_size", self.attention_head_size),
            ("feed_forward_size", self.feed_forward_size),
            ("local_attn_chunk_length", self.local_attn_chunk_length),
            ("lsh_attn_chunk_length", self.lsh_attn_chunk_length),
            ("num_hashes", self.num_hashes),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(format!("{name} must be positive"));
        }
        if self.num_hashes > MOST_HASHES {
            return refuse(format!(
                "num_hashes {} are more than any model has; at most {MOST_HASHES} can be made",
                self.num_hashes
            ));
        }
        let looks = [
            self.local_num_chunks_before,
            self.local_num_chunks_after,
            self.lsh_num_chunks_before,
            self.lsh_num_chunks_after,
        ];
        if looks.into_iter().any(|chunks| chunks > 1024) {
            return refuse("a chunk looks at no more than 1024 chunks to either side".to_owned());
        }
        let known = |kind: &String| kind == "local" || kind == "lsh";
        if self.attn_layers.is_empty() || self.attn_layers.len() > MOST_LAYERS {
            return refuse(format!(
                "attn_layers names {} layers; a model has from 1 to {MOST_LAYERS}",
                self.attn_layers.len()
            ));
        }
        if let Some(kind) = self.attn_layers.iter().find(|kind| !known(kind)) {
            return refuse(format!(
                "unknown kind {kind:?} in attn_layers; known are local and lsh"
            ));
        }
        let factors = match &self.num_buckets {
            Some(Buckets::Count(count)) => std::slice::from_ref(count),
            Some(Buckets::Factors(factors)) if factors.is_empty() => {
                return refuse("num_buckets is an empty list".to_owned());
            }
            Some(Buckets::Factors(factors)) => factors,
            None => &[],
        };
        if let Some(odd) = factors.iter().find(|&&f| f == 0 || f % 2 != 0) {
            return refuse(format!("num_buckets {odd} must be even and positive"));
        }
        let product = factors.iter().try_fold(1usize, |n, &f| n.checked_mul(f));
        if product.is_none_or(|product| product > 1 << 24) {
            return refuse(format!(
                "num_buckets {factors:?} are more than any text fills"
            ));
        }
        if self.axial_pos_embds {
            let (shape, widths) = (&self.axial_pos_shape, &self.axial_pos_embds_dim);
            if shape.len() != widths.len() || shape.is_empty() || shape.contains(&0) {
                return refuse(format!(
                    "axial_pos_shape {shape:?} and axial_pos_embds_dim {widths:?} must have one positive size for each axis"
                ));
            }
            let total = widths.iter().try_fold(0usize, |n, &w| n.checked_add(w));
            if total != Some(self.hidden_size) {
                return refuse(format!(
                    "axial_pos_embds_dim {widths:?} must add up to hidden_size {}",
                    self.hidden_size
                ));
            }
        }
        Ok(())
    }

    /// Returns the number of positions there are embeddings for.
    fn positions(&self) -> usize {
        let axial = self.axial_pos_shape.iter();
        let axial = axial.fold(1usize, |n, &size| n.saturating_mul(size));
        match self.axial_pos_embds {
            true => axial.min(self.max_position_embeddings),
            false => self.max_position_embeddings,
        }
    }

    fn chunks(&self) -> Chunks {
        let local = self.attn_layers.iter().any(|kind| kind == "local");
        let lsh = self.attn_layers.iter().any(|kind| kind == "lsh");
        let (a, b) = (self.local_attn_chunk_length, self.lsh_attn_chunk_length);
        match (local, lsh) {
            (true, true) => Chunks {
                least: a.min(b),
                multiple: (a / greatest_divisor(a, b)).saturating_mul(b),
            },
            (true, false) => Chunks {
                least: a,
                multiple: a,
            },
            _ => Chunks {
                least: b,
                multiple: b,
            },
        }
    }
}

fn greatest_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        b => greatest_divisor(b, a % b),
    }
}

/// The lengths that the layers accept.
#[derive(Clone, Copy, Debug)]
struct Chunks {
    /// Texts that are no longer are seen in full.
    least: usize,
    /// All others are padded to a multiple of this.
    multiple: usize,
}

impl Chunks {
    fn padded(self, seq: usize) -> usize {
        match seq <= self.least {
            true => seq,
            false => seq.next_multiple_of(self.multiple),
        }
    }

    /// Returns the longest text whose padded length is no more than `positions`.
    fn longest(self, positions: usize) -> usize {
        let whole = positions / self.multiple * self.multiple;
        whole.max(self.least.min(positions))
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: ReformerConfig = config.parse()?;
    values.check()?;
    let (hidden, std) = (values.hidden_size, values.initializer_range);
    let base = weights.pp("reformer");
    let embeddings = ReformerEmbeddings::new(&values, &base.pp("embeddings"))?;
    let encoder = base.pp("encoder");
    let hashed = values.attn_layers.iter().filter(|kind| *kind == "lsh");
    let hashed = hashed.count();
    let mut before = 0;
    let block = |(layer, kind): (usize, &String)| -> Result<Arc<dyn Block>> {
        let weights = encoder.pp(format!("layers.{layer}"));
        let attention = weights.pp("attention");
        let maps = attention.pp("self_attention");
        let kind = match kind.as_str() {
            "lsh" => {
                before += 1;
                Kind::Hashed(Hashed::new(&values, &maps, (before - 1, hashed))?)
            }
            _ => Kind::Local(Local::new(&values, &maps)?),
        };
        let width = values.num_attention_heads * values.attention_head_size;
        let forward = weights.pp("feed_forward");
        let inner = values.feed_forward_size;
        let eps = values.layer_norm_eps;
        Ok(Arc::new(ReversibleBlock {
            attention_norm: Norm::layer(&attention.pp("layer_norm"), hidden, eps)?,
            kind,
            attention_output: Linear::without_bias(
                &attention.pp("output.dense"),
                width,
                hidden,
                std,
            )?,
            forward_norm: Norm::layer(&forward.pp("layer_norm"), hidden, eps)?,
            intermediate: Linear::new(&forward.pp("dense.dense"), hidden, inner, std)?,
            activation: Activation::from_name(&values.hidden_act)?,
            output: Linear::new(&forward.pp("output.dense"), inner, hidden, std)?,
            dropout: values.hidden_dropout_prob,
        }))
    };
    let blocks = values.attn_layers.iter().enumerate().map(block);
    let blocks = blocks.collect::<Result<_>>()?;
    let norm = Norm::layer(&encoder.pp("layer_norm"), 2 * hidden, values.layer_norm_eps)?;
    let vocab = values.vocab_size;
    let decoder = weights.pp("lm_head.decoder");
    let bias = weights.pp("lm_head");
    let alias = ["lm_head.decoder.bias"];
    let chunks = values.chunks();
    let bias = bias.param_or_alias("bias", &alias, vocab, Init::Zeros)?;
    // transformers 5 has forgotten that the two are one.
    weights.save_also_as(alias[0], &bias);
    Ok(Box::new(Reformer {
        embeddings,
        encoder: Encoder {
            blocks,
            norm: Some(norm),
        },
        head: PredictionHead {
            transform: None,
            decoder: decoder.param("weight", (vocab, 2 * hidden), Init::Normal(std))?,
            bias: Some(bias),
        },
        dropout: values.hidden_dropout_prob,
        pad: values.pad_token_id,
        chunks,
        max_positions: chunks.longest(values.positions()),
    }))
}

#[derive(Debug)]
struct Reformer {
    embeddings: ReformerEmbeddings,
    encoder: Encoder,
    head: PredictionHead,
    dropout: f64,
    pad: u32,
    chunks: Chunks,
    max_positions: usize,
}

impl Architecture for Reformer {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let (_, seq) = inputs.shape();
        let padded;
        let inputs = match self.chunks.padded(seq) {
            length if length > seq => {
                padded = inputs.padded_to(length, self.pad);
                &padded
            }
            _ => inputs,
        };
        let x = self.embeddings.forward(inputs, context)?;
        let mut pass = Pass::new(AttentionMask::None, context);
        if inputs.has_padding() {
            let text = inputs.tensor_of(&inputs.attention_mask, &Device::Cpu)?;
            pass.inputs.insert(TEXT, text);
        }
        if let Some(column) = inputs.columns.get(ROTATIONS) {
            let count = column.len() / inputs.batch;
            let numbers = column.as_floats(ROTATIONS)?[..count].to_vec();
            let numbers = Tensor::from_vec(numbers, count, &Device::Cpu)?;
            pass.inputs.insert(ROTATIONS, numbers);
        }
        let x = self.encoder.forward(ops::concat(&[&x, &x], 2)?, &pass)?;
        let x = ops::dropout(&x, context.dropout(self.dropout))?;
        ops::narrow(&x, 1, 0, seq)
    }

    fn head(&self) -> &dyn Head {
        &self.head
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.max_positions)
    }

    fn flops(&self) -> Option<ModelFlops> {
        Some(ModelFlops {
            per_counted: 2 * self.head.weights() as u64,
            ..self.encoder.flops()
        })
    }
}

/// Words, and positions from a table or from one for each axis of a grid.
#[derive(Debug)]
struct ReformerEmbeddings {
    words: Param,
    positions: Positions,
    dropout: f64,
}

#[derive(Debug)]
enum Positions {
    Table(Param),
    /// Of each axis its size and its vectors; a position is the row-major number of a place in the grid.
    Axial(Vec<(usize, Param)>),
}

impl ReformerEmbeddings {
    fn new(values: &ReformerConfig, weights: &WeightBuilder) -> Result<Self> {
        let (hidden, normal) = (values.hidden_size, Init::Normal(values.initializer_range));
        let words = weights.pp("word_embeddings");
        let positions = weights.pp("position_embeddings");
        let shape = &values.axial_pos_shape;
        let axis = |(axis, (&size, &width)): (usize, (&usize, &usize))| -> Result<_> {
            let mut stored = vec![1; shape.len()];
            stored[axis] = size;
            stored.push(width);
            let name = format!("weights.{axis}");
            let normal = Init::Normal(values.axial_norm_std);
            let param = positions.param_stored_as(&name, (size, width), &stored, normal)?;
            Ok((size, param))
        };
        Ok(Self {
            words: words.param("weight", (values.vocab_size, hidden), normal)?,
            positions: match values.axial_pos_embds {
                true => {
                    let axes = shape.iter().zip(&values.axial_pos_embds_dim);
                    Positions::Axial(axes.enumerate().map(axis).collect::<Result<_>>()?)
                }
                false => {
                    let rows = values.max_position_embeddings;
                    let table = positions.pp("embedding");
                    Positions::Table(table.param("weight", (rows, hidden), normal)?)
                }
            },
            dropout: values.hidden_dropout_prob,
        })
    }

    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let (batch, seq) = inputs.shape();
        let ids = inputs.input_ids_tensor(&Device::Cpu)?;
        let words = ops::embedding(&ids, &self.words, None)?;
        let words = ops::dropout(&words, context.dropout(self.dropout))?;
        let positions = self.positions.of(seq)?;
        let dropout = context.dropout(self.dropout);
        if !dropout.is_active() {
            return ops::add_broadcast(&words, &positions);
        }
        let repeated: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
        let repeated = Tensor::from_vec(repeated, batch * seq, &Device::Cpu)?;
        let positions = ops::select_rows(&positions, &repeated)?;
        let positions = match &self.positions {
            Positions::Table(_) => ops::dropout(&positions, dropout)?,
            // A number of the second axis is dropped with all its vectors.
            Positions::Axial(axes) => {
                let second = axes.get(1).map_or(1, |(size, _)| *size);
                let behind: usize = axes.iter().skip(2).map(|(size, _)| *size).product();
                let factor = |row: usize, at: usize| {
                    dropout.factor((row * second + at / behind % second) as u64)
                };
                let factors = (0..batch).flat_map(|row| (0..seq).map(move |at| factor(row, at)));
                let factors: Vec<f32> = factors.collect();
                let factors = Tensor::from_vec(factors, batch * seq, &Device::Cpu)?;
                ops::mul_rows(&positions, &factors.to_device(words.device())?)?
            }
        };
        ops::add(&words, &ops::reshape(&positions, words.shape())?)
    }
}

impl Positions {
    /// Returns the vectors of the first `seq` positions, (seq, hidden).
    fn of(&self, seq: usize) -> Result<Tensor> {
        let rows = |param: &Param, rows: Vec<u32>| {
            let rows = Tensor::from_vec(rows, seq, &Device::Cpu)?;
            ops::select_rows(&ops::param_rows(param)?, &rows)
        };
        let axes = match self {
            Self::Table(table) => return rows(table, (0..seq as u32).collect()),
            Self::Axial(axes) => axes,
        };
        let mut parts = Vec::new();
        for (axis, (size, param)) in axes.iter().enumerate() {
            let behind: usize = axes[axis + 1..].iter().map(|(size, _)| *size).product();
            let places = (0..seq).map(|at| (at / behind % size) as u32);
            parts.push(rows(param, places.collect())?);
        }
        ops::concat(&parts.iter().collect::<Vec<_>>(), 1)
    }
}

/// A block of two streams side by side: `y1 = x1 + attention(x2)`, `y2 = x2 + feed_forward(y1)`.
#[derive(Debug)]
struct ReversibleBlock {
    attention_norm: Norm,
    kind: Kind,
    attention_output: Linear,
    forward_norm: Norm,
    intermediate: Linear,
    activation: Activation,
    output: Linear,
    dropout: f64,
}

#[derive(Debug)]
enum Kind {
    Local(Local),
    Hashed(Hashed),
}

impl Block for ReversibleBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let hidden = x.dim(2)? / 2;
        let (first, second) = (
            ops::narrow(x, 2, 0, hidden)?,
            ops::narrow(x, 2, hidden, hidden)?,
        );
        let normed = self.attention_norm.forward(&second)?;
        let attended = match &self.kind {
            Kind::Local(local) => local.forward(&normed, pass)?,
            Kind::Hashed(hashed) => hashed.forward(&normed, pass)?,
        };
        let attended = self.attention_output.forward(&attended)?;
        let attended = ops::dropout(&attended, context.dropout(self.dropout))?;
        let first = ops::add(&first, &attended)?;
        let fed = self
            .intermediate
            .forward(&self.forward_norm.forward(&first)?)?;
        // Before the activation, unlike in other families.
        let fed = ops::dropout(&fed, context.dropout(self.dropout))?;
        let fed = self.output.forward(&self.activation.apply(&fed)?)?;
        let fed = ops::dropout(&fed, context.dropout(self.dropout))?;
        let second = ops::add(&second, &fed)?;
        ops::concat(&[&first, &second], 2)
    }

    fn params(&self) -> Vec<Param> {
        let maps = match &self.kind {
            Kind::Local(local) => vec![&local.query, &local.key, &local.value],
            Kind::Hashed(hashed) => vec![&hashed.query_key, &hashed.value],
        };
        let maps =
            maps.into_iter()
                .chain([&self.attention_output, &self.intermediate, &self.output]);
        let norms = [&self.attention_norm, &self.forward_norm];
        maps.flat_map(Linear::params)
            .chain(norms.into_iter().flat_map(Norm::params))
            .collect()
    }

    /// Of texts longer than a chunk.
    fn flops(&self) -> ModelFlops {
        let maps = [&self.attention_output, &self.intermediate, &self.output];
        let mut weights: usize = maps.into_iter().map(Linear::weights).sum();
        let (heads, seen) = match &self.kind {
            Kind::Local(local) => {
                let maps = [&local.query, &local.key, &local.value];
                weights += maps.into_iter().map(Linear::weights).sum::<usize>();
                (&local.heads, local.heads.seen())
            }
            Kind::Hashed(hashed) => {
                weights += hashed.query_key.weights() + hashed.value.weights();
                (&hashed.heads, hashed.heads.seen() * hashed.hashes)
            }
        };
        ModelFlops {
            per_token: (2 * weights + 4 * heads.count * heads.size * seen) as u64,
            ..ModelFlops::default()
        }
    }
}

/// Heads, and the chunks that they see.
#[derive(Clone, Debug)]
struct Heads {
    count: usize,
    size: usize,
    chunk: usize,
    before: usize,
    after: usize,
    dropout: f64,
}

impl Heads {
    /// Returns how many keys a query sees.
    fn seen(&self) -> usize {
        self.chunk * (1 + self.before + self.after)
    }

    /// Returns the plan for sequences of `length`, each chunk of which sees its neighbours; the first and the last are
    /// neighbours too. With `whole`, one chunk sees itself.
    fn plan(&self, length: usize, whole: bool) -> Result<SparsePlan> {
        if whole {
            return Ok(SparsePlan::chunks(length, length.max(1), 0, 0));
        }
        let count = length / self.chunk;
        let row = |chunk: usize| {
            let (before, after) = (self.before as isize, self.after as isize);
            let seen = (-before..=after).map(|step| match step.unsigned_abs() < count {
                true => (chunk as isize + step).rem_euclid(count as isize) as usize,
                // transformers goes nowhere where it would go round more than once.
                false => chunk,
            });
            seen.map(|chunk| chunk * self.chunk..(chunk + 1) * self.chunk)
                .collect()
        };
        SparsePlan::new(length, length, self.chunk, (0..count).map(row).collect())
    }

    fn options(&self, heads: usize, dropout: Dropout) -> AttentionOptions {
        AttentionOptions {
            scale: 1.0,
            dropout,
            ..AttentionOptions::new(heads, self.size)
        }
    }
}

/// What is added to the score of a key that is padding: no other is below it, so that a query of padding that sees nothing
/// else sees all of it alike.
const HIDDEN: f32 = -1e9;
/// The score of a query with its own key under a shared projection.
const OWN: f32 = -1e5;

/// Returns queries and keys (..., heads · size) with one more feature in each head, by which a key's score becomes higher
/// by its number in `added` (as many as there are rows).
pub(super) fn with_added(
    [q, k]: [&Tensor; 2],
    heads: usize,
    added: Vec<f32>,
) -> Result<[Tensor; 2]> {
    let (batch, seq, width) = q.dims3()?;
    let shape = (batch, seq, heads, 1);
    let widened = |x: &Tensor, feature: &Tensor| -> Result<Tensor> {
        let x = ops::reshape(x, (batch, seq, heads, width / heads))?;
        let x = ops::concat(&[&x, feature], 3)?;
        ops::reshape(&x, (batch, seq, width + heads))
    };
    let ones = Tensor::ones(shape, q.dtype(), q.device())?;
    let added = added
        .into_iter()
        .flat_map(|added| std::iter::repeat_n(added, heads));
    let added = Tensor::from_vec(added.collect::<Vec<_>>(), shape, &Device::Cpu)?;
    let added = added.to_device(q.device())?.to_dtype(q.dtype())?;
    Ok([widened(q, &ones)?, widened(k, &added)?])
}

/// Returns queries and keys whose scores are `HIDDEN` exactly where `hidden` says so: a product added to that would be lost
/// but for a few steps of rounding, each of which is worth a whole softmax.
fn with_hidden([q, k]: [&Tensor; 2], heads: usize, hidden: Vec<f32>) -> Result<[Tensor; 2]> {
    let seen: Vec<f32> = hidden.iter().map(|&x| f32::from(x == 0.0)).collect();
    let seen = Tensor::from_vec(seen, hidden.len(), &Device::Cpu)?;
    let k = ops::mul_rows(k, &seen.to_device(k.device())?)?;
    with_added([q, &k], heads, hidden)
}

/// Attention to near tokens.
#[derive(Debug)]
struct Local {
    query: Linear,
    key: Linear,
    value: Linear,
    heads: Heads,
}

impl Local {
    fn new(values: &ReformerConfig, weights: &WeightBuilder) -> Result<Self> {
        let (hidden, std) = (values.hidden_size, values.initializer_range);
        let width = values.num_attention_heads * values.attention_head_size;
        let map = |name: &str| Linear::without_bias(&weights.pp(name), hidden, width, std);
        Ok(Self {
            query: map("query")?,
            key: map("key")?,
            value: map("value")?,
            heads: Heads {
                count: values.num_attention_heads,
                size: values.attention_head_size,
                chunk: values.local_attn_chunk_length,
                before: values.local_num_chunks_before,
                after: values.local_num_chunks_after,
                dropout: values.local_attention_probs_dropout_prob,
            },
        })
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (seq, heads) = (x.dim(1)?, &self.heads);
        let (mut q, value) = (self.query.forward(x)?, self.value.forward(x)?);
        let mut k = ops::scale(&self.key.forward(x)?, 1.0 / (heads.size as f64).sqrt())?;
        if let Some(text) = pass.inputs.get(TEXT) {
            let hidden = hidden_keys(text)?;
            [q, k] = with_hidden([&q, &k], heads.count, hidden)?;
        }
        let plan = heads.plan(seq, seq <= heads.chunk)?;
        let dropout = pass.context.dropout(heads.dropout);
        let options = heads.options(heads.count, dropout);
        let seen = ops::sparse_attention(&q, &k, &value, &plan, &options)?;
        match pass.inputs.get(TEXT) {
            Some(text) => ops::mul_rows(&seen, &sums_of_padding(text, &plan, heads.chunk)?),
            None => Ok(seen),
        }
    }
}

/// Returns a factor for each query, (batch, seq): 1, but the number of its keys where all of them are padding.
///
/// transformers divides by the exponential of the logarithm of the sum, which such low scores swallow: what padding sees is
/// the sum of all values there, not their mean.
fn sums_of_padding(text: &Tensor, plan: &SparsePlan, chunk: usize) -> Result<Tensor> {
    let seq = text.dim(1)?;
    let rows = text.to_vec2::<u32>()?;
    let factor = |(row, at): (&[u32], usize)| {
        let chunk = if seq <= chunk { 0 } else { at / chunk };
        let mut keys = plan.ranges(0, chunk).iter().cloned().flatten();
        match keys.clone().all(|key| row[key] == 0) {
            true => keys.by_ref().count() as f32,
            false => 1.0,
        }
    };
    let places = rows
        .iter()
        .flat_map(|row| (0..seq).map(move |at| (&row[..], at)));
    let factors: Vec<f32> = places.map(factor).collect();
    Ok(Tensor::from_vec(factors, (rows.len(), seq), &Device::Cpu)?)
}

/// Returns a factor for each row of logarithms of sums (..., hashes): what their shares add up to in f32, computed as
/// transformers does. That is 1 but for padding, whose scores leave no digits for the difference of two hashes.
fn sums_of_shares(sums: &Tensor) -> Result<Tensor> {
    let hashes = sums.dim(D::Minus1)?;
    let sums = sums.detach().to_device(&Device::Cpu)?;
    let sums = sums.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let factor = |sums: &[f32]| {
        let top = sums.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if top > OWN / 2.0 {
            return 1.0;
        }
        let all: f32 = sums.iter().map(|sum| (sum - top).exp()).sum();
        let all = top + all.ln();
        sums.iter().map(|sum| (sum - all).exp()).sum()
    };
    let factors: Vec<f32> = sums.chunks(hashes).map(factor).collect();
    let count = factors.len();
    Ok(Tensor::from_vec(factors, count, &Device::Cpu)?)
}

/// Returns what is added to each key's score, by a mask of the text.
fn hidden_keys(text: &Tensor) -> Result<Vec<f32>> {
    let text = text.flatten_all()?.to_vec1::<u32>()?;
    let added = |text| if text == 0 { HIDDEN } else { 0.0 };
    Ok(text.into_iter().map(added).collect())
}

/// Attention to tokens in the same buckets.
#[derive(Debug)]
struct Hashed {
    query_key: Linear,
    value: Linear,
    heads: Heads,
    hashes: usize,
    buckets: Option<Buckets>,
    seed: Option<u64>,
    max_position_embeddings: usize,
    /// How many layers of this kind come before, and how many there are.
    place: (usize, usize),
}

impl Hashed {
    fn new(
        values: &ReformerConfig,
        weights: &WeightBuilder,
        place: (usize, usize),
    ) -> Result<Self> {
        let (hidden, std) = (values.hidden_size, values.initializer_range);
        let width = values.num_attention_heads * values.attention_head_size;
        let map = |name: &str| Linear::without_bias(&weights.pp(name), hidden, width, std);
        Ok(Self {
            query_key: map("query_key")?,
            value: map("value")?,
            heads: Heads {
                count: values.num_attention_heads,
                size: values.attention_head_size,
                chunk: values.lsh_attn_chunk_length,
                before: values.lsh_num_chunks_before,
                after: values.lsh_num_chunks_after,
                dropout: values.lsh_attention_probs_dropout_prob,
            },
            hashes: values.num_hashes,
            buckets: values.num_buckets.clone(),
            seed: values.hash_seed,
            max_position_embeddings: values.max_position_embeddings,
            place,
        })
    }

    /// Returns the factors of the number of buckets for texts of that length.
    fn factors(&self, seq: usize) -> Vec<usize> {
        match &self.buckets {
            Some(Buckets::Count(count)) => return vec![*count],
            Some(Buckets::Factors(factors)) => return factors.clone(),
            None => {}
        }
        let chunk = self.heads.chunk;
        let power = (2 * (seq / chunk).max(1)).ilog2();
        let most = 2 * (self.max_position_embeddings / chunk).isqrt().max(chunk);
        match 1usize << power {
            count if count <= most => vec![count],
            _ => vec![1 << (power / 2), 1 << (power - power / 2)],
        }
    }

    /// Returns this layer's rotations, (heads, size, hashes · halves).
    fn rotations(&self, halves: usize, pass: &Pass) -> Result<Tensor> {
        let heads = &self.heads;
        let count = heads.count * heads.size * self.hashes * halves;
        let shape = (heads.count, heads.size, self.hashes * halves);
        let (layer, layers) = self.place;
        let numbers = match pass.inputs.get(ROTATIONS) {
            Some(given) if given.elem_count() == layers * count => {
                given.narrow(0, layer * count, count)?.to_vec1()?
            }
            Some(given) => {
                return Err(Error::argument(
                    ROTATIONS,
                    format!(
                        "{layers} layers, {} heads of {} features, {} hashes and {halves} half buckets make {} numbers; \
                         given are {}",
                        heads.count,
                        heads.size,
                        self.hashes,
                        layers * count,
                        given.elem_count()
                    ),
                ));
            }
            None => {
                let drawn = pass.context.draw();
                // The same in every evaluation.
                let seed = self.seed.or(drawn).unwrap_or(layer as u64);
                normal_of_seed(seed, count)
            }
        };
        Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
    }

    /// Returns, for each text and head, the numbers hash · seq + position in the order of their buckets.
    fn order(&self, vectors: &Tensor, text: Option<&Tensor>, pass: &Pass) -> Result<Vec<u32>> {
        let (batch, heads, seq, size) = vectors.dims4()?;
        let factors = self.factors(seq);
        let halves: usize = factors.iter().map(|factor| factor / 2).sum();
        let rotations = self.rotations(halves, pass)?.unsqueeze(0)?;
        let vectors = vectors.detach().to_device(&Device::Cpu)?;
        let vectors = vectors.to_dtype(DType::F32)?;
        debug_assert_eq!(size, self.heads.size);
        let rotated = vectors.broadcast_matmul(&rotations)?;
        let rotated = rotated.flatten_all()?.to_vec1::<f32>()?;
        let padding = text.map(|text| text.flatten_all()?.to_vec1::<u32>());
        let padding = padding.transpose()?;
        let count: usize = factors.iter().product();
        let mut order = Vec::with_capacity(batch * heads * self.hashes * seq);
        let width = self.hashes * halves;
        for text_and_head in 0..batch * heads {
            let rows = &rotated[text_and_head * seq * width..][..seq * width];
            for hash in 0..self.hashes {
                let bucket = |at: usize| {
                    let first = (text_and_head / heads) * seq;
                    if padding.as_ref().is_some_and(|text| text[first + at] == 0) {
                        return count;
                    }
                    let row = &rows[at * width + hash * halves..][..halves];
                    bucket(row, &factors)
                };
                let buckets: Vec<usize> = (0..seq).map(bucket).collect();
                let mut places: Vec<u32> = (0..seq as u32).collect();
                places.sort_by_key(|&at| buckets[at as usize]);
                order.extend(places.into_iter().map(|at| (hash * seq) as u32 + at));
            }
        }
        Ok(order)
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (seq, heads) = (x.dim(1)?, &self.heads);
        let (shared, value) = (self.query_key.forward(x)?, self.value.forward(x)?);
        let text = pass.inputs.get(TEXT);
        match seq <= heads.chunk {
            true => self.whole(&shared, &value, text, pass),
            false => self.hashed(&shared, &value, text, pass),
        }
    }

    /// Returns the keys that belong to queries (..., size): of one length, over √size.
    fn keys(&self, queries: &Tensor) -> Result<Tensor> {
        let length = RowLength::RootMeanSquare { eps: 1e-6 };
        let keys = ops::normalize_rows(queries, length)?;
        ops::scale(&keys, 1.0 / (self.heads.size as f64).sqrt())
    }

    /// Attention in full.
    fn whole(
        &self,
        shared: &Tensor,
        value: &Tensor,
        text: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Tensor> {
        let ((batch, seq, width), heads) = (shared.dims3()?, &self.heads);
        let keys = ops::reshape(shared, (batch, seq, heads.count, heads.size))?;
        let keys = ops::reshape(&self.keys(&keys)?, (batch, seq, width))?;
        let (mut q, mut k) = (shared.clone(), keys);
        if let Some(text) = text {
            [q, k] = with_hidden([&q, &k], heads.count, hidden_keys(text)?)?;
        }
        let numbers: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
        let numbers = Tensor::from_vec(numbers, (batch, seq), &Device::Cpu)?;
        let plan = heads.plan(seq, true)?.with_own_score(&numbers, OWN);
        let dropout = pass.context.dropout(heads.dropout);
        let options = heads.options(heads.count, dropout);
        ops::sparse_attention(&q, &k, value, &plan, &options)
    }

    /// Attention in the order of buckets, once for each hash, and the results put together by their sums.
    fn hashed(
        &self,
        shared: &Tensor,
        value: &Tensor,
        text: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Tensor> {
        let ((batch, seq, _), heads) = (shared.dims3()?, &self.heads);
        let (texts, size) = (batch * heads.count, heads.size);
        let length = self.hashes * seq;
        let per_head = |x: &Tensor| -> Result<Tensor> {
            let x = ops::reshape(x, (batch, seq, heads.count, size))?;
            ops::permute(&x, &[0, 2, 1, 3])
        };
        let (shared, value) = (per_head(shared)?, per_head(value)?);
        let order = self.order(&shared, text, pass)?;
        let place = |(i, &at): (usize, &u32)| (i / length * seq + at as usize % seq) as u32;
        let rows: Vec<u32> = order.iter().enumerate().map(place).collect();
        let numbers: Vec<u32> = order.iter().map(|&at| at % seq as u32).collect();
        let hidden = match text {
            Some(text) => {
                let hidden = hidden_keys(text)?;
                let of = |&row: &u32| {
                    let (text, at) = (row as usize / seq / heads.count, row as usize % seq);
                    hidden[text * seq + at]
                };
                Some(rows.iter().map(of).collect::<Vec<f32>>())
            }
            None => None,
        };
        let rows = Tensor::from_vec(rows, texts * length, &Device::Cpu)?;
        let numbers = Tensor::from_vec(numbers, (texts, length), &Device::Cpu)?;
        let sorted = |x: &Tensor| -> Result<Tensor> {
            ops::reshape(&ops::select_rows(x, &rows)?, (texts, length, size))
        };
        let (mut q, value) = (sorted(&shared)?, sorted(&value)?);
        let mut k = self.keys(&q)?;
        if let Some(hidden) = hidden {
            [q, k] = with_hidden([&q, &k], 1, hidden)?;
        }
        let plan = heads.plan(length, false)?.with_own_score(&numbers, OWN);
        let dropout = pass.context.dropout(heads.dropout);
        let options = heads.options(1, dropout);
        let seen = ops::sparse_attention_sums(&q, &k, &value, &plan, &options)?;

        // Back to (texts, seq, hashes, size + 1).
        let mut back = vec![0u32; texts * length];
        for (i, &at) in order.iter().enumerate() {
            let (hash, at) = (at as usize / seq, at as usize % seq);
            back[i / length * length + at * self.hashes + hash] = i as u32;
        }
        let back = Tensor::from_vec(back, texts * length, &Device::Cpu)?;
        let seen = ops::select_rows(&seen, &back)?;
        let seen = ops::reshape(&seen, (texts, seq, self.hashes, size + 1))?;
        let results = ops::narrow(&seen, 3, 0, size)?;
        let joined = match self.hashes {
            1 => results,
            hashes => {
                let sums = ops::narrow(&seen, 3, size, 1)?;
                let sums = ops::reshape(&sums, (texts, seq, 1, hashes))?;
                let joined = ops::matmul(&ops::softmax(&sums)?, &results, false, false)?;
                match text {
                    Some(_) => ops::mul_rows(&joined, &sums_of_shares(&sums)?)?,
                    None => joined,
                }
            }
        };
        let joined = ops::reshape(&joined, (batch, heads.count, seq, size))?;
        let joined = ops::permute(&joined, &[0, 2, 1, 3])?;
        ops::reshape(&joined, (batch, seq, heads.count * size))
    }
}

/// Returns the bucket of a rotated vector: of each factor the number of the largest of its numbers and their opposites.
fn bucket(rotated: &[f32], factors: &[usize]) -> usize {
    let (mut start, mut step, mut bucket) = (0, 1, 0);
    for &factor in factors {
        let part = &rotated[start..start + factor / 2];
        let both = part.iter().copied().chain(part.iter().map(|x| -x));
        let mut best = (0, f32::NEG_INFINITY);
        for (i, x) in both.enumerate() {
            if x > best.1 {
                best = (i, x);
            }
        }
        bucket += step * best.0;
        step *= factor;
        start += factor / 2;
    }
    bucket
}

/// Returns what `torch.randn` gives for 16 numbers or more after `torch.manual_seed(seed)` on a CPU, to the last
/// digits.
fn normal_of_seed(seed: u64, count: usize) -> Vec<f32> {
    // It works in groups of 16, the last of which is drawn once more where it is not whole.
    let mut twister = Twister::new(seed as u32);
    let mut uniform = || (twister.next() & 0xFF_FFFF) as f32 / (1u32 << 24) as f32;
    let mut values: Vec<f32> = (0..count.max(16)).map(|_| uniform()).collect();
    for group in values.chunks_exact_mut(16) {
        box_muller(group);
    }
    if !values.len().is_multiple_of(16) {
        let last = values.len() - 16;
        values[last..]
            .iter_mut()
            .for_each(|value| *value = uniform());
        box_muller(&mut values[last..]);
    }
    values.truncate(count);
    values
}

/// Turns 16 uniform numbers into normal ones.
fn box_muller(group: &mut [f32]) {
    let (first, second) = group.split_at_mut(8);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let angle = std::f32::consts::TAU * *b;
        (*a, *b) = (radius * angle.cos(), radius * angle.sin());
    }
}

/// The Mersenne Twister (Matsumoto and Nishimura 1998).
struct Twister {
    state: [u32; 624],
    next: usize,
}

impl Twister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self { state, next: 624 }
    }

    fn next(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let joined =
                    (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7FFF_FFFF);
                let odd = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (joined >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mersenne_twister_gives_its_published_numbers() {
        let mut twister = Twister::new(5489);
        let all: Vec<u32> = (0..10_000).map(|_| twister.next()).collect();
        assert_eq!(all[0], 3_499_211_612);
        assert_eq!(all[9_999], 4_123_659_995);
    }

    #[test]
    fn a_seed_gives_the_rotations_of_pytorch() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = folder.join("tests/fixtures/models/reformer/io.safetensors");
        let io = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let drawn = io["aux.rotations.0"].flatten_all().unwrap();
        let drawn = drawn.to_vec1::<f32>().unwrap();
        let ours = normal_of_seed(0, drawn.len());
        for (ours, theirs) in ours.iter().zip(&drawn) {
            assert!((ours - theirs).abs() < 2e-6, "{ours} {theirs}");
        }
    }

    #[test]
    fn texts_are_padded_to_whole_chunks_of_all_layers() {
        let chunks = Chunks {
            least: 4,
            multiple: 12,
        };
        let padded = [1, 4, 5, 12, 13].map(|seq| chunks.padded(seq));
        assert_eq!(padded, [1, 4, 12, 12, 24]);
        assert_eq!([3, 11, 12, 30].map(|n| chunks.longest(n)), [3, 4, 12, 24]);
    }
}
