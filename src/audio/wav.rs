//! WAV: a header, and uncompressed samples. Read here instead of by a library, for better errors about damaged files
//! and for encodings that the libraries do not support.

use super::limits::{MOST_SAMPLES, damaged, too_long};

/// How samples are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Encoding {
    /// Whole numbers; of 8 bits without a sign.
    Whole,
    Float,
    MuLaw,
    ALaw,
}

/// The contents of the chunk "fmt ".
#[derive(Clone, Copy, Debug)]
struct Format {
    encoding: Encoding,
    channels: usize,
    rate: u32,
    /// Of one sample.
    bytes: usize,
}

/// Lengths from here on are announced by writers that do not know how long the file will be.
const UNKNOWN_LENGTH: usize = 0x7fff_0000;

/// Reads the content of a WAV file; several channels become their mean.
pub(super) fn read(bytes: &[u8]) -> Result<(Vec<f32>, u32), String> {
    if bytes.get(8..12) != Some(b"WAVE") {
        return Err(damaged(&"its header is not that of a WAV file"));
    }
    let mut rest = &bytes[12..];
    let mut format = None;
    while let Some((head, body)) = rest.split_at_checked(8) {
        let length = number(head, 4) as usize;
        if &head[..4] == b"data" {
            let format = format.ok_or_else(|| {
                damaged(&"its samples come before the description of their format")
            })?;
            return samples(body, length, format);
        }
        let Some((chunk, behind)) = body.split_at_checked(length) else {
            break;
        };
        if &head[..4] == b"fmt " {
            format = Some(Format::read(chunk)?);
        }
        // Chunks begin at even places.
        rest = behind.get(length % 2..).unwrap_or_default();
    }
    Err(damaged(&"it ends before its samples"))
}

/// Four bytes as a number, lowest first.
fn number(bytes: &[u8], at: usize) -> u32 {
    let byte = |i: usize| u32::from(bytes.get(at + i).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

impl Format {
    fn read(chunk: &[u8]) -> Result<Self, String> {
        if chunk.len() < 16 {
            return Err(damaged(&"its header is too short"));
        }
        let short = |at| number(chunk, at) & 0xffff;
        // The extensible format has the tag further behind.
        let tag = match short(0) {
            0xfffe if chunk.len() >= 26 => short(24),
            tag => tag,
        };
        let bits = short(14);
        let encoding = match (tag, bits) {
            (1, 8 | 16 | 24 | 32) => Encoding::Whole,
            (3, 32 | 64) => Encoding::Float,
            (6, 8) => Encoding::ALaw,
            (7, 8) => Encoding::MuLaw,
            _ => {
                return Err(format!(
                    "its encoding is not supported (format {tag} with {bits} bits); convert it to PCM samples or FLAC first, with ffmpeg for instance"
                ));
            }
        };
        let channels = short(2) as usize;
        if !(1..=64).contains(&channels) {
            return Err(damaged(&format!("it has {channels} channels")));
        }
        Ok(Self {
            encoding,
            channels,
            rate: number(chunk, 4),
            bytes: bits as usize / 8,
        })
    }

    /// Returns one sample as a number from -1 to 1.
    fn sample(&self, bytes: &[u8]) -> f32 {
        match (self.encoding, bytes) {
            (Encoding::Whole, &[a]) => (f32::from(a) - 128.0) / 128.0,
            (Encoding::Whole, &[a, b]) => f32::from(i16::from_le_bytes([a, b])) / 32_768.0,
            (Encoding::Whole, &[a, b, c]) => {
                (i32::from_le_bytes([0, a, b, c]) >> 8) as f32 / 8_388_608.0
            }
            (Encoding::Whole, &[a, b, c, d]) => {
                (f64::from(i32::from_le_bytes([a, b, c, d])) / 2_147_483_648.0) as f32
            }
            (Encoding::Float, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Encoding::Float, &[a, b, c, d, e, f, g, h]) => {
                f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32
            }
            (Encoding::MuLaw, &[a]) => mu_law(a),
            (Encoding::ALaw, &[a]) => a_law(a),
            _ => 0.0,
        }
    }
}

/// G.711's logarithmic levels of America.
fn mu_law(byte: u8) -> f32 {
    let byte = !byte;
    let (exponent, mantissa) = (i32::from(byte >> 4 & 7), i32::from(byte & 15));
    let level = ((2 * mantissa + 33) << (exponent + 2)) - 132;
    let level = if byte & 0x80 == 0 { level } else { -level };
    level as f32 / 32_768.0
}

/// G.711's logarithmic levels of Europe.
fn a_law(byte: u8) -> f32 {
    let byte = byte ^ 0x55;
    let (exponent, mantissa) = (i32::from(byte >> 4 & 7), i32::from(byte & 15));
    let level = match exponent {
        0 => (2 * mantissa + 1) << 3,
        exponent => (2 * mantissa + 33) << (exponent + 2),
    };
    let level = if byte & 0x80 == 0 { -level } else { level };
    level as f32 / 32_768.0
}

/// Returns the samples of the chunk "data", whose announced size is `length` bytes.
fn samples(body: &[u8], length: usize, format: Format) -> Result<(Vec<f32>, u32), String> {
    let frame = format.bytes * format.channels;
    let held = match length {
        UNKNOWN_LENGTH.. => body,
        length => body.get(..length).ok_or_else(|| {
            damaged(&format!(
                "its header announces {} samples a channel, but it has {}",
                length / frame,
                body.len() / frame
            ))
        })?,
    };
    if held.len() / frame > MOST_SAMPLES {
        return Err(too_long());
    }
    let mean = |frame: &[u8]| {
        let channels = frame
            .chunks_exact(format.bytes)
            .map(|bytes| format.sample(bytes));
        channels.sum::<f32>() / format.channels as f32
    };
    Ok((held.chunks_exact(frame).map(mean).collect(), format.rate))
}
