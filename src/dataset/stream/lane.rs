//! A share of a stream's shards, read section by section.

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use super::{IterableDataset, Step};
use crate::dataset::fingerprint::Hashing;
use crate::dataset::load::ShardBatches;
use crate::dataset::random::NumpyGenerator;
use crate::dataset::sink::of_pieces;
use crate::dataset::table::Dataset;
use crate::{Error, Result};

/// The bytes that a section is cut at.
const LARGEST: usize = 32 << 20;

/// The position of a lane, where its next section begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) epoch: u64,
    /// The shard, by its place in the order of the epoch's shards.
    shard: usize,
    /// The row in it.
    row: usize,
    /// How many rows of the epoch have come to each step that counts them.
    seen: Vec<usize>,
}

/// Reads every `of`-th shard of a stream, epoch by epoch.
pub(crate) struct Lane {
    data: IterableDataset,
    lane: usize,
    of: usize,
    section: usize,
    /// The shards of the epoch, in their order.
    order: Vec<usize>,
    at: Position,
    batches: Option<ShardBatches>,
    /// The rows read beyond the last section.
    rest: Option<RecordBatch>,
}

impl Lane {
    /// Returns the lane that begins at `at`, or else at the beginning of the stream's epoch.
    pub(crate) fn new(
        data: &IterableDataset,
        lane: usize,
        of: usize,
        at: Option<Position>,
    ) -> Self {
        let first = || beginning(data, data.epoch, lane);
        let at = at.unwrap_or_else(first);
        Self {
            section: data.section(),
            order: order(data, at.epoch),
            data: data.clone(),
            lane,
            of,
            at,
            batches: None,
            rest: None,
        }
    }

    /// Moves on to the next epoch.
    pub(crate) fn next_epoch(&mut self) {
        let next = beginning(&self.data, self.at.epoch + 1, self.lane);
        *self = Self::new(&self.data, self.lane, self.of, Some(next));
    }

    /// Leaves out what there is still to read of the epoch.
    pub(crate) fn end(&mut self) {
        self.at.shard = self.order.len();
        (self.batches, self.rest) = (None, None);
    }

    /// Reads the next section of the epoch, and returns where it began and the rows that became of it; `None` at the end of
    /// the epoch.
    pub(crate) fn next_section(&mut self) -> Result<Option<(Position, Dataset)>> {
        if self.is_taken() {
            self.end();
        }
        let began = self.at.clone();
        let Some(rows) = self.read()? else {
            return Ok(None);
        };
        let rows = Dataset::from_parts(self.data.shards.schema().clone(), rows, of_pieces(&[]));
        let made = self.make(rows, &began).map_err(|error| match error {
            Error::Interrupted(doing) => Error::Interrupted(doing),
            error => Error::User {
                context: format!(
                    "a stream, from row {} of a shard of {} on",
                    began.row,
                    self.data.shards.path(self.order[began.shard]).display()
                ),
                source: Box::new(error),
            },
        })?;
        Ok(Some((began, made)))
    }

    /// Returns whether a `take` has all its rows, so that no more will come.
    fn is_taken(&self) -> bool {
        let mut counting = self.data.counting().zip(&self.at.seen);
        counting.any(|(step, seen)| matches!(step, Step::Take(rows) if seen >= rows))
    }

    /// Reads the rows of a section and moves past them; `None` at the end of the epoch.
    fn read(&mut self) -> Result<Option<Vec<RecordBatch>>> {
        let (mut rows, mut bytes, mut read) = (0, 0, Vec::new());
        while rows < self.section && bytes < LARGEST {
            let Some(batch) = self.next_batch()? else {
                break;
            };
            let count = batch.num_rows().min(self.section - rows);
            if count < batch.num_rows() {
                self.rest = Some(batch.slice(count, batch.num_rows() - count));
            }
            let batch = batch.slice(0, count);
            rows += count;
            bytes += size(&batch);
            self.at.row += count;
            read.push(batch);
        }
        Ok((rows > 0).then_some(read))
    }

    /// Returns the next rows, however many. Those of the next shard only come when the position has gone on to it.
    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        loop {
            let Some(&shard) = self.order.get(self.at.shard) else {
                return Ok(None);
            };
            if self.batches.is_none() {
                self.batches = Some(self.data.shards.open(shard, self.at.row)?);
            }
            match self.batches.as_mut().and_then(Iterator::next).transpose()? {
                Some(batch) if batch.num_rows() == 0 => {}
                Some(batch) => return Ok(Some(batch)),
                None => {
                    self.at.shard += self.of;
                    self.at.row = 0;
                    self.batches = None;
                }
            }
        }
    }

    /// Does the steps to a section that began at `began`.
    fn make(&mut self, mut rows: Dataset, began: &Position) -> Result<Dataset> {
        let shard = self.order[began.shard];
        let mut counters = self.at.seen.iter_mut();
        let mut count = |rows: &Dataset| match counters.next() {
            Some(seen) => std::mem::replace(seen, *seen + rows.len()),
            None => 0,
        };
        for (number, step) in self.data.steps.iter().enumerate() {
            if rows.is_empty() {
                return Ok(rows);
            }
            rows = match step {
                Step::Map(map) => {
                    let batch = rows.gather(0..rows.len())?;
                    let made = map.apply(&batch, 0, |_| Ok(()))?;
                    Dataset::from_parts(made.schema(), vec![made], of_pieces(&[]))
                }
                Step::Table(_, change) => change(&rows)?,
                Step::Shuffle { seed, .. } => {
                    let place = [shard, began.row, number].map(|n| n as u64);
                    let seed = derived(*seed, began.epoch, &place);
                    rows.at(&NumpyGenerator::new(seed).permutation(rows.len()))
                }
                Step::Take(wanted) => {
                    let before = count(&rows);
                    rows.slice(0..wanted.saturating_sub(before))
                }
                Step::Skip(unwanted) => {
                    let before = count(&rows);
                    rows.slice(unwanted.saturating_sub(before)..rows.len())
                }
            };
        }
        Ok(rows)
    }
}

/// Returns where a lane begins an epoch.
fn beginning(data: &IterableDataset, epoch: u64, lane: usize) -> Position {
    Position {
        epoch,
        shard: lane,
        row: 0,
        seen: vec![0; data.counting().count()],
    }
}

/// Returns the order of the shards in an epoch.
fn order(data: &IterableDataset, epoch: u64) -> Vec<usize> {
    let shards = data.shards.len();
    match data.seed() {
        None => (0..shards).collect(),
        Some(seed) => NumpyGenerator::new(derived(seed, epoch, &[])).permutation(shards),
    }
}

/// Returns a seed that belongs to a place of an epoch.
fn derived(seed: u64, epoch: u64, place: &[u64]) -> u64 {
    let mut hashing = Hashing::new("stream order");
    for number in [seed, epoch].iter().chain(place) {
        hashing.part(&number.to_le_bytes());
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hashing.finish().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// Returns the bytes of the rows.
fn size(batch: &RecordBatch) -> usize {
    let column = |column: &arrow::array::ArrayRef| column.to_data().get_slice_memory_size();
    batch.columns().iter().map(|c| column(c).unwrap_or(0)).sum()
}
