use candle_core::Tensor;

use super::{FeedForward, Linear, Norm, Pass};
use crate::Result;
use crate::model::{ModelFlops, WeightBuilder};
use crate::ops::Param;

use super::{Block, Spec};

/// Replaces BERT's attention in a block that is otherwise BERT's.
pub trait Mixing: std::fmt::Debug + Send + Sync {
    /// Returns what the output projection takes, (batch, seq, hidden). Dropout draws its keys in a fixed order.
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor>;

    /// Returns all parameters.
    fn params(&self) -> Vec<Param>;

    /// Returns the arithmetic; nothing is counted for the head.
    fn flops(&self) -> ModelFlops;
}

/// BERT's block round another way of mixing tokens.
#[derive(Debug)]
pub struct MixingBlock {
    /// How tokens are mixed.
    pub mixing: Box<dyn Mixing>,
    /// The output projection after it.
    pub mixing_output: Linear,
    /// The dropout probability after that.
    pub mixing_dropout: f64,
    /// The normalization of the first half.
    pub mixing_norm: Norm,
    /// The two feed-forward maps.
    pub feed_forward: FeedForward,
    /// The normalization of the second half.
    pub output_norm: Norm,
}

impl MixingBlock {
    /// Returns the block of `spec` at `place`, round another way of mixing tokens than attention.
    pub(crate) fn new(
        spec: &Spec,
        weights: &WeightBuilder,
        place: &str,
        mixing: Box<dyn Mixing>,
    ) -> Result<Self> {
        spec.check()?;
        let (names, base) = (&spec.layers, weights.pp(spec.base));
        let at = |name: &str| base.pp(name.replace("{}", place));
        let (hidden, inner, std) = (spec.sizes.hidden, spec.sizes.intermediate, spec.std);
        Ok(Self {
            mixing,
            mixing_output: Linear::new(&at(names.attention_output), hidden, hidden, std)?,
            mixing_dropout: spec.dropout.attended,
            mixing_norm: Norm::layer(&at(names.attention_norm), hidden, spec.eps)?,
            feed_forward: FeedForward {
                intermediate: Linear::new(&at(names.intermediate), hidden, inner, std)?,
                activation: spec.activation,
                activation_dropout: spec.dropout.activation,
                output: Linear::new(&at(names.output), inner, hidden, std)?,
                dropout: spec.dropout.output,
            },
            output_norm: Norm::layer(&at(names.output_norm), hidden, spec.eps)?,
        })
    }
}

impl Block for MixingBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let mixed = self.mixing.forward(x, pass)?;
        let mixed = self.mixing_output.forward(&mixed)?;
        let dropout = context.dropout(self.mixing_dropout);
        let x = self.mixing_norm.forward_residual(&mixed, x, dropout)?;
        let fed = self.feed_forward.forward(&x, context)?;
        let dropout = context.dropout(self.feed_forward.dropout);
        self.output_norm.forward_residual(&fed, &x, dropout)
    }

    fn params(&self) -> Vec<Param> {
        [
            self.mixing.params(),
            self.mixing_output.params(),
            self.mixing_norm.params(),
            self.feed_forward.params(),
            self.output_norm.params(),
        ]
        .concat()
    }

    fn flops(&self) -> ModelFlops {
        let mixing = self.mixing.flops();
        let maps = self.mixing_output.weights() + self.feed_forward.weights();
        ModelFlops {
            per_token: mixing.per_token + 2 * maps as u64,
            ..mixing
        }
    }
}

/// The maps to queries, keys and values of several heads.
#[derive(Clone, Debug)]
pub struct Projections {
    /// The map to queries.
    pub query: Linear,
    /// The map to keys.
    pub key: Linear,
    /// The map to values.
    pub value: Linear,
    /// The number of heads.
    pub heads: usize,
    /// The features of one head.
    pub head_size: usize,
}

impl Projections {
    /// Returns the maps that `spec` describes for the block at `place`, under its names followed by `suffix`.
    pub(crate) fn new(
        spec: &Spec,
        weights: &WeightBuilder,
        place: &str,
        suffix: &str,
        bias: bool,
    ) -> Result<Self> {
        spec.check()?;
        let base = weights.pp(spec.base);
        let hidden = spec.sizes.hidden;
        let map = |name: &str| {
            let at = base.pp(format!("{}{suffix}", name.replace("{}", place)));
            match bias {
                true => Linear::new(&at, hidden, hidden, spec.std),
                false => Linear::without_bias(&at, hidden, hidden, spec.std),
            }
        };
        Ok(Self {
            query: map(spec.layers.query)?,
            key: map(spec.layers.key)?,
            value: map(spec.layers.value)?,
            heads: spec.sizes.heads,
            head_size: hidden / spec.sizes.heads,
        })
    }

    /// Returns queries, keys and values of `x`.
    pub fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        Ok([
            self.query.forward(x)?,
            self.key.forward(x)?,
            self.value.forward(x)?,
        ])
    }

    /// Returns all parameters.
    pub fn params(&self) -> Vec<Param> {
        let maps = [&self.query, &self.key, &self.value];
        maps.into_iter().flat_map(Linear::params).collect()
    }

    /// Returns the number of weights.
    pub fn weights(&self) -> usize {
        self.query.weights() + self.key.weights() + self.value.weights()
    }
}
