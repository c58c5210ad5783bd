use candle_core::Tensor;

use super::{LayerNorm, Linear, SelfAttention};
use crate::Result;
use crate::model::Context;
use crate::ops::{Activation, AttentionMask};

/// A transformer block as in Vaswani et al. 2017: attention and feed-forward, each followed by dropout, the residual
/// connection and a normalization.
#[derive(Clone, Debug)]
pub struct PostNormLayer {
    /// The attention up to its output projection.
    pub attention: SelfAttention,
    /// The attention's output projection.
    pub attention_output: Linear,
    /// The dropout probability behind the attention's output projection.
    pub attention_dropout: f64,
    /// The normalization behind the attention.
    pub attention_norm: LayerNorm,
    /// The first feed-forward map.
    pub intermediate: Linear,
    /// The function between the two maps.
    pub activation: Activation,
    /// The second feed-forward map.
    pub output: Linear,
    /// The dropout probability behind it.
    pub output_dropout: f64,
    /// The normalization at the end of the block.
    pub output_norm: LayerNorm,
}

impl PostNormLayer {
    /// The block's output for `x` (batch, seq, hidden): the same shape.
    pub fn forward(&self, x: &Tensor, mask: &AttentionMask, context: &Context) -> Result<Tensor> {
        let attended = self.attention.forward(x, mask, context)?;
        let attended = self.attention_output.forward(&attended)?;
        let dropout = context.dropout(self.attention_dropout);
        let x = self
            .attention_norm
            .forward_residual(&attended, x, dropout)?;

        let inner = self.intermediate.forward_act(&x, self.activation)?;
        let outer = self.output.forward(&inner)?;
        let dropout = context.dropout(self.output_dropout);
        self.output_norm.forward_residual(&outer, &x, dropout)
    }
}

/// A stack of blocks.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// The blocks, first to last.
    pub layers: Vec<PostNormLayer>,
}

impl Encoder {
    /// The last block's output for `x` (batch, seq, hidden).
    pub fn forward(&self, x: Tensor, mask: &AttentionMask, context: &Context) -> Result<Tensor> {
        self.layers
            .iter()
            .try_fold(x, |x, layer| layer.forward(&x, mask, context))
    }
}
