use candle_core::{DType, Tensor};

use super::config::Wav2Vec2Config;
use super::ones;
use crate::Result;
use crate::model::{Init, WeightBuilder};
use crate::ops::{self, Activation, Conv1d, Param};

/// Vectors that encode the position of a frame, by a wide convolution of the frames around it. The kernel is
/// parameterized by a direction and a length for each of its positions (weight normalization, Salimans and Kingma
/// 2016).
#[derive(Debug)]
pub(super) struct ConvPositions {
    /// (1, 1, kernel).
    lengths: Param,
    /// (hidden, hidden / groups, kernel).
    directions: Param,
    bias: Param,
    /// For a normalization without weights.
    ones: Param,
    groups: usize,
    kernel: usize,
    activation: Activation,
}

impl ConvPositions {
    pub(super) fn new(values: &Wav2Vec2Config, weights: &WeightBuilder) -> Result<Self> {
        let (hidden, kernel) = (values.hidden_size, values.num_conv_pos_embeddings);
        let groups = values.num_conv_pos_embedding_groups;
        let weight = weights.pp("parametrizations").pp("weight");
        let std = 2.0 / (kernel.saturating_mul(hidden) as f64).sqrt();
        let shape = (hidden, hidden / groups, kernel);
        let lengths = weight.param("original0", (1, 1, kernel), Init::Ones)?;
        let directions = weight.param("original1", shape, Init::Normal(std))?;
        if !weights.holds(lengths.name()) {
            // What was drawn is the kernel itself.
            let drawn = directions.value().to_dtype(DType::F32)?.sqr()?;
            lengths.set(
                &drawn
                    .sum_keepdim((0, 1))?
                    .sqrt()?
                    .to_dtype(lengths.dtype())?,
            )?;
        }
        Ok(Self {
            ones: ones(hidden * (hidden / groups), directions.device())?,
            lengths,
            directions,
            bias: weights.param("bias", hidden, Init::Zeros)?,
            groups,
            kernel,
            activation: Activation::from_name(&values.feat_extract_activation)?,
        })
    }

    /// Returns the vectors of the frames `x` (batch, frames, hidden), of the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let frames = x.dim(1)?;
        let conv = Conv1d {
            stride: 1,
            pad: self.kernel / 2,
            groups: self.groups,
        };
        let y = ops::conv1d(x, &self.weight()?, conv)?;
        // A kernel of even width gives a frame too many.
        let y = ops::narrow(&y, 1, 0, frames)?;
        let y = ops::add_broadcast(&y, &ops::param_rows(&self.bias)?)?;
        ops::activate(&y, self.activation)
    }

    /// Returns the kernel.
    fn weight(&self) -> Result<Tensor> {
        let (hidden, inner, kernel) = self.directions.shape().dims3()?;
        let width = hidden * inner;
        let directions = ops::permute(&ops::param_rows(&self.directions)?, &[2, 0, 1])?;
        let directions = ops::reshape(&directions, (kernel, width))?;
        // The root of the mean square is the length divided by the root of the width.
        let unit = ops::rms_norm(&directions, &self.ones, 0.0)?;
        let unit = ops::scale(&unit, 1.0 / (width as f64).sqrt())?;
        let lengths = ops::reshape(&ops::param_rows(&self.lengths)?, (kernel, 1))?;
        let row = Tensor::ones((1, width), lengths.dtype(), lengths.device())?;
        let lengths = ops::matmul(&lengths, &row, false, false)?;
        let weight = ops::reshape(&ops::mul(&unit, &lengths)?, (kernel, hidden, inner))?;
        ops::permute(&weight, &[1, 2, 0])
    }
}
