//! The fingerprint of a dataset's content: equal fingerprints mean equal rows.

use std::io::Write;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::ipc::writer::StreamWriter;

use crate::Result;

/// A hash of a dataset's content, or of its source's content and everything that was done to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(blake3::Hash);

impl Fingerprint {
    /// Returns the fingerprint of the given rows.
    pub(crate) fn of_batches(schema: &Arc<Schema>, batches: &[RecordBatch]) -> Result<Self> {
        let mut hasher = Hashing::new("rows");
        let mut writer = StreamWriter::try_new(&mut hasher, schema)?;
        for batch in batches {
            writer.write(batch)?;
        }
        writer.finish()?;
        drop(writer);
        Ok(hasher.finish())
    }

    /// Returns the fingerprint of a dataset that came out of `operation` on this one.
    pub(crate) fn derive(&self, operation: &str, arguments: &[&[u8]]) -> Self {
        let mut hasher = Hashing::new(operation);
        hasher.part(self.0.as_bytes());
        for argument in arguments {
            hasher.part(argument);
        }
        hasher.finish()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// 64 hexadecimal digits.
    pub(crate) fn to_hex(self) -> String {
        self.0.to_hex().to_string()
    }

    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        blake3::Hash::from_hex(hex).ok().map(Self)
    }
}

/// An incremental hash. Parts are prefixed with their lengths, so that two lists of parts are never confused.
pub(crate) struct Hashing(blake3::Hasher);

impl Hashing {
    pub(crate) fn new(purpose: &str) -> Self {
        let mut hashing = Self(blake3::Hasher::new());
        // Another version may do the same work in another way.
        hashing.part(env!("CARGO_PKG_VERSION").as_bytes());
        hashing.part(purpose.as_bytes());
        hashing
    }

    pub(crate) fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize())
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
