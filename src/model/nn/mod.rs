//! The parts that families are made of.

mod angles;
mod attention;
mod block;
mod embeddings;
mod encoder;
mod gated;
mod head;
mod linear;
mod mixing;
mod norm;
mod position_scores;
mod repeat;
mod spec;
mod transformer;

pub use angles::Angles;
pub use attention::{SelfAttention, padding_mask};
pub use block::{Block, FeedForward, Order, Pass, TransformerBlock};
pub use embeddings::{Embed, Embeddings, Ids, Lookup};
pub use encoder::Encoder;
pub(crate) use encoder::run;
pub(crate) use encoder::run_part;
pub use gated::{GatedBlock, GatedFeedForward, Gates, Projection, RotaryAttention};
pub use head::{Head, PredictionHead};
pub use linear::Linear;
pub use mixing::{Mixing, MixingBlock, Projections};
pub use norm::Norm;
pub use position_scores::PositionScores;
pub(crate) use repeat::repeated;
pub(crate) use spec::{
    Dropouts, HeadNames, LayerNames, MOST_LAYERS, Positions, Sizes, Spec, Stream, check_layers,
    check_layers_up_to, numbered,
};
pub use transformer::{Prepare, Transformer};
