use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{Linear, Norm, SelfAttention};
use crate::Result;
use crate::model::onnx::{self, Graph, Value};
use crate::model::{Context, ModelFlops};
use crate::ops::{self, Activation, AttentionMask, Dropout, Param};

/// The part of a forward pass that all blocks share: attention's limits and what the family adds.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The keys that attention may use.
    pub mask: AttentionMask,
    /// The mode, and where dropout's keys come from.
    pub context: Context,
    /// Tensors for a family's own blocks, by names that the family chooses; without gradients.
    pub inputs: BTreeMap<&'static str, Tensor>,
}

impl Pass {
    /// Returns a pass that only has a mask and a mode.
    pub fn new(mask: AttentionMask, context: &Context) -> Self {
        Self {
            mask,
            context: context.clone(),
            inputs: BTreeMap::new(),
        }
    }
}

/// One step of a stack: from (batch, seq, hidden) to the same shape.
pub trait Block: std::fmt::Debug + Send + Sync {
    /// Returns the block's output for `x`. Dropout draws its keys from `pass.context` in a fixed order.
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor>;

    /// Returns the block's output for `some` (batch, count, hidden) of the positions of `x` alone, if nothing but plain
    /// attention looks at other positions.
    fn forward_some(&self, _some: &Tensor, _x: &Tensor, _pass: &Pass) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Returns all parameters.
    fn params(&self) -> Vec<Param>;

    /// Returns the block's arithmetic; nothing is counted for the head.
    fn flops(&self) -> ModelFlops;

    /// Returns whether several texts may be concatenated in one row, [`AttentionMask::Packed`]: whether nothing except
    /// attention by [`ops::attention_with`](crate::ops::attention_with) or
    /// [`ops::relative_attention`](crate::ops::relative_attention) looks at other positions, or at what the family
    /// computes from each batch.
    fn takes_packed(&self) -> bool {
        false
    }

    /// Writes the block into an ONNX graph and returns its output for `x`.
    fn export(&self, _x: &Value, _graph: &mut Graph) -> Result<Value> {
        Err(onnx::refused("the family's kind of block"))
    }
}

/// Where a block normalizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// After each residual connection (Vaswani et al. 2017).
    #[default]
    PostNorm,
    /// Before attention and feed-forward (Xiong et al. 2020).
    PreNorm,
}

/// A transformer block: attention and feed-forward, each with dropout, a residual connection and a normalization.
#[derive(Clone, Debug)]
pub struct TransformerBlock {
    /// The attention up to its output projection.
    pub attention: SelfAttention,
    /// The attention's output projection.
    pub attention_output: Linear,
    /// The dropout probability after the attention's output projection.
    pub attention_dropout: f64,
    /// The normalization that belongs to the attention; none where the block begins without one.
    pub attention_norm: Norm,
    /// The two feed-forward maps.
    pub feed_forward: FeedForward,
    /// The normalization that belongs to the feed-forward maps.
    pub output_norm: Norm,
    /// Where the normalizations are.
    pub order: Order,
}

/// Two maps with an activation between them.
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// The first map.
    pub intermediate: Linear,
    /// The function between the two maps.
    pub activation: Activation,
    /// The dropout probability after it.
    pub activation_dropout: f64,
    /// The second map.
    pub output: Linear,
    /// The dropout probability after the second map.
    pub dropout: f64,
}

impl FeedForward {
    /// Applies both maps; the dropout after the second is left to the residual connection.
    pub fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        let inner = self.intermediate.forward_act(x, self.activation)?;
        let inner = ops::dropout(&inner, context.dropout(self.activation_dropout))?;
        self.output.forward(&inner)
    }

    /// Writes both maps into an ONNX graph and returns their output for `x`.
    pub fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        let inner = self.intermediate.export(x, graph)?;
        let inner = graph.activation(&inner, self.activation);
        self.output.export(&inner, graph)
    }

    /// Returns all parameters.
    pub fn params(&self) -> Vec<Param> {
        [self.intermediate.params(), self.output.params()].concat()
    }

    /// Returns the number of weights of both maps.
    pub fn weights(&self) -> usize {
        self.intermediate.weights() + self.output.weights()
    }
}

impl TransformerBlock {
    /// Returns the block's output for `x`, where `attend` gives what the normalized input sees, up to the output projection;
    /// it is given the dropout of the attention weights.
    pub fn forward_with(
        &self,
        x: &Tensor,
        context: &Context,
        attend: impl Fn(&Tensor, Dropout) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let x = self.attended(x, context, attend)?;
        match self.order {
            Order::PostNorm => {
                let fed = self.feed_forward.forward(&x, context)?;
                let dropout = context.dropout(self.feed_forward.dropout);
                self.output_norm.forward_residual(&fed, &x, dropout)
            }
            Order::PreNorm => {
                let normed = self.output_norm.forward(&x)?;
                let fed = self.feed_forward.forward(&normed, context)?;
                let dropout = context.dropout(self.feed_forward.dropout);
                ops::add(&ops::dropout(&fed, dropout)?, &x)
            }
        }
    }

    /// Returns the block's first half: attention as in [`TransformerBlock::forward_with`], with its residual connection and
    /// its normalization.
    pub fn attended(
        &self,
        x: &Tensor,
        context: &Context,
        attend: impl Fn(&Tensor, Dropout) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let attend = |x: &Tensor| -> Result<Tensor> {
            let attended = attend(x, context.dropout(self.attention.dropout))?;
            self.attention_output.forward(&attended)
        };
        let norm = &self.attention_norm;
        match self.order {
            Order::PostNorm => {
                let attended = attend(x)?;
                let dropout = context.dropout(self.attention_dropout);
                norm.forward_residual(&attended, x, dropout)
            }
            Order::PreNorm => {
                let attended = attend(&norm.forward(x)?)?;
                let dropout = context.dropout(self.attention_dropout);
                ops::add(&ops::dropout(&attended, dropout)?, x)
            }
        }
    }
}

impl Block for TransformerBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.forward_with(x, &pass.context, |x, dropout| {
            self.attention.forward(x, &pass.mask, dropout)
        })
    }

    fn forward_some(&self, some: &Tensor, x: &Tensor, pass: &Pass) -> Result<Option<Tensor>> {
        let mask = &pass.mask;
        if self.attention.depends_on_places(mask) {
            return Ok(None);
        }
        let seen = match self.order {
            Order::PostNorm => x.clone(),
            Order::PreNorm => self.attention_norm.forward(x)?,
        };
        let attend =
            |some: &Tensor, dropout| self.attention.forward_some(some, &seen, mask, dropout);
        self.forward_with(some, &pass.context, attend).map(Some)
    }

    fn params(&self) -> Vec<Param> {
        [
            self.attention.params(),
            self.attention_output.params(),
            self.feed_forward.params(),
            self.attention_norm.params(),
            self.output_norm.params(),
        ]
        .concat()
    }

    fn flops(&self) -> ModelFlops {
        let maps = self.attention.weights()
            + self.attention_output.weights()
            + self.feed_forward.weights();
        ModelFlops {
            per_token: 2 * maps as u64,
            per_pair: self.attention.flops_per_pair(),
            per_counted: 0,
        }
    }

    fn takes_packed(&self) -> bool {
        true
    }

    fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        match self.order {
            Order::PostNorm => {
                let attended = self.attention.export(x, graph)?;
                let attended = self.attention_output.export(&attended, graph)?;
                let sum = graph.add(&attended, x);
                let x = self.attention_norm.export(&sum, graph)?;
                let fed = self.feed_forward.export(&x, graph)?;
                let sum = graph.add(&fed, &x);
                self.output_norm.export(&sum, graph)
            }
            Order::PreNorm => {
                let normed = self.attention_norm.export(x, graph)?;
                let attended = self.attention.export(&normed, graph)?;
                let attended = self.attention_output.export(&attended, graph)?;
                let x = graph.add(&attended, x);
                let normed = self.output_norm.export(&x, graph)?;
                let fed = self.feed_forward.export(&normed, graph)?;
                Ok(graph.add(&fed, &x))
            }
        }
    }
}
