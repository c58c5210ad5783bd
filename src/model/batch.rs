//! The input of a model: a padded batch of token ids with its other columns.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::{Column, Values};
use crate::ops;
use crate::{Error, Result};

/// The column of labels that are not one for each token.
const LABELS: &str = "labels";

/// The column of waveforms, of models that read sound in place of tokens.
pub(crate) const INPUT_VALUES: &str = "input_values";

/// A batch of padded examples: token ids, masks, labels, and the inputs that only some families have.
///
/// Collators return batches and models take them. Every vector holds `batch * seq` values, row by row, unless stated
/// otherwise. The numbers stay on the host, where row selection, position ids and padding checks need them; models copy
/// them to their device.
///
/// ```
/// use cloze::model::ModelInputs;
///
/// let inputs = ModelInputs::new(vec![0, 7, 4, 2, 0, 4, 2, 1], (2, 4))?
///     .with_attention_mask(vec![1, 1, 1, 1, 1, 1, 1, 0])?
///     .with_labels(vec![-100, -100, 9, -100, -100, 7, -100, -100])?;
/// assert_eq!(inputs.shape(), (2, 4));
/// assert_eq!(inputs.counted_tokens(), 2);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInputs {
    /// Token ids, some of them masked.
    pub input_ids: Vec<u32>,
    /// 1 for tokens, 0 for padding.
    pub attention_mask: Vec<u32>,
    /// 0 for the first text of a pair, 1 for the second; absent where the examples or the model have none.
    pub token_type_ids: Option<Vec<u32>>,
    /// The original ids where the model is asked for them, [`IGNORE_INDEX`](crate::ops::IGNORE_INDEX) (-100) elsewhere.
    /// Empty where the model is asked for none at all.
    pub labels: Vec<i64>,
    /// Further inputs by name, each of a shape that begins with `batch`.
    pub columns: BTreeMap<String, Column>,
    /// The number of rows.
    pub batch: usize,
    /// The length of each row in tokens, padding included.
    pub seq: usize,
}

impl ModelInputs {
    /// Inputs from token ids in row-major order; every position is text, and none has a label.
    ///
    /// # Errors
    /// When the number of ids is not `batch * seq`.
    pub fn new(input_ids: Vec<u32>, (batch, seq): (usize, usize)) -> Result<Self> {
        check_len("input_ids", input_ids.len(), batch, seq)?;
        Ok(Self {
            attention_mask: vec![1; input_ids.len()],
            input_ids,
            token_type_ids: None,
            labels: Vec::new(),
            columns: BTreeMap::new(),
            batch,
            seq,
        })
    }

    /// Inputs of a model that reads sound: waveforms of `samples` numbers each in row-major order, the column
    /// `input_values`. There are no token ids then, and `seq` is the number of samples, all of which are sound unless an
    /// attention mask says otherwise; labels are the column `labels` (batch, m).
    ///
    /// # Errors
    /// When the number of values is not `batch * samples`.
    pub fn from_waveforms(values: Vec<f32>, (batch, samples): (usize, usize)) -> Result<Self> {
        let waveforms = Column::floats(values, [batch, samples])?;
        let inputs = Self {
            input_ids: Vec::new(),
            attention_mask: vec![1; batch * samples],
            token_type_ids: None,
            labels: Vec::new(),
            columns: BTreeMap::new(),
            batch,
            seq: samples,
        };
        Ok(inputs.with_column(INPUT_VALUES, waveforms))
    }

    /// Inputs from a (batch, seq) tensor of integer token ids.
    pub fn from_tensor(input_ids: &Tensor) -> Result<Self> {
        let shape = input_ids.dims2()?;
        Self::new(integers(input_ids)?, shape)
    }

    /// Marks which positions are text (1) and which are padding (0). Without it all are text.
    pub fn with_attention_mask(mut self, mask: Vec<u32>) -> Result<Self> {
        check_len("attention_mask", mask.len(), self.batch, self.seq)?;
        self.attention_mask = mask;
        Ok(self)
    }

    /// Sets the segment of each position. By default all belong to segment 0.
    pub fn with_token_type_ids(mut self, ids: Vec<u32>) -> Result<Self> {
        check_len("token_type_ids", ids.len(), self.batch, self.seq)?;
        self.token_type_ids = Some(ids);
        Ok(self)
    }

    /// Sets the true ids of the masked positions, [`IGNORE_INDEX`](crate::ops::IGNORE_INDEX) (-100) elsewhere.
    pub fn with_labels(mut self, labels: Vec<i64>) -> Result<Self> {
        check_len("labels", labels.len(), self.batch, self.seq)?;
        self.labels = labels;
        Ok(self)
    }

    /// Adds a further input that only some families know (`bbox`, `lang_ids`, ...), of a shape that begins with
    /// `batch`.
    #[must_use]
    pub fn with_column(mut self, name: &str, column: Column) -> Self {
        self.columns.insert(name.to_owned(), column);
        self
    }

    /// Returns the same texts padded at the end to `seq` positions, without labels. Additional columns are unchanged.
    pub(crate) fn padded_to(&self, seq: usize, pad_id: u32) -> Self {
        let widened = |values: &[u32], fill: u32| {
            let rows = values.chunks(self.seq.max(1));
            let row = |row: &[u32]| {
                let mut row = row.to_vec();
                row.resize(seq, fill);
                row
            };
            rows.flat_map(row).collect()
        };
        Self {
            input_ids: widened(&self.input_ids, pad_id),
            attention_mask: widened(&self.attention_mask, 0),
            token_type_ids: self.token_type_ids.as_ref().map(|ids| widened(ids, 0)),
            labels: Vec::new(),
            columns: self.columns.clone(),
            batch: self.batch,
            seq,
        }
    }

    /// Checks that every vector has `batch * seq` values and every further column `batch` rows.
    pub(crate) fn check_lengths(&self) -> Result<()> {
        let labels = Some(self.labels.len()).filter(|&len| len > 0);
        let is_sound = self.input_ids.is_empty() && self.columns.contains_key(INPUT_VALUES);
        let vectors = [
            (
                "input_ids",
                Some(self.input_ids.len()).filter(|_| !is_sound),
            ),
            ("attention_mask", Some(self.attention_mask.len())),
            ("token_type_ids", self.token_type_ids.as_ref().map(Vec::len)),
            ("labels", labels),
        ];
        for (name, len) in vectors {
            if let Some(len) = len {
                check_len(name, len, self.batch, self.seq)?;
            }
        }
        for (name, column) in &self.columns {
            if column.shape.first() != Some(&self.batch) {
                return Err(Error::argument(
                    "columns",
                    format!(
                        "{name} has the shape {:?}, but the batch has {} rows",
                        column.shape, self.batch
                    ),
                ));
            }
        }
        if let Some(labels) = self.columns.get(LABELS) {
            labels.as_ids(LABELS)?;
        }
        Ok(())
    }

    /// Returns (batch, seq).
    pub fn shape(&self) -> (usize, usize) {
        (self.batch, self.seq)
    }

    /// Returns the further input `name` as whole numbers, if it was given.
    ///
    /// # Errors
    /// When its shape is not `shape`, or its numbers are not whole.
    pub fn ids_of(&self, name: &str, shape: &[usize]) -> Result<Option<&[i64]>> {
        let Some(column) = self.columns.get(name) else {
            return Ok(None);
        };
        if column.shape != shape {
            return Err(Error::Dataset(format!(
                "the input {name} has the shape {:?}, but this model needs {shape:?}",
                column.shape
            )));
        }
        column.as_ids(name).map(Some)
    }

    /// Returns the further input `name` as numbers with a fraction.
    ///
    /// # Errors
    /// When it was not given, its shape is not `shape`, or its numbers are whole.
    pub fn floats_of(&self, name: &'static str, shape: &[usize]) -> Result<&[f32]> {
        match self.columns.get(name) {
            Some(column) if column.shape == shape => column.as_floats(name),
            Some(column) => Err(Error::argument(
                name,
                format!("the shape {:?} must be {shape:?}", column.shape),
            )),
            None => Err(Error::argument(
                name,
                "this model needs this column, but the batch lacks it",
            )),
        }
    }

    /// Returns the further input `name` as indices into a table of `rows` rows, if it was given.
    ///
    /// # Errors
    /// Like [`ModelInputs::ids_of`], and when a number is not an index of the table.
    pub fn indices_of(&self, name: &str, shape: &[usize], rows: usize) -> Result<Option<Vec<u32>>> {
        let Some(ids) = self.ids_of(name, shape)? else {
            return Ok(None);
        };
        let index = |(place, &id): (usize, &i64)| match u32::try_from(id) {
            Ok(index) if (index as usize) < rows => Ok(index),
            _ => Err(Error::Dataset(format!(
                "the input {name} holds {id} in row {} of the batch, but must be from 0 to {}",
                place * self.batch / ids.len().max(1),
                rows.saturating_sub(1)
            ))),
        };
        ids.iter()
            .enumerate()
            .map(index)
            .collect::<Result<_>>()
            .map(Some)
    }

    /// Returns the labels, row by row: one per token, or the column `labels` (batch, m) if the model's output has a
    /// length of its own. Empty if the batch has no labels.
    pub fn label_values(&self) -> &[i64] {
        match self.columns.get(LABELS).map(|column| &column.values) {
            Some(Values::Ids(labels)) => labels,
            _ => &self.labels,
        }
    }

    /// Returns how many labels count.
    pub fn counted_tokens(&self) -> usize {
        let counts = |label: &&i64| **label != ops::IGNORE_INDEX;
        self.label_values().iter().filter(counts).count()
    }

    /// Returns the token ids as a (batch, seq) tensor on `device`.
    pub fn input_ids_tensor(&self, device: &Device) -> Result<Tensor> {
        self.tensor_of(&self.input_ids, device)
    }

    /// Returns any u32 values of this batch's shape as a (batch, seq) tensor on `device`.
    pub fn tensor_of(&self, values: &[u32], device: &Device) -> Result<Tensor> {
        ops::upload(values, (self.batch, self.seq), device)
    }

    /// Returns whether any position is padding.
    pub fn has_padding(&self) -> bool {
        self.attention_mask.contains(&0)
    }

    /// Returns position numbers that skip padding tokens, as RoBERTa counts them: `pad_id + 1`, `pad_id + 2`, ... for tokens
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

    /// Returns the flat indices of the positions whose label counts, and those labels.
    ///
    /// # Errors
    /// When a label is neither -100 nor an id below `vocab_size`.
    pub fn counted(&self, vocab_size: usize) -> Result<(Vec<u32>, Vec<u32>)> {
        counted(self.label_values(), vocab_size)
    }
}

/// Returns the indices of the labels that count, and those labels, which are ids below `vocab_size`.
pub(super) fn counted(labels: &[i64], vocab_size: usize) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut rows = Vec::new();
    let mut targets = Vec::new();
    for (index, &label) in labels.iter().enumerate() {
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

impl From<&ModelInputs> for ModelInputs {
    fn from(inputs: &ModelInputs) -> Self {
        inputs.clone()
    }
}

/// Returns the integers of a tensor of any integer dtype, row by row.
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
