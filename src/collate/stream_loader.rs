//! Endless batches of a stream, in an order that does not depend on the number of processes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batches::{Batches, LanePosition, Lanes, Made};
use super::{BatchKey, Collator, Example, Examples};
use crate::dataset::{Dataset, IterableDataset, Lane, Position};
use crate::{Error, Result};

/// How many batches are made ahead.
const AHEAD: usize = 4;

/// Makes batches of a stream: batch `i` is the next one of lane `i` modulo the number of lanes. Each lane has its own
/// shards and reads them epoch after epoch.
#[derive(Clone)]
pub(crate) struct StreamLoader {
    data: IterableDataset,
    collator: Arc<dyn Collator>,
    batch_size: usize,
}

impl StreamLoader {
    pub(crate) fn new(
        data: &IterableDataset,
        collator: Arc<dyn Collator>,
        batch_size: usize,
    ) -> Result<Self> {
        collator.validate()?;
        Ok(Self {
            data: data.clone(),
            collator,
            batch_size,
        })
    }

    /// Describes the settings the batches depend on, as far as they can be described.
    pub(crate) fn identity(&self) -> String {
        self.data.identity()
    }

    /// Returns the batches from number `first` on whose numbers `wanted` selects; it must select further ones without end,
    /// or the thread that makes them would search for ever. With `known` positions, earlier examples need not be read.
    pub(crate) fn batches_where(
        &self,
        first: usize,
        known: &Lanes,
        wanted: impl Fn(usize) -> bool + Send + 'static,
    ) -> Batches {
        let numbers = (first..).filter(move |&number| wanted(number));
        self.batches(numbers, usize::MAX, known)
    }

    /// Returns the first batch alone.
    pub(crate) fn first_batch(&self) -> Batches {
        self.batches(std::iter::once(0), 1, &Lanes::new())
    }

    /// Returns the batches with these numbers, which are as many as `count` says.
    fn batches(
        &self,
        numbers: impl Iterator<Item = usize> + Send + 'static,
        count: usize,
        known: &Lanes,
    ) -> Batches {
        let (loader, known) = (self.clone(), known.clone());
        Batches::start(AHEAD, count, move |sender| {
            let of = loader.data.training_lanes();
            let mut readers = BTreeMap::new();
            for number in numbers {
                let (lane, index) = (number % of, number / of);
                let reader = readers.entry(lane).or_insert_with(|| {
                    let known = known.get(&lane).filter(|known| known.batches <= index);
                    Reader::new(&loader.data, lane, of, known)
                });
                let made = loader.batch(reader, number, index).map(|batch| Made {
                    batch,
                    lane: Some((lane, reader.position())),
                });
                let failed = made.is_err();
                // Nobody listens any more when the receiver was dropped.
                if sender.send(made).is_err() || failed {
                    return;
                }
            }
        })
    }

    /// Returns batch `number`, which is the lane's batch `index`.
    fn batch(&self, reader: &mut Reader, number: usize, index: usize) -> Result<super::MlmBatch> {
        reader.skip((index - reader.batches) * self.batch_size)?;
        let mut examples = Vec::with_capacity(self.batch_size);
        for _ in 0..self.batch_size {
            examples.push(reader.next()?);
        }
        reader.batches = index + 1;
        let key = BatchKey::new(0, (number * self.batch_size) as u64);
        self.collator.collate(&examples, key)
    }
}

/// The examples of a lane, without end.
struct Reader {
    lane: Lane,
    /// The section's beginning and state.
    section: Option<(Position, Dataset)>,
    /// How many of its examples have been used.
    used: usize,
    /// How many batches have been made or passed over.
    batches: usize,
    /// Whether the epoch has had an example.
    any: bool,
}

impl Reader {
    fn new(data: &IterableDataset, lane: usize, of: usize, known: Option<&LanePosition>) -> Self {
        Self {
            lane: Lane::new(data, lane, of, known.map(|known| known.section.clone())),
            section: None,
            used: known.map_or(0, |known| known.used),
            batches: known.map_or(0, |known| known.batches),
            any: false,
        }
    }

    /// Returns the position of the lane.
    fn position(&self) -> LanePosition {
        LanePosition {
            batches: self.batches,
            section: (self.section.as_ref())
                .map(|(began, _)| began.clone())
                .unwrap_or_default(),
            used: self.used,
        }
    }

    /// Reads on until the section has the next example.
    fn find_next(&mut self) -> Result<()> {
        loop {
            if let Some((_, examples)) = &self.section {
                if self.used < examples.len() {
                    return Ok(());
                }
                self.used -= examples.len();
            }
            self.section = self.lane.next_section()?;
            match &self.section {
                Some((_, examples)) if !examples.is_empty() && !self.any => {
                    examples.validate()?;
                    self.any = true;
                }
                Some(_) => {}
                None if self.any => {
                    self.lane.next_epoch();
                    self.any = false;
                }
                None => {
                    return Err(Error::Dataset(
                        "a whole epoch of the stream gave no example: its operations drop every row"
                            .to_owned(),
                    ));
                }
            }
        }
    }

    fn skip(&mut self, examples: usize) -> Result<()> {
        self.used += examples;
        self.find_next()
    }

    fn next(&mut self) -> Result<Example> {
        self.find_next()?;
        let Some((_, examples)) = &self.section else {
            return Err(Error::Dataset("a stream without a section".to_owned()));
        };
        let example = examples.get(self.used)?;
        self.used += 1;
        Ok(example)
    }
}
