use candle_core::{Device, Tensor};

use crate::model::{Init, WeightBuilder};
use crate::ops::{self, Param, RelativeIndex, RelativeTerms};
use crate::{Error, Result};

/// The scores that attention adds for the distance between a query and a key. No matrix of queries by keys is formed for it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PositionScores {
    /// The products of queries, and perhaps of keys, with a vector for each distance (Shaw et al. 2018; Huang et al. 2020).
    Vectors {
        /// A row for every distance from `1 - max_positions` to `max_positions - 1`, (2 · max_positions - 1, head size).
        table: Param,
        /// Whether keys meet the vectors too.
        with_query_of_key: bool,
        /// Whether these scores are scaled like the others; ALBERT's are not.
        scaled: bool,
    },
    /// A number for each bucket of distances and each head (Raffel et al. 2019).
    Buckets {
        /// (buckets, heads)
        table: Param,
    },
    /// A constant vector for each distance, which meets the queries and is added to the values (Wei et al. 2019). Distances
    /// of more than the table has rows for share its ends.
    Constants {
        /// (2 · farthest + 1, head size), a row for each place of the key after the query, the farthest before it first.
        table: Tensor,
    },
}

/// The buckets of [`PositionScores::Buckets`] for both directions, whatever the table's size, and the distance from which
/// on all share the last.
const BUCKETS: (u32, u32) = (32, 128);

impl PositionScores {
    /// Returns the scores for a config's `position_embedding_type`; `None` for absolute positions.
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
        let rows = max_positions.saturating_mul(2).saturating_sub(1);
        let weights = weights.pp("distance_embedding");
        Ok(Some(Self::Vectors {
            table: weights.param("weight", (rows, head_size), Init::Normal(std))?,
            with_query_of_key,
            scaled,
        }))
    }

    /// Returns sines and cosines for distances up to `farthest` to both sides, in single precision as transformers has
    /// them.
    pub fn sinusoids(farthest: usize, head_size: usize, device: &Device) -> Result<Self> {
        let rows = 2 * farthest + 1;
        let step = -(10_000f64.ln()) / head_size.max(1) as f64;
        let value = |row: usize, at: usize| {
            let frequency = ((at / 2 * 2) as f32 * step as f32).exp();
            let angle = row as f32 * frequency;
            if at.is_multiple_of(2) {
                angle.sin()
            } else {
                angle.cos()
            }
        };
        let values = (0..rows).flat_map(|row| (0..head_size).map(move |at| value(row, at)));
        let table = Tensor::from_vec(values.collect::<Vec<_>>(), (rows, head_size), device)?;
        Ok(Self::Constants { table })
    }

    /// Returns the terms for this many queries and keys.
    pub(super) fn terms(&self, queries: usize, keys: usize) -> Result<RelativeTerms> {
        Ok(match self {
            Self::Vectors {
                table,
                with_query_of_key,
                scaled,
            } => {
                let most = table.shape().dims2()?.0 as i64 / 2;
                let rows = ops::param_rows(table)?;
                RelativeTerms {
                    key_table: with_query_of_key.then(|| rows.clone()),
                    query_table: Some(rows),
                    scale: (!scaled).then_some(1.0),
                    ..RelativeTerms::new(RelativeIndex::clipped(queries, keys, -most, most))
                }
            }
            Self::Buckets { table } => {
                let (buckets, farthest) = BUCKETS;
                let index = RelativeIndex::t5_buckets(queries, keys, buckets, farthest);
                RelativeTerms {
                    bias_table: Some(ops::param_rows(table)?),
                    ..RelativeTerms::new(index)
                }
            }
            Self::Constants { table } => {
                let farthest = table.dims2()?.0 as i64 / 2;
                let row = |distance: i64| (farthest - distance.clamp(-farthest, farthest)) as u32;
                RelativeTerms {
                    query_table: Some(table.clone()),
                    value_table: Some(table.clone()),
                    ..RelativeTerms::new(RelativeIndex::new(queries, keys, row))
                }
            }
        })
    }

    /// Returns the operations for each pair of a query and a key, by `heads` heads of `head_size` features.
    pub(super) fn flops_per_pair(&self, heads: usize, head_size: usize) -> u64 {
        let products = match self {
            Self::Buckets { .. } => 0,
            Self::Vectors {
                with_query_of_key: false,
                ..
            } => 1,
            Self::Vectors { .. } | Self::Constants { .. } => 2,
        };
        2 * products * (heads * head_size) as u64
    }

    /// Returns all parameters.
    pub(super) fn params(&self) -> Vec<Param> {
        match self {
            Self::Vectors { table, .. } | Self::Buckets { table } => vec![table.clone()],
            Self::Constants { .. } => Vec::new(),
        }
    }
}
