//! Parquet files, row group by row group.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use super::{Rows, agree};
use crate::dataset::cast::cast_batch;
use crate::dataset::data_type::plain_schema;
use crate::{Error, Result};

/// Types stay as they were written, in their plain forms.
pub(super) fn load(paths: &[PathBuf], rows: &mut Rows) -> Result<SchemaRef> {
    let mut files = Vec::new();
    for path in paths {
        let file = File::open(path).map_err(|error| Error::io("read", path, error))?;
        let metadata = ArrowReaderMetadata::load(&file, Default::default())
            .map_err(|error| damaged(path, &error))?;
        files.push((path, file, metadata));
    }
    let schemas: Vec<_> = files
        .iter()
        .map(|(path, _, metadata)| (path.as_path(), plain_schema(metadata.schema())))
        .collect();
    let schema = agree(&schemas)?;
    let groups = files.iter().flat_map(|(path, file, metadata)| {
        (0..metadata.metadata().num_row_groups())
            .map(move |group| Ok((path, file, metadata, group)))
    });
    rows.fill(groups, |(path, file, metadata, group)| {
        let file = file
            .try_clone()
            .map_err(|error| Error::io("read", path, error))?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
            .with_row_groups(vec![group])
            .with_batch_size(8192)
            .build()
            .map_err(|error| damaged(path, &error))?;
        let batches = reader
            .map(|batch| cast_batch(&batch?, &schema))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(path, &error))?;
        let bytes = metadata.metadata().row_group(group).compressed_size();
        Ok((batches, usize::try_from(bytes).unwrap_or(0)))
    })?;
    Ok(schema)
}

fn damaged(path: &Path, error: &dyn std::error::Error) -> Error {
    Error::format(
        path,
        format!(
            "this is no complete Parquet file ({error}); it may be cut short or damaged: get it again"
        ),
    )
}
