//! Memory for rearranged operands, which each thread keeps for its next product.

use std::cell::Cell;
use std::thread::LocalKey;

use crate::ops::allocator;

/// Words of 32 bits in a cache line.
const LINE: usize = 16;

/// A cache line, which aligns the memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u32; LINE]);

/// The memory of a thread, empty until its first product.
pub(super) type Memory = Cell<Vec<Line>>;

/// Calls `work` with memory for this many words of 32 bits, whose content is arbitrary.
pub(super) fn with_memory<T>(
    memory: &'static LocalKey<Memory>,
    words: usize,
    work: impl FnOnce(*mut u32) -> T,
) -> T {
    // Taken out of its place: a thread of the pool may start another product while it waits for this one.
    let mut lines = memory.take();
    let needed = words.div_ceil(LINE);
    if lines.len() < needed {
        lines = Vec::with_capacity(needed);
        allocator::advise_huge(lines.spare_capacity_mut());
        lines.resize(needed, Line([0; LINE]));
    }
    let result = work(lines.as_mut_ptr().cast());
    memory.set(lines);
    result
}
