//! Models that work on texts of certain lengths only, and pad them on their own.

use candle_core::Tensor;

use crate::Result;
use crate::model::nn::Head;
use crate::model::{Architecture, Context, ModelFlops, ModelInputs};
use crate::ops;

/// A model whose inputs are padded to a length that it can work on; its results are cut back.
pub(super) struct Padded {
    pub model: Box<dyn Architecture>,
    /// The values of the padding.
    pub pad: u32,
    /// The length, no shorter, that a text of some length is padded to.
    pub length: Box<dyn Fn(usize) -> usize + Send + Sync>,
    pub max_positions: Option<usize>,
}

impl std::fmt::Debug for Padded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut written = f.debug_struct("Padded");
        written.field("model", &self.model).field("pad", &self.pad);
        written.finish_non_exhaustive()
    }
}

impl Architecture for Padded {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let (_, seq) = inputs.shape();
        let length = (self.length)(seq);
        if length <= seq {
            return self.model.hidden_states(inputs, context);
        }
        let padded = inputs.padded_to(length, self.pad);
        let hidden = self.model.hidden_states(&padded, context)?;
        ops::narrow(&hidden, 1, 0, seq)
    }

    fn head(&self) -> &dyn Head {
        self.model.head()
    }

    fn max_positions(&self) -> Option<usize> {
        self.max_positions
    }

    fn flops(&self) -> Option<ModelFlops> {
        self.model.flops()
    }
}
