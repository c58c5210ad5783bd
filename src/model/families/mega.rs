//! MEGA (Ma et al. 2022, arXiv:2209.10655): a moving average over the text in both directions, and gated single-head
//! attention on its result.
//!
//! Attention weighs by a softmax, or by a function of each pair's own score (`attention_activation`). With `use_chunking` a
//! token sees the tokens of its chunk, and texts are padded to whole chunks; the moving average goes over all of it.
//! Batch normalization keeps running statistics, which training moves and a checkpoint holds.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::bert;
use super::padded::Padded;
use crate::model::nn::{
    Block, Embeddings, Encoder, Head, Ids, Linear, Lookup, Pass, PredictionHead, Transformer,
    numbered,
};
use crate::model::{Architecture, Config, Family, Init, ModelFlops, WeightBuilder};
use crate::ops::{
    self, Activation, AttentionMask, AttentionOptions, Dropout, EmaParams, PairWeights, Param,
    RelativeIndex, RelativeTerms, RowLength,
};
use crate::{Error, Result};

/// `MegaForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "mega",
    class: "MegaForMaskedLM",
    synonyms: &["MegaModel"],
    base: "mega",
    body: &["embedding_layer.", "layers.", "pooler."],
    carried: &[".num_batches_tracked"],
    defaults: "{}",
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct MegaConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    intermediate_size: usize,
    ema_projection_size: usize,
    bidirectional: bool,
    shared_representation_size: usize,
    use_chunking: bool,
    chunk_size: i64,
    truncation: Option<usize>,
    normalize_before_mega: bool,
    normalization_type: String,
    norm_affine: bool,
    activation: String,
    attention_activation: String,
    dropout_prob: f64,
    hidden_dropout_prob: f64,
    attention_probs_dropout_prob: f64,
    use_feature_dropout: bool,
    use_normalized_ffn: bool,
    nffn_hidden_size: usize,
    normalize_before_ffn: bool,
    nffn_activation_dropout_prob: f64,
    max_positions: usize,
    add_token_type_embeddings: bool,
    type_vocab_size: usize,
    initializer_range: f64,
    ema_delta_alpha_range: f64,
    ema_beta_range: f64,
    ema_gamma_omega_range: f64,
    pad_token_id: u32,
    relative_positional_bias: String,
    add_lm_hidden_dense_layer: bool,
}

impl Default for MegaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 128,
            num_hidden_layers: 4,
            intermediate_size: 256,
            ema_projection_size: 16,
            bidirectional: true,
            shared_representation_size: 64,
            use_chunking: false,
            chunk_size: -1,
            truncation: None,
            normalize_before_mega: true,
            normalization_type: "scalenorm".to_owned(),
            norm_affine: true,
            activation: "silu".to_owned(),
            attention_activation: "softmax".to_owned(),
            dropout_prob: 0.1,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            use_feature_dropout: false,
            use_normalized_ffn: true,
            nffn_hidden_size: 256,
            normalize_before_ffn: true,
            nffn_activation_dropout_prob: 0.1,
            max_positions: 2048,
            add_token_type_embeddings: false,
            type_vocab_size: 2,
            initializer_range: 0.02,
            ema_delta_alpha_range: 0.2,
            ema_beta_range: 0.02,
            ema_gamma_omega_range: 1.0,
            pad_token_id: 1,
            relative_positional_bias: "rotary".to_owned(),
            add_lm_hidden_dense_layer: true,
        }
    }
}

impl MegaConfig {
    fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::Config(why));
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("ema_projection_size", self.ema_projection_size),
            (
                "shared_representation_size",
                self.shared_representation_size,
            ),
            ("nffn_hidden_size", self.nffn_hidden_size),
            ("max_positions", self.max_positions),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(format!("{name} must be positive"));
        }
        if self.pad_token_id as usize >= self.vocab_size {
            return refuse(format!(
                "pad_token_id {} is outside the vocabulary of {}",
                self.pad_token_id, self.vocab_size
            ));
        }
        if self.use_chunking && self.chunk_size <= 0 {
            return refuse(format!(
                "use_chunking needs a positive chunk_size, not {}",
                self.chunk_size
            ));
        }
        Ok(())
    }

    /// Returns the size of chunks, where attention is cut into them.
    fn chunk(&self) -> Option<usize> {
        usize::try_from(self.chunk_size)
            .ok()
            .filter(|_| self.use_chunking)
    }

    /// Returns the longest stretch that a table of distances serves.
    fn reach(&self) -> usize {
        usize::try_from(self.chunk_size).unwrap_or(self.max_positions)
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: MegaConfig = config.parse()?;
    values.check()?;
    let (vocab, hidden, std) = (
        values.vocab_size,
        values.hidden_size,
        values.initializer_range,
    );
    let base = weights.pp("mega");
    let tables = base.pp("embedding_layer");
    let pad = values.pad_token_id;
    let words = tables.pp("word_embeddings");
    let tied = config.tie_word_embeddings();
    let init = Init::NormalExceptRow(std, pad);
    let words = words.word_table(tied, "mlm_head.weight", (vocab, hidden), init)?;
    let mut lookups = vec![Lookup {
        table: words.clone(),
        ids: Ids::Tokens,
        padding: Some(pad),
    }];
    if values.add_token_type_embeddings {
        let types = tables.pp("token_type_embeddings");
        let shape = (values.type_vocab_size, hidden);
        lookups.push(Lookup {
            table: types.param("weight", shape, Init::Normal(std))?,
            ids: Ids::Segments,
            padding: None,
        });
    }
    let block = |layer: String| -> Result<Arc<dyn Block>> {
        let weights = base.pp(format!("layers.{layer}"));
        Ok(Arc::new(MegaBlock::new(&values, &weights)?))
    };
    let places = numbered("num_hidden_layers", values.num_hidden_layers)?;
    let blocks = places.into_iter().map(block).collect::<Result<_>>()?;
    let dense = values
        .add_lm_hidden_dense_layer
        .then(|| Linear::new(&weights.pp("dense"), hidden, hidden, std));
    let word = tied.then_some(&words);
    let (decoder, bias) = weights.decoder(
        "mlm_head",
        Some("mlm_head.bias"),
        word,
        (vocab, hidden),
        std,
    )?;
    let simple = values.relative_positional_bias == "simple";
    let max_positions = (simple && !values.use_chunking).then(|| values.reach());
    let model = Transformer {
        embeddings: Box::new(Embeddings {
            lookups,
            norm: None,
            dropout: 0.0,
            projection: None,
        }),
        encoder: Encoder { blocks, norm: None },
        head: Box::new(MegaHead {
            dense: dense.transpose()?,
            product: PredictionHead {
                transform: None,
                decoder,
                bias,
            },
        }),
        prepare: None,
        max_positions,
    };
    let Some(chunk) = values.chunk() else {
        return Ok(Box::new(model));
    };
    Ok(Box::new(Padded {
        model: Box::new(model),
        pad,
        length: Box::new(move |seq| match seq <= chunk {
            true => seq,
            false => seq.next_multiple_of(chunk),
        }),
        max_positions,
    }))
}

/// A dense layer with tanh, where there is one, and the product with the vocabulary.
#[derive(Debug)]
struct MegaHead {
    dense: Option<Linear>,
    product: PredictionHead,
}

impl Head for MegaHead {
    fn transform(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.dense {
            Some(dense) => dense.forward_act(hidden, Activation::Tanh),
            None => Ok(hidden.clone()),
        }
    }

    fn logits(&self, transformed: &Tensor) -> Result<Tensor> {
        self.product.logits(transformed)
    }

    fn loss(&self, transformed: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.product.loss(transformed, targets)
    }

    fn vocab_size(&self) -> usize {
        self.product.vocab_size()
    }

    fn weights(&self) -> usize {
        self.dense.as_ref().map_or(0, Linear::weights) + self.product.weights()
    }
}

/// MEGA's normalizations.
#[derive(Debug)]
enum MegaNorm {
    /// Over the root of the mean square, times one number.
    Scale(Option<Param>),
    /// Times a number for each feature, without any normalization: what transformers makes of `rmsnorm`.
    Weight(Option<Param>),
    /// Layer normalization.
    Layer { weight: Param, bias: Option<Param> },
    /// Batch normalization.
    Batch {
        affine: Option<(Param, Param)>,
        mean: Tensor,
        variance: Tensor,
    },
}

impl MegaNorm {
    const EPS: f64 = 1e-5;
    /// How much of the running statistics a batch makes up.
    const MOMENTUM: f64 = 0.1;

    fn new(values: &MegaConfig, weights: &WeightBuilder) -> Result<Self> {
        let (width, affine) = (values.hidden_size, values.norm_affine);
        let weights = weights.pp("norm.norm");
        let ones = |name: &str, width: usize| {
            let param = affine.then(|| weights.param(name, width, Init::Ones));
            param.transpose()
        };
        Ok(match values.normalization_type.as_str() {
            "scalenorm" => Self::Scale(ones("scalar", 1)?),
            "rmsnorm" => Self::Weight(ones("weight", width)?),
            "layernorm" => match ones("weight", width)? {
                Some(weight) => Self::Layer {
                    weight,
                    bias: Some(weights.param("bias", width, Init::Zeros)?),
                },
                None => Self::Layer {
                    weight: constant(&Tensor::ones(width, DType::F32, &Device::Cpu)?)?,
                    bias: None,
                },
            },
            "batchnorm" | "syncbatchnorm" => Self::Batch {
                affine: match ones("weight", width)? {
                    Some(weight) => Some((weight, weights.param("bias", width, Init::Zeros)?)),
                    None => None,
                },
                mean: weights.buffer("running_mean", width, Init::Zeros)?,
                variance: weights.buffer("running_var", width, Init::Ones)?,
            },
            other => {
                return Err(Error::Config(format!(
                    "unknown normalization_type {other:?}; known are scalenorm, rmsnorm, layernorm, batchnorm, \
                     syncbatchnorm"
                )));
            }
        })
    }

    fn forward(&self, x: &Tensor, training: bool) -> Result<Tensor> {
        match self {
            Self::Scale(scalar) => {
                let length = RowLength::RootMeanSquare { eps: Self::EPS };
                let normed = ops::normalize_rows(x, length)?;
                match scalar {
                    Some(scalar) => ops::scale_by(&normed, &ops::param_rows(scalar)?),
                    None => Ok(normed),
                }
            }
            Self::Weight(Some(weight)) => ops::affine(x, weight, None),
            Self::Weight(None) => Ok(x.clone()),
            Self::Layer { weight, bias } => ops::layer_norm(x, weight, bias.as_ref(), Self::EPS),
            Self::Batch {
                affine,
                mean,
                variance,
            } => {
                let normed = match training {
                    true => Self::of_batch(x, mean, variance)?,
                    false => {
                        let scale = (variance + Self::EPS)?.sqrt()?.recip()?;
                        let shift = (mean * &scale)?.neg()?;
                        ops::affine(x, &constant(&scale)?, Some(&constant(&shift)?))?
                    }
                };
                match affine {
                    Some((weight, bias)) => ops::affine(&normed, weight, Some(bias)),
                    None => Ok(normed),
                }
            }
        }
    }

    /// Normalizes by the batch's own statistics, and lets the running ones follow.
    fn of_batch(x: &Tensor, mean: &Tensor, variance: &Tensor) -> Result<Tensor> {
        let rows = x.elem_count() / x.dim(2)?;
        if rows < 2 {
            return Err(Error::argument(
                "input_ids",
                "batch normalization can't be trained on a single token",
            ));
        }
        let found = ops::standardize(x, Self::EPS)?;
        // Once for each step: a checkpointed layer runs twice, the first time without a graph.
        if x.track_op() {
            let unbiased = rows as f64 / (rows - 1) as f64;
            let batch = [found.mean, (found.variance * unbiased)?];
            for (running, batch) in [mean, variance].into_iter().zip(batch) {
                let kept = (running * (1.0 - Self::MOMENTUM))?;
                let moved = (kept + (batch.to_device(running.device())? * Self::MOMENTUM)?)?;
                running.slice_set(&moved, 0, 0)?;
            }
        }
        Ok(found.values)
    }

    fn params(&self) -> Vec<Param> {
        match self {
            Self::Scale(param) | Self::Weight(param) => param.iter().cloned().collect(),
            Self::Layer { weight, bias } => match bias {
                Some(bias) => vec![weight.clone(), bias.clone()],
                None => Vec::new(),
            },
            Self::Batch { affine, .. } => {
                let both = affine.iter();
                both.flat_map(|(weight, bias)| [weight.clone(), bias.clone()])
                    .collect()
            }
        }
    }
}

/// Returns a parameter that is not trained.
fn constant(value: &Tensor) -> Result<Param> {
    let param = Param::new("constant", value)?;
    param.set_trainable(false);
    Ok(param)
}

/// The bias of a pair's score by its distance.
#[derive(Debug)]
enum Bias {
    /// From a table, whose row `reach - 1` is for no distance.
    Simple { table: Param, reach: usize },
    /// The product of two vectors, each rotated by its position.
    Rotary { alpha: Param, beta: Param },
}

impl Bias {
    fn new(values: &MegaConfig, weights: &WeightBuilder) -> Result<Self> {
        let normal = Init::Normal(values.initializer_range);
        let weights = weights.pp("rel_pos_bias");
        match values.relative_positional_bias.as_str() {
            "simple" => {
                let (reach, most) = (values.reach(), values.max_positions);
                if reach == 0 || reach > most {
                    return Err(Error::Config(format!(
                        "chunk_size {reach} must be from 1 to max_positions {most}, for which the table of distances is made"
                    )));
                }
                let rows = most.saturating_mul(2) - 1;
                Ok(Self::Simple {
                    table: weights.param("rel_pos_bias", rows, normal)?,
                    reach,
                })
            }
            "rotary" => {
                let width = values.shared_representation_size;
                if !width.is_multiple_of(2) || !values.hidden_size.is_multiple_of(2) {
                    return Err(Error::Config(format!(
                        "relative_positional_bias rotary turns pairs of features: shared_representation_size {width} and \
                         hidden_size {} must be even",
                        values.hidden_size
                    )));
                }
                // transformers keeps it to know a device by.
                weights.buffer("_float_tensor", 1, Init::Zeros)?;
                Ok(Self::Rotary {
                    alpha: weights.param("alpha", (1, width), normal)?,
                    beta: weights.param("b_param", (1, width), normal)?,
                })
            }
            other => Err(Error::Config(format!(
                "unknown relative_positional_bias {other:?}; known are rotary and simple"
            ))),
        }
    }

    fn params(&self) -> Vec<Param> {
        match self {
            Self::Simple { table, .. } => vec![table.clone()],
            Self::Rotary { alpha, beta } => vec![alpha.clone(), beta.clone()],
        }
    }

    /// Returns the terms for stretches of `seq` tokens.
    fn terms(&self, seq: usize) -> Result<RelativeTerms> {
        let last = seq as i64 - 1;
        let (table, index) = match self {
            Self::Simple { table, reach } => {
                if seq > *reach {
                    return Err(Error::argument(
                        "input_ids",
                        format!(
                            "{seq} tokens are more than the {reach} that distances are known for"
                        ),
                    ));
                }
                let zero = *reach as i64 - 1;
                let index = RelativeIndex::new(seq, seq, |distance| (zero - distance) as u32);
                (ops::param_rows(table)?, index)
            }
            Self::Rotary { alpha, beta } => {
                let index = RelativeIndex::new(seq, seq, |distance| (last + distance) as u32);
                (rotated(alpha, beta, seq)?, index)
            }
        };
        Ok(RelativeTerms {
            bias_table: Some(ops::reshape(&table, ((), 1))?),
            ..RelativeTerms::new(index)
        })
    }
}

/// Returns the product of `alpha` turned by i and `beta` turned by j, for every i - j from `1 - seq` to `seq - 1`.
///
/// Turning leaves products as they are, so that only the difference of the angles remains: of each pair of features
/// (a1 b1 + a2 b2) cos + (a1 b2 - a2 b1) sin.
fn rotated(alpha: &Param, beta: &Param, seq: usize) -> Result<Tensor> {
    let (alpha, beta) = (ops::param_rows(alpha)?, ops::param_rows(beta)?);
    let half = alpha.dim(1)? / 2;
    let halves = |x: &Tensor| -> Result<[Tensor; 2]> {
        Ok([ops::narrow(x, 1, 0, half)?, ops::narrow(x, 1, half, half)?])
    };
    let ([a1, a2], [b1, b2]) = (halves(&alpha)?, halves(&beta)?);
    let cos = ops::add(&ops::mul(&a1, &b1)?, &ops::mul(&a2, &b2)?)?;
    let sin = ops::sub(&ops::mul(&a1, &b2)?, &ops::mul(&a2, &b1)?)?;
    let distances = 2 * seq - 1;
    let mut waves = vec![0f32; 2 * half * distances];
    for feature in 0..half {
        let speed = (-(feature as f64) * 10_000f64.ln() / half as f64).exp();
        for at in 0..distances {
            let angle = (at as f64 - (seq - 1) as f64) * speed;
            waves[feature * distances + at] = angle.cos() as f32;
            waves[(half + feature) * distances + at] = angle.sin() as f32;
        }
    }
    let waves = Tensor::from_vec(waves, (2 * half, distances), &Device::Cpu)?;
    let waves = waves.to_device(cos.device())?.to_dtype(cos.dtype())?;
    ops::matmul(&ops::concat(&[&cos, &sin], 1)?, &waves, false, false)
}

/// How pairs are weighed.
#[derive(Clone, Copy, Debug)]
enum Weighing {
    Softmax,
    Pointwise(PairWeights),
}

/// The four parameters of the moving average.
#[derive(Debug)]
struct Average {
    damping: Param,
    decay: Param,
    expansion: Param,
    projection: Param,
    /// The factor of the input itself.
    residual: Param,
    truncation: Option<usize>,
}

impl Average {
    fn new(values: &MegaConfig, weights: &WeightBuilder) -> Result<Self> {
        let directions = if values.bidirectional { 2 } else { 1 };
        let (rows, states) = (values.hidden_size * directions, values.ema_projection_size);
        let shape = (rows, states, 1);
        let slow = Init::Normal(values.ema_delta_alpha_range);
        let wide = Init::Normal(values.ema_gamma_omega_range);
        let signs = Init::Alternating(values.ema_beta_range);
        Ok(Self {
            damping: weights.param("damping_factor", shape, slow)?,
            decay: weights.param("decay_factor", shape, slow)?,
            expansion: weights.param("ema_expansion_matrix", shape, signs)?,
            projection: weights.param("kernel_projection_matrix", (rows, states), wide)?,
            residual: weights.param("residual_weight", values.hidden_size, wide)?,
            truncation: values.truncation,
        })
    }

    fn forward(&self, x: &Tensor, text: Option<&Tensor>) -> Result<Tensor> {
        let seen = match text {
            Some(text) => ops::mul_rows(x, text)?,
            None => x.clone(),
        };
        let params = EmaParams {
            damping: &self.damping,
            decay: &self.decay,
            expansion: &self.expansion,
            projection: &self.projection,
        };
        let average = ops::damped_ema(&seen, params, self.truncation)?;
        let own = ops::affine(x, &self.residual, None)?;
        Activation::Silu.apply(&ops::add(&average, &own)?)
    }

    fn params(&self) -> Vec<Param> {
        let params = [
            &self.damping,
            &self.decay,
            &self.expansion,
            &self.projection,
            &self.residual,
        ];
        params.map(Param::clone).to_vec()
    }
}

/// The moving average with attention, and the feed-forward maps where there are any.
#[derive(Debug)]
struct MegaBlock {
    norm: MegaNorm,
    norm_first: bool,
    average: Average,
    value: Linear,
    /// To the residual gate, the shared representation with the attention's gate, and what attention is added to.
    split: Linear,
    output: Linear,
    /// From the shared representation to queries, then keys.
    shared: (Param, Param),
    bias: Bias,
    weighing: Weighing,
    chunk: Option<usize>,
    activation: Activation,
    /// Of the shared representation, and of the values.
    widths: (usize, usize),
    forward: Option<Forward>,
    dropout: f64,
    value_dropout: f64,
    attention_dropout: f64,
    by_feature: bool,
}

/// The feed-forward maps.
#[derive(Debug)]
struct Forward {
    norm: MegaNorm,
    norm_first: bool,
    intermediate: Linear,
    output: Linear,
    activation_dropout: f64,
}

impl MegaBlock {
    fn new(values: &MegaConfig, weights: &WeightBuilder) -> Result<Self> {
        let (hidden, std) = (values.hidden_size, values.initializer_range);
        let (shared, inner) = (values.shared_representation_size, values.intermediate_size);
        let own = weights.pp("mega_layer");
        let map = |name: &str, input, output| Linear::new(&own.pp(name), input, output, std);
        let stored = [2, shared];
        let forward = weights.pp("nffn");
        let forward = values.use_normalized_ffn.then(|| -> Result<Forward> {
            let inner = values.nffn_hidden_size;
            Ok(Forward {
                norm: MegaNorm::new(values, &forward)?,
                norm_first: values.normalize_before_ffn,
                intermediate: Linear::new(&forward.pp("fc1"), hidden, inner, std)?,
                output: Linear::new(&forward.pp("fc2"), inner, hidden, std)?,
                activation_dropout: values.nffn_activation_dropout_prob,
            })
        });
        let flat = 2 * shared;
        Ok(Self {
            norm: MegaNorm::new(values, &own)?,
            norm_first: values.normalize_before_mega,
            average: Average::new(values, &own.pp("ema_gate"))?,
            value: map("v_proj", hidden, inner)?,
            split: map("mx_proj", hidden, shared + inner + 2 * hidden)?,
            output: map("h_proj", inner, hidden)?,
            shared: (
                own.param_stored_as("qk_weight", flat, &stored, Init::Normal(std))?,
                own.param_stored_as("qk_bias", flat, &stored, Init::Zeros)?,
            ),
            bias: Bias::new(values, &own)?,
            weighing: match values.attention_activation.as_str() {
                "softmax" => Weighing::Softmax,
                "laplace" => Weighing::Pointwise(PairWeights::Laplace),
                "relu2" => Weighing::Pointwise(PairWeights::ReluSquared),
                other => {
                    return Err(Error::Config(format!(
                        "unknown attention_activation {other:?}; known are softmax, laplace and relu2"
                    )));
                }
            },
            chunk: values.chunk(),
            activation: Activation::from_name(&values.activation)?,
            widths: (shared, inner),
            forward: forward.transpose()?,
            dropout: values.dropout_prob,
            value_dropout: values.hidden_dropout_prob,
            attention_dropout: values.attention_probs_dropout_prob,
            by_feature: values.use_feature_dropout,
        })
    }

    /// Drops elements, or whole features of a text.
    fn drop(&self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        if !self.by_feature || !dropout.is_active() {
            return ops::dropout(x, dropout);
        }
        let (batch, _, width) = x.dims3()?;
        let mut factors = vec![0f32; batch * width];
        dropout.factors(0, &mut factors);
        let factors = Tensor::from_vec(factors, (batch, 1, width), &Device::Cpu)?;
        let factors = factors.to_device(x.device())?.to_dtype(x.dtype())?;
        ops::mul(x, &factors.broadcast_as(x.shape())?.contiguous()?)
    }

    /// Returns what attention gives, (batch, seq, width of the values), of queries and keys (batch, seq, shared).
    fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        text: Option<&Tensor>,
        dropout: Dropout,
    ) -> Result<Tensor> {
        let (batch, seq, _) = q.dims3()?;
        let (shared, width) = self.widths;
        let length = self.chunk.map_or(seq, |chunk| chunk.min(seq));
        let chunks = batch * seq / length;
        let cut = |x: &Tensor, width: usize| ops::reshape(x, (chunks, length, width));
        let (q, k, v) = (cut(q, shared)?, cut(k, shared)?, cut(v, width)?);
        let mask = match text {
            None => AttentionMask::None,
            Some(text) => {
                let mut text = text
                    .to_device(&Device::Cpu)?
                    .flatten_all()?
                    .to_vec1::<u32>()?;
                if matches!(self.weighing, Weighing::Softmax) {
                    // A chunk of nothing but padding sees all of itself.
                    let empty = (text.chunks_mut(length))
                        .filter(|chunk| chunk.iter().all(|&text| text == 0));
                    empty.for_each(|chunk| chunk.fill(1));
                }
                let text = Tensor::from_vec(text, (chunks, length), &Device::Cpu)?;
                AttentionMask::Keys(text.to_device(q.device())?)
            }
        };
        let terms = self.bias.terms(length)?;
        let options = AttentionOptions {
            dropout,
            mask,
            ..AttentionOptions::new(1, shared)
        };
        let seen = match self.weighing {
            Weighing::Softmax => ops::relative_attention(&q, &k, &v, &terms, &options)?,
            Weighing::Pointwise(weights) => {
                let options = AttentionOptions {
                    scale: 1.0,
                    ..options
                };
                ops::pointwise_attention(&q, &k, &v, weights, Some(&terms), &options)?
            }
        };
        ops::reshape(&seen, (batch, seq, width))
    }

    fn mix(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let hidden = x.dim(2)?;
        let (shared, inner) = self.widths;
        let text = match &pass.mask {
            AttentionMask::Keys(text) => Some(text),
            _ => None,
        };
        let input = match self.norm_first {
            true => self.norm.forward(x, context.is_training())?,
            false => x.clone(),
        };
        let value = self.value.forward_act(&input, self.activation)?;
        let average = self.average.forward(&input, text)?;
        let average = self.drop(&average, context.dropout(self.dropout))?;
        let parts = self.split.forward(&average)?;
        let keep = Activation::Sigmoid.apply(&ops::narrow(&parts, 2, 0, hidden)?)?;
        let gates = Activation::Silu.apply(&ops::narrow(&parts, 2, hidden, shared + inner)?)?;
        let start = ops::narrow(&parts, 2, hidden + shared + inner, hidden)?;
        let common = ops::narrow(&gates, 2, 0, shared)?;
        let gate = ops::narrow(&gates, 2, shared, inner)?;
        let both = ops::concat(&[&common, &common], 2)?;
        let both = ops::affine(&both, &self.shared.0, Some(&self.shared.1))?;
        let (q, k) = (
            ops::narrow(&both, 2, 0, shared)?,
            ops::narrow(&both, 2, shared, shared)?,
        );
        let value = self.drop(&value, context.dropout(self.value_dropout))?;
        let dropout = context.dropout(self.attention_dropout);
        let seen = self.attend([&q, &k, &value], text, dropout)?;
        let seen = self.output.forward(&ops::mul(&seen, &gate)?)?;
        let new = self.activation.apply(&ops::add(&start, &seen)?)?;
        let new = self.drop(&new, context.dropout(self.dropout))?;
        let out = ops::add(x, &ops::mul(&keep, &ops::sub(&new, x)?)?)?;
        match self.norm_first {
            true => Ok(out),
            false => self.norm.forward(&out, context.is_training()),
        }
    }

    fn feed(&self, maps: &Forward, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let input = match maps.norm_first {
            true => maps.norm.forward(x, context.is_training())?,
            false => x.clone(),
        };
        let inner = maps.intermediate.forward_act(&input, self.activation)?;
        let inner = self.drop(&inner, context.dropout(maps.activation_dropout))?;
        let fed = maps.output.forward(&inner)?;
        let fed = self.drop(&fed, context.dropout(self.dropout))?;
        let out = ops::add(&fed, x)?;
        match maps.norm_first {
            true => Ok(out),
            false => maps.norm.forward(&out, context.is_training()),
        }
    }
}

impl Block for MegaBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let mixed = self.mix(x, pass)?;
        match &self.forward {
            Some(maps) => self.feed(maps, &mixed, pass),
            None => Ok(mixed),
        }
    }

    fn params(&self) -> Vec<Param> {
        let mut params = [&self.value, &self.split, &self.output]
            .map(Linear::params)
            .concat();
        params.extend(self.norm.params());
        params.extend(self.average.params());
        params.extend(self.bias.params());
        params.extend([self.shared.0.clone(), self.shared.1.clone()]);
        if let Some(maps) = &self.forward {
            params.extend(maps.norm.params());
            params.extend(maps.intermediate.params());
            params.extend(maps.output.params());
        }
        params
    }

    fn flops(&self) -> ModelFlops {
        let mut weights = self.value.weights() + self.split.weights() + self.output.weights();
        if let Some(maps) = &self.forward {
            weights += maps.intermediate.weights() + maps.output.weights();
        }
        let (shared, inner) = self.widths;
        let pair = 2 * (shared + inner);
        ModelFlops {
            per_token: (2 * weights + self.chunk.map_or(0, |chunk| pair * chunk)) as u64,
            per_pair: if self.chunk.is_some() { 0 } else { pair as u64 },
            ..ModelFlops::default()
        }
    }
}
