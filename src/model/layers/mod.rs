//! The parts that many families share.

mod attention;
mod encoder;
mod head;
mod linear;
mod norm;

pub use attention::{PositionScores, SelfAttention, padding_mask};
pub use encoder::{Encoder, PostNormLayer};
pub use head::PredictionHead;
pub use linear::Linear;
pub use norm::LayerNorm;
