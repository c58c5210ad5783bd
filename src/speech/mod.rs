//! Speech to text: a model, its processor, and what they are measured by.

mod error_rate;
mod recognizer;

pub use error_rate::{character_error_rate, word_error_rate};
pub use recognizer::{ErrorRates, SpeechRecognizer, SpokenWord, Transcription};
