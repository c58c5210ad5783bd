//! The interface of a family's model.

use candle_core::{DType, Device, Tensor};

use super::nn::Head;
use super::onnx::{self, Graph, Value};
use super::{Context, MlmLoss, ModelFlops, ModelInputs};
use crate::Result;
use crate::ops;

/// A family's part of a model; everything else follows from it.
pub trait Architecture: std::fmt::Debug + Send + Sync {
    /// Returns the last hidden states, (batch, seq, hidden), the input of the head.
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor>;

    /// Returns the head.
    fn head(&self) -> &dyn Head;

    /// Returns the longest sequence the model can take, in tokens; `None` if there is no limit.
    fn max_positions(&self) -> Option<usize>;

    /// Returns the model's main input: `input_ids`, or the column of that name.
    fn main_input(&self) -> &'static str {
        "input_ids"
    }

    /// Returns the floating-point operations of a pass; `None` where the family does not count them.
    fn flops(&self) -> Option<ModelFlops> {
        None
    }

    /// Writes the model into an ONNX graph and returns its logits.
    ///
    /// # Errors
    /// If the family has parts that can't be exported; the default implementation always fails.
    fn export(&self, _graph: &mut Graph) -> Result<Value> {
        Err(onnx::refused("the way the family puts its parts together"))
    }

    /// Returns the hidden states of `rows` (flat indices into the batch) alone, (rows, hidden).
    fn hidden_rows(
        &self,
        inputs: &ModelInputs,
        rows: Vec<u32>,
        context: &Context,
    ) -> Result<Tensor> {
        rows_of(&self.hidden_states(inputs, context)?, rows)
    }

    /// Returns the logits over the vocabulary for every position, (batch, seq, vocab).
    fn logits(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let head = self.head();
        head.logits(&head.transform(&self.hidden_states(inputs, context)?)?)
    }

    /// Returns the logits over the entity vocabulary for every entity, (batch, entities, entity vocab); `None` where the
    /// family predicts no entities.
    ///
    /// # Errors
    /// If the inputs have no entities.
    fn entity_logits(&self, _inputs: &ModelInputs, _context: &Context) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Returns how many positions each term of the loss counts.
    fn counts(&self, inputs: &ModelInputs) -> Vec<usize> {
        vec![inputs.counted_tokens()]
    }

    /// Returns the loss of the counted positions. Only their rows meet the head and the vocabulary.
    fn loss(&self, inputs: &ModelInputs, context: &Context) -> Result<MlmLoss> {
        let head = self.head();
        let (rows, targets) = inputs.counted(head.vocab_size())?;
        let counted = rows.len();
        if counted == 0 {
            // Nothing to learn from: a batch may happen to have no mask, and its sum is then zero.
            let sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            return Ok(MlmLoss::of_tokens(sum, 0));
        }
        let hidden = self.hidden_rows(inputs, rows, context)?;
        // Where the loss reads them.
        let targets = Tensor::from_vec(targets, counted, &Device::Cpu)?;
        let transformed = head.transform(&hidden)?;
        context.keep_logits(|| head.logits(&transformed))?;
        let sum = match context.smooths_labels() {
            0.0 => head.loss(&transformed, &targets)?,
            part => ops::smoothed_cross_entropy(&head.logits(&transformed)?, &targets, part)?,
        };
        Ok(MlmLoss::of_tokens(sum, counted))
    }
}

/// Rows of (batch, seq, width) hidden states, flattened to (batch · seq, width).
pub(super) fn rows_of(hidden: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    let count = rows.len();
    let rows = Tensor::from_vec(rows, count, &Device::Cpu)?;
    ops::select_rows(hidden, &rows)
}
