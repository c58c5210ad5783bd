//! The encoder's weights of the small RoBERTa that ships with [Cloze](https://docs.rs/cloze). The rest of it is in
//! [`cloze-data`](https://docs.rs/cloze-data): both together are more than a package of a registry may have.
#![warn(missing_docs)]

/// The file `model-00002-of-00002.safetensors`.
pub static WEIGHTS: &[u8] = include_bytes!("model-00002-of-00002.safetensors");
