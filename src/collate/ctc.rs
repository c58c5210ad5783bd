//! Batches of waveforms with the letters that are spoken in them.

use std::path::Path;

use super::padding::check_multiple;
use super::{BatchKey, Collator, Example, IGNORED, MlmBatch};
use crate::audio::SpeechProcessor;
use crate::model::{Column, INPUT_VALUES};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Pads waveforms to the longest of the batch and labels to the longest labels: what `DataCollatorCTCWithPadding` is in the
/// guides of `transformers`.
///
/// Examples have the columns `input_values` and `labels`, as made by [`SpeechProcessor::prepare`]. Labels are padded
/// with [`IGNORED`]. The feature extractor's
/// [`return_attention_mask`](crate::audio::FeatureExtractor::return_attention_mask) determines whether the model gets a
/// mask of the padding.
///
/// ```
/// use cloze::audio::{FeatureExtractor, SpeechProcessor};
/// use cloze::collate::{BatchKey, Collator, CtcCollator};
/// use cloze::dataset::Dataset;
/// use cloze::tokenizer::Tokenizer;
/// # use cloze::collate::Examples;
/// # fn main() -> cloze::Result<()> {
/// let processor = SpeechProcessor::new(FeatureExtractor::default(), Tokenizer::train_letters(["one"])?);
/// let dataset = Dataset::builder()
///     .column("input_values", vec![vec![0.5f32, -0.5], vec![1.0, 0.0, -1.0]])
///     .column("labels", vec![vec![5u32, 6], vec![7]])
///     .build()?;
/// let examples = [dataset.get(0)?, dataset.get(1)?];
/// let batch = CtcCollator::new(&processor).collate(&examples, BatchKey::new(0, 0))?;
/// assert_eq!(batch.shape(), (2, 3));
/// assert_eq!(batch.label_values(), [5, 6, 7, -100]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CtcCollator {
    processor: SpeechProcessor,
    pad_to_multiple_of: Option<usize>,
}

impl CtcCollator {
    /// Returns a collator that pads as configured in `processor`'s feature extractor.
    pub fn new(processor: &SpeechProcessor) -> Self {
        Self {
            processor: processor.clone(),
            pad_to_multiple_of: None,
        }
    }

    /// Rounds the length of the rows up to a multiple of `multiple` samples (default: just the longest row).
    #[must_use]
    pub fn pad_to_multiple_of(mut self, multiple: usize) -> Self {
        self.pad_to_multiple_of = Some(multiple);
        self
    }

    /// Returns the letters of all examples, side by side; `None` where there are none.
    fn labels(examples: &[Example]) -> Result<Option<Column>> {
        let rows: Vec<Option<&Vec<i64>>> = examples.iter().map(|e| e.labels.as_ref()).collect();
        if rows.iter().all(Option::is_none) {
            return Ok(None);
        }
        if let Some(row) = rows.iter().position(Option::is_none) {
            return Err(Error::Dataset(format!(
                "example {row} of the batch has no labels, but others have"
            )));
        }
        let longest = rows
            .iter()
            .flatten()
            .map(|row| row.len())
            .max()
            .unwrap_or(0)
            .max(1);
        let mut labels = vec![IGNORED; rows.len() * longest];
        for (row, to) in rows.into_iter().flatten().zip(labels.chunks_mut(longest)) {
            to[..row.len()].copy_from_slice(row);
        }
        Column::ids(labels, [examples.len(), longest]).map(Some)
    }
}

impl Collator for CtcCollator {
    fn collate(&self, examples: &[Example], _key: BatchKey) -> Result<MlmBatch> {
        check_multiple(self.pad_to_multiple_of)?;
        let extractor = self.processor.extractor();
        let mut rows = Vec::with_capacity(examples.len());
        for (number, example) in examples.iter().enumerate() {
            let column = example.columns.get(INPUT_VALUES).ok_or_else(|| {
                Error::Dataset(format!(
                    "example {number} of the batch has no {INPUT_VALUES}; SpeechProcessor::prepare makes them of recordings"
                ))
            })?;
            rows.push(column.as_floats(INPUT_VALUES)?);
        }
        let longest = rows
            .iter()
            .map(|row| row.len())
            .max()
            .filter(|&len| len > 0);
        let longest = longest.ok_or_else(|| {
            Error::Dataset("a batch needs at least one recording that is not empty".to_owned())
        })?;
        let samples = longest.next_multiple_of(self.pad_to_multiple_of.unwrap_or(1));
        let mut values = vec![extractor.padding_value; rows.len() * samples];
        let mut mask = vec![u32::from(!extractor.return_attention_mask); values.len()];
        for (number, row) in rows.iter().enumerate() {
            let to = number * samples..number * samples + row.len();
            values[to.clone()].copy_from_slice(row);
            mask[to].fill(1);
        }
        let batch = MlmBatch::from_waveforms(values, (rows.len(), samples))?;
        let batch = batch.with_attention_mask(mask)?;
        Ok(match Self::labels(examples)? {
            Some(labels) => batch.with_column("labels", labels),
            None => batch,
        })
    }

    fn validate(&self) -> Result<()> {
        check_multiple(self.pad_to_multiple_of)
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(self.processor.tokenizer())
    }

    fn save_pretrained(&self, folder: &Path) -> Result<()> {
        self.processor.save_pretrained(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::FeatureExtractor;

    fn collator(return_attention_mask: bool) -> CtcCollator {
        let extractor = FeatureExtractor {
            return_attention_mask,
            padding_value: 0.25,
            ..FeatureExtractor::default()
        };
        let tokenizer = Tokenizer::train_letters(["abc"]).unwrap();
        CtcCollator::new(&SpeechProcessor::new(extractor, tokenizer))
    }

    fn example(values: &[f32], labels: Option<&[i64]>) -> Example {
        let mut example = Example {
            labels: labels.map(<[i64]>::to_vec),
            ..Example::default()
        };
        let column = Column::floats(values.to_vec(), [values.len()]).unwrap();
        example.columns.insert(INPUT_VALUES.to_owned(), column);
        example
    }

    #[test]
    fn waveforms_and_labels_are_padded_to_the_longest_of_each() {
        let examples = [
            example(&[1.0, 2.0, 3.0], Some(&[5])),
            example(&[4.0], Some(&[6, 7])),
        ];
        let key = BatchKey::new(0, 0);
        let batch = collator(true)
            .pad_to_multiple_of(2)
            .collate(&examples, key)
            .unwrap();
        assert_eq!(batch.shape(), (2, 4));
        let values = batch.floats_of(INPUT_VALUES, &[2, 4]).unwrap();
        assert_eq!(values, [1.0, 2.0, 3.0, 0.25, 4.0, 0.25, 0.25, 0.25]);
        assert_eq!(batch.attention_mask, [1, 1, 1, 0, 1, 0, 0, 0]);
        assert_eq!(batch.label_values(), [5, -100, 6, 7]);
        // Models that were trained without a mask are not shown one.
        let batch = collator(false).collate(&examples, key).unwrap();
        assert_eq!(batch.attention_mask, [1; 6]);
    }

    #[test]
    fn missing_columns_are_reported() {
        let key = BatchKey::new(0, 0);
        let without = collator(false)
            .collate(&[example(&[1.0], None)], key)
            .unwrap();
        assert!(without.label_values().is_empty());
        for (examples, word) in [
            (vec![Example::from(vec![1, 2])], "no input_values"),
            (vec![example(&[], None)], "not empty"),
            (
                vec![example(&[1.0], Some(&[5])), example(&[1.0], None)],
                "example 1",
            ),
        ] {
            let error = collator(false)
                .collate(&examples, key)
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(collator(false).pad_to_multiple_of(0).validate().is_err());
    }
}
