//! Blocks of the encoders since 2023: rotary positions, gated feed-forward maps, windows.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Angles, Block, Linear, Norm, Order, Pass};
use crate::Result;
use crate::model::ModelFlops;
use crate::model::onnx::{Graph, Heads, Value};
use crate::ops::{
    self, Activation, AttentionMask, AttentionOptions, Band, Dropout, FusedLayout, Gate, Param,
};

/// Attention whose queries and keys are rotated by their positions, with its output projection.
#[derive(Clone, Debug)]
pub struct RotaryAttention {
    /// The maps to queries, keys and values.
    pub projection: Projection,
    /// The output projection.
    pub output: Linear,
    /// The number of heads of the queries.
    pub heads: usize,
    /// The number of heads of keys and values.
    pub kv_heads: usize,
    /// The features of one head.
    pub head_size: usize,
    /// The angles.
    pub angles: Arc<Angles>,
    /// How far a query sees; `None`: all the way.
    pub band: Option<Band>,
    /// The dropout probability of the attention weights.
    pub dropout: f64,
}

/// The maps to queries, keys and values.
#[derive(Clone, Debug)]
pub enum Projection {
    /// One map to all three, concatenated.
    Fused(Linear),
    /// A map each.
    Separate([Linear; 3]),
}

impl RotaryAttention {
    /// Returns the projected context vectors of `x` (batch, seq, hidden), of the same shape.
    pub fn forward(&self, x: &Tensor, mask: &AttentionMask, dropout: Dropout) -> Result<Tensor> {
        let options = AttentionOptions {
            kv_heads: Some(self.kv_heads),
            dropout,
            mask: mask.clone(),
            band: self.band,
            rotary: Some(self.angles.for_positions(x.dim(1)?)?),
            ..AttentionOptions::new(self.heads, self.head_size)
        };
        let attended = match &self.projection {
            Projection::Fused(map) => {
                ops::attention_fused(&map.forward(x)?, FusedLayout::Blocks, &options)?
            }
            Projection::Separate([query, key, value]) => {
                let (query, key, value) = (query.forward(x)?, key.forward(x)?, value.forward(x)?);
                ops::attention_with(&query, &key, &value, &options)?
            }
        };
        self.output.forward(&attended)
    }

    /// Writes the attention into an ONNX graph and returns the projected context vectors of `x`.
    pub fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        let [queries, keys] = [self.heads, self.kv_heads].map(|heads| heads * self.head_size);
        let qkv = match &self.projection {
            Projection::Fused(map) => {
                let fused = map.export(x, graph)?;
                graph.split(&fused, &[queries, keys, keys])
            }
            Projection::Separate(maps) => {
                let maps = maps.iter().map(|map| map.export(x, graph));
                maps.collect::<Result<_>>()?
            }
        };
        let heads = Heads {
            queries: self.heads,
            keys: self.kv_heads,
            size: self.head_size,
        };
        let angles = self.angles.export(graph)?;
        let band = self.band.map(|band| [band.left, band.right]);
        let attended = graph.attention([&qkv[0], &qkv[1], &qkv[2]], heads, Some(&angles), band);
        self.output.export(&attended, graph)
    }

    fn maps(&self) -> Vec<&Linear> {
        match &self.projection {
            Projection::Fused(map) => vec![map, &self.output],
            Projection::Separate(maps) => maps.iter().chain([&self.output]).collect(),
        }
    }
}

/// Feed-forward maps, one of which gates the other (Shazeer 2020).
#[derive(Clone, Debug)]
pub struct GatedFeedForward {
    /// The maps to the inner features.
    pub gates: Gates,
    /// The function of the gate.
    pub activation: Activation,
    /// The dropout probability of the inner features.
    pub dropout: f64,
    /// The map back.
    pub output: Linear,
}

/// The two maps to the inner features.
#[derive(Clone, Debug)]
pub enum Gates {
    /// One map to both, concatenated.
    Fused(Linear, Gate),
    /// The map that the activation is applied to, and the other.
    Separate(Linear, Linear),
}

impl GatedFeedForward {
    /// Applies the maps; `dropout` is of the inner features.
    pub fn forward(&self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        let inner = match &self.gates {
            Gates::Fused(map, gate) => ops::gated(&map.forward(x)?, self.activation, *gate)?,
            Gates::Separate(gate, up) => {
                ops::mul(&gate.forward_act(x, self.activation)?, &up.forward(x)?)?
            }
        };
        self.output.forward(&ops::dropout(&inner, dropout)?)
    }

    /// Writes the maps into an ONNX graph and returns their output for `x`.
    pub fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        let (gate, up) = match &self.gates {
            Gates::Fused(map, gate) => {
                let fused = map.export(x, graph)?;
                let half = map.outputs() / 2;
                let halves = graph.split(&fused, &[half, half]);
                match gate {
                    Gate::First => (halves[0].clone(), halves[1].clone()),
                    Gate::Second => (halves[1].clone(), halves[0].clone()),
                }
            }
            Gates::Separate(gate, up) => (gate.export(x, graph)?, up.export(x, graph)?),
        };
        let gate = graph.activation(&gate, self.activation);
        let inner = graph.mul(&gate, &up);
        self.output.export(&inner, graph)
    }

    fn maps(&self) -> Vec<&Linear> {
        match &self.gates {
            Gates::Fused(map, _) => vec![map, &self.output],
            Gates::Separate(gate, up) => vec![gate, up, &self.output],
        }
    }
}

/// A block of rotary attention and gated feed-forward maps.
#[derive(Clone, Debug)]
pub struct GatedBlock {
    /// The attention.
    pub attention: RotaryAttention,
    /// The normalization that belongs to the attention; ModernBERT's first block has none.
    pub attention_norm: Option<Norm>,
    /// The dropout probability after the attention.
    pub attention_dropout: f64,
    /// The feed-forward maps.
    pub feed_forward: GatedFeedForward,
    /// The normalization that belongs to the feed-forward maps.
    pub output_norm: Norm,
    /// The dropout probability after the feed-forward maps.
    pub output_dropout: f64,
    /// Where the normalizations are.
    pub order: Order,
}

impl Block for GatedBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let weights = context.dropout(self.attention.dropout);
        let before = |norm: &Option<Norm>, x: &Tensor| match norm {
            Some(norm) => norm.forward(x),
            None => Ok(x.clone()),
        };
        match self.order {
            Order::PreNorm => {
                let normed = before(&self.attention_norm, x)?;
                let attended = self.attention.forward(&normed, &pass.mask, weights)?;
                let dropout = context.dropout(self.attention_dropout);
                let x = ops::add(&ops::dropout(&attended, dropout)?, x)?;
                let inner = context.dropout(self.feed_forward.dropout);
                let fed = self
                    .feed_forward
                    .forward(&self.output_norm.forward(&x)?, inner)?;
                let dropout = context.dropout(self.output_dropout);
                ops::add(&ops::dropout(&fed, dropout)?, &x)
            }
            Order::PostNorm => {
                let attended = self.attention.forward(x, &pass.mask, weights)?;
                let dropout = context.dropout(self.attention_dropout);
                let x = match &self.attention_norm {
                    Some(norm) => norm.forward_residual(&attended, x, dropout)?,
                    None => ops::add(&ops::dropout(&attended, dropout)?, x)?,
                };
                let inner = context.dropout(self.feed_forward.dropout);
                let fed = self.feed_forward.forward(&x, inner)?;
                let dropout = context.dropout(self.output_dropout);
                self.output_norm.forward_residual(&fed, &x, dropout)
            }
        }
    }

    fn params(&self) -> Vec<Param> {
        let maps = self
            .attention
            .maps()
            .into_iter()
            .chain(self.feed_forward.maps());
        let norms = self.attention_norm.iter().chain([&self.output_norm]);
        maps.flat_map(Linear::params)
            .chain(norms.flat_map(Norm::params))
            .collect()
    }

    fn flops(&self) -> ModelFlops {
        let maps = self
            .attention
            .maps()
            .into_iter()
            .chain(self.feed_forward.maps());
        let weights: usize = maps.map(Linear::weights).sum();
        ModelFlops {
            per_token: 2 * weights as u64,
            per_pair: 4 * (self.attention.heads * self.attention.head_size) as u64,
            per_counted: 0,
        }
    }

    fn takes_packed(&self) -> bool {
        true
    }

    fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        let norm = |norm: &Option<Norm>, x: &Value, graph: &mut Graph| match norm {
            Some(norm) => norm.export(x, graph),
            None => Ok(x.clone()),
        };
        match self.order {
            Order::PreNorm => {
                let normed = norm(&self.attention_norm, x, graph)?;
                let attended = self.attention.export(&normed, graph)?;
                let x = graph.add(&attended, x);
                let normed = self.output_norm.export(&x, graph)?;
                let fed = self.feed_forward.export(&normed, graph)?;
                Ok(graph.add(&fed, &x))
            }
            Order::PostNorm => {
                let attended = self.attention.export(x, graph)?;
                let sum = graph.add(&attended, x);
                let x = norm(&self.attention_norm, &sum, graph)?;
                let fed = self.feed_forward.export(&x, graph)?;
                let sum = graph.add(&fed, &x);
                self.output_norm.export(&sum, graph)
            }
        }
    }
}
