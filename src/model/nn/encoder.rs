use std::sync::Arc;

use candle_core::Tensor;

use super::{Block, Norm, Pass};
use crate::Result;
use crate::model::ModelFlops;
use crate::ops;

/// A stack of blocks, and the normalization behind the last where there is one.
///
/// One block may stand in several places: its parameters are then shared, as in ALBERT.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// The blocks, first to last.
    pub blocks: Vec<Arc<dyn Block>>,
    /// The normalization behind the last block.
    pub norm: Option<Norm>,
}

impl Encoder {
    /// Returns the output for `x` (batch, seq, hidden), of the same shape.
    pub fn forward(&self, x: Tensor, pass: &Pass) -> Result<Tensor> {
        let blocks = self.blocks.iter();
        let x = blocks
            .cloned()
            .try_fold(x, |x, block| run(block, &x, pass))?;
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// Returns the arithmetic of all blocks.
    pub fn flops(&self) -> ModelFlops {
        let blocks = self.blocks.iter().map(|block| block.flops());
        blocks.fold(ModelFlops::default(), |sum, block| ModelFlops {
            per_token: sum.per_token + block.per_token,
            per_pair: sum.per_pair + block.per_pair,
            per_counted: 0,
        })
    }
}

/// Runs one block, keeping only its input for the backward pass where gradients are checkpointed.
pub(crate) fn run(block: Arc<dyn Block>, x: &Tensor, pass: &Pass) -> Result<Tensor> {
    if !pass.context.checkpoints_gradients() {
        return block.forward(x, pass);
    }
    // Each run begins with the keys that the first began with, so that the same elements are dropped.
    let start = Pass {
        context: pass.context.fork(),
        ..pass.clone()
    };
    let params = block.params();
    let after = pass.context.clone();
    ops::checkpoint(x, &params, move |x| {
        let pass = Pass {
            context: start.context.fork(),
            ..start.clone()
        };
        let y = block.forward(x, &pass)?;
        after.advance_to(&pass.context);
        Ok(y)
    })
}
