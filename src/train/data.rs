//! A trainer's training and evaluation data.

use std::sync::Arc;

use super::plan::Position;
use crate::collate::{Batches, DataLoader, Examples, IntoExamples, Lanes, StreamLoader};
use crate::dataset::{Dataset, DatasetDict, IterableDataset};

/// The data of a trainer: training and evaluation. See [`IntoTrainingData`].
#[derive(Clone)]
pub struct TrainingData {
    pub(super) train: Data,
    pub(super) eval: Option<EvalData>,
}

/// What [`Trainer::new`](super::Trainer::new) takes as its data:
///
/// | given | trained on | evaluated on |
/// |---|---|---|
/// | a [`DatasetDict`] | its split "train" | its split "validation", or else "test", if there is one |
/// | a [`Dataset`], or what else is [`Examples`] | that | nothing |
/// | an [`IterableDataset`] | the stream | nothing |
/// | a pair of one of these and a [`Dataset`] (or other examples) | the first | the second |
/// | a pair whose second is an `Option` | the first | the second, if it is there |
///
/// Dicts, datasets and lists of examples may be given as references, streams must.
///
/// ```
/// # use cloze::prelude::*;
/// # fn f(model: &MaskedLm, args: TrainingArguments, blocks: &DatasetDict, stream: &IterableDataset, collator: MaskingCollator) {
/// # let (args, collator) = (|| args.clone(), || collator.clone());
/// Trainer::new(model, args(), blocks, collator());
/// Trainer::new(model, args(), &blocks["train"], collator());
/// Trainer::new(model, args(), (&blocks["train"], &blocks["test"]), collator());
/// Trainer::new(model, args(), (stream, &blocks["test"]), collator());
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a trainer can't train on `{Self}`",
    label = "give a `DatasetDict`, a `Dataset`, or a pair of what to train and what to evaluate on",
    note = "`&blocks` trains on the split \"train\"; `(&blocks[\"train\"], &blocks[\"test\"])` says both"
)]
pub trait IntoTrainingData {
    /// Returns what to train and what to evaluate on.
    fn into_training_data(self) -> TrainingData;
}

impl IntoTrainingData for TrainingData {
    fn into_training_data(self) -> TrainingData {
        self
    }
}

impl<E: IntoExamples> IntoTrainingData for E {
    fn into_training_data(self) -> TrainingData {
        TrainingData {
            train: Data::Examples(Arc::new(self.into_examples())),
            eval: None,
        }
    }
}

impl IntoTrainingData for &DatasetDict {
    fn into_training_data(self) -> TrainingData {
        TrainingData {
            train: Data::Splits(self.clone()),
            eval: held_out(self).map(EvalData::of),
        }
    }
}

impl IntoTrainingData for DatasetDict {
    fn into_training_data(self) -> TrainingData {
        (&self).into_training_data()
    }
}

impl IntoTrainingData for &IterableDataset {
    fn into_training_data(self) -> TrainingData {
        TrainingData {
            train: Data::Stream(self.clone()),
            eval: None,
        }
    }
}

impl<T: IntoTrainingData, E: IntoExamples> IntoTrainingData for (T, E) {
    fn into_training_data(self) -> TrainingData {
        (self.0, Some(self.1)).into_training_data()
    }
}

impl<T: IntoTrainingData, E: IntoExamples> IntoTrainingData for (T, Option<E>) {
    fn into_training_data(self) -> TrainingData {
        TrainingData {
            train: self.0.into_training_data().train,
            eval: self.1.map(EvalData::of),
        }
    }
}

/// Returns the split to evaluate on, if there is one.
pub(super) fn held_out(splits: &DatasetDict) -> Option<&Dataset> {
    splits.find("validation").or_else(|| splits.find("test"))
}

/// The training data.
#[derive(Clone)]
pub(super) enum Data {
    Examples(Arc<dyn Examples>),
    /// The split "train" of these, if there is one.
    Splits(DatasetDict),
    Loader(DataLoader),
    Stream(IterableDataset),
}

#[cfg(feature = "hub")]
impl Data {
    /// Returns the name on the Hub of the dataset that the examples were made from, if it is known.
    pub(super) fn origin(&self) -> Option<&str> {
        match self {
            Self::Examples(examples) => examples.origin(),
            Self::Splits(splits) => Examples::origin(splits.find("train")?),
            Self::Loader(loader) => loader.origin(),
            Self::Stream(stream) => stream.origin(),
        }
    }
}

/// The evaluation data.
#[derive(Clone)]
pub(super) enum EvalData {
    Examples(Arc<dyn Examples>),
    Loader(DataLoader),
}

impl EvalData {
    fn of(examples: impl IntoExamples) -> Self {
        Self::Examples(Arc::new(examples.into_examples()))
    }
}

/// The source of training batches.
pub(super) enum TrainLoader {
    Epochs(DataLoader),
    Stream(StreamLoader),
}

impl TrainLoader {
    /// Returns the number of batches in an epoch; `None` for a stream, where it is unknown.
    pub(super) fn batches_per_epoch(&self) -> Option<usize> {
        match self {
            Self::Epochs(loader) => Some(loader.len()),
            Self::Stream(_) => None,
        }
    }

    /// Returns what distinguishes data with the same first batch.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Epochs(loader) => loader.num_examples().to_string(),
            Self::Stream(loader) => loader.identity(),
        }
    }

    /// Returns the first batch alone.
    pub(super) fn first_batch(&self) -> Batches {
        match self {
            Self::Epochs(loader) => loader.epoch_where(0, 0, |number| number == 0),
            Self::Stream(loader) => loader.first_batch(),
        }
    }

    /// Returns the batches from `at` on, to the end of its epoch where there is one, whose numbers `wanted` picks. Of a stream
    /// it must pick further ones without end. `lanes` is where a stream's lanes stood not long before.
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
