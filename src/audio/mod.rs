//! Sound: files to waveforms, waveforms to what speech models read.
//!
//! ```
//! use cloze::audio::{Audio, FeatureExtractor};
//! # fn main() -> cloze::Result<()> {
//! // A tenth of a second at 8 kHz; Audio::open reads WAV and FLAC files.
//! let samples = (0..800).map(|i| (i as f32 * 0.3).sin()).collect();
//! let audio = Audio::new(samples, 8_000)?;
//! let extractor = FeatureExtractor::default();
//! let values = extractor.input_values(&audio)?;
//! assert_eq!(values.len(), 1_600);
//! # Ok(())
//! # }
//! ```

mod column;
mod decode;
mod extractor;
mod flac;
mod limits;
mod processor;
mod resample;
mod wav;

pub use decode::Audio;
pub use extractor::FeatureExtractor;
pub use processor::{PrepareSpeech, SpeechProcessor};
