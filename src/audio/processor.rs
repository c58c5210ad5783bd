//! A feature extractor and a tokenizer of letters, side by side.

use std::path::Path;

use arrow::array::{Array, AsArray};

use super::column::Recordings;
use super::{Audio, FeatureExtractor};
use crate::dataset::{Batch, BatchFunction, type_name};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Both sides of speech recognition: waveforms to a model's inputs, and texts to its labels and back. What
/// `Wav2Vec2Processor` is in `transformers`.
///
/// ```
/// use cloze::audio::{Audio, FeatureExtractor, SpeechProcessor};
/// use cloze::tokenizer::Tokenizer;
/// # fn main() -> cloze::Result<()> {
/// let tokenizer = Tokenizer::train_letters(["one two", "three"])?;
/// let processor = SpeechProcessor::new(FeatureExtractor::default(), tokenizer);
/// let labels = processor.labels("one")?;
/// assert_eq!(processor.tokenizer().decode_unfolded(&labels, true)?, "one");
/// let values = processor.input_values(&Audio::new(vec![0.0, 0.5, -0.5], 16_000)?)?;
/// assert_eq!(values.len(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SpeechProcessor {
    extractor: FeatureExtractor,
    tokenizer: Tokenizer,
}

impl SpeechProcessor {
    /// Returns a processor of its two parts.
    pub fn new(extractor: FeatureExtractor, tokenizer: Tokenizer) -> Self {
        Self {
            extractor,
            tokenizer,
        }
    }

    /// Opens the processor called `name`: a folder, or a Hub name, with `preprocessor_config.json` and the tokenizer's files.
    ///
    /// # Errors
    /// When one of them is missing or damaged.
    pub fn from_pretrained(name: impl AsRef<str>) -> Result<Self> {
        let folder = crate::hub::resolve("tokenizer", name.as_ref())?;
        Ok(Self {
            extractor: FeatureExtractor::from_folder(&folder)?,
            tokenizer: Tokenizer::from_path(&folder)?,
        })
    }

    /// Writes the files of both parts into `folder`, which is created if need be; `Wav2Vec2Processor.from_pretrained(folder)`
    /// in Python opens it.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.tokenizer.save_pretrained(folder.as_ref())?;
        self.extractor.save_pretrained(folder)
    }

    /// Returns the feature extractor.
    pub fn extractor(&self) -> &FeatureExtractor {
        &self.extractor
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Like [`FeatureExtractor::input_values`].
    pub fn input_values(&self, audio: &Audio) -> Result<Vec<f32>> {
        self.extractor.input_values(audio)
    }

    /// Returns the ids of the letters of `text`.
    pub fn labels(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text)?.ids)
    }

    /// Returns the function for [`Dataset::map`](crate::dataset::Dataset::map) that makes the columns `input_values`
    /// (`list<float>`) of the recordings in the column `audio`, and `labels` (`list<int32>`) of the texts in the column
    /// `text`: what `CtcCollator` makes batches of.
    ///
    /// Recordings are paths of WAV and FLAC files (`string`), the files' content (`binary`), or records
    /// `{bytes: binary, path: string}` as `datasets` has them; those of other sampling rates are resampled.
    ///
    /// The results are not kept in the cache, as files may change under their names;
    /// [`Map::fingerprint`](crate::dataset::Map::fingerprint) gives them a name of your choice.
    pub fn prepare(&self, audio: impl Into<String>, text: impl Into<String>) -> PrepareSpeech {
        PrepareSpeech {
            processor: self.clone(),
            audio: audio.into(),
            text: text.into(),
        }
    }

    /// Returns the recordings in the column `audio` of `batch`, as they are.
    ///
    /// # Errors
    /// When there is no such column, it holds something else, or a recording can't be read.
    pub fn recordings(batch: &Batch, audio: &str) -> Result<Vec<Audio>> {
        let recordings = Recordings::new(batch, audio)?;
        (0..batch.len()).map(|row| recordings.read(row)).collect()
    }
}

/// Reads recordings and their texts; made by [`SpeechProcessor::prepare`] for
/// [`Dataset::map`](crate::dataset::Dataset::map).
#[derive(Clone, Debug)]
pub struct PrepareSpeech {
    processor: SpeechProcessor,
    audio: String,
    text: String,
}

impl BatchFunction for PrepareSpeech {
    fn call(&self, batch: &Batch) -> Result<Batch> {
        let recordings = Recordings::new(batch, &self.audio)?;
        let texts = batch.array(&self.text)?;
        let first = batch.rows().start;
        let unsuitable = |found: String| Error::ColumnType {
            name: self.text.clone(),
            operation: "making labels of it".to_owned(),
            expected: "string".to_owned(),
            found,
        };
        let texts = texts
            .as_string_opt::<i32>()
            .ok_or_else(|| unsuitable(type_name(texts.data_type())))?;
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        let mut samples = 0;
        for row in 0..batch.len() {
            crate::interrupt::check("reading recordings")?;
            if texts.is_null(row) {
                return Err(unsuitable(format!("a null in row {}", first + row)));
            }
            let waveform = self.processor.input_values(&recordings.read(row)?)?;
            samples += waveform.len();
            if i32::try_from(samples).is_err() {
                return Err(Error::argument(
                    "batch_size",
                    format!(
                        "{samples} samples are too many for one batch; map with a smaller batch_size"
                    ),
                ));
            }
            values.push(waveform);
            let ids = self.processor.labels(texts.value(row))?;
            labels.push(ids.into_iter().map(|id| id as i32).collect::<Vec<_>>());
        }
        Batch::new()
            .with_column("input_values", values)?
            .with_column("labels", labels)
    }
}
