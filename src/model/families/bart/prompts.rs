use candle_core::{Device, Tensor};

use super::config::BartConfig;
use crate::model::nn::Linear;
use crate::model::{Context, Init, WeightBuilder};
use crate::ops::{self, Activation, Param};
use crate::{Error, Result};

/// How long the prompts of a layer are, and how they are made.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct PromptSizes {
    /// The number of keys and values before the text's.
    pub length: usize,
    /// The width between the two maps.
    pub inner: usize,
}

/// Keys and values of all layers of a stack that do not come from any text: a small network's of a small table.
#[derive(Debug)]
pub(super) struct Prompts {
    table: Param,
    inner: Linear,
    outer: Linear,
    width: usize,
    dropout: f64,
    length: usize,
}

impl Prompts {
    pub(super) fn new(
        values: &BartConfig,
        sizes: PromptSizes,
        layers: usize,
        weights: &WeightBuilder,
    ) -> Result<Self> {
        let (width, std) = (values.d_model, values.init_std);
        let PromptSizes { length, inner } = sizes;
        if length == 0 || inner == 0 {
            return Err(Error::Config(
                "prompt_length and prompt_mid_dim must be positive where use_prompt is set"
                    .to_owned(),
            ));
        }
        let table = weights.pp("prompt_embedding");
        let maps = weights.pp("prompt_trans");
        let outputs = (2 * layers).saturating_mul(width);
        Ok(Self {
            table: table.param("weight", (length, width), Init::Normal(std))?,
            inner: Linear::new(&maps.pp("0"), width, inner, std)?,
            outer: Linear::new(&maps.pp("2"), inner, outputs, std)?,
            width,
            dropout: values.dropout,
            length,
        })
    }

    /// Returns the prompts of all layers side by side, (length, layers · 2 · width).
    pub(super) fn all(&self, context: &Context) -> Result<Tensor> {
        let ids: Vec<u32> = (0..self.length as u32).collect();
        let ids = Tensor::from_vec(ids, self.length, &Device::Cpu)?;
        let rows = ops::embedding(&ids, &self.table, None)?;
        let rows = self
            .outer
            .forward(&self.inner.forward_act(&rows, Activation::Gelu)?)?;
        ops::dropout(&rows, context.dropout(self.dropout))
    }

    /// Returns the keys and values of one layer of `all`, (length, 2 · width).
    pub(super) fn of(&self, all: &Tensor, layer: usize) -> Result<Tensor> {
        ops::narrow(all, 1, 2 * layer * self.width, 2 * self.width)
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }
}
