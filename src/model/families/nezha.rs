//! NEZHA (Wei et al. 2019, arXiv:1909.00204): a Chinese BERT whose positions are sines and cosines of the distance between
//! two tokens, in the scores and in the values.
//!
//! They are constants: not trained, and not in checkpoints.

use std::sync::Arc;

use serde::Deserialize;

use super::bert;
use crate::model::nn::{Block, PositionScores, Positions, Spec};
use crate::model::{Architecture, Config, Family, WeightBuilder};
use crate::{Error, Result};

/// `NezhaForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "nezha",
    class: "NezhaForMaskedLM",
    synonyms: &["NezhaForPreTraining", "NezhaModel"],
    base: "nezha",
    ignored: &[
        "position_ids",
        "positions_encoding",
        "embeddings.position_embeddings",
    ],
    defaults: r#"{"vocab_size": 21128}"#,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Distances {
    max_position_embeddings: usize,
    max_relative_position: usize,
}

impl Default for Distances {
    fn default() -> Self {
        Self {
            max_position_embeddings: 512,
            max_relative_position: 64,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let distances: Distances = config.parse()?;
    let config = &config.clone().set("position_embedding_type", "absolute");
    let spec = Spec {
        base: "nezha",
        positions: Positions::InAttention {
            most: Some(distances.max_position_embeddings),
        },
        ..bert::spec(config)?
    };
    spec.check()?;
    let farthest = distances.max_relative_position;
    if farthest > MOST {
        return Err(Error::Config(format!(
            "max_relative_position {farthest} is more than any model has; at most {MOST} can be built"
        )));
    }
    let head_size = spec.sizes.hidden / spec.sizes.heads;
    if head_size > MOST {
        return Err(Error::Config(format!(
            "hidden_size {} and num_attention_heads {} make heads of {head_size}; at most {MOST} can be built",
            spec.sizes.hidden, spec.sizes.heads
        )));
    }
    if (2 * farthest + 1) * head_size > LARGEST {
        return Err(Error::Config(format!(
            "max_relative_position {farthest} with heads of {head_size} makes a table of more than {LARGEST} numbers"
        )));
    }
    let scores = PositionScores::sinusoids(farthest, head_size, &weights.device())?;
    let block = |place: &String| {
        let mut block = spec.block(weights, place)?;
        block.attention.position_scores = Some(scores.clone());
        Ok(Arc::new(block) as Arc<dyn Block>)
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}

/// More than the longest sequence that any model takes, and than the widest head.
const MOST: usize = 1 << 16;
/// The table of distances has 129 rows of 64 numbers in published models.
const LARGEST: usize = 1 << 25;
