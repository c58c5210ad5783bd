use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Angles, Linear};
use crate::model::{Init, ModelInputs, WeightBuilder};
use crate::ops::{self, AttentionMask, AttentionOptions, Dropout, Param};
use crate::{Error, Result};

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
    /// The context vectors of `x` (batch, seq, hidden): the same shape. `dropout` is of the attention weights.
    pub fn forward(&self, x: &Tensor, mask: &AttentionMask, dropout: Dropout) -> Result<Tensor> {
        self.forward_of(x, x, mask, dropout)
    }

    /// As [`SelfAttention::forward`], with queries and keys from `x` and values from `values`.
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
        let with_positions;
        let mask = match &self.position_scores {
            None => mask,
            Some(positions) => {
                let mut scores = positions.forward(&query, &key, self.heads)?;
                if positions.scaled {
                    scores = ops::scale(&scores, scale)?;
                }
                with_positions = add_scores(mask, scores)?;
                &with_positions
            }
        };
        ops::attention(&query, &key, &value, self.heads, mask, scale, dropout)
    }

    /// Returns the number of weights of the three maps.
    pub fn weights(&self) -> usize {
        let maps = [&self.query, &self.key, &self.value];
        maps.into_iter().map(Linear::weights).sum()
    }

    /// Returns the operations for each pair of a query and a key.
    pub fn flops_per_pair(&self) -> u64 {
        4 * (self.heads * self.head_size) as u64
    }

    /// Returns all parameters.
    pub fn params(&self) -> Vec<Param> {
        let maps = [&self.query, &self.key, &self.value];
        let distances = self.position_scores.iter().map(|p| p.distances.clone());
        maps.into_iter()
            .flat_map(Linear::params)
            .chain(distances)
            .collect()
    }
}

/// Relative positions in the scores (Shaw et al. 2018 with keys; Huang et al. 2020 with keys and queries).
#[derive(Clone, Debug)]
pub struct PositionScores {
    distances: Param,
    with_query_of_key: bool,
    max_positions: usize,
    /// Whether these scores are scaled like the others; ALBERT's are not.
    scaled: bool,
}

impl PositionScores {
    /// The scores that a config's `position_embedding_type` asks for; `None` for absolute positions.
    pub fn new(
        weights: &WeightBuilder,
        kind: &str,
        max_positions: usize,
        head_size: usize,
        std: f64,
        scaled: bool,
    ) -> Result<Option<Self>> {
        let with_query_of_key = match kind {
            "absolute" => return Ok(None),
            "relative_key" => false,
            "relative_key_query" => true,
            other => {
                return Err(Error::Config(format!(
                    "unknown position_embedding_type {other:?}; known are absolute, relative_key, relative_key_query"
                )));
            }
        };
        let rows = (2 * max_positions).saturating_sub(1);
        let weights = weights.pp("distance_embedding");
        Ok(Some(Self {
            distances: weights.param("weight", (rows, head_size), Init::Normal(std))?,
            with_query_of_key,
            max_positions,
            scaled,
        }))
    }

    /// (batch, heads, query, key) scores, before scaling.
    fn forward(&self, query: &Tensor, key: &Tensor, heads: usize) -> Result<Tensor> {
        let (_, seq, _) = query.dims3()?;
        let ids: Vec<u32> = (0..seq)
            .flat_map(|l| (0..seq).map(move |r| (l, r)))
            .map(|(l, r)| (l + self.max_positions - 1 - r) as u32)
            .collect();
        let ids = Tensor::from_vec(ids, (seq, seq), &Device::Cpu)?;
        let table = ops::embedding(&ids, &self.distances, None)?;
        let by_query = per_position(query, heads, &table)?;
        if !self.with_query_of_key {
            return Ok(by_query);
        }
        let by_key = per_position(key, heads, &table.transpose(0, 1)?)?.transpose(2, 3)?;
        Ok((by_query + by_key)?)
    }
}

/// `out[b, h, l, r] = Σ_d x[b, l, h, d] · table[l, r, d]`.
fn per_position(x: &Tensor, heads: usize, table: &Tensor) -> Result<Tensor> {
    let (batch, seq, hidden) = x.dims3()?;
    let x = x.reshape((batch, seq, heads, hidden / heads))?;
    let x = x.permute((1, 0, 2, 3))?.contiguous()?;
    let x = x.reshape((seq, batch * heads, hidden / heads))?;
    let scores = x.matmul(&table.transpose(1, 2)?.contiguous()?)?;
    let scores = scores.reshape((seq, batch, heads, seq))?;
    Ok(scores.permute((1, 2, 0, 3))?.contiguous()?)
}

/// Joins a mask with scores that are added before the softmax.
fn add_scores(mask: &AttentionMask, scores: Tensor) -> Result<AttentionMask> {
    Ok(AttentionMask::Additive(match mask {
        AttentionMask::Additive(bias) => scores.broadcast_add(bias)?,
        AttentionMask::Keys(keys) => {
            let (batch, seq) = keys.dims2()?;
            let closed = (1.0 - keys.to_dtype(scores.dtype())?)? * ops::lowest(scores.dtype());
            scores.broadcast_add(&closed?.reshape((batch, 1, 1, seq))?)?
        }
        _ => scores,
    }))
}

/// Keeps every query away from padding; no mask at all where there is no padding.
pub fn padding_mask(inputs: &ModelInputs, device: &Device) -> Result<AttentionMask> {
    if !inputs.has_padding() {
        return Ok(AttentionMask::None);
    }
    let mask = inputs.tensor_of(&inputs.attention_mask, device)?;
    Ok(AttentionMask::Keys(mask))
}
