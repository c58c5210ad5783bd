//! The sizes of the blocks into which operands are packed for units that multiply bf16.

/// Rows or columns of a panel, and the inner dimension of a step.
pub(super) const SIDE: usize = 32;
/// Bytes of one tile and of one part (two tiles).
pub(super) const TILE: usize = 1024;
pub(super) const PART: usize = 2 * TILE;
