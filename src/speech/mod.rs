//! Speech to text: a model, its processor, and its metrics.

mod error_rate;
mod recognizer;

pub use error_rate::{character_error_rate, word_error_rate};
pub use recognizer::{ErrorRates, SpeechRecognizer, SpokenWord, Transcription};
