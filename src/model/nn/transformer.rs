use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::{Embed, Encoder, Head, Pass, padding_mask};
use crate::Result;
use crate::model::{Architecture, Context, ModelFlops, ModelInputs};

/// Makes [`Pass::inputs`] of a batch, for a model on that device.
pub type Prepare = fn(&ModelInputs, &Device) -> Result<BTreeMap<&'static str, Tensor>>;

/// Embeddings, a stack of blocks, a head: what most families are.
#[derive(Debug)]
pub struct Transformer {
    /// From token ids to vectors.
    pub embeddings: Box<dyn Embed>,
    /// The blocks.
    pub encoder: Encoder,
    /// From vectors to the vocabulary.
    pub head: Box<dyn Head>,
    /// Makes what the family's own blocks need of a batch.
    pub prepare: Option<Prepare>,
    /// The longest sequence in tokens, where there is a limit.
    pub max_positions: Option<usize>,
}

impl Architecture for Transformer {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let embedded = self.embeddings.forward(inputs, context)?;
        let mask = padding_mask(inputs, embedded.device())?;
        let mut pass = Pass::new(mask, context);
        if let Some(prepare) = self.prepare {
            pass.inputs = prepare(inputs, embedded.device())?;
        }
        self.encoder.forward(embedded, &pass)
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
