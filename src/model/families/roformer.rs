//! RoFormer (Su et al. 2021, arXiv:2104.09864): BERT whose queries and keys are rotated by their positions. Its published
//! models read Chinese by words.

use std::sync::Arc;

use serde::Deserialize;

use super::bert;
use crate::model::nn::{Angles, Block, Positions, SelfAttention, Sizes, Spec, TransformerBlock};
use crate::model::{Architecture, Config, Family, Init, WeightBuilder};
use crate::ops::{Rotary, RotaryPairs};
use crate::{Error, Result};

/// `RoFormerForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "roformer",
    class: "RoFormerForMaskedLM",
    synonyms: &["RoFormerModel"],
    base: "roformer",
    body: &["embeddings.", "embeddings_project.", "encoder."],
    defaults: r#"{"vocab_size": 50000, "max_position_embeddings": 1536}"#,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RoFormerConfig {
    /// The hidden size where it is absent.
    embedding_size: Option<usize>,
    rotary_value: bool,
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: RoFormerConfig = config.parse()?;
    let spec = bert::spec(config)?;
    let Positions::Table { rows, .. } = spec.positions else {
        return Err(Error::Config(
            "RoFormer has rotary positions, and no position_embedding_type".to_owned(),
        ));
    };
    let embedding = values.embedding_size.unwrap_or(spec.sizes.hidden);
    let spec = Spec {
        base: "roformer",
        sizes: Sizes {
            embedding,
            output: embedding,
            ..spec.sizes
        },
        positions: Positions::InAttention { most: Some(rows) },
        projection: (embedding != spec.sizes.hidden).then_some("embeddings_project"),
        ..spec
    };
    spec.check()?;
    // As the checkpoint has them, though they could be worked out: a row is [sines, cosines].
    let width = spec.sizes.hidden / spec.sizes.heads;
    let name = "roformer.encoder.embed_positions.weight";
    let table = weights.buffer(name, (rows, width), Init::SinusoidHalves)?;
    let (sin, cos) = (
        table.narrow(1, 0, width / 2)?,
        table.narrow(1, width / 2, width / 2)?,
    );
    let tables = Rotary::new(&cos, &sin, width, RotaryPairs::Interleaved)?;
    let angles = Arc::new(Angles::of_tables(tables.with_values(values.rotary_value)));
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let block = spec.block(weights, place)?;
        Ok(Arc::new(TransformerBlock {
            attention: SelfAttention {
                angles: Some(Arc::clone(&angles)),
                ..block.attention
            },
            ..block
        }))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}
