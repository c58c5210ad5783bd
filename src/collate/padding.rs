//! Padding to the longest row, and the collator that does only that.

use super::{BatchKey, Collator, Example, IGNORED, MlmBatch};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Pads examples to the longest of the batch and leaves them otherwise as they are: for data that was masked before,
/// with a `labels` column. Where there is none, every label is [`IGNORED`].
#[derive(Clone, Debug)]
pub struct PaddingCollator {
    tokenizer: Tokenizer,
    pad_to_multiple_of: Option<usize>,
}

impl PaddingCollator {
    /// A collator that pads with `tokenizer`'s padding token, on its side.
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

    /// The padded batch; see [`Collator::collate`].
    pub fn collate(&self, examples: &[Example]) -> Result<MlmBatch> {
        pad(examples, &self.tokenizer, self.pad_to_multiple_of)
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
        let message = "0 has no multiples; give 1 or more";
        return Err(Error::argument("pad_to_multiple_of", message));
    }
    Ok(())
}

/// Where a row of `length` tokens begins among `seq`.
pub(super) fn start(tokenizer: &Tokenizer, length: usize, seq: usize) -> usize {
    if tokenizer.pads_left() {
        seq - length
    } else {
        0
    }
}

/// The examples as they are, padded; labels from their own column.
pub(super) fn pad(
    examples: &[Example],
    tokenizer: &Tokenizer,
    multiple: Option<usize>,
) -> Result<MlmBatch> {
    check_multiple(multiple)?;
    examples.iter().try_for_each(Example::validate)?;
    let lengths = examples.iter().map(|example| example.input_ids.len());
    let Some(longest) = lengths.clone().max().filter(|&longest| longest > 0) else {
        return Err(Error::Dataset(
            "there is nothing to make a batch of: no examples, or only empty ones".to_owned(),
        ));
    };
    let seq = longest.next_multiple_of(multiple.unwrap_or(1));
    let pad_id = match tokenizer.pad_token_id() {
        Some(id) => id,
        None if lengths.clone().all(|length| length == seq) => 0,
        None => return Err(tokenizer.no_pad_token()),
    };
    let size = examples.len() * seq;
    let typed =
        tokenizer.uses_token_type_ids() && examples.iter().all(|e| e.token_type_ids.is_some());
    let mut batch = MlmBatch {
        input_ids: vec![pad_id; size],
        attention_mask: vec![0; size],
        token_type_ids: typed.then(|| vec![0; size]),
        labels: vec![IGNORED; size],
        batch: examples.len(),
        seq,
    };
    for (i, example) in examples.iter().enumerate() {
        let length = example.input_ids.len();
        let from = i * seq + start(tokenizer, length, seq);
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
