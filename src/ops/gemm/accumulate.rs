//! Whether a product replaces its destination or is added to it.

/// Whether a product replaces the destination or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accumulate {
    /// It is never read.
    Overwrite,
    /// The product is added to it.
    Add,
}

impl Accumulate {
    /// Overwrites fresh memory, adds to other.
    pub(crate) fn fresh(fresh: bool) -> Self {
        if fresh { Self::Overwrite } else { Self::Add }
    }
}
