//! Which keys the queries of sparse attention see.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::{AttentionMask, AttentionOptions, Band, Sizes};
use crate::{Error, Result};

/// Which keys [`sparse_attention`](super::sparse_attention) lets every block of queries see; cheap to clone.
///
/// ```
/// use cloze::ops::{Band, SparsePlan};
/// // Longformer's window.
/// let window = SparsePlan::band(1000, Band::both(256));
/// // Chunks of 64 that see themselves and the one before, the first one the last.
/// let chunks = SparsePlan::chunks(1024, 64, 1, 0);
/// assert_eq!(chunks.ranges(0, 0), [960..1024, 0..64]);
/// ```
#[derive(Clone, Debug)]
pub struct SparsePlan {
    pub(in crate::ops) queries: usize,
    pub(in crate::ops) keys: usize,
    pub(in crate::ops) block: usize,
    /// Of every block of queries, for each head or for all alike.
    pub(super) ranges: Arc<[Vec<Range<usize>>]>,
    pub(in crate::ops) band: Option<Band>,
    pub(in crate::ops) globals: Option<Tensor>,
    pub(in crate::ops) own: Option<(Tensor, f32)>,
}

impl SparsePlan {
    /// Lets block i of `block` queries see the keys `ranges[i]`, for every head alike. A key that is in several of a
    /// block's ranges counts as often. The last block may be short.
    ///
    /// # Errors
    /// If there are more or fewer blocks, or a range ends after the last key.
    pub fn new(
        queries: usize,
        keys: usize,
        block: usize,
        ranges: Vec<Vec<Range<usize>>>,
    ) -> Result<Self> {
        Self::per_head(queries, keys, block, vec![ranges])
    }

    /// Like [`SparsePlan::new`], with separate ranges for every head: `ranges[head][block]`.
    ///
    /// # Errors
    /// As there.
    pub fn per_head(
        queries: usize,
        keys: usize,
        block: usize,
        ranges: Vec<Vec<Vec<Range<usize>>>>,
    ) -> Result<Self> {
        let blocks = queries.div_ceil(block.max(1));
        if block == 0 || ranges.is_empty() || ranges.iter().any(|head| head.len() != blocks) {
            let given: Vec<usize> = ranges.iter().map(Vec::len).collect();
            return Err(Error::argument(
                "ranges",
                format!(
                    "{given:?} blocks are given, but {queries} queries make {blocks} blocks of {block}"
                ),
            ));
        }
        let all = ranges.iter().flatten().flatten();
        if let Some(range) = all.clone().find(|range| range.end > keys) {
            return Err(Error::argument(
                "ranges",
                format!("{range:?} ends after the last of {keys} keys"),
            ));
        }
        Ok(Self {
            queries,
            keys,
            block,
            ranges: ranges.into_iter().flatten().collect(),
            band: None,
            globals: None,
            own: None,
        })
    }

    /// Lets every one of `n` queries see a window of keys round its own position.
    pub fn band(n: usize, band: Band) -> Self {
        let width = band.left.saturating_add(band.right);
        let block = (width / 4).clamp(32, 128);
        Self {
            queries: n,
            keys: n,
            block,
            ranges: vec![Vec::new(); n.div_ceil(block)].into(),
            band: Some(band),
            globals: None,
            own: None,
        }
    }

    /// Divides `n` queries and keys into chunks of `chunk`. Each attends to `before` chunks before it, itself, and
    /// `after` after it, wrapping around at the ends (Reformer). A chunk that is reached twice counts twice.
    ///
    /// # Panics
    /// If `chunk` is 0.
    pub fn chunks(n: usize, chunk: usize, before: usize, after: usize) -> Self {
        let count = n.div_ceil(chunk).max(1);
        let ranges = (0..n.div_ceil(chunk)).map(|i| {
            let seen = (i + count * (before / count + 1) - before)..;
            let seen = seen.take(before + 1 + after).map(|j| j % count);
            seen.map(|j| j * chunk..((j + 1) * chunk).min(n)).collect()
        });
        Self {
            queries: n,
            keys: n,
            block: chunk,
            ranges: ranges.collect(),
            band: None,
            globals: None,
            own: None,
        }
    }

    /// Lets all queries see the keys too whose entry in this (batch, key) u32 or u8 tensor is not 0; within a band they
    /// count once all the same.
    pub fn with_globals(self, globals: &Tensor) -> Self {
        Self {
            globals: Some(globals.clone()),
            ..self
        }
    }

    /// Replaces the score of a query with a key that has the same number in this (batch, sequence) u32 tensor: Reformer's
    /// queries see themselves only where there is nothing else.
    pub fn with_own_score(self, numbers: &Tensor, score: f32) -> Self {
        Self {
            own: Some((numbers.clone(), score)),
            ..self
        }
    }

    /// Returns the ranges of keys that a block sees in a head, without band and globals.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn ranges(&self, head: usize, block: usize) -> &[Range<usize>] {
        let blocks = self.queries.div_ceil(self.block);
        let head = if self.copies() == 1 { 0 } else { head };
        &self.ranges[head * blocks + block]
    }

    /// As many as there are heads, or 1 for all alike.
    pub(super) fn copies(&self) -> usize {
        let blocks = self.queries.div_ceil(self.block).max(1);
        (self.ranges.len() / blocks).max(1)
    }

    pub(super) fn check(&self, sizes: &Sizes, options: &AttentionOptions) -> Result<()> {
        if (self.queries, self.keys) != (sizes.queries, sizes.keys) {
            return Err(Error::argument(
                "plan",
                format!(
                    "made for {} queries and {} keys, but there are {} and {}",
                    self.queries, self.keys, sizes.queries, sizes.keys
                ),
            ));
        }
        let copies = self.copies();
        if copies != 1 && copies != sizes.heads {
            return Err(Error::argument(
                "plan",
                format!("made for {copies} heads, but there are {}", sizes.heads),
            ));
        }
        for (name, tensor) in [
            ("globals", self.globals.as_ref()),
            ("numbers", self.own.as_ref().map(|(numbers, _)| numbers)),
        ] {
            if let Some(tensor) = tensor
                && tensor.dims() != [sizes.batch, sizes.keys]
            {
                return Err(Error::argument(
                    name,
                    format!(
                        "shape {:?}, but there are {} sequences of {} keys",
                        tensor.dims(),
                        sizes.batch,
                        sizes.keys
                    ),
                ));
            }
        }
        if self.own.is_some() && sizes.queries != sizes.keys {
            return Err(Error::argument(
                "numbers",
                "only where queries and keys are of the same sequence",
            ));
        }
        let other = options.kv_heads() != options.heads
            || options.band.is_some()
            || options.causal
            || options.rotary.is_some()
            || matches!(options.mask, AttentionMask::Additive(_));
        if other {
            return Err(Error::argument(
                "options",
                "sparse attention takes a scale, dropout and masks of keys and queries; a band belongs in the plan",
            ));
        }
        Ok(())
    }
}
