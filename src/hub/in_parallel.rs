//! Requests, several at a time.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::failure::{Failure, FailureKind};
use crate::Error;
use crate::base::interrupt::{self, Background};

/// Items that are worked on at the same time.
const WORKERS: usize = 8;

/// Calls `work` for every item, several at a time, and returns the results in the order of the items.
///
/// # Errors
/// The first failure; what is under way is finished, what has not begun is left.
pub(crate) fn in_parallel<I: Sync, T: Send>(
    items: &[&I],
    work: impl Fn(&I) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..items.len()).collect());
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let failed = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let run = || {
        while !stop.load(Ordering::Relaxed) {
            let Some(index) = lock(&queue).pop_front() else {
                return;
            };
            match work(items[index]) {
                Ok(value) => lock(&done).push((index, value)),
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    lock(&failed).get_or_insert(failure);
                }
            }
        }
    };
    let background = Background::current();
    std::thread::scope(|scope| {
        for _ in 1..items.len().min(WORKERS) {
            scope.spawn(|| {
                if let Some(background) = background {
                    background.enter();
                }
                run();
            });
        }
        run();
    });
    if let Some(failure) = failed
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
    {
        if let FailureKind::Local(error) = &failure.kind
            && matches!(**error, Error::Interrupted(_))
        {
            // All threads have seen the request by now: it is answered.
            interrupt::take();
        }
        return Err(failure);
    }
    let mut done = done
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
