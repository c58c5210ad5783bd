//! Event files that TensorBoard reads: records of scalars, each with two checksums.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::{Error, Result};

/// What TensorFlow calls `Event`, as far as scalars need it.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    /// Only in the first record.
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// A file of events that grows.
pub(super) struct EventFile {
    file: File,
}

impl EventFile {
    /// Creates an event file in `folder`, which is created if needed.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, e))?;
        let (seconds, process) = (now() as u64, std::process::id());
        let host = host();
        for number in 0..1000 {
            let name = format!("events.out.tfevents.{seconds}.{host}.{process}.{number}");
            let path = folder.join(name);
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut events = Self { file };
                    events.write(&Event {
                        wall_time: now(),
                        step: 0,
                        file_version: Some("brain.Event:2".to_owned()),
                        summary: None,
                    })?;
                    return Ok(events);
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("make", &path, e)),
            }
        }
        Err(Error::argument(
            "logging_dir",
            format!("{} has too many event files", folder.display()),
        ))
    }

    /// Adds the scalars of a step.
    pub(super) fn scalars(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        let value = |(tag, value): &(String, f64)| Value {
            tag: tag.clone(),
            simple_value: *value as f32,
        };
        self.write(&Event {
            wall_time: now(),
            step: step as i64,
            file_version: None,
            summary: Some(Summary {
                value: values.iter().map(value).collect(),
            }),
        })
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        let record = record(&event.encode_to_vec());
        let written = self.file.write_all(&record);
        written.map_err(|e| Error::io("write", "the event file", e))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// Returns the machine's name, as far as it can be part of a file's.
pub(super) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    match name.is_empty() {
        true => "localhost".to_owned(),
        false => name,
    }
}

/// Returns the current date and time (UTC) and the machine, as transformers names the folder of a run:
/// `Nov28_14-05-23_host`.
pub(super) fn run_name() -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let seconds = now() as u64;
    let (month, day) = month_and_day(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!(
        "{}{day:02}_{:02}-{:02}-{:02}_{}",
        MONTHS[month],
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        host()
    )
}

/// Returns the month (from 0) and the day (from 1) of the date this many days after 1 January 1970.
fn month_and_day(mut days: u64) -> (usize, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in lengths.into_iter().enumerate() {
        if days < length {
            return (month, days + 1);
        }
        days -= length;
    }
    (11, 31)
}

/// Returns a record: the length and its checksum, the data and its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// Returns the masked checksum as stored in records: rotated and shifted, so that checksums of checksums are not
/// special.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: records are short.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc >>= 1;
            if carry == 1 {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the iSCSI standard (RFC 3720, B.4).
    #[test]
    fn checksums_follow_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
    }

    #[test]
    fn dates_are_computed_from_days() {
        for (days, expected) in [
            (0, (0, 1)),
            (58, (1, 28)),
            (59, (2, 1)),
            // 29 February 2000, 1 March 2100, 31 December 2026.
            (11_016, (1, 29)),
            (47_541, (2, 1)),
            (20_818, (11, 31)),
        ] {
            assert_eq!(month_and_day(days), expected, "{days}");
        }
    }
}
