//! The sizes of the blocks into which operands are packed for units that multiply bf16.

/// Rows or columns of a panel, and the inner dimension of a step.
pub(in crate::ops) const SIDE: usize = 32;
/// Bytes of one tile and of one part (two tiles).
pub(in crate::ops) const TILE: usize = 1024;
pub(in crate::ops) const PART: usize = 2 * TILE;
