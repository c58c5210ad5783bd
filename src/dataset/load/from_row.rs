//! Batches from one of their rows on.

use arrow::array::RecordBatch;

use crate::Result;

/// Batches of a shard, in order.
pub(in crate::dataset) type ShardBatches = Box<dyn Iterator<Item = Result<RecordBatch>>>;

/// Leaves the first rows out, of batches that come with their number of rows, before those that are not wanted are read.
pub(super) fn from_row<T>(
    items: impl Iterator<Item = Result<T>>,
    skip: usize,
    rows: impl Fn(&T) -> usize,
    read: impl Fn(T) -> Result<RecordBatch>,
) -> impl Iterator<Item = Result<RecordBatch>> {
    let mut left = skip;
    items.filter_map(move |item| {
        let read = |item: T| -> Result<Option<RecordBatch>> {
            let count = rows(&item);
            let before = left.min(count);
            left -= before;
            if before == count {
                return Ok(None);
            }
            let batch = read(item)?;
            let before = before.min(batch.num_rows());
            Ok(Some(batch.slice(before, batch.num_rows() - before)))
        };
        item.and_then(read).transpose()
    })
}
