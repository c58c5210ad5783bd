//! YOSO (Zeng et al. 2021, arXiv:2111.09714): a token weighs another by the chance that random hashes of the two are the same.
//!
//! That chance is always computed, whatever `use_expectation` says: the hashes are an estimate of it by kernels for a GPU,
//! and the published models are trained to be used without. As in transformers, what goes back through a weight is no
//! derivative but the authors' bounded stand-in.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;

use super::bert;
use super::nystromformer::{HeadConv, positions_from_two};
use crate::Result;
use crate::model::nn::{Block, Mixing, MixingBlock, Pass, Projections, Spec};
use crate::model::{Architecture, Config, Family, ModelFlops, WeightBuilder};
use crate::ops::{self, AttentionMask, AttentionOptions, PairWeights, Param, RowLength};

/// `YosoForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "yoso",
    class: "YosoForMaskedLM",
    synonyms: &["YosoModel"],
    base: "yoso",
    defaults: r#"{"vocab_size": 50265, "max_position_embeddings": 4096, "type_vocab_size": 1, "pad_token_id": 1}"#,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct YosoConfig {
    hash_code_len: u32,
    conv_window: Option<usize>,
}

impl Default for YosoConfig {
    fn default() -> Self {
        Self {
            hash_code_len: 9,
            conv_window: None,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: YosoConfig = config.parse()?;
    let spec = Spec {
        base: "yoso",
        positions: positions_from_two(config)?,
        ..bert::spec(config)?
    };
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let maps = Projections::new(&spec, weights, place, "", true)?;
        let at = weights
            .pp(spec.base)
            .pp(format!("encoder.layer.{place}.attention.self"));
        let conv = values
            .conv_window
            .map(|kernel| HeadConv::new(&at, maps.heads, kernel, spec.std));
        let mixing = HashAttention {
            maps,
            code: values.hash_code_len,
            conv: conv.transpose()?,
        };
        let block = MixingBlock::new(&spec, weights, place, Box::new(mixing))?;
        Ok(Arc::new(block))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}

/// Attention by equal hashes.
#[derive(Debug)]
struct HashAttention {
    maps: Projections,
    /// The length of a hash.
    code: u32,
    conv: Option<HeadConv>,
}

impl HashAttention {
    /// Returns vectors of length 1 in each head.
    fn unit(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, seq, width) = x.dims3()?;
        let heads = (batch, seq, self.maps.heads, self.maps.head_size);
        let length = RowLength::Euclidean { least: 1e-12 };
        let unit = ops::normalize_rows(&ops::reshape(x, heads)?, length)?;
        ops::reshape(&unit, (batch, seq, width))
    }
}

impl Mixing for HashAttention {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let [q, k, v] = self.maps.forward(x)?;
        let text = match &pass.mask {
            AttentionMask::Keys(text) => Some(text.clone()),
            _ => None,
        };
        let options = AttentionOptions {
            scale: 1.0,
            mask: pass.mask.clone(),
            query_mask: text.clone(),
            ..AttentionOptions::new(self.maps.heads, self.maps.head_size)
        };
        let weights = PairWeights::AnglePower(self.code);
        let (q, k) = (self.unit(&q)?, self.unit(&k)?);
        let seen = ops::pointwise_attention(&q, &k, &v, weights, None, &options)?;
        let seen = self.unit(&seen)?;
        let Some(conv) = &self.conv else {
            return Ok(seen);
        };
        let v = match text {
            Some(text) => ops::mul_rows(&v, &text)?,
            None => v,
        };
        ops::add(&seen, &conv.forward(&v)?)
    }

    fn params(&self) -> Vec<Param> {
        let conv = self.conv.iter().flat_map(HeadConv::params);
        self.maps.params().into_iter().chain(conv).collect()
    }

    fn flops(&self) -> ModelFlops {
        ModelFlops {
            per_token: 2 * self.maps.weights() as u64,
            per_pair: 4 * (self.maps.heads * self.maps.head_size) as u64,
            ..ModelFlops::default()
        }
    }
}
