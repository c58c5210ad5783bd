//! The layout of a product's operands.

/// An operand, seen as `outer` rows (of the left one) or columns (of the right one) times the inner dimension.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Operand {
    pub start: *const f32,
    /// Elements between neighbouring rows (left) or columns (right).
    pub outer: usize,
    /// Elements between neighbours along the inner dimension; this or `outer` is 1.
    pub inner: usize,
}

// SAFETY: tasks only read through it, while the caller of the product keeps the memory alive.
unsafe impl Send for Operand {}
unsafe impl Sync for Operand {}

impl Operand {
    /// Returns the operand that begins at row or column `outer` and inner position `inner`.
    #[inline]
    pub(in crate::ops) fn at(self, outer: usize, inner: usize) -> Self {
        Self {
            start: self
                .start
                .wrapping_add(outer * self.outer + inner * self.inner),
            ..self
        }
    }
}
