//! From tokenized examples to batches: dynamic padding, the masking policies, and a loader that works ahead.

mod batch;
mod batches;
mod columns;
mod ctc;
mod denoising;
mod example;
mod loader;
mod masking;
mod padding;
mod permutation;
mod rng;
#[cfg(test)]
mod special_inputs;
mod stream_loader;

pub use batch::{IGNORED, MlmBatch};
pub use batches::Batches;
pub(crate) use batches::Lanes;
pub use ctc::CtcCollator;
pub use denoising::DenoisingCollator;
pub use example::{Example, Examples, IntoExamples};
pub use loader::DataLoader;
pub use masking::{MaskingCollator, MaskingRates};
pub(crate) use padding::Padding;
pub use padding::PaddingCollator;
pub(crate) use stream_loader::StreamLoader;

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::tokenizer::Tokenizer;

/// The position of a batch in the training: the epoch, and the position of its first example in that epoch's order,
/// both from 0. All randomness in the batch depends only on this and the seed, not on threads or time.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
/// let examples = [Example::from((5..45).collect::<Vec<u32>>())];
/// let masks = |epoch| collator.collate(&examples, BatchKey::new(epoch, 0)).map(|batch| batch.labels);
/// assert_eq!(masks(0)?, masks(0)?);
/// assert_ne!(masks(0)?, masks(1)?);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchKey {
    /// The epoch.
    pub epoch: u64,
    /// The position of the batch's first example in the order of the epoch.
    pub position: u64,
}

impl BatchKey {
    /// Returns the key of the batch that begins with the example at `position` in the order of `epoch`.
    pub fn new(epoch: u64, position: u64) -> Self {
        Self { epoch, position }
    }
}

/// Turns examples into a batch.
///
/// ```
/// use cloze::prelude::*;
///
/// /// Cuts what is too long, and leaves the rest to another.
/// struct Cut(MaskingCollator, usize);
///
/// impl Collator for Cut {
///     fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
///         let cut = |example: &Example| Example::from(example.input_ids[..example.input_ids.len().min(self.1)].to_vec());
///         self.0.collate(&examples.iter().map(cut).collect::<Vec<_>>(), key)
///     }
/// }
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// let cut = Cut(MaskingCollator::new(&tokenizer), 4);
/// let batch = cut.collate(&[Example::from((5..25).collect::<Vec<u32>>())], BatchKey::default())?;
/// assert_eq!(batch.seq, 4);
/// # Ok::<(), cloze::Error>(())
/// ```
pub trait Collator: Send + Sync {
    /// Returns the batch of `examples`, which begins at `key`. The same arguments give the same batch.
    fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch>;

    /// Whether the collator's settings make sense; asked before the first batch.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the tokenizer whose ids the batches contain, so that it can be saved with a model trained on them.
    fn tokenizer(&self) -> Option<&Tokenizer> {
        None
    }

    /// Writes the files that belong to a model trained on these batches into `folder`: the tokenizer, if there is one.
    fn save_pretrained(&self, folder: &Path) -> Result<()> {
        match self.tokenizer() {
            Some(tokenizer) => tokenizer.save_pretrained(folder),
            None => Ok(()),
        }
    }
}

impl<C: Collator + ?Sized> Collator for Arc<C> {
    fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
        (**self).collate(examples, key)
    }

    fn validate(&self) -> Result<()> {
        (**self).validate()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        (**self).tokenizer()
    }

    fn save_pretrained(&self, folder: &Path) -> Result<()> {
        (**self).save_pretrained(folder)
    }
}
