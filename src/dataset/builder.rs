//! Datasets from values in memory.

use super::batch::Batch;
use super::column::IntoColumn;
use super::table::Dataset;
use crate::Result;

/// Collects columns; made by [`Dataset::builder`].
///
/// ```
/// use cloze::prelude::*;
///
/// let rows = Dataset::builder()
///     .column("text", vec!["a galaxy", "a star"])
///     .column("words", vec![vec!["a", "galaxy"], vec!["a", "star"]])
///     .column("score", vec![Some(3), None])
///     .build()?;
/// assert_eq!(rows.column_names(), ["text", "words", "score"]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct DatasetBuilder {
    batch: Batch,
    error: Option<crate::Error>,
}

impl DatasetBuilder {
    /// Adds (or replaces) the column `name`. All columns must have the same length.
    pub fn column(mut self, name: impl Into<String>, values: impl IntoColumn) -> Self {
        if self.error.is_none() {
            match std::mem::take(&mut self.batch).with_column(name, values) {
                Ok(batch) => self.batch = batch,
                Err(error) => self.error = Some(error),
            }
        }
        self
    }

    /// Returns the dataset, or the first column's error.
    pub fn build(self) -> Result<Dataset> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let batch = self.batch.to_record_batch()?;
        Dataset::from_batches(&batch.schema(), vec![batch])
    }
}
