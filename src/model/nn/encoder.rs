use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;

use super::{Block, Norm, Pass};
use crate::Result;
use crate::model::onnx::{Graph, Value};
use crate::model::{Context, ModelFlops};
use crate::ops::{self, Param};

/// A stack of blocks, followed by a normalization if there is one.
///
/// A block may be used in several places: its parameters are then shared, as in ALBERT.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// The blocks, first to last.
    pub blocks: Vec<Arc<dyn Block>>,
    /// The normalization after the last block.
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

    /// Writes the stack into an ONNX graph and returns its output for `x`.
    pub fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        let mut blocks = self.blocks.iter();
        let x = blocks.try_fold(x.clone(), |x, block| block.export(&x, graph))?;
        match &self.norm {
            Some(norm) => norm.export(&x, graph),
            None => Ok(x),
        }
    }

    /// Returns the output for the positions alone that `pick` takes from (batch, seq, hidden), as (batch, count, hidden): the
    /// last block does not compute the others, where it can. Without gradients.
    pub fn forward_picked(
        &self,
        x: Tensor,
        pass: &Pass,
        pick: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some((last, blocks)) = self.blocks.split_last() else {
            return pick(&self.forward(x, pass)?);
        };
        let x = blocks
            .iter()
            .try_fold(x, |x, block| block.forward(&x, pass))?;
        let picked = match last.forward_some(&pick(&x)?, &x, pass)? {
            Some(picked) => picked,
            None => pick(&last.forward(&x, pass)?)?,
        };
        match &self.norm {
            Some(norm) => norm.forward(&picked),
            None => Ok(picked),
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
    let (params, pass) = (block.params(), pass.clone());
    let context = pass.context.clone();
    run_part(&[x], params, &context, move |xs, context| {
        let pass = Pass {
            context: context.clone(),
            ..pass.clone()
        };
        block.forward(&xs[0], &pass)
    })
}

/// Runs `part`, which uses `params`, of `xs`, keeping only these for the backward pass where gradients are checkpointed.
pub(crate) fn run_part(
    xs: &[&Tensor],
    params: Vec<Param>,
    context: &Context,
    part: impl Fn(&[Tensor], &Context) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !context.checkpoints_gradients() {
        let xs: Vec<Tensor> = xs.iter().map(|&x| x.clone()).collect();
        return part(&xs, context);
    }
    // Each run begins with the keys that the first began with, so that the same elements are dropped.
    let (start, after) = (context.fork(), context.clone());
    let has_run = AtomicBool::new(false);
    ops::checkpoint_all(xs, &params, move |xs| {
        let context = match has_run.swap(true, Ordering::Relaxed) {
            false => start.fork(),
            true => start.fork().repeating(),
        };
        let y = part(xs, &context)?;
        after.advance_to(&context);
        Ok(y)
    })
}
