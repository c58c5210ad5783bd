use candle_core::Tensor;

use super::{Encoder, LayerNorm, Linear};
use crate::Result;
use crate::model::{Decoder, ModelFlops};
use crate::ops::{Activation, Param};

/// The usual masked-LM head: a dense layer, an activation, a normalization, and the product with the vocabulary.
#[derive(Clone, Debug)]
pub struct PredictionHead {
    /// The dense layer.
    pub dense: Linear,
    /// Its activation.
    pub activation: Activation,
    /// The normalization.
    pub norm: LayerNorm,
    /// The (vocab, hidden) matrix, most often the embedding matrix itself.
    pub decoder: Param,
    /// The output bias (vocab).
    pub bias: Param,
}

impl PredictionHead {
    /// Everything before the vocabulary product, for rows of hidden states.
    pub fn transform(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = self.dense.forward_act(hidden, self.activation)?;
        self.norm.forward(&hidden)
    }

    /// The arithmetic of this head on top of `encoder`.
    pub fn flops(&self, encoder: &Encoder) -> ModelFlops {
        let weights = self.dense.weights() + self.decoder.elem_count();
        ModelFlops {
            per_counted: 2 * weights as u64,
            ..encoder.flops()
        }
    }

    /// The vocabulary product's parameters.
    pub fn decoder(&self) -> Decoder {
        Decoder {
            weight: self.decoder.clone(),
            bias: Some(self.bias.clone()),
        }
    }
}
