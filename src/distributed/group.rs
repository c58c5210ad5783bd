//! The group that this process belongs to, and how its ranks decide things together.
//!
//! Whatever one rank knows alone (a failed read, an interrupt, a callback's request) is voted on before anybody acts on
//! it. Every exchange of data is preceded by a vote, so that a rank that failed, or is about to exit, meets the others
//! in their next vote: they end with an error that names it, instead of waiting forever.

#[cfg(feature = "cuda")]
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::mpi::Mpi;
use super::{Communicator, environment::environment, environment::foreign, signal};
use crate::{Error, Result};

/// The ranks that train together. A process that was started alone is a group of one, which exchanges nothing.
pub struct Group {
    communicator: Option<Box<dyn Communicator>>,
    /// Whether all ranks know of the failure that ends the work under way.
    agreed: AtomicBool,
    /// Whether the ranks no longer do the same.
    broken: AtomicBool,
    received: AtomicU64,
    /// Nanoseconds of exchanging gradients and weights.
    busy: AtomicU64,
    /// Nanoseconds of it that a backward pass did not hide.
    waited: AtomicU64,
    votes: AtomicU64,
    /// The transport between GPUs, once it has been looked for.
    #[cfg(feature = "cuda")]
    pub(super) further: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// A rank's message in a vote.
#[derive(Serialize, Deserialize)]
enum Voice {
    /// The rank's place in the program, and its vote there.
    Present(String, String),
    /// The rank failed.
    Failed { message: String, interrupted: bool },
    /// It is about to exit.
    Left,
}

impl Group {
    /// Returns the group of this process, which is joined at the first call.
    ///
    /// # Errors
    /// [`Error::Distributed`] where a launcher started several processes that can't find each other.
    pub fn current() -> Result<Arc<Self>> {
        static CURRENT: OnceLock<Result<Arc<Group>, String>> = OnceLock::new();
        static JOINING: Mutex<()> = Mutex::new(());
        // Joining twice at a time would be an error, even for the one that loses.
        let _one = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
        let found = CURRENT.get_or_init(|| {
            Self::join().map(Arc::new).map_err(|error| match error {
                Error::Distributed(message) => message,
                other => other.to_string(),
            })
        });
        if let Ok(group) = found
            && group.size() > 1
        {
            static AT_EXIT: OnceLock<Arc<Group>> = OnceLock::new();
            AT_EXIT.get_or_init(|| {
                at_exit(|| AT_EXIT.get().into_iter().for_each(|group| group.leave()));
                Arc::clone(group)
            });
        }
        found.clone().map_err(Error::Distributed)
    }

    fn join() -> Result<Self> {
        if let Some(reason) = foreign() {
            return Err(Error::Distributed(reason));
        }
        let environment = environment();
        if environment.size <= 1 {
            return Ok(Self::alone());
        }
        let usr1_is_free = signal::usr1_is_free();
        let mpi = Mpi::join(&environment)?;
        if usr1_is_free {
            signal::stop_on_usr1();
        }
        Ok(Self::of(Box::new(mpi)))
    }

    /// Returns a group of one.
    pub fn alone() -> Self {
        Self::with(None)
    }

    /// Returns the group whose ranks `communicator` connects.
    pub fn of(communicator: Box<dyn Communicator>) -> Self {
        Self::with(Some(communicator))
    }

    fn with(communicator: Option<Box<dyn Communicator>>) -> Self {
        Self {
            communicator: communicator.filter(|communicator| communicator.size() > 1),
            agreed: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            received: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            votes: AtomicU64::new(0),
            #[cfg(feature = "cuda")]
            further: OnceLock::new(),
        }
    }

    /// Returns this process's number, from 0.
    pub fn rank(&self) -> usize {
        self.communicator.as_ref().map_or(0, |c| c.rank())
    }

    /// Returns the number of ranks.
    pub fn size(&self) -> usize {
        self.communicator.as_ref().map_or(1, |c| c.size())
    }

    /// Returns this process's number among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.communicator.as_ref().map_or(0, |c| c.local_rank())
    }

    /// Returns whether this rank is the one that shows, logs and writes.
    pub fn is_main(&self) -> bool {
        self.rank() == 0
    }

    /// Returns how many bytes of gradients, weights and the like this rank has received so far; votes are not counted.
    pub fn bytes_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Returns how many seconds exchanges of gradients and weights have taken this rank so far, waiting for the others
    /// included.
    pub fn exchange_seconds(&self) -> f64 {
        self.busy.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Returns the total seconds spent waiting for exchanges at the end of backward passes: the part that
    /// `overlap_exchange` did not hide.
    pub fn waited_seconds(&self) -> f64 {
        self.waited.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Counts such a wait.
    pub(crate) fn note_wait(&self, time: Duration) {
        self.waited
            .fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Returns how many votes there were so far.
    pub fn votes(&self) -> u64 {
        self.votes.load(Ordering::Relaxed)
    }

    /// Returns the votes of all ranks at `place`, in rank order.
    ///
    /// # Errors
    /// This rank's own error, which the others receive; or another rank's, as an [`Error::Distributed`] that names it
    /// (an interrupt as [`Error::Interrupted`]). All ranks get an error then.
    pub fn vote<T: Serialize + DeserializeOwned>(
        &self,
        place: &str,
        mine: Result<T>,
    ) -> Result<Vec<T>> {
        let Some(communicator) = &self.communicator else {
            return mine.map(|mine| vec![mine]);
        };
        let voice = match &mine {
            Ok(mine) => Voice::Present(place.to_owned(), serde_json::to_string(mine)?),
            Err(error) => Voice::Failed {
                message: error.to_string(),
                interrupted: matches!(error, Error::Interrupted(_)),
            },
        };
        let voices = self.ask(communicator.as_ref(), &voice)?;
        let mut said = Vec::with_capacity(voices.len());
        let mut failure = mine.err();
        for (rank, voice) in voices.into_iter().enumerate() {
            let error = match voice {
                Voice::Present(at, text) if at == place => {
                    said.push(serde_json::from_str(&text)?);
                    continue;
                }
                Voice::Present(at, _) => {
                    self.broken.store(true, Ordering::Relaxed);
                    Error::Distributed(format!(
                        "the ranks diverged: rank {} is at {place:?}, rank {rank} at {at:?}; all must call the \
                         trainer's methods in the same order",
                        self.rank()
                    ))
                }
                Voice::Failed {
                    message,
                    interrupted: true,
                } => Error::Interrupted(
                    message
                        .strip_prefix("interrupted while ")
                        .unwrap_or(&message)
                        .to_owned(),
                ),
                Voice::Failed { message, .. } => {
                    Error::Distributed(format!("rank {rank} failed: {message}"))
                }
                Voice::Left => {
                    self.broken.store(true, Ordering::Relaxed);
                    Error::Distributed(format!(
                        "rank {rank} ended its program while rank {} was at {place:?}; look for its message above",
                        self.rank()
                    ))
                }
            };
            failure.get_or_insert(error);
        }
        match failure {
            None => Ok(said),
            Some(error) => {
                self.agreed.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn ask(&self, communicator: &dyn Communicator, voice: &Voice) -> Result<Vec<Voice>> {
        self.votes.fetch_add(1, Ordering::Relaxed);
        let voices = communicator.exchange(&serde_json::to_vec(voice)?)?;
        let voices = voices.iter().map(|voice| serde_json::from_slice(voice));
        Ok(voices.collect::<Result<_, _>>()?)
    }

    /// Returns whether any rank votes yes.
    pub fn any(&self, place: &str, mine: bool) -> Result<bool> {
        Ok(self.vote(place, Ok(mine))?.contains(&true))
    }

    /// Runs `work` on rank 0 and returns its result on all ranks.
    ///
    /// # Errors
    /// On all ranks, where the work fails.
    pub fn on_main<T: Serialize + DeserializeOwned>(
        &self,
        place: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if self.size() == 1 {
            return work();
        }
        // A list, for JSON does not tell apart a result of nothing and no result.
        let mine = match self.is_main() {
            true => work().map(|done| vec![done]),
            false => Ok(Vec::new()),
        };
        let mut said = self.vote(place, mine)?;
        said.swap_remove(0)
            .pop()
            .ok_or_else(|| Error::Distributed(format!("rank 0 sent nothing at {place:?}")))
    }

    /// Begins work whose failures are reported in votes.
    pub(crate) fn begin(&self) {
        self.agreed.store(false, Ordering::Relaxed);
    }

    /// Ends such work: a failure on this rank is reported to the others in their next vote.
    pub(crate) fn settle<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if self.size() > 1 && !self.agreed.load(Ordering::Relaxed) => {
                let told = self.vote::<()>("a failure", Err(error));
                Err(told.err().unwrap_or_else(|| {
                    Error::Distributed("a failure was reported, but not handled".to_owned())
                }))
            }
            other => other,
        }
    }

    /// Does `work` that no vote can end, such as an exchange of data: where it fails, the others wait for this rank, and the
    /// whole job ends.
    pub(crate) fn or_abort<T>(&self, doing: &str, work: Result<T>) -> Result<T> {
        match work {
            Err(error) if self.size() > 1 => {
                eprintln!("error: rank {}: {doing}: {error}", self.rank());
                self.abort(1)
            }
            other => other,
        }
    }

    /// Ends all ranks, where there are several; this process otherwise.
    pub(crate) fn abort(&self, code: i32) -> ! {
        match &self.communicator {
            Some(communicator) => communicator.abort(code),
            None => std::process::exit(code),
        }
    }

    /// Returns a guard that ends all ranks if this one panics while it lives: the others would wait for it.
    pub(crate) fn panic_guard(self: &Arc<Self>) -> PanicGuard {
        PanicGuard(Arc::clone(self))
    }

    /// See [`Communicator::reduce_scatter`].
    pub fn reduce_scatter(&self, values: &mut [f32]) -> Result<()> {
        let Some(communicator) = &self.communicator else {
            return Ok(());
        };
        let own = super::share(values.len(), self.rank(), self.size()).len();
        self.count(4 * own * (self.size() - 1));
        self.timed(|| communicator.reduce_scatter(values))
    }

    /// See [`Communicator::all_gather`].
    pub fn all_gather(&self, values: &mut [f32]) -> Result<()> {
        let Some(communicator) = &self.communicator else {
            return Ok(());
        };
        let own = super::share(values.len(), self.rank(), self.size()).len();
        self.count(4 * (values.len() - own));
        self.timed(|| communicator.all_gather(values))
    }

    /// See [`Communicator::broadcast`].
    pub fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let Some(communicator) = &self.communicator else {
            return Ok(());
        };
        if !self.is_main() {
            self.count(bytes.len());
        }
        communicator.broadcast(bytes)
    }

    /// See [`Communicator::exchange`].
    pub(crate) fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(communicator) = &self.communicator else {
            return Ok(vec![mine.to_vec()]);
        };
        let all = self.timed(|| communicator.exchange(mine))?;
        self.count(all.iter().map(Vec::len).sum::<usize>() - mine.len());
        Ok(all)
    }

    fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        let nanos = started.elapsed().as_nanos() as u64;
        self.busy.fetch_add(nanos, Ordering::Relaxed);
        done
    }

    fn count(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Leaves the group at the end of the program. If others are still working, they are notified, and the job ends.
    fn leave(&self) {
        let Some(communicator) = &self.communicator else {
            return;
        };
        if !self.broken.load(Ordering::Relaxed)
            && let Ok(voices) = self.ask(communicator.as_ref(), &Voice::Left)
            && voices.iter().all(|voice| matches!(voice, Voice::Left))
        {
            return communicator.finalize();
        }
        // Time for the others to say what they know.
        std::thread::sleep(Duration::from_millis(500));
        communicator.abort(1)
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.communicator {
            Some(by) => write!(
                f,
                "Group(rank {} of {}, {})",
                by.rank(),
                by.size(),
                by.name()
            ),
            None => write!(f, "Group(alone)"),
        }
    }
}

/// Made by [`Group::panic_guard`].
pub(crate) struct PanicGuard(Arc<Group>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() && self.0.size() > 1 {
            eprintln!("error: rank {} panicked: ending all ranks", self.0.rank());
            self.0.abort(101);
        }
    }
}

/// Calls `work` when the program ends, by returning from `main` or by `exit`.
fn at_exit(work: fn()) {
    static WORK: OnceLock<fn()> = OnceLock::new();
    extern "C" fn call() {
        WORK.get().into_iter().for_each(|work| work());
    }
    let _ = WORK.set(work);
    // SAFETY: the handler is a plain function, which panics nowhere.
    unsafe { libc::atexit(call) };
}

#[cfg(test)]
mod tests {
    use super::super::on_threads;
    use super::*;

    #[test]
    fn a_broadcast_reaches_all_ranks() {
        let found = on_threads(3, |group| {
            let said = group.vote("here", Ok(group.rank() * 10)).unwrap();
            let any = group.any("there", group.rank() == 2).unwrap();
            group.on_main("nothing", || Ok(())).unwrap();
            let main = group.on_main("main", || Ok("from 0".to_owned())).unwrap();
            (said, any, main)
        });
        for (said, any, main) in found {
            assert_eq!(
                (said, any, main.as_str()),
                (vec![0, 10, 20], true, "from 0")
            );
        }
    }

    #[test]
    fn a_failure_on_one_rank_ends_all_ranks_and_names_it() {
        let found = on_threads(3, |group| {
            group.begin();
            let work = match group.rank() {
                1 => Err(Error::Dataset("row 7 is damaged".to_owned())),
                _ => group.vote("a step", Ok(())).map(drop),
            };
            let first = group.settle(work).unwrap_err().to_string();
            // They can go on together.
            (first, group.vote("the next", Ok(1)).unwrap())
        });
        assert_eq!(found[1].0, "row 7 is damaged");
        for rank in [0, 2] {
            assert!(
                found[rank].0.contains("rank 1 failed: row 7 is damaged"),
                "{}",
                found[rank].0
            );
        }
        assert!(found.iter().all(|(_, next)| next == &[1, 1, 1]));
    }

    #[test]
    fn diverging_ranks_are_reported_with_their_positions() {
        let found = on_threads(2, |group| {
            let place = ["evaluating", "saving"][group.rank()];
            group.vote(place, Ok(())).unwrap_err().to_string()
        });
        for message in found {
            assert!(
                message.contains("evaluating") && message.contains("saving"),
                "{message}"
            );
        }
    }

    #[test]
    fn an_interrupt_on_one_rank_interrupts_all() {
        let found = on_threads(2, |group| {
            let mine = match group.rank() {
                0 => Err(Error::Interrupted("evaluating".to_owned())),
                _ => Ok(()),
            };
            group.vote("an evaluation", mine).unwrap_err()
        });
        for error in found {
            assert!(
                matches!(&error, Error::Interrupted(what) if what == "evaluating"),
                "{error}"
            );
        }
    }

    #[test]
    fn shares_are_reduced_and_gathered() {
        for size in [1, 2, 3, 4] {
            let found = on_threads(size, |group| {
                let mut values: Vec<f32> =
                    (0..11).map(|i| (i + 100 * group.rank()) as f32).collect();
                group.reduce_scatter(&mut values).unwrap();
                group.all_gather(&mut values).unwrap();
                (values, group.bytes_received())
            });
            let ranks = (0..size).map(|rank| 100 * rank).sum::<usize>();
            let expected: Vec<f32> = (0..11).map(|i| (i * size + ranks) as f32).collect();
            let mut bytes = 0;
            for (values, received) in found {
                assert_eq!(values, expected);
                bytes += received;
            }
            assert_eq!(bytes as usize, 2 * (size - 1) * 4 * 11);
        }
    }
}
