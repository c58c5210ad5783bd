use candle_core::Tensor;

use super::config::{ExtractorNorm, Wav2Vec2Config};
use super::ones;
use crate::model::{Init, WeightBuilder};
use crate::ops::{self, Activation, Conv1d, Param};
use crate::{Error, Result};

/// The epsilon of these normalizations, which no key of the config sets.
const EPS: f64 = 1e-5;

/// From samples to frames, by a sequence of convolutions.
#[derive(Debug)]
pub(super) struct FeatureEncoder {
    layers: Vec<ConvLayer>,
}

#[derive(Debug)]
struct ConvLayer {
    weight: Param,
    bias: Option<Param>,
    norm: ConvNorm,
    activation: Activation,
    kernel: usize,
    stride: usize,
}

#[derive(Debug)]
enum ConvNorm {
    None,
    /// Each feature over time.
    Time {
        weight: Param,
        bias: Param,
    },
    /// The features of each frame.
    Features {
        weight: Param,
        bias: Param,
    },
}

impl FeatureEncoder {
    pub(super) fn new(values: &Wav2Vec2Config, weights: &WeightBuilder) -> Result<Self> {
        let mut layers = Vec::new();
        let mut input = 1usize;
        let sizes = values.conv_dim.iter().zip(&values.conv_kernel);
        for (i, ((&output, &kernel), &stride)) in sizes.zip(&values.conv_stride).enumerate() {
            let weights = weights.pp(format!("conv_layers.{i}"));
            let (conv, norm) = (weights.pp("conv"), weights.pp("layer_norm"));
            let inputs = input.saturating_mul(kernel) as f64;
            let init = Init::Normal((2.0 / inputs).sqrt());
            let k = 1.0 / inputs.sqrt();
            let affine = || -> Result<(Param, Param)> {
                Ok((
                    norm.param("weight", output, Init::Ones)?,
                    norm.param("bias", output, Init::Zeros)?,
                ))
            };
            layers.push(ConvLayer {
                weight: conv.param("weight", (output, input, kernel), init)?,
                bias: match values.conv_bias {
                    true => Some(conv.param("bias", output, Init::Uniform(-k, k))?),
                    false => None,
                },
                norm: match (values.feat_extract_norm, i) {
                    (ExtractorNorm::Group, 0) => {
                        let (weight, bias) = affine()?;
                        ConvNorm::Time { weight, bias }
                    }
                    (ExtractorNorm::Group, _) => ConvNorm::None,
                    (ExtractorNorm::Layer, _) => {
                        let (weight, bias) = affine()?;
                        ConvNorm::Features { weight, bias }
                    }
                },
                activation: Activation::from_name(&values.feat_extract_activation)?,
                kernel,
                stride,
            });
            input = output;
        }
        Ok(Self { layers })
    }

    /// Returns how many frames `samples` samples give.
    ///
    /// # Errors
    /// When they are too few for one.
    pub(super) fn frames(&self, samples: usize) -> Result<usize> {
        let frames = self.layers.iter().try_fold(samples, |len, layer| {
            Some(len.checked_sub(layer.kernel)? / layer.stride + 1)
        });
        frames.ok_or_else(|| {
            let layers = self.layers.iter().rev();
            let least = layers.fold(1usize, |len, layer| {
                (len - 1)
                    .saturating_mul(layer.stride)
                    .saturating_add(layer.kernel)
            });
            Error::argument(
                "input_values",
                format!("{samples} samples of sound are too few for a frame, which takes {least}"),
            )
        })
    }

    /// Returns the frames (batch, frames, features) of sound (batch, samples, 1).
    pub(super) fn forward(&self, sound: &Tensor) -> Result<Tensor> {
        self.frames(sound.dim(1)?)?;
        let mut x = sound.clone();
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        Ok(x)
    }
}

impl ConvLayer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let conv = Conv1d {
            stride: self.stride,
            ..Conv1d::default()
        };
        let mut y = ops::conv1d(x, &ops::param_rows(&self.weight)?, conv)?;
        if let Some(bias) = &self.bias {
            y = ops::add_broadcast(&y, &ops::param_rows(bias)?)?;
        }
        let y = match &self.norm {
            ConvNorm::None => y,
            ConvNorm::Features { weight, bias } => ops::layer_norm(&y, weight, Some(bias), EPS)?,
            ConvNorm::Time { weight, bias } => {
                let over_time = ops::permute(&y, &[0, 2, 1])?;
                let ones = ones(y.dim(1)?, y.device())?;
                let normed = ops::layer_norm(&over_time, &ones, None, EPS)?;
                ops::affine(&ops::permute(&normed, &[0, 2, 1])?, weight, Some(bias))?
            }
        };
        ops::activate(&y, self.activation)
    }
}
