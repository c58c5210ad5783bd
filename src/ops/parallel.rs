//! Loops over rows and elements on the shared thread pool, in pieces that do not depend on the number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::simd::simd_fn;

/// Elements per task of an element-wise loop.
pub(crate) const CHUNK: usize = 1 << 14;

/// Returns how many rows of `width` elements make one task.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Memory of `n` elements that the caller overwrites before anyone reads it.
#[allow(clippy::uninit_vec)]
pub(crate) fn for_overwrite(n: usize) -> Vec<f32> {
    let mut data = Vec::with_capacity(n);
    // SAFETY: the capacity is there, and f32 has neither invalid values nor a destructor; every caller writes each
    // element before reading it. Zeroing would cost a pass over memory per operation.
    unsafe { data.set_len(n) };
    data
}

/// Does tasks 0 to `tasks` - 1 in any order, on as many threads as the pool has. This one is one of them: were it to wait
/// for the pool alone, it would have to be put to sleep and be woken, and one more thread to be woken, for every loop.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) fn for_each_task(tasks: usize, work: impl Fn(usize) + Sync) {
    if rayon::current_thread_index().is_some() {
        // Single tasks: a thread that is done finds some to take over until the very end.
        let tasks = (0..tasks).into_par_iter().with_max_len(1);
        return tasks.for_each(&work);
    }
    let next = AtomicUsize::new(0);
    let take = || {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..rayon::current_num_threads().min(tasks) {
            scope.spawn(|_| take());
        }
        take();
    });
}

simd_fn! {
    /// Adds the rows of `parts` (each `width` long) to `sums`, in order.
    pub(crate) fn add_rows(sums: &mut [f32], parts: &[f32], fresh: bool) {
        if fresh {
            sums.fill(0.0);
        }
        if sums.is_empty() {
            return;
        }
        for part in parts.chunks_exact(sums.len()) {
            for (sum, part) in sums.iter_mut().zip(part) {
                *sum += part;
            }
        }
    }
}

/// The sums of `data`'s columns (rows of `width`), each block of rows on its own and then in order: the same result
/// with any number of threads.
pub(crate) fn column_sums(data: &[f32], width: usize, sums: &mut [f32], fresh: bool) {
    if width == 0 {
        return;
    }
    const ROWS: usize = 64;
    let blocks = (data.len() / width).div_ceil(ROWS);
    let mut parts = vec![0f32; blocks * width];
    parts
        .par_chunks_mut(width)
        .zip(data.par_chunks(ROWS * width))
        .for_each(|(part, block)| add_rows(part, block, false));
    add_rows(sums, &parts, fresh);
}

/// Zeroes `data`.
pub(crate) fn zero(data: &mut [f32]) {
    data.par_chunks_mut(1 << 18)
        .for_each(|chunk| chunk.fill(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_inside_and_outside_the_pool() {
        for tasks in [0, 1, 2, 7, 1000] {
            let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            let add = |task: usize| {
                done[task].fetch_add(1, Ordering::Relaxed);
            };
            for_each_task(tasks, add);
            rayon::scope(|_| for_each_task(tasks, add));
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 2));
        }
    }

    #[test]
    fn a_panicking_task_is_reported() {
        let loops = || for_each_task(20, |task| assert!(task != 13, "thirteen"));
        assert!(std::panic::catch_unwind(loops).is_err());
        assert!(std::panic::catch_unwind(|| rayon::scope(|_| loops())).is_err());
    }
}
