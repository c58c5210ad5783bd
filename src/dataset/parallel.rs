//! Work on many items at once whose results come out in order, with only a few of them in memory.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::{Error, Result};

/// Returns the number of threads when none is asked for: one for each core.
pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// Calls `work` on every item, on a pool of `threads` threads, and `sink` on the results, in the items' order.
///
/// The results do not depend on `threads`. No more than a few items per thread are taken before the first of them is
/// done. The first error in the items' order ends the work, and so does an interrupt. A panic in `work` is an error.
pub(crate) fn ordered<T: Send, R: Send>(
    doing: &str,
    threads: usize,
    items: impl Iterator<Item = Result<T>>,
    work: impl Fn(T) -> Result<R> + Sync,
    sink: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    ordered_until(
        doing,
        threads,
        items,
        |item, _: &AtomicBool| work(item),
        sink,
    )
}

/// Like [`ordered`], for work that takes long on one item: it is also given whether the results are still wanted, and may
/// end in any error when they are not.
pub(crate) fn ordered_until<T: Send, R: Send>(
    doing: &str,
    threads: usize,
    mut items: impl Iterator<Item = Result<T>>,
    work: impl Fn(T, &AtomicBool) -> Result<R> + Sync,
    mut sink: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::argument("num_proc", format!("{threads} threads: {error}")))?;
    let window = 2 * threads + 1;
    let stopped = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    let (stopped, work) = (&stopped, &work);
    pool.in_place_scope(|scope| {
        let mut consume = || {
            let (mut taken, mut done, mut exhausted) = (0, 0, false);
            let mut waiting = BTreeMap::new();
            loop {
                while !exhausted && taken - done < window {
                    let Some(item) = items.next().transpose()? else {
                        exhausted = true;
                        break;
                    };
                    let (sender, place) = (sender.clone(), taken);
                    scope.spawn(move |_| {
                        if stopped.load(Ordering::Relaxed) {
                            return;
                        }
                        let result = catch_unwind(AssertUnwindSafe(|| work(item, stopped)))
                            .unwrap_or_else(|panic| Err(panicked(doing, &*panic)));
                        // Nobody listens any more if the work was stopped.
                        let _ = sender.send((place, result));
                    });
                    taken += 1;
                }
                if done == taken {
                    return Ok(());
                }
                match receiver.recv_timeout(Duration::from_millis(100)) {
                    Ok((place, result)) => {
                        waiting.insert(place, result);
                    }
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                }
                while let Some(result) = waiting.remove(&done) {
                    sink(result?)?;
                    done += 1;
                }
                crate::base::interrupt::check(doing)?;
            }
        };
        let result = consume();
        stopped.store(true, Ordering::Relaxed);
        result
    })
}

fn panicked(doing: &str, panic: &(dyn Any + Send)) -> Error {
    let message = crate::base::panics::words(panic);
    Error::User {
        context: doing.to_owned(),
        source: format!("the function panicked: {message}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_ordered_and_few_items_are_read_ahead() {
        for threads in [1, 2, 7] {
            let mut out = Vec::new();
            let taken = std::sync::atomic::AtomicUsize::new(0);
            let items = (0..200).inspect(|_| {
                taken.fetch_add(1, Ordering::SeqCst);
            });
            ordered(
                "counting",
                threads,
                items.map(Ok),
                |item: usize| {
                    std::thread::sleep(Duration::from_micros(((item * 37) % 11) as u64 * 50));
                    Ok(item * 2)
                },
                |result| {
                    let ahead = taken.load(Ordering::SeqCst) - out.len();
                    assert!(
                        ahead <= 2 * threads + 1,
                        "{ahead} items ahead with {threads} threads"
                    );
                    out.push(result);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(out, (0..200).map(|item| item * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let mut out = Vec::new();
        let result = ordered(
            "failing",
            4,
            (0..1000).map(Ok),
            |item| match item {
                13 => {
                    std::thread::sleep(Duration::from_millis(5));
                    Err(Error::Dataset("thirteen".to_owned()))
                }
                14 => Err(Error::Dataset("fourteen".to_owned())),
                item => Ok(item),
            },
            |item| {
                out.push(item);
                Ok(())
            },
        );
        assert_eq!(result.unwrap_err().to_string(), "thirteen");
        assert_eq!(out, (0..13).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_is_an_error() {
        let work = |item: u32| {
            if item == 3 {
                panic!("item {item} is bad")
            } else {
                Ok(item)
            }
        };
        let error = ordered("testing", 2, (0..9).map(Ok), work, |_| Ok(())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "testing: the function panicked: item 3 is bad"
        );
    }
}
