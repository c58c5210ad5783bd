//! Padding to the longest row, and the collator that does only that.

use std::collections::BTreeMap;

use super::{BatchKey, Collator, Example, IGNORED, MlmBatch};
use crate::model::{Column, Per, Values, known_input};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Pads examples to the longest of the batch and leaves them otherwise as they are: for data that was masked before,
/// with a `labels` column. Where there is none, every label is [`IGNORED`].
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
/// let examples = [Example::from(vec![0u32, 7, 2]), Example::from(vec![0u32, 7, 8, 9, 2])];
/// let batch = PaddingCollator::new(&tokenizer).pad_to_multiple_of(8).collate(&examples)?;
/// assert_eq!((batch.batch, batch.seq), (2, 8));
/// assert_eq!(batch.attention_mask[..8], [1, 1, 1, 0, 0, 0, 0, 0]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PaddingCollator {
    tokenizer: Tokenizer,
    pad_to_multiple_of: Option<usize>,
}

impl PaddingCollator {
    /// Returns a collator that pads with `tokenizer`'s padding token, on its side.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            pad_to_multiple_of: None,
        }
    }

    /// Rounds the length of the rows up to a multiple of `multiple`.
    #[must_use]
    pub fn pad_to_multiple_of(mut self, multiple: usize) -> Self {
        self.pad_to_multiple_of = Some(multiple);
        self
    }

    /// Returns the padded batch; see [`Collator::collate`].
    pub fn collate(&self, examples: &[Example]) -> Result<MlmBatch> {
        Padding::of(&self.tokenizer, self.pad_to_multiple_of).pad(examples)
    }
}

impl Collator for PaddingCollator {
    fn collate(&self, examples: &[Example], _key: BatchKey) -> Result<MlmBatch> {
        PaddingCollator::collate(self, examples)
    }

    fn validate(&self) -> Result<()> {
        check_multiple(self.pad_to_multiple_of)
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(&self.tokenizer)
    }
}

pub(super) fn check_multiple(multiple: Option<usize>) -> Result<()> {
    if multiple == Some(0) {
        let message = "must be at least 1";
        return Err(Error::argument("pad_to_multiple_of", message));
    }
    Ok(())
}

/// How rows are padded to one length.
pub(crate) struct Padding<'a> {
    /// The values of padding, and whether rows have token types.
    pub tokenizer: &'a Tokenizer,
    /// Whether padding comes before the tokens.
    pub left: bool,
    /// Lengths are rounded up to a multiple of this.
    pub multiple: Option<usize>,
}

impl<'a> Padding<'a> {
    /// Padding as `tokenizer` does it.
    pub(super) fn of(tokenizer: &'a Tokenizer, multiple: Option<usize>) -> Self {
        Self {
            tokenizer,
            left: tokenizer.pads_left(),
            multiple,
        }
    }

    /// Returns where a row of `length` tokens begins among `seq`.
    pub(crate) fn start(&self, length: usize, seq: usize) -> usize {
        if self.left { seq - length } else { 0 }
    }

    /// Returns the examples side by side, as they are but for the padding; labels come from their own column.
    pub(crate) fn pad(&self, examples: &[Example]) -> Result<MlmBatch> {
        check_multiple(self.multiple)?;
        examples.iter().try_for_each(Example::validate)?;
        let lengths = examples.iter().map(|example| example.input_ids.len());
        let Some(longest) = lengths.clone().max() else {
            return Err(Error::Dataset(
                "a batch needs at least one example".to_owned(),
            ));
        };
        // Empty examples that meet in a batch are a row of padding each: nothing in them counts, so that training and
        // evaluation pass over them.
        let seq = longest.max(1).next_multiple_of(self.multiple.unwrap_or(1));
        let pad_id = match self.tokenizer.pad_token_id() {
            Some(id) => id,
            None if longest == 0 || lengths.clone().all(|length| length == seq) => 0,
            None => return Err(self.tokenizer.no_pad_token()),
        };
        let size = examples.len() * seq;
        let has_types = examples.iter().all(|e| e.token_type_ids.is_some());
        let typed = self.tokenizer.uses_token_type_ids() && has_types;
        let mut batch = MlmBatch {
            input_ids: vec![pad_id; size],
            attention_mask: vec![0; size],
            token_type_ids: typed.then(|| vec![0; size]),
            labels: vec![IGNORED; size],
            columns: self.columns(examples, seq)?,
            batch: examples.len(),
            seq,
        };
        for (i, example) in examples.iter().enumerate() {
            let length = example.input_ids.len();
            let from = i * seq + self.start(length, seq);
            let row = from..from + length;
            batch.input_ids[row.clone()].copy_from_slice(&example.input_ids);
            match &example.attention_mask {
                Some(mask) => batch.attention_mask[row.clone()].copy_from_slice(mask),
                None => batch.attention_mask[row.clone()].fill(1),
            }
            if let (Some(to), Some(types)) = (&mut batch.token_type_ids, &example.token_type_ids) {
                to[row.clone()].copy_from_slice(types);
            }
            if let Some(labels) = &example.labels {
                batch.labels[row].copy_from_slice(labels);
            }
        }
        Ok(batch)
    }

    /// Returns the further columns that all examples have, side by side.
    fn columns(&self, examples: &[Example], seq: usize) -> Result<BTreeMap<String, Column>> {
        let Some(first) = examples.first() else {
            return Ok(BTreeMap::new());
        };
        let mut columns = BTreeMap::new();
        for (name, column) in &first.columns {
            let Some(input) = known_input(name) else {
                continue;
            };
            let missing = examples.iter().position(|e| !e.columns.contains_key(name));
            if let Some(row) = missing {
                return Err(Error::Dataset(format!(
                    "example {row} of the batch lacks {name}, which its first example has"
                )));
            }
            let rows = examples.iter().map(|example| &example.columns[name]);
            let (places, start): (usize, Start) = match input.per {
                Per::Token => (seq, &|length| self.start(length, seq)),
                Per::Example => (1, &|_| 0),
                Per::Place => (
                    rows.clone().map(|row| row.shape[0]).max().unwrap_or(0),
                    &|_| 0,
                ),
            };
            let width: usize = input.trailing.iter().product();
            let mut shape = vec![examples.len()];
            if input.per != Per::Example {
                shape.push(places);
            }
            shape.extend(input.trailing);
            let padded = match &column.values {
                Values::Ids(_) => {
                    let rows = rows
                        .map(|row| row.as_ids(name))
                        .collect::<Result<Vec<_>>>()?;
                    Values::Ids(side_by_side(&rows, places, width, start, input.padding))
                }
                Values::Floats(_) => {
                    let rows = rows
                        .map(|row| row.as_floats(name))
                        .collect::<Result<Vec<_>>>()?;
                    Values::Floats(side_by_side(
                        &rows,
                        places,
                        width,
                        start,
                        input.padding as f32,
                    ))
                }
            };
            columns.insert(
                name.clone(),
                Column {
                    values: padded,
                    shape,
                },
            );
        }
        Ok(columns)
    }
}

/// The offset of a row with this many positions.
type Start<'a> = &'a dyn Fn(usize) -> usize;

/// Rows of `width` numbers per position, padded to `places` positions.
fn side_by_side<T: Copy>(
    rows: &[&[T]],
    places: usize,
    width: usize,
    start: Start,
    padding: T,
) -> Vec<T> {
    let mut all = vec![padding; rows.len() * places * width];
    for (row, all) in rows.iter().zip(all.chunks_mut((places * width).max(1))) {
        let from = start(row.len() / width.max(1)) * width;
        all[from..from + row.len()].copy_from_slice(row);
    }
    all
}
