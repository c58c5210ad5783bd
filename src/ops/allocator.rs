//! Keeping the C library's allocator out of the way of training.

/// Tells the allocator to keep the memory that it has got from the system, for the whole process.
///
/// A training step allocates and frees the same large buffers again and again. By default glibc maps each of them anew,
/// and the system clears every page when it is first touched, which costs more than some of the operations do. Called
/// when a trainer or an optimizer is made; calling it again does nothing. Only memory that was already returned to the allocator is
/// affected: the peak stays the same. No effect with other C libraries.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: the call changes settings of the allocator, under its own lock.
            unsafe {
                // Large blocks from the heap, where they can be used again, never mapped on their own ...
                libc::mallopt(libc::M_MMAP_MAX, 0);
                // ... which is never cut back at its end ...
                libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
                // ... and grows in large pieces.
                libc::mallopt(libc::M_TOP_PAD, 64 << 20);
            }
        });
    }
}
