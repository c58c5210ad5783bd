//! The context of a forward pass: whether it trains, and its source of randomness.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use crate::base::number::Count;
use crate::ops::Dropout;

/// The mode of one forward pass.
///
/// In training, every dropout site of the pass draws its own key from the seed, the step and the order of the sites,
/// so the same seed and step always drop the same elements, whatever ran before.
///
/// Clones share the count of sites.
///
/// ```
/// use cloze::prelude::*;
///
/// // Seed and step decide what dropout drops.
/// let context = Context::train(42u64, 0u64).gradient_checkpointing(true);
/// assert!(context.is_training() && !Context::eval().is_training());
/// ```
#[derive(Clone, Debug)]
pub struct Context {
    key: Option<u64>,
    site: Arc<AtomicU64>,
    gradient_checkpointing: bool,
    unpadded: bool,
    label_smoothing: f64,
    calibrating: bool,
    repeated: bool,
    /// Receives the logits of a loss, if they are wanted.
    logits: Option<Arc<Mutex<Option<Tensor>>>>,
}

impl Context {
    /// Returns the context of an evaluation: no dropout.
    pub fn eval() -> Self {
        Self {
            key: None,
            site: Arc::default(),
            gradient_checkpointing: false,
            unpadded: true,
            label_smoothing: 0.0,
            calibrating: false,
            repeated: false,
            logits: None,
        }
    }

    /// Returns the context of training with the dropout masks of `seed` at forward pass number `pass`.
    pub fn train(seed: impl Count, pass: impl Count) -> Self {
        let (seed, pass) = (seed.count(), pass.count());
        Self {
            key: Some(mix(mix(seed) ^ pass)),
            site: Arc::default(),
            gradient_checkpointing: false,
            unpadded: true,
            label_smoothing: 0.0,
            calibrating: false,
            repeated: false,
            logits: None,
        }
    }

    /// Sets whether the blocks of the encoder keep only their inputs and are run once more in the backward pass: less
    /// memory for a forward pass more, and the same numbers. Default: no.
    #[must_use]
    pub fn gradient_checkpointing(mut self, on: bool) -> Self {
        self.gradient_checkpointing = on;
        self
    }

    /// Returns whether [`gradient_checkpointing`](Self::gradient_checkpointing) is on.
    pub fn checkpoints_gradients(&self) -> bool {
        self.gradient_checkpointing
    }

    /// Sets whether texts of different lengths lie one behind the other, without padding, where the family allows it
    /// and only some positions are asked for, as by a loss: the same numbers but for rounding, in less time. Default:
    /// yes.
    #[must_use]
    pub fn unpadded(mut self, on: bool) -> Self {
        self.unpadded = on;
        self
    }

    /// Returns whether [`unpadded`](Self::unpadded) is on.
    pub fn leaves_out_padding(&self) -> bool {
        self.unpadded
    }

    /// Spreads this part of the labels' weight evenly over the vocabulary (Szegedy et al. 2016). Default: 0.
    #[must_use]
    pub fn label_smoothing(mut self, part: f64) -> Self {
        self.label_smoothing = part;
        self
    }

    /// Returns what [`label_smoothing`](Self::label_smoothing) has set.
    pub fn smooths_labels(&self) -> f64 {
        self.label_smoothing
    }

    /// Returns a context that keeps the logits of the positions whose label counts when a loss is computed with it.
    pub(crate) fn keeping_logits(mut self) -> Self {
        self.logits = Some(Arc::default());
        self
    }

    /// Keeps the logits (rows, vocab) of the positions whose label counts, if they are wanted.
    pub(super) fn keep_logits<E>(
        &self,
        logits: impl FnOnce() -> Result<Tensor, E>,
    ) -> Result<(), E> {
        if let Some(kept) = &self.logits {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(logits()?);
        }
        Ok(())
    }

    /// Returns the logits that a loss stored; `None` if its family computes the loss in another way.
    pub(crate) fn take_logits(&self) -> Option<Tensor> {
        let kept = self.logits.as_ref()?;
        kept.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns a context whose pass measures the ranges of activations, for [`MaskedLm::calibrate`](super::MaskedLm::calibrate).
    pub(super) fn calibrating(mut self) -> Self {
        self.calibrating = true;
        self
    }

    /// Returns whether the pass measures ranges.
    pub(super) fn is_calibrating(&self) -> bool {
        self.calibrating && !self.repeated
    }

    /// Returns whether the pass measures ranges that training updates.
    pub(super) fn measures_ranges(&self) -> bool {
        !self.repeated && (self.calibrating || self.is_training())
    }

    /// Returns the context of a pass that only repeats another, and so measures nothing.
    pub(super) fn repeating(mut self) -> Self {
        self.repeated = true;
        self
    }

    /// Returns whether this is a training pass.
    pub fn is_training(&self) -> bool {
        self.key.is_some()
    }

    /// Returns an independent context that continues from here: the same sites drop the same elements in both.
    pub(super) fn fork(&self) -> Self {
        Self {
            site: Arc::new(AtomicU64::new(self.site.load(Ordering::Relaxed))),
            ..self.clone()
        }
    }

    /// Leaves out the sites that a fork of this context has used.
    pub(super) fn advance_to(&self, fork: &Self) {
        let used = fork.site.load(Ordering::Relaxed);
        self.site.fetch_max(used, Ordering::Relaxed);
    }

    /// Returns a number that the randomness of one site follows from; none in evaluation.
    pub(super) fn key(&self) -> Option<u64> {
        let key = self.key?;
        let site = self.site.fetch_add(1, Ordering::Relaxed);
        Some(mix(key ^ mix(site)))
    }

    /// Returns whether a whole layer is left out of this pass, which happens with probability `p` in training.
    pub fn drops_layer(&self, p: f64) -> bool {
        if p <= 0.0 {
            return false;
        }
        let draw = self.key().map(|key| (key >> 11) as f64);
        draw.is_some_and(|draw| draw < p * (1u64 << 53) as f64)
    }

    /// Returns a number for any other random draw of a training pass, with its own site; `None` in evaluation.
    pub fn draw(&self) -> Option<u64> {
        let site = || self.site.fetch_add(1, Ordering::Relaxed);
        self.key.map(|key| mix(key ^ mix(site())))
    }

    /// Returns dropout with probability `p` and its own key; [`Dropout::NONE`] in evaluation.
    pub fn dropout(&self, p: f64) -> Dropout {
        if p <= 0.0 {
            return Dropout::NONE;
        }
        let dropout = |key| Dropout { p: p as f32, key };
        self.key().map_or(Dropout::NONE, dropout)
    }
}

/// SplitMix64's step: spreads nearby integers over all 64 bits.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_only_on_the_seed_and_the_pass() {
        let keys = |seed, pass| {
            let context = Context::train(seed, pass);
            [context.dropout(0.1).key, context.dropout(0.1).key]
        };
        assert_eq!(keys(7, 3), keys(7, 3));
        assert_ne!(keys(7, 3), keys(7, 4));
        assert_ne!(keys(7, 3), keys(8, 3));
        assert_ne!(keys(7, 3)[0], keys(7, 3)[1]);
        assert_eq!(Context::eval().dropout(0.1), Dropout::NONE);
    }
}
