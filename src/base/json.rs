//! JSON files that others wrote.

use serde::de::DeserializeOwned;

/// Reads JSON text, which some editors begin with a byte order mark.
pub(crate) fn from_slice<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text))
}
