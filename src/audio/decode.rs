//! WAV and FLAC files to waveforms.

use std::fmt;
use std::path::Path;

use super::limits::{MOST_SAMPLES, damaged, too_long};
use super::resample::resample;
use super::{flac, wav};
use crate::base::panics::caught;
use crate::{Error, Result};

/// The largest file that is read.
const MOST_BYTES: u64 = 1 << 31;

/// A waveform with one channel.
///
/// ```
/// use cloze::audio::Audio;
///
/// // A second of A.
/// let wave = (0..16_000).map(|i| (i as f32 * 440.0 * std::f32::consts::TAU / 16_000.0).sin()).collect();
/// let audio = Audio::new(wave, 16_000)?;
/// assert_eq!(audio.seconds(), 1.0);
/// assert_eq!(audio.resampled(8_000)?.samples.len(), 8_000);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Audio {
    /// The samples, from -1 to 1.
    pub samples: Vec<f32>,
    /// How many of them make a second.
    pub sampling_rate: u32,
}

impl Audio {
    /// Returns a waveform from its samples.
    ///
    /// # Errors
    /// When `sampling_rate` is 0, or a sample is not a finite number.
    pub fn new(samples: Vec<f32>, sampling_rate: u32) -> Result<Self> {
        check_rate(sampling_rate).map_err(|message| Error::argument("sampling_rate", message))?;
        if let Some(place) = samples.iter().position(|sample| !sample.is_finite()) {
            return Err(Error::argument(
                "samples",
                format!(
                    "sample {place} is {}; samples are numbers from -1 to 1",
                    samples[place]
                ),
            ));
        }
        Ok(Self {
            samples,
            sampling_rate,
        })
    }

    /// Reads a WAV or FLAC file, whatever its ending. Several channels become their mean.
    ///
    /// Samples are what `soundfile` reads them as: whole numbers are divided by half of their range.
    ///
    /// # Errors
    /// When there is no such file, it is of another format, damaged, cut short or empty, or longer than 150 million samples.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |error| Error::io("read", path, error);
        let size = path.metadata().map_err(io)?.len();
        if size > MOST_BYTES {
            return Err(Error::format(path, too_long()));
        }
        let bytes = crate::base::files::read(path)?;
        decode(&bytes).map_err(|message| Error::format(path, message))
    }

    /// Reads the content of a WAV or FLAC file, as [`open`](Self::open) does. `name` tells it in errors.
    ///
    /// # Errors
    /// Like [`open`](Self::open).
    pub fn decode(bytes: impl AsRef<[u8]>, name: impl AsRef<Path>) -> Result<Self> {
        decode(bytes.as_ref()).map_err(|message| Error::format(name, message))
    }

    /// Returns the same sound at `sampling_rate` samples per second: `n` samples become `n * sampling_rate /
    /// self.sampling_rate`, rounded up. Frequencies above the limit of the lower rate are filtered out.
    ///
    /// # Errors
    /// When `sampling_rate` is 0, or the result would be longer than 150 million samples.
    pub fn resampled(&self, sampling_rate: u32) -> Result<Self> {
        check_rate(sampling_rate).map_err(|message| Error::argument("sampling_rate", message))?;
        let wanted = self.samples.len() as f64 * f64::from(sampling_rate)
            / f64::from(self.sampling_rate.max(1));
        if wanted > MOST_SAMPLES as f64 {
            return Err(Error::argument("sampling_rate", too_long()));
        }
        let samples = resample(&self.samples, self.sampling_rate, sampling_rate);
        Ok(Self {
            samples: samples.map_err(|message| Error::argument("sampling_rate", message))?,
            sampling_rate,
        })
    }

    /// Returns how long it takes, in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.sampling_rate.max(1))
    }
}

impl fmt::Debug for Audio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Audio({:.2} s, {} samples at {} Hz)",
            self.seconds(),
            self.samples.len(),
            self.sampling_rate
        )
    }
}

/// Rates that recordings have; resampling by a larger factor is no work for a table of samples.
fn check_rate(rate: u32) -> Result<(), String> {
    match rate {
        100..=1_000_000 => Ok(()),
        _ => Err(format!(
            "{rate} is not a valid sampling rate; recordings have 8,000 to 192,000 samples a second"
        )),
    }
}

/// Decodes the sound in a file's bytes; errors are described in words.
fn decode(bytes: &[u8]) -> Result<Audio, String> {
    // Decoders are written not to panic; what people give them is still damaged in ways that nobody thought of.
    let samples = match bytes {
        [] => Err("the file is empty".to_owned()),
        [b'R', b'I', b'F', b'F', ..] => caught(|| wav::read(bytes)).unwrap_or_else(|panic| Err(damaged(&panic))),
        [b'f', b'L', b'a', b'C', ..] => caught(|| flac::read(bytes)).unwrap_or_else(|panic| Err(damaged(&panic))),
        _ => Err(
            "this is neither a WAV nor a FLAC file; convert it to one of them first, with ffmpeg for instance"
                .to_owned(),
        ),
    };
    let (samples, sampling_rate) = samples?;
    let audio = Audio {
        samples,
        sampling_rate,
    };
    check_rate(audio.sampling_rate)?;
    if audio.samples.is_empty() {
        return Err("the recording has no samples".to_owned());
    }
    if audio.samples.iter().any(|sample| !sample.is_finite()) {
        return Err(damaged(&"some of its samples are not numbers"));
    }
    Ok(audio)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/audio")
    }

    /// Returns the recordings, and what `soundfile` reads in them, several channels by their mean.
    fn recordings() -> Vec<(PathBuf, Audio)> {
        let text = std::fs::read_to_string(fixtures().join("expected.json")).unwrap();
        let expected: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        let audio = |(name, audio): (String, Value)| {
            let samples = audio["samples"].as_array().unwrap().iter();
            let samples = samples.map(|sample| sample.as_f64().unwrap() as f32);
            let rate = audio["sampling_rate"].as_u64().unwrap() as u32;
            let audio = Audio::new(samples.collect(), rate).unwrap();
            (fixtures().join(name), audio)
        };
        expected.into_iter().map(audio).collect()
    }

    #[test]
    fn samples_equal_those_of_soundfile() {
        for (path, expected) in recordings() {
            let audio = Audio::open(&path).unwrap();
            let name = path.display();
            assert_eq!(audio.sampling_rate, expected.sampling_rate, "{name}");
            assert_eq!(audio.samples.len(), expected.samples.len(), "{name}");
            let pairs = audio.samples.iter().zip(&expected.samples);
            let found = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found < 1e-6, "{name}: {found}");
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(Audio::decode(bytes, "x").unwrap(), audio);
        }
    }

    #[test]
    fn a_file_that_is_cut_short_anywhere_is_an_error() {
        for (path, whole) in recordings() {
            let bytes = std::fs::read(&path).unwrap();
            // Behind the sound a file may hold what is none.
            let sound = if path.extension().unwrap() == "flac" {
                4
            } else {
                64
            };
            for length in 0..bytes.len().saturating_sub(sound) {
                let read = Audio::decode(&bytes[..length], &path);
                let error = match read {
                    Err(error) => error.to_string(),
                    Ok(audio) => {
                        assert_eq!(audio, whole, "{} of {length} bytes", path.display());
                        continue;
                    }
                };
                assert!(
                    error.contains(path.file_name().unwrap().to_str().unwrap()),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn damaged_bytes_decode_or_are_an_error() {
        let mut state = 7u64;
        let mut draw = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for (path, _) in recordings() {
            let bytes = std::fs::read(&path).unwrap();
            for _ in 0..300 {
                let mut damaged = bytes.clone();
                for _ in 0..=draw(4) {
                    let place = draw(damaged.len());
                    damaged[place] = draw(256) as u8;
                }
                if let Ok(audio) = Audio::decode(&damaged, &path) {
                    assert!(!audio.samples.is_empty() && audio.samples.len() < 1000);
                    assert!(audio.samples.iter().all(|sample| sample.is_finite()));
                }
            }
        }
    }

    #[test]
    fn a_wav_of_unknown_length_is_read_to_its_end() {
        let mut bytes = std::fs::read(fixtures().join("s16.wav")).unwrap();
        let data = bytes.windows(4).position(|word| word == b"data").unwrap();
        let whole = Audio::decode(bytes.clone(), "x").unwrap();
        for length in [0x7fff_f000u32, u32::MAX] {
            bytes[data + 4..data + 8].copy_from_slice(&length.to_le_bytes());
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            let audio = Audio::decode(bytes.clone(), "x").unwrap();
            assert_eq!(audio.samples[..48], whole.samples[..48]);
        }
    }

    #[test]
    fn other_files_and_invalid_numbers_are_refused_with_a_reason() {
        let error = Audio::decode(b"OggS....", "a.ogg").unwrap_err();
        assert!(
            error.to_string().contains("neither a WAV nor a FLAC"),
            "{error}"
        );
        assert!(
            Audio::decode(Vec::new(), "a.wav")
                .unwrap_err()
                .to_string()
                .contains("empty")
        );
        assert!(matches!(Audio::open("nothing.wav"), Err(Error::Io { .. })));
        assert!(Audio::new(vec![f32::NAN], 16_000).is_err());
        assert!(Audio::new(vec![0.0], 0).is_err());
        let audio = Audio::new(vec![0.0; 200_000], 100).unwrap();
        assert!(audio.resampled(5).is_err() && audio.resampled(1_000_000).is_err());
    }
}
