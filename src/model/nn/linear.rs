use candle_core::Tensor;

use crate::Result;
use crate::model::onnx::{Graph, Value};
use crate::model::{Init, WeightBuilder};
use crate::ops::{self, Activation, Param};

/// An affine map with a `weight` of shape (out, in) and, mostly, a `bias` of shape (out).
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
}

impl Linear {
    /// Returns the map from `input` to `output` features named by `weights`; fresh weights are normal with standard
    /// deviation `std`, biases zero.
    pub fn new(weights: &WeightBuilder, input: usize, output: usize, std: f64) -> Result<Self> {
        let map = Self::without_bias(weights, input, output, std)?;
        let bias = Some(weights.param("bias", output, Init::Zeros)?);
        Ok(Self { bias, ..map })
    }

    /// Like [`Linear::new`], with weights and biases initialized by `init`.
    pub fn drawn(weights: &WeightBuilder, input: usize, output: usize, init: Init) -> Result<Self> {
        Ok(Self {
            weight: weights.param("weight", (output, input), init)?,
            bias: Some(weights.param("bias", output, init)?),
        })
    }

    /// Returns the linear map from `input` to `output` features, without a bias.
    pub fn without_bias(
        weights: &WeightBuilder,
        input: usize,
        output: usize,
        std: f64,
    ) -> Result<Self> {
        Self::with_init(weights, (input, output), Init::Normal(std), false)
    }

    /// Returns the map from the first to the second number of features, whose fresh weights are drawn by `init`.
    pub fn with_init(
        weights: &WeightBuilder,
        (input, output): (usize, usize),
        init: Init,
        bias: bool,
    ) -> Result<Self> {
        let weight = weights.param("weight", (output, input), init)?;
        let bias = bias.then(|| weights.param("bias", output, Init::Zeros));
        Ok(Self {
            weight,
            bias: bias.transpose()?,
        })
    }

    /// Returns the number of weights, the bias not counted.
    pub fn weights(&self) -> usize {
        self.weight.elem_count()
    }

    /// Returns the number of features that come out.
    pub fn outputs(&self) -> usize {
        self.weight.shape().dims().first().copied().unwrap_or(0)
    }

    /// Returns the weight and the bias.
    pub fn params(&self) -> Vec<Param> {
        let weight = std::iter::once(&self.weight);
        weight.chain(&self.bias).cloned().collect()
    }

    /// Applies the map to the last dimension of `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref())
    }

    /// Writes the map into an ONNX graph and returns its output for `x`.
    pub fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        graph.linear(x, &self.weight, self.bias.as_ref())
    }

    /// Applies the map, then `activation`.
    pub fn forward_act(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::linear_act(x, &self.weight, self.bias.as_ref(), activation)
    }
}
