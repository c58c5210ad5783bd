//! Which keys a query sees by its position.

use std::ops::Range;

use super::{AttentionOptions, Sizes};

/// A band, the causal rule, or both: query i sees the keys `i + offset - left ..= i + offset + right`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    left: Option<usize>,
    right: Option<usize>,
    offset: usize,
}

impl Window {
    /// Returns `None` if every query sees all keys. There are at least as many keys as queries.
    pub(super) fn new(options: &AttentionOptions, sizes: &Sizes) -> Option<Self> {
        let left = options.band.map(|band| band.left);
        let right = match (options.causal, options.band) {
            (true, _) => Some(0),
            (false, band) => band.map(|band| band.right),
        };
        (left.is_some() || right.is_some()).then(|| Self {
            left,
            right,
            offset: sizes.keys - sizes.queries,
        })
    }

    /// Returns the keys before `end` that the queries `first..=last` see, those between them included.
    pub(super) fn keys(&self, first: usize, last: usize, end: usize) -> Range<usize> {
        let hi = match self.right {
            Some(right) => (last + self.offset + 1).saturating_add(right).min(end),
            None => end,
        };
        let lo = match self.left {
            Some(left) => (first + self.offset).saturating_sub(left),
            None => 0,
        };
        lo.min(hi)..hi
    }

    /// Returns how many queries are best worked on at once: the more there are, the more scores outside of the window
    /// are formed. `None` where the window leaves out so little that this is no matter.
    pub(super) fn block(&self, keys: usize) -> Option<usize> {
        match (self.left, self.right) {
            (Some(left), Some(right)) => {
                let width = left.saturating_add(right);
                let block = (width / 4).clamp(32, 128) / 16 * 16;
                (width.saturating_add(2 * block) < keys).then_some(block)
            }
            _ => Some(64),
        }
    }
}
