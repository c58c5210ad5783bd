//! Parquet files, row group by row group.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;

use super::from_row::{ShardBatches, from_row};
use super::{Rows, agree, parquet_pages, parquet_schema, source};
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
        files.push((path, Unfolded::of_file(length.len()), metadata));
    }
    let schemas: Vec<_> = files
        .iter()
        .map(|(path, _, metadata)| (path.as_path(), plain_schema(metadata.schema())))
        .collect();
    let schema = agree(&schemas)?;
    let groups = files.iter().flat_map(|(path, unfolded, metadata)| {
        (0..metadata.metadata().num_row_groups())
            .map(move |group| Ok((path, unfolded, metadata, group)))
    });
    rows.fill(groups, |(path, unfolded, metadata, group)| {
        // Copies of an open file share its place with each other, and other threads read other groups.
        let file = File::open(path).map_err(|error| Error::io("read", path, error))?;
        let read = || -> Result<Vec<RecordBatch>> {
            let pages = metadata.metadata().row_group(group);
            parquet_pages::check(&file, pages, unfolded.limit)
                .map_err(|problem| damaged(path, &problem))?;
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
                .with_row_groups(vec![group])
                .with_batch_size(unfolded.rows_at_once(metadata.metadata().row_group(group)))
                .build()
                .map_err(|error| damaged(path, &error))?;
            let mut batches = Vec::new();
            for batch in reader {
                let batch = batch
                    .and_then(|batch| cast_batch(&batch, &schema))
                    .map_err(|error| damaged(path, &error))?;
                if !unfolded.has_room_for(&batch) {
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
    let mut file = File::open(path).map_err(|error| Error::io("read", path, error))?;
    parquet_schema::check(&mut file).map_err(|problem| damaged(path, &problem))?;
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
        parquet_pages::check(&file, metadata.metadata().row_group(group), limit)
            .map_err(ParquetError::General)?;
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

const UNFOLDS: &str = "it expands to more than 1,100 times its size and more than 256 MB: store its constant columns uncompressed, or \
                       leave them out";

/// Returns the number of bytes that a file of `bytes` bytes may expand to.
///
/// Compression shrinks real data up to a thousand times. A run of equal values takes almost no space whatever its length,
/// so a constant column of a million rows is a file of one kilobyte. Without a limit a small file could use all memory.
fn limit(bytes: u64) -> u64 {
    bytes.saturating_mul(1100).max(256 << 20)
}

/// What has come of a file so far, in all of its row groups, which several threads read.
struct Unfolded {
    limit: u64,
    bytes: AtomicU64,
}

impl Unfolded {
    fn of_file(bytes: u64) -> Self {
        Self {
            limit: limit(bytes),
            bytes: AtomicU64::new(0),
        }
    }

    /// Returns how many rows may be unfolded before they are counted: a dictionary holds one value, in the worst case, that all
    /// of them have.
    fn rows_at_once(&self, group: &RowGroupMetaData) -> usize {
        const MOST: u64 = 8192;
        // No writer makes larger ones.
        const LARGEST: u64 = 16 << 20;
        let columns = group.columns().iter();
        let folded = columns.filter(|column| column.dictionary_page_offset().is_some());
        let sizes =
            folded.map(|column| u64::try_from(column.uncompressed_size()).unwrap_or(LARGEST));
        let dictionary = sizes.max().unwrap_or(1).clamp(1, LARGEST);
        (self.limit / dictionary).clamp(16, MOST) as usize
    }

    /// Counts a batch.
    fn has_room_for(&self, batch: &RecordBatch) -> bool {
        // A column of nulls takes no memory, but its rows are counted.
        let size = (batch.get_array_memory_size() + batch.num_rows()) as u64;
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        before.saturating_add(size) <= self.limit
    }
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

    /// Writes `times` times the rows of one column, in groups of `group` rows.
    fn write(path: &std::path::Path, column: arrow::array::ArrayRef, times: usize, group: usize) {
        let batch = arrow::array::RecordBatch::try_from_iter([("c", column)]).unwrap();
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(group))
            .build();
        let file = std::fs::File::create(path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        for _ in 0..times {
            writer.write(&batch).unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn a_column_that_says_the_same_in_every_row_opens_however_small_its_file_is() {
        const ROWS: usize = 1_000_000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("constant.parquet");
        let words = StringArray::from_iter_values(std::iter::repeat_n("train", ROWS));
        write(&path, Arc::new(words), 1, ROWS);
        assert!(path.metadata().unwrap().len() < 10_000);
        let dict = load_dataset(path.to_str().unwrap()).unwrap();
        assert_eq!(dict["train"].len(), ROWS);
        assert_eq!(
            dict["train"].row(ROWS - 1).unwrap()["c"].as_str(),
            Some("train")
        );
    }

    #[test]
    fn a_small_file_does_not_unfold_without_end_in_many_groups_or_in_one() {
        const ROWS: usize = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let many = folder.path().join("many.parquet");
        let zeros: arrow::array::ArrayRef = Arc::new(Int64Array::from(vec![0; ROWS]));
        write(&many, zeros, 40, ROWS);
        let long = folder.path().join("long.parquet");
        let text = "word ".repeat(20_000);
        let texts = StringArray::from_iter_values(std::iter::repeat_n(text, 400));
        write(&long, Arc::new(texts), 40, 16_000);
        for path in [many, long] {
            assert!(path.metadata().unwrap().len() < 200_000);
            let error = load_dataset(path.to_str().unwrap())
                .unwrap_err()
                .to_string();
            assert!(error.contains("256 MB"), "{error}");
        }
    }
}
