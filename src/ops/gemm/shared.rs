//! Memory that the tasks of a product share.

/// A pointer to memory shared by tasks, each of which writes its own elements.
pub(super) struct Shared<T>(pub *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: tasks write disjoint elements, and nobody reads before all are done: whoever writes through it says why.
unsafe impl<T> Send for Shared<T> {}
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn get(&self) -> *mut T {
        self.0
    }

    /// Returns `width` elements from `start` on.
    ///
    /// # Safety
    /// The elements must be in the memory, and belong only to the calling task.
    pub(super) unsafe fn row<'a>(&self, start: usize, width: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), width) }
    }
}
