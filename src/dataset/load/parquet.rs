//! Parquet files, row group by row group.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use super::from_row::{ShardBatches, from_row};
use super::{Rows, agree, source};
use crate::base::panics::caught;
use crate::dataset::cast::cast_batch;
use crate::dataset::data_type::plain_schema;
use crate::{Error, Result};

/// Types stay as they were written, in their plain forms.
pub(super) fn load(paths: &[PathBuf], rows: &mut Rows) -> Result<SchemaRef> {
    let mut files = Vec::new();
    for path in paths {
        let (file, metadata) = open(path)?;
        let length = file
            .metadata()
            .map_err(|error| Error::io("read", path, error))?;
        files.push((path, length.len(), metadata));
    }
    let schemas: Vec<_> = files
        .iter()
        .map(|(path, _, metadata)| (path.as_path(), plain_schema(metadata.schema())))
        .collect();
    let schema = agree(&schemas)?;
    let groups = files.iter().flat_map(|(path, length, metadata)| {
        (0..metadata.metadata().num_row_groups())
            .map(move |group| Ok((path, length, metadata, group)))
    });
    rows.fill(groups, |(path, length, metadata, group)| {
        let limit = limit(*length);
        // Copies of an open file share its place with each other, and other threads read other groups.
        let file = File::open(path).map_err(|error| Error::io("read", path, error))?;
        let read = || -> Result<Vec<RecordBatch>> {
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
                .with_row_groups(vec![group])
                .with_batch_size(8192)
                .build()
                .map_err(|error| damaged(path, &error))?;
            let (mut batches, mut size) = (Vec::new(), 0u64);
            for batch in reader {
                let batch = batch
                    .and_then(|batch| cast_batch(&batch, &schema))
                    .map_err(|error| damaged(path, &error))?;
                // A column of nulls takes no memory, but its rows are counted.
                size += (batch.get_array_memory_size() + batch.num_rows()) as u64;
                if size > limit {
                    return Err(Error::format(path, UNFOLDS));
                }
                batches.push(batch);
            }
            Ok(batches)
        };
        let batches = caught(read).unwrap_or_else(|panic| Err(damaged(path, &panic)))?;
        let bytes = metadata.metadata().row_group(group).compressed_size();
        Ok((batches, usize::try_from(bytes).unwrap_or(0)))
    })?;
    Ok(schema)
}

fn open(path: &Path) -> Result<(File, ArrowReaderMetadata)> {
    let file = File::open(path).map_err(|error| Error::io("read", path, error))?;
    // Damaged files have been seen to panic in the library that reads them.
    let metadata = caught(|| ArrowReaderMetadata::load(&file, Default::default()))
        .map_err(|panic| damaged(path, &panic))?
        .map_err(|error| damaged(path, &error))?;
    if metadata.schema().fields().is_empty() {
        return Err(Error::format(path, "it has no columns"));
    }
    Ok((file, metadata))
}

/// Returns the columns of files that are streamed.
pub(super) fn schema(paths: &[PathBuf]) -> Result<SchemaRef> {
    let mut schemas = Vec::with_capacity(paths.len());
    for path in paths {
        if source::unpacked(path)?.1 {
            let message = "it is compressed as a whole, and Parquet can't be read sequentially: unpack it (Parquet files are compressed internally)";
            return Err(Error::format(path, message));
        }
        let (_, metadata) = open(path)?;
        schemas.push((path.as_path(), plain_schema(metadata.schema())));
    }
    agree(&schemas)
}

/// Returns the number of row groups of a file.
pub(super) fn groups(path: &Path) -> Result<usize> {
    Ok(open(path)?.1.metadata().num_row_groups())
}

/// The rows that are read from a row group at once when it is streamed.
const AT_ONCE: usize = 1024;

/// Returns the batches of a row group from its row `skip` on, with the columns of `schema`.
pub(super) fn group(
    path: &Path,
    group: usize,
    schema: &SchemaRef,
    skip: usize,
) -> Result<ShardBatches> {
    let (file, metadata) = open(path)?;
    let limit = limit(
        file.metadata()
            .map_err(|error| Error::io("read", path, error))?
            .len(),
    );
    // Batches begin at the same rows wherever the reading does.
    let before = skip / AT_ONCE * AT_ONCE;
    let build = || {
        ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
            .with_row_groups(vec![group])
            .with_batch_size(AT_ONCE)
            .with_offset(before)
            .build()
    };
    let mut reader = caught(build)
        .map_err(|panic| damaged(path, &panic))?
        .map_err(|error| damaged(path, &error))?;
    let (path, schema) = (path.to_owned(), schema.clone());
    let batches = std::iter::from_fn(move || {
        let next = caught(|| reader.next())
            .unwrap_or_else(|panic| Some(Err(arrow::error::ArrowError::ParquetError(panic))));
        let read = |batch: RecordBatch| -> Result<RecordBatch> {
            let size = (batch.get_array_memory_size() + batch.num_rows()) as u64;
            if size > limit {
                return Err(Error::format(&path, UNFOLDS));
            }
            cast_batch(&batch, &schema).map_err(|error| damaged(&path, &error))
        };
        next.map(|batch| batch.map_err(|error| damaged(&path, &error)).and_then(read))
    });
    Ok(Box::new(from_row(
        batches,
        skip - before,
        RecordBatch::num_rows,
        Ok,
    )))
}

const UNFOLDS: &str = "it expands to more than a thousand times its size, which no valid file does";

/// Returns what a file of `bytes` bytes may unfold into: long runs of one value take next to nothing.
fn limit(bytes: u64) -> u64 {
    bytes.saturating_mul(1100).max(256 << 20)
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::format(
        path,
        format!(
            "not a complete Parquet file ({error}); it may be truncated or damaged: download it again"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterProperties;

    use crate::dataset::load_dataset;

    #[test]
    fn row_groups_read_in_parallel_do_not_mix() {
        const ROWS: i64 = 40_000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("groups.parquet");
        let numbers = Int64Array::from_iter_values(0..ROWS);
        let texts = (0..ROWS).map(|n| format!("{n} {}", "word ".repeat(n as usize % 7)));
        let columns: [(&str, arrow::array::ArrayRef); 2] = [
            ("n", Arc::new(numbers)),
            ("text", Arc::new(StringArray::from_iter_values(texts))),
        ];
        let batch = arrow::array::RecordBatch::try_from_iter(columns).unwrap();
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(500))
            .build();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        for _ in 0..10 {
            let dict = load_dataset(path.to_str().unwrap()).unwrap();
            assert_eq!(dict["train"].len(), ROWS as usize);
            for row in (0..ROWS).step_by(250) {
                let found = dict["train"].row(row as usize).unwrap();
                assert_eq!(found["n"].as_i64(), Some(row));
                let text = found["text"].as_str().unwrap();
                assert!(text.starts_with(&format!("{row} ")), "{text}");
            }
        }
    }
}
