//! Whether a product replaces its destination or is added to it.

/// What happens to the destination's old content.
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
