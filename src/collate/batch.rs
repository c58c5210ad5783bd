//! A batch as plain vectors, and as tensors.

use candle_core::{Device, Tensor};

use crate::Result;

/// The label of positions that don't count.
pub const IGNORED: i64 = -100;

/// A batch for masked language modelling. Every vector holds `batch * seq` values, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlmBatch {
    /// Token ids, some of them masked.
    pub input_ids: Vec<u32>,
    /// 1 for tokens, 0 for padding.
    pub attention_mask: Vec<u32>,
    /// 0 for the first text of a pair, 1 for the second; absent where the examples or the model have none.
    pub token_type_ids: Option<Vec<u32>>,
    /// The original ids where the model is asked for them, [`IGNORED`] elsewhere.
    pub labels: Vec<i64>,
    /// The number of rows.
    pub batch: usize,
    /// The length of each row in tokens, padding included.
    pub seq: usize,
}

/// A batch on a device: what a model takes.
#[derive(Clone, Debug)]
pub struct MlmTensors {
    /// (batch, seq), u32.
    pub input_ids: Tensor,
    /// (batch, seq), u32: 1 for tokens, 0 for padding.
    pub attention_mask: Tensor,
    /// (batch, seq), u32.
    pub token_type_ids: Option<Tensor>,
    /// (batch, seq), i64: [`IGNORED`] where nothing is asked.
    pub labels: Tensor,
}

impl MlmBatch {
    /// The shape of each tensor: (batch, seq).
    pub fn shape(&self) -> (usize, usize) {
        (self.batch, self.seq)
    }

    /// How many labels count.
    pub fn counted_tokens(&self) -> usize {
        self.labels
            .iter()
            .filter(|&&label| label != IGNORED)
            .count()
    }

    /// The batch as tensors on `device`.
    pub fn to_tensors(&self, device: &Device) -> Result<MlmTensors> {
        let ids = |values: &[u32]| Tensor::from_slice(values, self.shape(), device);
        Ok(MlmTensors {
            input_ids: ids(&self.input_ids)?,
            attention_mask: ids(&self.attention_mask)?,
            token_type_ids: self.token_type_ids.as_deref().map(ids).transpose()?,
            labels: Tensor::from_slice(&self.labels, self.shape(), device)?,
        })
    }
}
