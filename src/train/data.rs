//! What a trainer trains or evaluates on.

use std::sync::Arc;

use super::plan::Position;
use crate::collate::{Batches, DataLoader, Examples, Lanes, StreamLoader};
use crate::dataset::IterableDataset;

/// Where batches come from.
#[derive(Clone)]
pub(super) enum Data {
    Examples(Arc<dyn Examples>),
    Loader(DataLoader),
    Stream(IterableDataset),
}

#[cfg(feature = "hub")]
impl Data {
    /// Returns the name on the Hub of the dataset that the examples were made from, if it is known.
    pub(super) fn origin(&self) -> Option<&str> {
        match self {
            Self::Examples(examples) => examples.origin(),
            Self::Loader(loader) => loader.origin(),
            Self::Stream(stream) => stream.origin(),
        }
    }
}

/// What makes the batches that are trained on.
pub(super) enum TrainLoader {
    Epochs(DataLoader),
    Stream(StreamLoader),
}

impl TrainLoader {
    /// Returns the number of batches in an epoch; `None` for a stream, of which nobody knows it.
    pub(super) fn batches_per_epoch(&self) -> Option<usize> {
        match self {
            Self::Epochs(loader) => Some(loader.len()),
            Self::Stream(_) => None,
        }
    }

    /// Returns what tells data apart whose first batch is the same.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Epochs(loader) => loader.num_examples().to_string(),
            Self::Stream(loader) => loader.identity(),
        }
    }

    /// Returns the batches from `at` on, to the end of its epoch where there is one, whose numbers `wanted` picks. `lanes` is
    /// where a stream's lanes stood not long before.
    pub(super) fn batches_where(
        &self,
        at: Position,
        lanes: &Lanes,
        wanted: impl Fn(usize) -> bool + Send + 'static,
    ) -> Batches {
        match self {
            Self::Epochs(loader) => loader.epoch_where(at.epoch, at.batch, wanted),
            Self::Stream(loader) => loader.batches_where(at.batch, lanes, wanted),
        }
    }
}
