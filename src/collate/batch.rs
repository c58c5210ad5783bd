//! A batch, by the name that collators know it by.

pub use crate::model::ModelInputs as MlmBatch;

/// The label of positions that don't count.
pub const IGNORED: i64 = crate::ops::IGNORE_INDEX;
