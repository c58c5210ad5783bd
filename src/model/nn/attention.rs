use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Angles, Linear, PositionScores};
use crate::Result;
use crate::model::ModelInputs;
use crate::model::onnx::{self, Graph, Heads, Value};
use crate::ops::{self, AttentionMask, AttentionOptions, Dropout, Param};

/// Multi-head self-attention up to, but without, the output projection.
#[derive(Clone, Debug)]
pub struct SelfAttention {
    /// The projection to queries.
    pub query: Linear,
    /// The projection to keys.
    pub key: Linear,
    /// The projection to values.
    pub value: Linear,
    /// The number of heads.
    pub heads: usize,
    /// The features of one head.
    pub head_size: usize,
    /// The dropout probability of the attention weights.
    pub dropout: f64,
    /// Scores that depend on the distance between two positions.
    pub position_scores: Option<PositionScores>,
    /// Angles by which queries and keys are rotated.
    pub angles: Option<Arc<Angles>>,
}

impl SelfAttention {
    /// Returns the context vectors of `x` (batch, seq, hidden): the same shape. `dropout` is of the attention weights.
    pub fn forward(&self, x: &Tensor, mask: &AttentionMask, dropout: Dropout) -> Result<Tensor> {
        self.forward_of(x, x, mask, dropout)
    }

    /// Like [`SelfAttention::forward`], with queries and keys from `x` and values from `values`.
    pub fn forward_of(
        &self,
        x: &Tensor,
        values: &Tensor,
        mask: &AttentionMask,
        dropout: Dropout,
    ) -> Result<Tensor> {
        let query = self.query.forward(x)?;
        let key = self.key.forward(x)?;
        let value = self.value.forward(values)?;
        let scale = 1.0 / (self.head_size as f64).sqrt();
        if let Some(angles) = &self.angles {
            let options = AttentionOptions {
                dropout,
                mask: mask.clone(),
                rotary: Some(angles.for_positions(x.dim(1)?)?),
                ..AttentionOptions::new(self.heads, self.head_size)
            };
            return ops::attention_with(&query, &key, &value, &options);
        }
        let Some(positions) = &self.position_scores else {
            return ops::attention(&query, &key, &value, self.heads, mask, scale, dropout);
        };
        let options = AttentionOptions {
            scale,
            dropout,
            mask: mask.clone(),
            ..AttentionOptions::new(self.heads, self.head_size)
        };
        let [queries, keys] = [query.dim(1)?, key.dim(1)?].map(|len| mask.longest(len));
        let terms = positions.terms(queries, keys)?;
        ops::relative_attention(&query, &key, &value, &terms, &options)
    }

    /// Writes the attention into an ONNX graph and returns the context vectors of `x`.
    pub fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        if self.position_scores.is_some() {
            return Err(onnx::refused("attention with relative positions"));
        }
        let query = self.query.export(x, graph)?;
        let key = self.key.export(x, graph)?;
        let value = self.value.export(x, graph)?;
        let heads = Heads {
            queries: self.heads,
            keys: self.heads,
            size: self.head_size,
        };
        let angles = self.angles.as_ref();
        let angles = angles.map(|angles| angles.export(graph)).transpose()?;
        Ok(graph.attention([&query, &key, &value], heads, angles.as_ref(), None))
    }

    /// Returns whether what a position attends to depends on its place, apart from padding.
    pub fn depends_on_places(&self, mask: &AttentionMask) -> bool {
        !matches!(mask, AttentionMask::None | AttentionMask::Keys(_))
            || self.angles.is_some()
            || self.position_scores.is_some()
    }

    /// Returns the context vectors of `some` (batch, count, hidden), which are any of the positions of `x` (batch, seq,
    /// hidden): for attention that does not [depend on places](Self::depends_on_places).
    pub fn forward_some(
        &self,
        some: &Tensor,
        x: &Tensor,
        mask: &AttentionMask,
        dropout: Dropout,
    ) -> Result<Tensor> {
        let query = self.query.forward(some)?;
        let key = self.key.forward(x)?;
        let value = self.value.forward(x)?;
        let scale = 1.0 / (self.head_size as f64).sqrt();
        ops::attention(&query, &key, &value, self.heads, mask, scale, dropout)
    }

    /// Returns the number of weights of the three maps.
    pub fn weights(&self) -> usize {
        let maps = [&self.query, &self.key, &self.value];
        maps.into_iter().map(Linear::weights).sum()
    }

    /// Returns the operations for each pair of a query and a key.
    pub fn flops_per_pair(&self) -> u64 {
        let positions = self.position_scores.as_ref();
        let positions = positions.map_or(0, |p| p.flops_per_pair(self.heads, self.head_size));
        4 * (self.heads * self.head_size) as u64 + positions
    }

    /// Returns all parameters.
    pub fn params(&self) -> Vec<Param> {
        let maps = [&self.query, &self.key, &self.value];
        let distances = self.position_scores.iter().flat_map(PositionScores::params);
        maps.into_iter()
            .flat_map(Linear::params)
            .chain(distances)
            .collect()
    }
}

/// Keeps every query away from padding; no mask at all where there is no padding.
pub fn padding_mask(inputs: &ModelInputs, device: &Device) -> Result<AttentionMask> {
    if !inputs.has_padding() {
        return Ok(AttentionMask::None);
    }
    let mask = inputs.tensor_of(&inputs.attention_mask, device)?;
    Ok(AttentionMask::Keys(mask))
}
