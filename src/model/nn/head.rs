use candle_core::Tensor;

use super::{Linear, Norm};
use crate::Result;
use crate::model::onnx::{self, Graph, Value};
use crate::ops::{self, Activation, Param};

/// Turns hidden states into logits over the vocabulary, or into the loss without storing the logits.
pub trait Head: std::fmt::Debug + Send + Sync {
    /// Returns everything before the vocabulary product: (..., hidden) to (..., width).
    fn transform(&self, hidden: &Tensor) -> Result<Tensor>;

    /// Returns the logits, (..., vocab), of transformed rows.
    fn logits(&self, transformed: &Tensor) -> Result<Tensor>;

    /// Returns the summed negative log-likelihood of `targets` (rows) given transformed rows (rows, width).
    fn loss(&self, transformed: &Tensor, targets: &Tensor) -> Result<Tensor>;

    /// Returns the number of tokens in the vocabulary.
    fn vocab_size(&self) -> usize;

    /// Returns the number of weights that each row meets.
    fn weights(&self) -> usize;

    /// Writes the head into an ONNX graph and returns its logits for `hidden`.
    fn export(&self, _hidden: &Value, _graph: &mut Graph) -> Result<Value> {
        Err(onnx::refused("the family's head"))
    }
}

/// The usual masked-LM head: a dense layer, an activation, a normalization, and the product with the vocabulary. Some have
/// the product alone.
#[derive(Clone, Debug)]
pub struct PredictionHead {
    /// The layers before the product: the dense layer, its activation, the normalization.
    pub transform: Option<(Linear, Activation, Norm)>,
    /// The (vocab, width) matrix, most often the embedding matrix itself.
    pub decoder: Param,
    /// The output bias (vocab).
    pub bias: Option<Param>,
}

impl Head for PredictionHead {
    fn transform(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.transform {
            Some((dense, activation, norm)) => {
                norm.forward(&dense.forward_act(hidden, *activation)?)
            }
            None => Ok(hidden.clone()),
        }
    }

    fn logits(&self, transformed: &Tensor) -> Result<Tensor> {
        ops::linear(transformed, &self.decoder, self.bias.as_ref())
    }

    fn loss(&self, transformed: &Tensor, targets: &Tensor) -> Result<Tensor> {
        ops::masked_cross_entropy(transformed, &self.decoder, self.bias.as_ref(), targets)
    }

    fn vocab_size(&self) -> usize {
        self.decoder.shape().dims().first().copied().unwrap_or(0)
    }

    fn weights(&self) -> usize {
        let dense = self.transform.as_ref();
        dense.map_or(0, |(dense, ..)| dense.weights()) + self.decoder.elem_count()
    }

    fn export(&self, hidden: &Value, graph: &mut Graph) -> Result<Value> {
        let transformed = match &self.transform {
            Some((dense, activation, norm)) => {
                let dense = dense.export(hidden, graph)?;
                let active = graph.activation(&dense, *activation);
                norm.export(&active, graph)?
            }
            None => hidden.clone(),
        };
        graph.linear_by_rows(&transformed, &self.decoder, self.bias.as_ref())
    }
}
