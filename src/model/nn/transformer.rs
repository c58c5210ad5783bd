use candle_core::Tensor;

use super::{Embeddings, Encoder, Head, Pass, padding_mask};
use crate::Result;
use crate::model::{Architecture, Context, ModelFlops, ModelInputs};

/// Embeddings, a stack of blocks, a head: what most families are.
#[derive(Debug)]
pub struct Transformer {
    /// From token ids to vectors.
    pub embeddings: Embeddings,
    /// The blocks.
    pub encoder: Encoder,
    /// From vectors to the vocabulary.
    pub head: Box<dyn Head>,
    /// The longest sequence in tokens, where there is a limit.
    pub max_positions: Option<usize>,
}

impl Architecture for Transformer {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let embedded = self.embeddings.forward(inputs, context)?;
        let mask = padding_mask(inputs, embedded.device())?;
        self.encoder.forward(embedded, &Pass::new(mask, context))
    }

    fn head(&self) -> &dyn Head {
        &*self.head
    }

    fn flops(&self) -> Option<ModelFlops> {
        Some(ModelFlops {
            per_counted: 2 * self.head.weights() as u64,
            ..self.encoder.flops()
        })
    }

    fn max_positions(&self) -> Option<usize> {
        self.max_positions
    }
}
