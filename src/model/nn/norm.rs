use candle_core::Tensor;

use crate::Result;
use crate::model::onnx::{Graph, Setting, Value};
use crate::model::{Init, WeightBuilder};
use crate::ops::{self, Dropout, Param};

/// A normalization over the last dimension.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Norm {
    /// Layer normalization (Ba et al. 2016), mostly with a bias.
    Layer {
        /// The scale of each feature.
        weight: Param,
        /// The shift of each feature.
        bias: Option<Param>,
        /// The number added to the variance.
        eps: f64,
    },
    /// Division by the root of the mean square (Zhang and Sennrich 2019).
    Rms {
        /// The scale of each feature.
        weight: Param,
        /// The number added to the mean square.
        eps: f64,
    },
    /// A scale and a shift of each feature, without normalization: MobileBERT's `NoNorm`.
    Affine {
        /// The scale of each feature.
        weight: Param,
        /// The shift of each feature.
        bias: Param,
    },
}

impl Norm {
    /// Returns the layer normalization of `width` features named by `weights`.
    pub fn layer(weights: &WeightBuilder, width: usize, eps: f64) -> Result<Self> {
        Ok(Self::Layer {
            weight: weights.param("weight", width, Init::Ones)?,
            bias: Some(weights.param("bias", width, Init::Zeros)?),
            eps,
        })
    }

    /// Returns the layer normalization of `width` features without a bias.
    pub fn layer_without_bias(weights: &WeightBuilder, width: usize, eps: f64) -> Result<Self> {
        Ok(Self::Layer {
            weight: weights.param("weight", width, Init::Ones)?,
            bias: None,
            eps,
        })
    }

    /// Returns the normalization of `width` features by their mean square named by `weights`.
    pub fn rms(weights: &WeightBuilder, width: usize, eps: f64) -> Result<Self> {
        Ok(Self::Rms {
            weight: weights.param("weight", width, Init::Ones)?,
            eps,
        })
    }

    /// Returns the scale and shift of `width` features named by `weights`.
    pub fn affine(weights: &WeightBuilder, width: usize) -> Result<Self> {
        Ok(Self::Affine {
            weight: weights.param("weight", width, Init::Ones)?,
            bias: weights.param("bias", width, Init::Zeros)?,
        })
    }

    /// Returns all parameters.
    pub fn params(&self) -> Vec<Param> {
        match self {
            Self::Rms { weight, .. } => vec![weight.clone()],
            Self::Affine { weight, bias } => vec![weight.clone(), bias.clone()],
            Self::Layer { weight, bias, .. } => {
                std::iter::once(weight).chain(bias).cloned().collect()
            }
        }
    }

    /// Normalizes `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer { weight, bias, eps } => ops::layer_norm(x, weight, bias.as_ref(), *eps),
            Self::Rms { weight, eps } => ops::rms_norm(x, weight, *eps),
            Self::Affine { weight, bias } => ops::affine(x, weight, Some(bias)),
        }
    }

    /// Writes the normalization into an ONNX graph and returns its output for `x`.
    pub fn export(&self, x: &Value, graph: &mut Graph) -> Result<Value> {
        match self {
            Self::Layer { weight, bias, eps } => {
                let weight = graph.param(weight)?;
                let bias = bias.as_ref().map(|bias| graph.param(bias)).transpose()?;
                let inputs: Vec<&Value> = [x, &weight].into_iter().chain(&bias).collect();
                let settings = [
                    ("axis", Setting::Int(-1)),
                    ("epsilon", Setting::Float(*eps)),
                ];
                Ok(graph.node("LayerNormalization", &inputs, &settings))
            }
            Self::Rms { weight, eps } => {
                let weight = graph.param(weight)?;
                let square = graph.mul(x, x);
                let last = [("axes", Setting::Ints(&[-1]))];
                let mean = graph.node("ReduceMean", &[&square], &last);
                let eps = graph.float(*eps);
                let mean = graph.add(&mean, &eps);
                let root = graph.node("Sqrt", &[&mean], &[]);
                let normed = graph.node("Div", &[x, &root], &[]);
                Ok(graph.mul(&normed, &weight))
            }
            Self::Affine { weight, bias } => {
                let (weight, bias) = (graph.param(weight)?, graph.param(bias)?);
                let scaled = graph.mul(x, &weight);
                Ok(graph.add(&scaled, &bias))
            }
        }
    }

    /// Normalizes `residual + dropout(x)`.
    pub fn forward_residual(
        &self,
        x: &Tensor,
        residual: &Tensor,
        dropout: Dropout,
    ) -> Result<Tensor> {
        match self {
            Self::Layer { weight, bias, eps } => {
                ops::add_layer_norm(x, residual, weight, bias.as_ref(), *eps, dropout)
            }
            Self::Rms { .. } | Self::Affine { .. } => {
                self.forward(&ops::add(&ops::dropout(x, dropout)?, residual)?)
            }
        }
    }
}
