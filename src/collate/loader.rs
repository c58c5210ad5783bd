//! Batches of an epoch, in a seeded order, made ahead on another thread.

use std::fmt;
use std::sync::Arc;

use super::batches::{Batches, Made};
use super::permutation::Permutation;
use super::rng::Stream;
use super::{BatchKey, Collator, Examples, IntoExamples, MlmBatch};
use crate::base::number::Count;
use crate::{Error, Result};

/// Keeps the draws of the order apart from those of the masks under the same seed.
const ORDER: u64 = 0x006f_7264_6572;

/// Batches examples, epoch by epoch, like PyTorch's `DataLoader` with its sampler. Cheap to clone.
///
/// The order of an epoch follows from the seed and the epoch alone. While one batch is used, the next ones are made on
/// another thread.
///
/// ```
/// use cloze::collate::{DataLoader, Example, MaskingCollator};
/// use cloze::tokenizer::Tokenizer;
/// # fn main() -> cloze::Result<()> {
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// let examples: Vec<Example> = (0..10).map(|i| Example::from(vec![0, 10 + i, 20, 2])).collect();
/// let loader = DataLoader::new(examples, MaskingCollator::new(&tokenizer), 4)?.shuffle(7);
/// assert_eq!(loader.len(), 3);
/// for batch in loader.epoch(0) {
///     assert_eq!(batch?.seq, 4);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DataLoader {
    examples: Arc<dyn Examples>,
    collator: Arc<dyn Collator>,
    batch_size: usize,
    seed: Option<u64>,
    drop_last: bool,
    prefetch: usize,
    /// From how many examples on the order is computed place by place.
    many: usize,
    /// The length of each example, where batches are made of examples of similar lengths.
    lengths: Option<Arc<[usize]>>,
}

/// The order of an epoch.
enum Order {
    Sorted,
    Listed(Vec<usize>),
    Keyed(Permutation),
}

impl Order {
    /// Returns the example at `place`.
    fn at(&self, place: usize) -> usize {
        match self {
            Self::Sorted => place,
            Self::Listed(order) => order[place],
            Self::Keyed(order) => order.at(place as u64) as usize,
        }
    }
}

/// Four million examples: a list of them takes 32 MiB.
const MANY: usize = 1 << 22;

impl DataLoader {
    /// Returns the name on the Hub of the dataset that the examples were made from, if they know it.
    #[cfg(feature = "hub")]
    pub(crate) fn origin(&self) -> Option<&str> {
        self.examples.origin()
    }

    /// Returns a loader that goes over `examples` in their order, `batch_size` at a time, the last batch as short as it
    /// comes.
    pub fn new(
        examples: impl IntoExamples,
        collator: impl Collator + 'static,
        batch_size: usize,
    ) -> Result<Self> {
        if batch_size == 0 {
            return Err(Error::argument(
                "batch_size",
                "a batch needs at least 1 example",
            ));
        }
        let examples = examples.into_examples();
        if examples.len() == 0 {
            return Err(Error::Dataset("the dataset is empty".to_owned()));
        }
        examples.validate()?;
        collator.validate()?;
        Ok(Self {
            examples: Arc::new(examples),
            collator: Arc::new(collator),
            batch_size,
            seed: None,
            drop_last: false,
            prefetch: 4,
            many: MANY,
            lengths: None,
        })
    }

    /// Goes over the examples in a new random order each epoch.
    #[must_use]
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Batches examples of similar lengths, which reduces padding: the order of each epoch is still random, but within
    /// every 50 batches (fewer where there are fewer than 200) the longest come first. The very longest example is in
    /// the first batch, so that running out of memory shows at once. This is `group_by_length` of `transformers`; it
    /// has an effect only together with [`shuffle`](Self::shuffle).
    ///
    /// # Errors
    /// When an example can't be read.
    pub fn group_by_length(mut self, group: bool) -> Result<Self> {
        self.lengths = match group {
            true => Some(
                (0..self.examples.len())
                    .map(|index| self.examples.tokens(index))
                    .collect::<Result<_>>()?,
            ),
            false => None,
        };
        Ok(self)
    }

    /// Leaves out a last batch that is not full (default: no).
    #[must_use]
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// Sets how many batches are made ahead (default 4).
    #[must_use]
    pub fn prefetch(mut self, batches: usize) -> Self {
        self.prefetch = batches;
        self
    }

    /// Returns the number of batches in an epoch.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        let full = self.examples.len() / self.batch_size;
        full + usize::from(!self.drop_last && !self.examples.len().is_multiple_of(self.batch_size))
    }

    /// Returns the number of examples.
    pub fn num_examples(&self) -> usize {
        self.examples.len()
    }

    /// Returns the number of examples in a full batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Returns the indices of the examples in the order of `epoch`.
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        let order = self.places(epoch);
        (0..self.examples.len())
            .map(|place| order.at(place))
            .collect()
    }

    /// Returns the order of `epoch`: a list where the examples are few, and computed place by place where a list of
    /// each rank would take memory.
    fn places(&self, epoch: u64) -> Order {
        let len = self.examples.len();
        match self.seed {
            None => Order::Sorted,
            Some(seed) if len >= self.many && self.lengths.is_none() => {
                Order::Keyed(Permutation::new(len as u64, &[seed, ORDER, epoch]))
            }
            Some(_) => Order::Listed(self.shuffled(epoch)),
        }
    }

    fn shuffled(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.examples.len()).collect();
        if let Some(seed) = self.seed {
            let draws = Stream::new(&[seed, ORDER, epoch]);
            for last in (1..order.len()).rev() {
                let other = draws.below(last as u64, last as u64 + 1) as usize;
                order.swap(last, other);
            }
            if let Some(lengths) = &self.lengths {
                self.group(&mut order, lengths);
            }
        }
        order
    }

    /// Sorts the examples of many batches together by their lengths, as transformers does.
    fn group(&self, order: &mut [usize], lengths: &[usize]) {
        let batches = (order.len() / (4 * self.batch_size)).clamp(1, 50);
        let many = batches * self.batch_size;
        for part in order.chunks_mut(many) {
            part.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
        }
        // Each part begins with its longest; the first of the longest of all goes to the front.
        let firsts = (0..order.len()).step_by(many);
        let longest = firsts.rev().max_by_key(|&first| lengths[order[first]]);
        order.swap(0, longest.unwrap_or(0));
    }

    /// Returns the batches of `epoch`, counted from 0.
    pub fn epoch(&self, epoch: impl Count) -> Batches {
        self.epoch_from(epoch.count(), 0)
    }

    /// Returns the batches of `epoch` from batch number `first` on, exactly as [`epoch`](Self::epoch) gives them, for a
    /// resumed run.
    pub fn epoch_from(&self, epoch: u64, first: usize) -> Batches {
        self.epoch_where(epoch, first, |_| true)
    }

    /// Returns the batches of `epoch` from batch number `first` on whose numbers `wanted` picks: the others are not
    /// made at all.
    pub(crate) fn epoch_where(
        &self,
        epoch: u64,
        first: usize,
        wanted: impl Fn(usize) -> bool + Send + 'static,
    ) -> Batches {
        let loader = self.clone();
        let batches = first..self.len().max(first);
        let left = batches.clone().filter(|&number| wanted(number)).count();
        let batches = batches.filter(move |&number| wanted(number));
        Batches::start(self.prefetch, left, move |sender| {
            let order = loader.places(epoch);
            for number in batches {
                let batch = loader.batch(&order, epoch, number);
                let failed = batch.is_err();
                // Nobody listens any more when the receiver was dropped.
                if sender.send(batch.map(Made::from)).is_err() || failed {
                    return;
                }
            }
        })
    }

    fn batch(&self, order: &Order, epoch: u64, number: usize) -> Result<MlmBatch> {
        let from = number * self.batch_size;
        let to = self.examples.len().min(from + self.batch_size);
        let examples = (from..to)
            .map(|place| self.examples.get(order.at(place)))
            .collect::<Result<Vec<_>>>()?;
        self.collator
            .collate(&examples, BatchKey::new(epoch, from as u64))
    }
}

impl fmt::Debug for DataLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.seed.is_some() {
            "shuffled"
        } else {
            "in order"
        };
        let (batches, size, examples) = (self.len(), self.batch_size, self.num_examples());
        write!(
            f,
            "DataLoader: {batches} batches of up to {size} of {examples} examples, {order}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collate::{Example, PaddingCollator};
    use crate::tokenizer::Tokenizer;

    #[test]
    fn a_large_epoch_is_a_permutation_and_resumes_anywhere() {
        let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300).unwrap();
        let examples: Vec<Example> = (0..1001).map(|i| Example::from(vec![i, i])).collect();
        let loader = DataLoader::new(examples, PaddingCollator::new(&tokenizer), 10);
        let mut loader = loader.unwrap().shuffle(7);
        loader.many = 1000;
        let orders = [loader.order(0), loader.order(1)];
        assert_ne!(orders[0], orders[1]);
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..1001).collect::<Vec<_>>());
        }
        let ids = |batches: Batches| -> Vec<Vec<u32>> {
            batches.map(|batch| batch.unwrap().input_ids).collect()
        };
        let all = ids(loader.epoch(1));
        assert_eq!(all.len(), 101);
        assert_eq!(all[0][0] as usize, orders[1][0]);
        assert_eq!(ids(loader.epoch_from(1, 60)), all[60..]);
        // Dealt out, every batch comes once.
        for rank in 0..3 {
            let dealt = loader.epoch_where(1, 0, move |number| number % 3 == rank);
            assert_eq!(dealt.len(), (rank..101).step_by(3).len());
            let expected: Vec<_> = all.iter().skip(rank).step_by(3).cloned().collect();
            assert_eq!(ids(dealt), expected);
        }
    }
}
