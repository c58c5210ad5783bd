//! Batches that are made ahead on another thread.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::MlmBatch;
use crate::base::panics::words;
use crate::dataset::Position;
use crate::{Error, Result};

/// The position of a stream's lane after one of its batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LanePosition {
    /// How many batches have come from the lane.
    pub(crate) batches: usize,
    /// The section that contains the end of the last batch, and how many of its examples have been used.
    pub(crate) section: Position,
    pub(crate) used: usize,
}

/// The positions of a stream's lanes that are read here, by their numbers.
pub(crate) type Lanes = BTreeMap<usize, LanePosition>;

/// A finished batch and, for a stream, the position of its lane after it.
pub(super) struct Made {
    pub(super) batch: MlmBatch,
    pub(super) lane: Option<(usize, LanePosition)>,
}

impl From<MlmBatch> for Made {
    fn from(batch: MlmBatch) -> Self {
        Self { batch, lane: None }
    }
}

/// Batches as they are made: those of an epoch, by [`DataLoader::epoch`](super::DataLoader::epoch). Dropping it ends its
/// thread.
///
/// ```
/// use cloze::prelude::*;
///
/// # let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
/// let rows = vec![Example::from(vec![5u32, 6, 7, 8]); 10];
/// let loader = DataLoader::new(rows, MaskingCollator::new(&tokenizer), 4)?;
/// let batches: Batches = loader.epoch(0);
/// let sizes = batches.map(|batch| Ok(batch?.batch)).collect::<Result<Vec<usize>>>()?;
/// assert_eq!(sizes, [4, 4, 2]);
/// # Ok::<(), cloze::Error>(())
/// ```
pub struct Batches {
    receiver: Option<Receiver<Result<Made>>>,
    thread: Option<JoinHandle<()>>,
    failure: Option<Error>,
    left: usize,
    lanes: Lanes,
}

impl Batches {
    /// Runs `work`, which sends `left` batches; at most `ahead` of them are prefetched.
    pub(super) fn start(
        ahead: usize,
        left: usize,
        work: impl FnOnce(SyncSender<Result<Made>>) + Send + 'static,
    ) -> Self {
        let (sender, receiver) = sync_channel(ahead);
        let thread = std::thread::Builder::new()
            .name("cloze-batches".to_owned())
            .spawn(move || work(sender));
        let (thread, failure) = match thread {
            Ok(thread) => (Some(thread), None),
            Err(error) => (
                None,
                Some(Error::io("start", "a thread for batches", error)),
            ),
        };
        Self {
            receiver: Some(receiver),
            thread,
            failure,
            left,
            lanes: Lanes::new(),
        }
    }

    /// Returns the positions of the stream's lanes after the batches that were taken.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Ends the thread and returns its panic, if it panicked.
    fn join(&mut self) -> Option<Box<dyn Any + Send>> {
        // A thread that waits to hand over a batch wakes up when the receiver goes.
        self.receiver = None;
        self.thread.take().and_then(|thread| thread.join().err())
    }
}

impl Iterator for Batches {
    type Item = Result<MlmBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failure.take() {
            self.left = 0;
            return Some(Err(error));
        }
        if self.left == 0 {
            self.join();
            return None;
        }
        if let Some(Ok(made)) = self.receiver.as_ref().map(Receiver::recv) {
            self.left = if made.is_ok() { self.left - 1 } else { 0 };
            return Some(made.map(|made| {
                self.lanes.extend(made.lane);
                made.batch
            }));
        }
        self.left = 0;
        let panic = self.join();
        let text = panic.map_or_else(|| "no reason given".to_owned(), |panic| words(&*panic));
        Some(Err(Error::Dataset(format!(
            "the thread that makes batches panicked: {text}"
        ))))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Batches {}

impl Drop for Batches {
    fn drop(&mut self) {
        self.join();
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batches: {} to come", self.left)
    }
}
