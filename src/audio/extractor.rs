//! Waveforms as a speech model reads them.

use std::path::Path;

use serde_json::{Map, Value};

use super::Audio;
use crate::{Error, Result};

const FILE: &str = "preprocessor_config.json";

/// The format of a speech model's inputs: `Wav2Vec2FeatureExtractor` of `transformers`.
///
/// It is read from `preprocessor_config.json` and saved there; keys that it has no use for are kept.
///
/// ```
/// use cloze::audio::{Audio, FeatureExtractor};
///
/// // Mean 0 and variance 1, as most speech models want it.
/// let values = FeatureExtractor::default().input_values(&Audio::new(vec![0.1, 0.3, 0.1, 0.3], 16_000)?)?;
/// assert!(values.iter().sum::<f32>().abs() < 1e-4 && (values[1] - 1.0).abs() < 1e-2);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureExtractor {
    /// The samples a second that the model was trained on (default 16,000).
    pub sampling_rate: u32,
    /// Whether each waveform is shifted and scaled to mean 0 and variance 1 (default: yes).
    pub do_normalize: bool,
    /// Whether padding is kept from the model's sight by an attention mask (default: no). Models whose convolutions
    /// normalize by groups (`feat_extract_norm` "group", such as wav2vec2-base) were trained without, those that normalize
    /// by layers with.
    pub return_attention_mask: bool,
    /// The value that pads shorter waveforms of a batch (default 0).
    pub padding_value: f32,
    /// All keys of the file, which are kept when it is saved again.
    pub other_keys: Map<String, Value>,
}

impl Default for FeatureExtractor {
    fn default() -> Self {
        Self {
            sampling_rate: 16_000,
            do_normalize: true,
            return_attention_mask: false,
            padding_value: 0.0,
            other_keys: Map::new(),
        }
    }
}

impl FeatureExtractor {
    /// Opens the feature extractor called `name`: a folder with `preprocessor_config.json`, or a Hub name.
    ///
    /// # Errors
    /// When there is none, or it is one for other inputs than waveforms.
    pub fn from_pretrained(name: impl AsRef<str>) -> Result<Self> {
        let folder = crate::hub::resolve("tokenizer", name.as_ref())?;
        Self::from_folder(&folder)
    }

    pub(super) fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = crate::base::files::read(&path)?;
        Self::parse(&text).map_err(|message| Error::format(&path, message))
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let others: Map<String, Value> = crate::base::json::from_slice(text)
            .map_err(|error| format!("it is not a JSON object: {error}"))?;
        let flag = |key: &str, default: bool| match others.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| format!("{key} is {value}, but must be true or false")),
        };
        let number = |key: &str, default: f64| match others.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| format!("{key} is {value}, but must be a number")),
        };
        if number("feature_size", 1.0)? != 1.0 {
            return Err(format!(
                "feature_size is {}: this model reads features of a spectrum instead of waveforms, which is not supported",
                others["feature_size"]
            ));
        }
        if others
            .get("padding_side")
            .is_some_and(|side| side == "left")
        {
            return Err("padding_side is \"left\", but waveforms are padded at the end".to_owned());
        }
        let rate = number("sampling_rate", 16_000.0)?;
        if rate.fract() != 0.0 || !(100.0..=1e6).contains(&rate) {
            return Err(format!(
                "sampling_rate is {rate}, but recordings have 8000 to 192000 samples a second"
            ));
        }
        Ok(Self {
            sampling_rate: rate as u32,
            do_normalize: flag("do_normalize", true)?,
            return_attention_mask: flag("return_attention_mask", false)?,
            padding_value: number("padding_value", 0.0)? as f32,
            other_keys: others,
        })
    }

    /// Writes `preprocessor_config.json` into `folder`, which is created if need be.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        let mut config = self.other_keys.clone();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        set("do_normalize", self.do_normalize.into());
        set("feature_extractor_type", "Wav2Vec2FeatureExtractor".into());
        set("feature_size", 1.into());
        set("padding_side", "right".into());
        set("padding_value", self.padding_value.into());
        set("return_attention_mask", self.return_attention_mask.into());
        set("sampling_rate", self.sampling_rate.into());
        let text = serde_json::to_string_pretty(&config)?;
        crate::files::write_atomically(&folder.join(FILE), text.as_bytes())
    }

    /// Returns `audio` as the model's `input_values`: resampled to the model's rate where it has another, and normalized.
    ///
    /// # Errors
    /// When it has no samples.
    pub fn input_values(&self, audio: &Audio) -> Result<Vec<f32>> {
        if audio.samples.is_empty() {
            return Err(Error::argument("audio", "it has no samples"));
        }
        let mut values = audio.resampled(self.sampling_rate)?.samples;
        if self.do_normalize {
            normalize(&mut values);
        }
        Ok(values)
    }
}

/// Shifts and scales to mean 0 and variance 1.
fn normalize(values: &mut [f32]) {
    let count = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2));
    let deviation = (squares.sum::<f64>() / count + 1e-7).sqrt();
    for value in values {
        *value = ((f64::from(*value) - mean) / deviation) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_normalized_and_silence_stays_silent() {
        let samples = (0..4000).map(|i| 0.3 + 0.1 * (i as f32).sin()).collect();
        let audio = Audio::new(samples, 16_000).unwrap();
        let values = FeatureExtractor::default().input_values(&audio).unwrap();
        let mean = values.iter().sum::<f32>() / 4000.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 4000.0;
        assert!(
            mean.abs() < 1e-4 && (variance - 1.0).abs() < 1e-3,
            "{mean} {variance}"
        );
        let silence = Audio::new(vec![0.25; 50], 16_000).unwrap();
        let values = FeatureExtractor::default().input_values(&silence).unwrap();
        assert!(values.iter().all(|&value| value == 0.0));
        let raw = FeatureExtractor {
            do_normalize: false,
            ..FeatureExtractor::default()
        };
        assert_eq!(raw.input_values(&silence).unwrap(), silence.samples);
    }

    #[test]
    fn the_file_keeps_unknown_fields() {
        let text = r#"{"do_normalize": false, "feature_size": 1, "return_attention_mask": true, "sampling_rate": 8000,
            "padding_value": 0.5, "processor_class": "Wav2Vec2Processor"}"#;
        let read = FeatureExtractor::parse(text.as_bytes()).unwrap();
        assert_eq!((read.sampling_rate, read.do_normalize), (8_000, false));
        assert!(read.return_attention_mask && read.padding_value == 0.5);
        let folder = tempfile::tempdir().unwrap();
        read.save_pretrained(folder.path()).unwrap();
        let again = FeatureExtractor::from_folder(folder.path()).unwrap();
        assert_eq!(again.other_keys["processor_class"], "Wav2Vec2Processor");
        assert_eq!(
            again.other_keys["feature_extractor_type"],
            "Wav2Vec2FeatureExtractor"
        );
        assert_eq!(again.sampling_rate, 8_000);
        assert_eq!(
            FeatureExtractor::parse(b"{}").unwrap(),
            FeatureExtractor::default()
        );
    }

    #[test]
    fn invalid_waveforms_and_settings_are_refused() {
        for (text, word) in [
            (r#"{"feature_size": 80}"#, "spectrum"),
            (r#"{"sampling_rate": 0}"#, "sampling_rate is 0"),
            (r#"{"sampling_rate": "16k"}"#, "must be a number"),
            (r#"{"do_normalize": 1}"#, "true or false"),
            (r#"{"padding_side": "left"}"#, "at the end"),
            ("[]", "JSON object"),
        ] {
            let error = FeatureExtractor::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
