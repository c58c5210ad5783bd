//! Memory settings for training: the C library's allocator, and huge pages.

/// Makes the allocator keep memory that it got from the system, for the whole process.
///
/// A training step repeatedly allocates and frees the same large buffers. By default glibc maps each of them again, and
/// the system clears every page at first use, which costs more than some of the operations. Called when a trainer or an
/// optimizer is created; calling it again does nothing. It only affects memory that was already returned to the
/// allocator, so the peak is unchanged. It has no effect with other C libraries.
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

/// Asks the system for huge pages under `data`, which has not been touched yet.
#[cfg(target_os = "linux")]
pub(crate) fn advise_huge<T>(data: &mut [T]) {
    const HUGE: usize = 2 << 20;
    let start = data.as_mut_ptr() as usize;
    let end = start + size_of_val(data);
    let (start, end) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
    if start < end {
        // SAFETY: the range lies inside memory that `data` borrows mutably; the advice does not change its content.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE);
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn advise_huge<T>(_: &mut [T]) {}
