//! MPI as a [`Communicator`](super::Communicator). One thread makes all calls, so that a library needs no locks of its own
//! (`MPI_THREAD_FUNNELED`) and others may compute meanwhile.

mod library;
mod world;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use self::library::Library;
use self::world::World;
use super::environment::Environment;
use super::{Communicator, environment::SWITCH};
use crate::{Error, Result};

type Job = Box<dyn FnOnce(&mut World) + Send>;

/// MPI's world, which the ranks of one job make up.
pub(super) struct Mpi {
    jobs: Mutex<Sender<Job>>,
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
    name: String,
}

impl Mpi {
    /// Joins the world described by `environment`.
    ///
    /// # Errors
    /// [`Error::Distributed`] where there is no library, where it fails, or where its world is another one.
    pub(super) fn join(environment: &Environment) -> Result<Self> {
        let (jobs, work) = channel::<Job>();
        let (told, tell) = channel();
        let wanted = environment.clone();
        std::thread::Builder::new()
            .name("cloze-mpi".to_owned())
            .spawn(move || {
                let world = Library::open(&wanted).and_then(World::join);
                match world {
                    Ok(mut world) => {
                        let facts = (world.rank, world.size, world.local_rank, world.local_size);
                        let _ = told.send(Ok((facts, world.name())));
                        work.iter().for_each(|job| job(&mut world));
                    }
                    Err(error) => {
                        let _ = told.send(Err(error));
                    }
                }
            })
            .map_err(|error| Error::io("start", "a thread for MPI", error))?;
        let ((rank, size, local_rank, local_size), name) =
            tell.recv().map_err(|_| gone("joining the other ranks"))??;
        if size != environment.size {
            let (by, promised) = (
                environment.launcher.unwrap_or("the environment"),
                environment.size,
            );
            let advice = match by.starts_with("Slurm") {
                true => "start it with `srun --mpi=pmix`, with an MPI that supports PMIx",
                false => {
                    "start it with the mpirun of the same MPI (CLOZE_MPI names the library to take)"
                }
            };
            return Err(Error::Distributed(format!(
                "{by} promises {promised} ranks, but {name} sees {size}: each would train alone and overwrite the others' files; \
                 {advice}, or set {SWITCH}=off to train with this process alone"
            )));
        }
        Ok(Self {
            jobs: Mutex::new(jobs),
            rank,
            size,
            local_rank,
            local_size,
            name,
        })
    }

    /// Does `work` on the thread that may call MPI, and waits for it.
    fn run<T: Send>(&self, work: impl FnOnce(&mut World) -> T + Send) -> Result<T> {
        let (told, tell) = channel();
        let job: Box<dyn FnOnce(&mut World) + Send + '_> = Box::new(move |world| {
            let _ = told.send(work(world));
        });
        // SAFETY: only the lifetime changes. What `work` borrows lives until this function returns, which is not before
        // the job has been run or dropped: the sender within it goes with it, and `recv` waits for that.
        let job: Job = unsafe { std::mem::transmute(job) };
        let sent = self
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(job);
        sent.map_err(|_| gone("asking for an exchange"))?;
        tell.recv().map_err(|_| gone("an exchange"))
    }
}

fn gone(doing: &str) -> Error {
    Error::Distributed(format!("the thread that talks to MPI ended while {doing}"))
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn local_size(&self) -> usize {
        self.local_size
    }

    fn reduce_scatter(&self, values: &mut [f32]) -> Result<()> {
        self.run(|world| world.reduce_scatter(values))?
    }

    fn all_gather(&self, values: &mut [f32]) -> Result<()> {
        self.run(|world| world.all_gather(values))?
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        self.run(|world| world.broadcast(bytes))?
    }

    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.run(|world| world.exchange(mine))?
    }

    fn finalize(&self) {
        // Nobody is left to tell of a failure.
        let _ = self.run(|world| world.finalize());
    }

    fn abort(&self, code: i32) -> ! {
        let _ = self.run(|world| world.abort(code));
        // The launcher ends the others when one of them ends like this.
        std::process::abort()
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
