//! BigBird (Zaheer et al. 2020, arXiv:2007.14062): BERT for long texts, in which a block of tokens sees the first and the last
//! block, its neighbours, and a few random ones.
//!
//! Texts of no more than (5 + 2 · `num_random_blocks`) · `block_size` tokens are attended to in full, as by transformers,
//! though there a model that has once seen such a text goes on like that; time and memory grow with the length of longer
//! ones. In evaluation every random block is the first, as in transformers, so that results do not depend on chance. In
//! training each pass draws its own from the run's seed; there is no dropout of attention probabilities in blocks.
//!
//! To go through a run again, the input `rand_attn` gives the random blocks, the same for every text: for each layer, head
//! and block but the first and the last, `num_random_blocks` numbers of blocks, one behind the other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::bert::{self, BertConfig};
use crate::model::context::mix;
use crate::model::nn::{
    Block, Embed, Embeddings, Mixing, MixingBlock, Pass, Positions, Projections, Spec, Transformer,
};
use crate::model::{
    Architecture, Config, Context, Family, Input, Masked, ModelFlops, ModelInputs, Per, Sharing,
    WeightBuilder,
};
use crate::ops::{self, AttentionOptions, Param, SparsePlan};
use crate::{Error, Result};

/// `BigBirdForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "big_bird",
    class: "BigBirdForMaskedLM",
    synonyms: &["BigBirdForPreTraining", "BigBirdModel"],
    carried: &["bert.pooler."],
    defaults: r#"{"vocab_size": 50358, "hidden_act": "gelu_new", "max_position_embeddings": 4096}"#,
    inputs: &[Input {
        name: RANDOM,
        per: Per::Place,
        trailing: &[],
        padding: 0,
        masked: Masked::Kept,
    }],
    // The last block of a batch is seen by all.
    sharing: Sharing::OneLength,
    build,
    ..bert::FAMILY
};

/// The input with the random blocks, and the name by which a pass knows it.
const RANDOM: &str = "rand_attn";

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct BigBirdConfig {
    attention_type: String,
    use_bias: bool,
    rescale_embeddings: bool,
    block_size: usize,
    num_random_blocks: usize,
}

impl Default for BigBirdConfig {
    fn default() -> Self {
        Self {
            attention_type: "block_sparse".to_owned(),
            use_bias: true,
            rescale_embeddings: false,
            block_size: 64,
            num_random_blocks: 3,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: BigBirdConfig = config.parse()?;
    let rows = config.parse::<BertConfig>()?.max_position_embeddings;
    let spec = Spec {
        positions: Positions::Table { rows, offset: 0 },
        ..bert::spec(config)?
    };
    let blocks = match values.attention_type.as_str() {
        "original_full" => None,
        "block_sparse" => Some(Blocks::new(&values, &spec)?),
        other => {
            return Err(Error::Config(format!(
                "unknown attention_type {other:?}; known are block_sparse and original_full"
            )));
        }
    };
    let hidden = spec.sizes.hidden;
    let pooler = weights.pp(spec.base);
    pooler.carry_linear("pooler", hidden, hidden, spec.std)?;
    let mut embeddings = spec.embeddings(weights)?;
    let head = spec.head(weights, &embeddings.lookups[0].table)?;
    let dropout = std::mem::take(&mut embeddings.dropout);
    let block = |(layer, place): (usize, &String)| -> Result<Arc<dyn Block>> {
        let mixing = BlockAttention {
            maps: Projections::new(&spec, weights, place, "", values.use_bias)?,
            dropout: spec.dropout.attention,
            layer,
            blocks,
        };
        let block = MixingBlock::new(&spec, weights, place, Box::new(mixing))?;
        Ok(Arc::new(block))
    };
    let blocks = spec.places.iter().enumerate().map(block);
    let blocks = blocks.collect::<Result<_>>()?;
    let scale = (spec.sizes.hidden as f64).sqrt();
    Ok(Box::new(Transformer {
        encoder: spec.encoder(weights, blocks)?,
        embeddings: Box::new(ScaledEmbeddings {
            embeddings,
            scale: values.rescale_embeddings.then_some(scale),
            dropout,
        }),
        head: Box::new(head),
        prepare: Some(prepare),
        max_positions: spec.max_positions(),
    }))
}

fn prepare(inputs: &ModelInputs, _: &Device) -> Result<BTreeMap<&'static str, Tensor>> {
    let Some(column) = inputs.columns.get(RANDOM) else {
        return Ok(BTreeMap::new());
    };
    let count = column.len() / inputs.batch;
    let ids = column.as_ids(RANDOM)?[..count].to_vec();
    let ids = Tensor::from_vec(ids, count, &Device::Cpu)?;
    Ok(BTreeMap::from([(RANDOM, ids)]))
}

/// Embeddings whose words may be scaled, and whose dropout comes before the normalization.
#[derive(Debug)]
struct ScaledEmbeddings {
    embeddings: Embeddings,
    scale: Option<f64>,
    dropout: f64,
}

impl Embed for ScaledEmbeddings {
    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let sum = match self.scale {
            Some(scale) => {
                let (words, others) = self.embeddings.split_first();
                ops::add(
                    &ops::scale(&words.sum(inputs)?, scale)?,
                    &others.sum(inputs)?,
                )?
            }
            None => self.embeddings.sum(inputs)?,
        };
        let sum = ops::dropout(&sum, context.dropout(self.dropout))?;
        self.embeddings.finish(&sum, context)
    }
}

/// How a text is cut into blocks.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    size: usize,
    /// How many random blocks each block sees.
    random: usize,
    layers: usize,
    heads: usize,
}

impl Blocks {
    fn new(values: &BigBirdConfig, spec: &Spec) -> Result<Self> {
        if values.block_size == 0 {
            return Err(Error::Config("block_size must be positive".to_owned()));
        }
        Ok(Self {
            size: values.block_size,
            random: values.num_random_blocks,
            layers: spec.places.len(),
            heads: spec.sizes.heads,
        })
    }

    /// Returns whether texts of that length are long enough for it.
    fn serve(&self, seq: usize) -> bool {
        let least = self.random.saturating_mul(2).saturating_add(5);
        seq > least.saturating_mul(self.size)
    }

    /// Returns which keys the blocks of a text see where block i of head h sees the random blocks `random(h, i)`.
    fn plan(
        &self,
        seq: usize,
        heads: usize,
        mut random: impl FnMut(usize, usize) -> Vec<usize>,
    ) -> Result<SparsePlan> {
        let count = seq.div_ceil(self.size);
        let keys =
            |blocks: Range<usize>| blocks.start * self.size..(blocks.end * self.size).min(seq);
        let mut row = |head: usize, block: usize| {
            let near = match block {
                0 => return vec![keys(0..count)],
                block if block + 1 == count => return vec![keys(0..count)],
                1 => vec![keys(0..3), keys(count - 1..count)],
                block if block + 2 == count => vec![keys(0..1), keys(count - 3..count)],
                block => vec![
                    keys(0..1),
                    keys(block - 1..block + 2),
                    keys(count - 1..count),
                ],
            };
            let far = random(head, block).into_iter();
            let far = far.map(|block| keys(block..block + 1));
            near.into_iter().chain(far).collect()
        };
        let head = |head| (0..count).map(|block| row(head, block)).collect();
        let ranges = (0..heads).map(head).collect();
        SparsePlan::per_head(seq, seq, self.size, ranges)
    }

    /// Returns the plan by the numbers that were given for all layers.
    fn given(&self, seq: usize, layer: usize, ids: &Tensor) -> Result<SparsePlan> {
        let count = seq.div_ceil(self.size);
        let of_layer = self.heads * (count - 2) * self.random;
        let ids = ids.to_vec1::<i64>()?;
        let fits = |&id: &i64| (0..count as i64).contains(&id);
        if ids.len() != self.layers * of_layer || !ids.iter().all(fits) {
            return Err(Error::argument(
                RANDOM,
                format!(
                    "{} layers, {} heads, {} blocks between the first and the last and {} random blocks make {} numbers \
                     from 0 to {}; given are {}",
                    self.layers,
                    self.heads,
                    count - 2,
                    self.random,
                    self.layers * of_layer,
                    count - 1,
                    ids.len()
                ),
            ));
        }
        self.plan(seq, self.heads, |head, block| {
            let at = layer * of_layer + (head * (count - 2) + block - 1) * self.random;
            let ids = &ids[at..at + self.random];
            ids.iter().map(|&id| id as usize).collect()
        })
    }

    /// Returns the plan with random blocks drawn by `key`: distinct ones for each block, none of which it attends to
    /// otherwise.
    fn drawn(&self, seq: usize, key: u64) -> Result<SparsePlan> {
        let count = seq.div_ceil(self.size);
        self.plan(seq, self.heads, |head, block| {
            let near = |other: usize| {
                other.abs_diff(block) <= 1
                    || (block == 1 && other + 2 == count)
                    || (block + 2 == count && other == 1)
            };
            let mut others: Vec<usize> = (1..count - 1).filter(|&other| !near(other)).collect();
            let start = mix(key ^ mix((head * count + block) as u64));
            for i in 0..self.random.min(others.len()) {
                let left = (others.len() - i) as u128;
                let draw = u128::from(mix(start ^ mix(i as u64)));
                others.swap(i, i + ((draw * left) >> 64) as usize);
            }
            others.truncate(self.random);
            others
        })
    }
}

/// Attention among blocks, or in full.
#[derive(Debug)]
struct BlockAttention {
    maps: Projections,
    /// Of full attention's probabilities.
    dropout: f64,
    layer: usize,
    /// `None` where all attention is full.
    blocks: Option<Blocks>,
}

impl Mixing for BlockAttention {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let seq = x.dim(1)?;
        let [q, k, v] = self.maps.forward(x)?;
        let options = AttentionOptions {
            mask: pass.mask.clone(),
            ..AttentionOptions::new(self.maps.heads, self.maps.head_size)
        };
        let Some(blocks) = self.blocks.filter(|blocks| blocks.serve(seq)) else {
            let options = AttentionOptions {
                dropout: pass.context.dropout(self.dropout),
                ..options
            };
            return ops::attention_with(&q, &k, &v, &options);
        };
        let plan = match (pass.inputs.get(RANDOM), pass.context.draw()) {
            (Some(ids), _) => blocks.given(seq, self.layer, ids)?,
            (None, Some(key)) => blocks.drawn(seq, key)?,
            (None, None) => blocks.plan(seq, 1, |_, _| vec![0; blocks.random])?,
        };
        let options = AttentionOptions {
            query_mask: match &pass.mask {
                ops::AttentionMask::Keys(mask) => Some(mask.clone()),
                _ => None,
            },
            ..options
        };
        ops::sparse_attention(&q, &k, &v, &plan, &options)
    }

    fn params(&self) -> Vec<Param> {
        self.maps.params()
    }

    /// Of texts that are long enough for blocks, where there are blocks.
    fn flops(&self) -> ModelFlops {
        let maps = 2 * self.maps.weights() as u64;
        let pair = 4 * (self.maps.heads * self.maps.head_size) as u64;
        let seen = self.blocks.map(|blocks| (5 + blocks.random) * blocks.size);
        ModelFlops {
            per_token: maps + seen.map_or(0, |seen| pair * seen as u64),
            per_pair: if seen.is_some() { 0 } else { pair },
            ..ModelFlops::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_blocks_are_distinct_and_not_attended_to_otherwise() {
        let blocks = Blocks {
            size: 4,
            random: 3,
            layers: 1,
            heads: 2,
        };
        let count = 13;
        let drawn = |key| {
            let plan = blocks.drawn(4 * count - 1, key).unwrap();
            let ranges = |head| (0..count).map(move |block| (head, block));
            let all = ranges(0).chain(ranges(1));
            all.map(|(head, block)| plan.ranges(head, block).to_vec())
                .collect::<Vec<_>>()
        };
        let rows = drawn(7);
        for (at, row) in rows.iter().enumerate() {
            let mut seen: Vec<usize> = row.iter().flat_map(Clone::clone).collect();
            let length = seen.len();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), length, "block {at} sees a key twice: {row:?}");
            let own = (at % count) * 4;
            assert!(seen.contains(&own) && seen.contains(&0) && seen.contains(&(4 * count - 2)));
        }
        assert_eq!(rows, drawn(7));
        assert_ne!(rows, drawn(8));
        assert_ne!(rows[..count], rows[count..]);
    }
}
