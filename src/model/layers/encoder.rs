use candle_core::Tensor;

use super::{LayerNorm, Linear, SelfAttention};
use crate::Result;
use crate::model::{Context, ModelFlops};
use crate::ops::{self, Activation, AttentionMask, Dropout, Param};

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
        // Drawn here, so that a block that is run again drops the same elements.
        let places = [
            self.attention.dropout,
            self.attention_dropout,
            self.output_dropout,
        ];
        let dropouts = places.map(|p| context.dropout(p));
        if !context.checkpoints_gradients() {
            return self.run(x, mask, dropouts);
        }
        let (block, mask) = (self.clone(), mask.clone());
        ops::checkpoint(x, &self.params(), move |x| block.run(x, &mask, dropouts))
    }

    fn run(&self, x: &Tensor, mask: &AttentionMask, dropouts: [Dropout; 3]) -> Result<Tensor> {
        let [weights, attended, outer] = dropouts;
        let context = self.attention.forward(x, mask, weights)?;
        let projected = self.attention_output.forward(&context)?;
        let x = self
            .attention_norm
            .forward_residual(&projected, x, attended)?;

        let inner = self.intermediate.forward_act(&x, self.activation)?;
        let projected = self.output.forward(&inner)?;
        self.output_norm.forward_residual(&projected, &x, outer)
    }

    /// All parameters.
    pub fn params(&self) -> Vec<Param> {
        let maps = [&self.attention_output, &self.intermediate, &self.output];
        let norms = [&self.attention_norm, &self.output_norm];
        let mut params = self.attention.params();
        params.extend(maps.into_iter().flat_map(Linear::params));
        params.extend(norms.into_iter().flat_map(LayerNorm::params));
        params
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

    /// The arithmetic of all blocks.
    pub fn flops(&self) -> ModelFlops {
        let mut flops = ModelFlops::default();
        for block in &self.layers {
            let SelfAttention {
                query,
                key,
                value,
                heads,
                head_size,
                ..
            } = &block.attention;
            let maps = [query, key, value, &block.attention_output];
            let maps = maps.into_iter().chain([&block.intermediate, &block.output]);
            flops.per_token += 2 * maps.map(Linear::weights).sum::<usize>() as u64;
            flops.per_pair += 4 * (heads * head_size) as u64;
        }
        flops
    }
}
