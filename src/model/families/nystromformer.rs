//! Nyströmformer (Xiong et al. 2021, arXiv:2102.03902): attention by way of a few landmarks, the means of stretches of the
//! text, at a cost that grows with the length.
//!
//! Texts are padded to `segment_means_seq_len` tokens, as transformers asks its users to; longer ones do not fit. Where there
//! are as many landmarks as tokens, attention is in full and any length does. Padding and the other texts of a batch change
//! results: the first by the landmarks, the others by the start of an iteration (`inv_coeff_init_option` is read by no
//! version of transformers, and not here).

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;

use super::bert::{self, BertConfig};
use super::padded::Padded;
use crate::model::nn::{Block, Ids, Mixing, MixingBlock, Pass, Positions, Projections, Spec};
use crate::model::{Architecture, Config, Family, Init, ModelFlops, Sharing, WeightBuilder};
use crate::ops::{self, AttentionMask, Dropout, Param};
use crate::{Error, Result};

/// `NystromformerForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "nystromformer",
    class: "NystromformerForMaskedLM",
    synonyms: &["NystromformerModel"],
    base: "nystromformer",
    defaults: r#"{"vocab_size": 30000, "hidden_act": "gelu_new", "max_position_embeddings": 510, "layer_norm_eps": 1e-5,
        "pad_token_id": 1}"#,
    sharing: Sharing::Alone,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct NystromformerConfig {
    segment_means_seq_len: usize,
    num_landmarks: usize,
    conv_kernel_size: usize,
}

impl Default for NystromformerConfig {
    fn default() -> Self {
        Self {
            segment_means_seq_len: 64,
            num_landmarks: 64,
            conv_kernel_size: 65,
        }
    }
}

/// Positions from row 2 of a table that is two rows longer, whatever is padding; those of another `position_embedding_type`
/// than "absolute" are in the checkpoint, but not added.
pub(super) fn positions_from_two(config: &Config) -> Result<Positions> {
    let values: BertConfig = config.parse()?;
    let rows = values.max_position_embeddings.saturating_add(2);
    Ok(match values.position_embedding_type.as_str() {
        "absolute" => Positions::Table { rows, offset: 2 },
        _ => Positions::Other {
            rows,
            ids: Ids::Of(Arc::new(|_| Ok(None))),
            most: Some(values.max_position_embeddings),
        },
    })
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: NystromformerConfig = config.parse()?;
    let spec = Spec {
        base: "nystromformer",
        positions: positions_from_two(config)?,
        ..bert::spec(config)?
    };
    let positions = spec.max_positions().unwrap_or(0);
    let length = values.segment_means_seq_len;
    let landmarks = values.num_landmarks;
    let landmarks = (landmarks != length).then_some(landmarks);
    if let Some(landmarks) = landmarks {
        if landmarks == 0 || length == 0 || !length.is_multiple_of(landmarks) {
            return Err(Error::Config(format!(
                "segment_means_seq_len {length} can't be cut into num_landmarks {landmarks} equal stretches"
            )));
        }
        if length > positions {
            return Err(Error::Config(format!(
                "segment_means_seq_len {length} is more than the {positions} positions of max_position_embeddings"
            )));
        }
    }
    // An explicit null is another thing than no key here.
    let convolved = config
        .get("conv_kernel_size")
        .is_none_or(|size| !size.is_null());
    let kernel = convolved.then_some(values.conv_kernel_size);
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let maps = Projections::new(&spec, weights, place, "", true)?;
        let at = weights
            .pp(spec.base)
            .pp(format!("encoder.layer.{place}.attention.self"));
        let conv = kernel.map(|kernel| HeadConv::new(&at, maps.heads, kernel, spec.std));
        let mixing = LandmarkAttention {
            maps,
            landmarks,
            conv: conv.transpose()?,
        };
        let block = MixingBlock::new(&spec, weights, place, Box::new(mixing))?;
        Ok(Arc::new(block))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    let model = Box::new(spec.build_with(weights, blocks)?);
    if landmarks.is_none() {
        return Ok(model);
    }
    Ok(Box::new(Padded {
        model,
        pad: spec.pad.unwrap_or(0),
        length: Box::new(move |_| length),
        max_positions: Some(length),
    }))
}

/// A convolution of the values over time, by a kernel for each head.
#[derive(Clone, Debug)]
pub(super) struct HeadConv {
    weight: Param,
    kernel: usize,
}

impl HeadConv {
    pub(super) fn new(
        weights: &WeightBuilder,
        heads: usize,
        kernel: usize,
        std: f64,
    ) -> Result<Self> {
        if kernel.is_multiple_of(2) {
            return Err(Error::Config(format!(
                "the convolution's width {kernel} must be odd, so that a kernel has a middle"
            )));
        }
        let shape = (heads, 1, kernel, 1);
        Ok(Self {
            weight: weights
                .pp("conv")
                .param("weight", shape, Init::Normal(std))?,
            kernel,
        })
    }

    /// Returns the convolution of (batch, seq, heads · width), of the same shape.
    pub(super) fn forward(&self, values: &Tensor) -> Result<Tensor> {
        ops::depthwise_conv(values, &ops::param_rows(&self.weight)?, self.kernel / 2)
    }

    pub(super) fn params(&self) -> Vec<Param> {
        vec![self.weight.clone()]
    }
}

/// Attention by way of landmarks.
#[derive(Debug)]
struct LandmarkAttention {
    maps: Projections,
    /// How many; `None` where there are as many as tokens.
    landmarks: Option<usize>,
    conv: Option<HeadConv>,
}

impl LandmarkAttention {
    /// Returns queries' shares of the landmarks, times the inverse of the landmarks' shares of each other, times the
    /// landmarks' shares of the values.
    fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        landmarks: usize,
        mask: &AttentionMask,
    ) -> Result<Tensor> {
        let (heads, width) = (self.maps.heads, self.maps.head_size);
        let scale = 1.0 / (width as f64).sqrt();
        let none = Dropout::NONE;
        let batch = q.dim(0)?;
        let (marks_q, marks_k) = (
            ops::mean_segments(q, landmarks)?,
            ops::mean_segments(k, landmarks)?,
        );
        let per_head = |x: &Tensor| -> Result<Tensor> {
            let x = ops::reshape(x, (batch, landmarks, heads, width))?;
            ops::permute(&x, &[0, 2, 1, 3])
        };
        let scores = ops::matmul(&per_head(&marks_q)?, &per_head(&marks_k)?, false, true)?;
        let shares = ops::softmax(&ops::scale(&scores, scale)?)?;
        // Padding is masked here alone.
        let seen = ops::attention(&marks_q, k, v, heads, mask, scale, none)?;
        let seen = ops::matmul(&ops::newton_pinv(&shares)?, &per_head(&seen)?, false, false)?;
        let seen = ops::permute(&seen, &[0, 2, 1, 3])?;
        let seen = ops::reshape(&seen, (batch, landmarks, heads * width))?;
        ops::attention(q, &marks_k, &seen, heads, &AttentionMask::None, scale, none)
    }
}

impl Mixing for LandmarkAttention {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let [q, k, v] = self.maps.forward(x)?;
        let heads = self.maps.heads;
        let scale = 1.0 / (self.maps.head_size as f64).sqrt();
        let attended = match self.landmarks {
            Some(landmarks) => self.attend([&q, &k, &v], landmarks, &pass.mask)?,
            None => ops::attention(&q, &k, &v, heads, &pass.mask, scale, Dropout::NONE)?,
        };
        match &self.conv {
            Some(conv) => ops::add(&attended, &conv.forward(&v)?),
            None => Ok(attended),
        }
    }

    fn params(&self) -> Vec<Param> {
        let conv = self.conv.iter().flat_map(HeadConv::params);
        self.maps.params().into_iter().chain(conv).collect()
    }

    fn flops(&self) -> ModelFlops {
        let maps = 2 * self.maps.weights() as u64;
        let pair = 4 * (self.maps.heads * self.maps.head_size) as u64;
        match self.landmarks {
            // Each token meets each landmark twice.
            Some(landmarks) => ModelFlops {
                per_token: maps + 2 * pair * landmarks as u64,
                ..ModelFlops::default()
            },
            None => ModelFlops {
                per_token: maps,
                per_pair: pair,
                ..ModelFlops::default()
            },
        }
    }
}
