//! FLAC, by a library that checks the sums of every frame.

use std::io::Cursor;

use claxon::{Error as Failure, FlacReader};

use super::limits::{MOST_SAMPLES, damaged, too_long};

/// Reads the content of a FLAC file; several channels become their mean.
pub(super) fn read(bytes: &[u8]) -> Result<(Vec<f32>, u32), String> {
    let words = |error: Failure| match error {
        Failure::Unsupported(what) => {
            format!("its encoding is not supported ({what}); convert it to a WAV file first")
        }
        other => damaged(&other),
    };
    let mut reader = FlacReader::new(Cursor::new(bytes)).map_err(words)?;
    let info = reader.streaminfo();
    if info.samples.unwrap_or(0) > MOST_SAMPLES as u64 {
        return Err(too_long());
    }
    let scale = 1.0 / f64::from(1u32 << (info.bits_per_sample.clamp(1, 32) - 1));
    let mut samples = Vec::new();
    let mut blocks = reader.blocks();
    let mut buffer = Vec::new();
    while let Some(block) = blocks.read_next_or_eof(buffer).map_err(words)? {
        let channels = block.channels();
        for i in 0..block.duration() {
            let sum: f32 = (0..channels)
                .map(|channel| (f64::from(block.sample(channel, i)) * scale) as f32)
                .sum();
            samples.push(sum / channels as f32);
        }
        if samples.len() > MOST_SAMPLES {
            return Err(too_long());
        }
        buffer = block.into_buffer();
    }
    match info.samples {
        Some(announced) if (samples.len() as u64) < announced => Err(damaged(&format!(
            "its header announces {announced} samples a channel, but it has {}",
            samples.len()
        ))),
        _ => Ok((samples, info.sample_rate)),
    }
}
