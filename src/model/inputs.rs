//! What goes into a model: a padded batch of token ids and what belongs to them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::collate::MlmBatch;
use crate::ops;
use crate::tokenizer::Encoding;
use crate::{Error, Result};

/// The inputs of one forward pass, all of shape (batch, seq).
///
/// The integers stay on the host, where row selection, position ids and padding checks need them; models move what
/// they use to their device.
#[derive(Clone, Debug)]
pub struct ModelInputs {
    batch: usize,
    seq: usize,
    input_ids: Vec<u32>,
    attention_mask: Option<Vec<u32>>,
    token_type_ids: Option<Vec<u32>>,
    labels: Option<Vec<i64>>,
    extra: BTreeMap<String, Tensor>,
}

impl ModelInputs {
    /// Inputs from token ids in row-major order.
    ///
    /// # Errors
    /// When the number of ids is not `batch * seq`.
    pub fn new(input_ids: Vec<u32>, (batch, seq): (usize, usize)) -> Result<Self> {
        check_len("input_ids", input_ids.len(), batch, seq)?;
        Ok(Self {
            batch,
            seq,
            input_ids,
            attention_mask: None,
            token_type_ids: None,
            labels: None,
            extra: BTreeMap::new(),
        })
    }

    /// Inputs from a (batch, seq) tensor of integer token ids.
    pub fn from_tensor(input_ids: &Tensor) -> Result<Self> {
        let shape = input_ids.dims2()?;
        Self::new(integers(input_ids)?, shape)
    }

    /// Marks which positions are text (1) and which are padding (0). Without it all are text.
    pub fn with_attention_mask(mut self, mask: Vec<u32>) -> Result<Self> {
        check_len("attention_mask", mask.len(), self.batch, self.seq)?;
        self.attention_mask = Some(mask);
        Ok(self)
    }

    /// Says which segment each position belongs to. Without it all belong to segment 0.
    pub fn with_token_type_ids(mut self, ids: Vec<u32>) -> Result<Self> {
        check_len("token_type_ids", ids.len(), self.batch, self.seq)?;
        self.token_type_ids = Some(ids);
        Ok(self)
    }

    /// The true ids of the masked positions, [`IGNORE_INDEX`](crate::ops::IGNORE_INDEX) (-100) elsewhere.
    pub fn with_labels(mut self, labels: Vec<i64>) -> Result<Self> {
        check_len("labels", labels.len(), self.batch, self.seq)?;
        self.labels = Some(labels);
        Ok(self)
    }

    /// A further input that only some families know (`bbox`, `decoder_input_ids`, ...).
    #[must_use]
    pub fn with_extra(mut self, name: &str, tensor: Tensor) -> Self {
        self.extra.insert(name.to_owned(), tensor);
        self
    }

    /// That every column has batch * seq values, as those that came from an [`MlmBatch`] may not.
    pub(crate) fn check_lengths(&self) -> Result<()> {
        let columns = [
            ("input_ids", Some(self.input_ids.len())),
            ("attention_mask", self.attention_mask.as_ref().map(Vec::len)),
            ("token_type_ids", self.token_type_ids.as_ref().map(Vec::len)),
            ("labels", self.labels.as_ref().map(Vec::len)),
        ];
        columns.into_iter().try_for_each(|(name, len)| match len {
            Some(len) => check_len(name, len, self.batch, self.seq),
            None => Ok(()),
        })
    }

    /// (batch, seq).
    pub fn shape(&self) -> (usize, usize) {
        (self.batch, self.seq)
    }

    /// The token ids, row by row.
    pub fn input_ids(&self) -> &[u32] {
        &self.input_ids
    }

    /// The attention mask, row by row, if one was given.
    pub fn attention_mask(&self) -> Option<&[u32]> {
        self.attention_mask.as_deref()
    }

    /// The segment ids, row by row, if they were given.
    pub fn token_type_ids(&self) -> Option<&[u32]> {
        self.token_type_ids.as_deref()
    }

    /// The labels, row by row, if they were given.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// The further input `name`, if it was given.
    pub fn extra(&self, name: &str) -> Option<&Tensor> {
        self.extra.get(name)
    }

    /// The token ids as a (batch, seq) tensor on `device`.
    pub fn input_ids_tensor(&self, device: &Device) -> Result<Tensor> {
        self.tensor_of(&self.input_ids, device)
    }

    /// Any u32 values of this batch's shape as a (batch, seq) tensor on `device`.
    pub fn tensor_of(&self, values: &[u32], device: &Device) -> Result<Tensor> {
        ops::upload(values, (self.batch, self.seq), device)
    }

    /// Whether any position is padding.
    pub fn has_padding(&self) -> bool {
        self.attention_mask
            .as_ref()
            .is_some_and(|mask| mask.contains(&0))
    }

    /// Position numbers that skip padding tokens, as RoBERTa counts them: `pad_id + 1`, `pad_id + 2`, ... for tokens
    /// other than `pad_id`, and `pad_id` for those.
    pub fn positions_after_padding(&self, pad_id: u32) -> Vec<u32> {
        let mut positions = Vec::with_capacity(self.input_ids.len());
        for row in self.input_ids.chunks(self.seq.max(1)) {
            let mut count = 0;
            positions.extend(row.iter().map(|&id| {
                if id == pad_id {
                    pad_id
                } else {
                    count += 1;
                    pad_id + count
                }
            }));
        }
        positions
    }

    /// Flat indices of the positions whose label counts, and those labels.
    ///
    /// # Errors
    /// When a label is neither -100 nor an id below `vocab_size`.
    pub fn counted(&self, vocab_size: usize) -> Result<(Vec<u32>, Vec<u32>)> {
        let mut rows = Vec::new();
        let mut targets = Vec::new();
        for (index, &label) in self.labels.iter().flatten().enumerate() {
            if label == ops::IGNORE_INDEX {
                continue;
            }
            match u32::try_from(label) {
                Ok(target) if (target as usize) < vocab_size => {
                    rows.push(index as u32);
                    targets.push(target);
                }
                _ => {
                    return Err(Error::argument(
                        "labels",
                        format!(
                            "label {label} at position {index} is neither -100 nor an id of the model's {vocab_size}-token vocabulary"
                        ),
                    ));
                }
            }
        }
        Ok((rows, targets))
    }
}

impl From<&MlmBatch> for ModelInputs {
    fn from(batch: &MlmBatch) -> Self {
        Self {
            batch: batch.batch,
            seq: batch.seq,
            input_ids: batch.input_ids.clone(),
            attention_mask: Some(batch.attention_mask.clone()),
            token_type_ids: batch.token_type_ids.clone(),
            labels: Some(batch.labels.clone()),
            extra: BTreeMap::new(),
        }
    }
}

impl From<&Encoding> for ModelInputs {
    /// A batch of the one text.
    fn from(encoding: &Encoding) -> Self {
        Self {
            batch: 1,
            seq: encoding.len(),
            input_ids: encoding.ids.clone(),
            attention_mask: Some(encoding.attention_mask.clone()),
            token_type_ids: Some(encoding.type_ids.clone()),
            labels: None,
            extra: BTreeMap::new(),
        }
    }
}

impl From<&ModelInputs> for ModelInputs {
    fn from(inputs: &ModelInputs) -> Self {
        inputs.clone()
    }
}

/// The integers of a tensor of any integer dtype, row by row.
pub(crate) fn integers(tensor: &Tensor) -> Result<Vec<u32>> {
    let flat = tensor.flatten_all()?;
    match flat.dtype() {
        DType::U32 => Ok(flat.to_vec1()?),
        DType::U8 | DType::I64 => {
            let values: Vec<i64> = flat.to_dtype(DType::I64)?.to_vec1()?;
            values
                .into_iter()
                .map(|v| {
                    u32::try_from(v)
                        .map_err(|_| Error::argument("input_ids", format!("{v} is not a token id")))
                })
                .collect()
        }
        other => Err(Error::argument(
            "input_ids",
            format!("token ids must be integers (u8, u32 or i64), not {other:?}"),
        )),
    }
}

fn check_len(name: &'static str, len: usize, batch: usize, seq: usize) -> Result<()> {
    if len == batch * seq {
        return Ok(());
    }
    Err(Error::argument(
        name,
        format!("{len} values do not make a batch of {batch} rows of {seq}"),
    ))
}
