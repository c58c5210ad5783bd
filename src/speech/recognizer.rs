//! A speech model together with its processor.

use std::fmt;
use std::path::Path;

use candle_core::D;
use serde_json::Value;

use super::{character_error_rate, word_error_rate};
use crate::audio::{Audio, SpeechProcessor};
use crate::dataset::Dataset;
use crate::model::{MaskedLm, ModelInputs};
use crate::{Error, Result, interrupt, ops};

/// Recordings that are read at once.
const ROWS: usize = 16;

/// Transcribes recordings: `pipeline("automatic-speech-recognition")` of `transformers`, for models with connectionist
/// temporal classification (Wav2Vec2). Cheap to clone; clones share the weights.
///
/// The most probable letter of each frame is taken; equal ones in a row are one, and blanks are left out.
///
/// ```no_run
/// use cloze::speech::SpeechRecognizer;
/// let recognizer = SpeechRecognizer::from_pretrained("facebook/wav2vec2-base-960h")?;
/// println!("{}", recognizer.transcribe_file("speech.wav")?.text);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone)]
pub struct SpeechRecognizer {
    model: MaskedLm,
    processor: SpeechProcessor,
}

/// The transcript of a recording.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// let said = SpeechRecognizer::from_pretrained("facebook/wav2vec2-base-960h")?.transcribe_file("interview.flac")?;
/// println!("{}", said.text);
/// for word in &said.words {
///     println!("{:.2} to {:.2} s: {}", word.start, word.end, word.text);
/// }
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Transcription {
    /// The text.
    pub text: String,
    /// Its words, and when each was said: `output_word_offsets` of `transformers`.
    pub words: Vec<SpokenWord>,
}

/// A word, and when it was said.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SpokenWord {
    /// The word, in the letters of the vocabulary.
    pub text: String,
    /// The model's frame in which it begins.
    pub start_offset: usize,
    /// The frame after its last one.
    pub end_offset: usize,
    /// When it begins, in seconds.
    pub start: f64,
    /// When it ends, in seconds.
    pub end: f64,
}

/// The error rates of a model's transcripts.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// let recordings = load_dataset("recordings")?;
/// let recognizer = SpeechRecognizer::from_pretrained("facebook/wav2vec2-base-960h")?;
/// let rates = recognizer.error_rates(&recordings["test"], "audio", "transcription")?;
/// println!("{:.1}% of the words", 100.0 * rates.words);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct ErrorRates {
    /// See [`word_error_rate`].
    pub words: f64,
    /// Like [`character_error_rate`] has it.
    pub characters: f64,
    /// The reference transcript.
    pub references: Vec<String>,
    /// The model's transcript.
    pub hypotheses: Vec<String>,
}

impl SpeechRecognizer {
    /// Opens the model and the processor called `name`: a folder, or a Hub name.
    ///
    /// # Errors
    /// When one of them is missing or damaged, or the model reads no sound.
    pub fn from_pretrained(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        let processor = SpeechProcessor::from_pretrained(name)?;
        Self::new(MaskedLm::from_pretrained(name)?, processor)
    }

    /// Recognizes with a model that is already there, for instance right after training it.
    ///
    /// # Errors
    /// When the model reads no sound, the tokenizer is not one of letters, or has more of them than the model.
    pub fn new(model: MaskedLm, processor: SpeechProcessor) -> Result<Self> {
        if model.main_input() != "input_values" {
            return Err(Error::argument(
                "model",
                format!(
                    "{} reads {} instead of sound",
                    model.class(),
                    model.main_input()
                ),
            ));
        }
        processor.tokenizer().spoken_letters(&[])?;
        let letters = processor.tokenizer().len();
        if letters > model.vocab_size() {
            return Err(Error::argument(
                "processor",
                format!(
                    "its tokenizer has {letters} tokens, but the model predicts {}; set the config's vocab_size to the tokenizer's len()",
                    model.vocab_size()
                ),
            ));
        }
        Ok(Self { model, processor })
    }

    /// Returns the model.
    pub fn model(&self) -> &MaskedLm {
        &self.model
    }

    /// Returns the processor.
    pub fn processor(&self) -> &SpeechProcessor {
        &self.processor
    }

    /// Transcribes a WAV or FLAC file.
    ///
    /// # Errors
    /// When the file can't be read, or is shorter than one of the model's frames.
    pub fn transcribe_file(&self, path: impl AsRef<Path>) -> Result<Transcription> {
        self.transcribe(&Audio::open(path)?)
    }

    /// Transcribes `audio`, of any sampling rate.
    ///
    /// # Errors
    /// When it is shorter than one of the model's frames.
    pub fn transcribe(&self, audio: &Audio) -> Result<Transcription> {
        self.transcribe_values(self.processor.input_values(audio)?)
    }

    /// Transcribes prepared `input_values`, as in the column of that name.
    ///
    /// # Errors
    /// Like [`transcribe`](Self::transcribe).
    pub fn transcribe_values(&self, input_values: Vec<f32>) -> Result<Transcription> {
        let samples = input_values.len();
        let inputs = ModelInputs::from_waveforms(input_values, (1, samples))?;
        let ids: Vec<u32> = ops::in_pool(|| -> Result<_> {
            let logits = self.model.forward(&inputs)?;
            Ok(logits.argmax(D::Minus1)?.flatten_all()?.to_vec1()?)
        })?;
        let tokenizer = self.processor.tokenizer();
        let samples = self.samples_per_frame();
        let seconds = |frame: usize| {
            frame as f64 * samples / f64::from(self.processor.extractor().sampling_rate)
        };
        let words = tokenizer.spoken_words(&ids)?.into_iter();
        Ok(Transcription {
            text: tokenizer.decode(&ids, false)?,
            words: words
                .map(|word| SpokenWord {
                    start: seconds(word.start),
                    end: seconds(word.end),
                    start_offset: word.start,
                    end_offset: word.end,
                    text: word.text,
                })
                .collect(),
        })
    }

    /// Writes down the recordings in the column `audio` of `dataset` and compares them with the texts in the column `text`.
    /// The recordings are files, or ready `input_values` where `audio` is called that.
    ///
    /// # Errors
    /// When a column is missing or holds something else, or a recording can't be read.
    pub fn error_rates(&self, dataset: &Dataset, audio: &str, text: &str) -> Result<ErrorRates> {
        let references: Vec<String> = dataset.column(text)?;
        let mut hypotheses = Vec::with_capacity(references.len());
        for start in (0..dataset.len()).step_by(ROWS) {
            let part = dataset.batch(start..dataset.len().min(start + ROWS))?;
            let values: Vec<Vec<f32>> = match audio {
                "input_values" => part.column(audio)?,
                _ => SpeechProcessor::recordings(&part, audio)?
                    .iter()
                    .map(|audio| self.processor.input_values(audio))
                    .collect::<Result<_>>()?,
            };
            for values in values {
                interrupt::check("recognizing speech")?;
                hypotheses.push(self.transcribe_values(values)?.text);
            }
        }
        Ok(ErrorRates {
            words: word_error_rate(&references, &hypotheses)?,
            characters: character_error_rate(&references, &hypotheses)?,
            references,
            hypotheses,
        })
    }

    /// The number of samples from one frame to the next: the product of the convolutions' strides.
    fn samples_per_frame(&self) -> f64 {
        let strides = self
            .model
            .config()
            .get("conv_stride")
            .and_then(Value::as_array);
        let strides = strides.map(|strides| strides.iter().filter_map(Value::as_f64).product());
        strides.unwrap_or(320.0)
    }
}

impl fmt::Debug for SpeechRecognizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SpeechRecognizer({:?}, {} letters)",
            self.model,
            self.processor.tokenizer().len()
        )
    }
}

impl fmt::Debug for ErrorRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ErrorRates({} texts, {:.1}% of words wrong, {:.1}% of characters)",
            self.references.len(),
            100.0 * self.words,
            100.0 * self.characters
        )
    }
}
