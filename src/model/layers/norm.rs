use candle_core::Tensor;

use crate::Result;
use crate::model::{Init, WeightBuilder};
use crate::ops::{self, Dropout, Param};

/// Layer normalization over the last dimension, with `weight` and `bias`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Param,
    bias: Param,
    eps: f64,
}

impl LayerNorm {
    /// The normalization of `width` features named by `weights`.
    pub fn new(weights: &WeightBuilder, width: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: weights.param("weight", width, Init::Ones)?,
            bias: weights.param("bias", width, Init::Zeros)?,
            eps,
        })
    }

    /// The weight and the bias.
    pub fn params(&self) -> Vec<Param> {
        vec![self.weight.clone(), self.bias.clone()]
    }

    /// Normalizes `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, Some(&self.bias), self.eps)
    }

    /// Normalizes `residual + dropout(x)`.
    pub fn forward_residual(
        &self,
        x: &Tensor,
        residual: &Tensor,
        dropout: Dropout,
    ) -> Result<Tensor> {
        ops::add_layer_norm(
            x,
            residual,
            &self.weight,
            Some(&self.bias),
            self.eps,
            dropout,
        )
    }
}
