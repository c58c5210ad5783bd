//! Starting ranks on this machine, or in the Slurm job that this process belongs to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use crate::base::interrupt;
use crate::{Error, Result};

/// The time between two looks at whether the ranks have ended, or are to.
const LOOK: Duration = Duration::from_millis(50);

/// A program to be started several times, as the ranks of one group: what `cloze launch` does, for a cell or a program.
///
/// Finds `mpirun` (or `srun` within a Slurm job), binds each rank to its cores and gives it as many threads. A notebook's
/// cell trains on several ranks by this: their output, and the progress that the first of them shows, is the cell's.
///
/// ```no_run
/// use cloze::distributed::Launch;
///
/// Launch::new(4, "target/release/pretrain").arg("--epochs=3").run()?;
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Launch {
    ranks: usize,
    program: OsString,
    arguments: Vec<OsString>,
}

impl Launch {
    /// Prepares the start of `program` on this many ranks.
    pub fn new(ranks: usize, program: impl Into<OsString>) -> Self {
        Self {
            ranks,
            program: program.into(),
            arguments: Vec::new(),
        }
    }

    /// Adds an argument for the program.
    #[must_use]
    pub fn arg(self, argument: impl Into<OsString>) -> Self {
        self.args([argument])
    }

    /// Adds arguments for the program.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Starts the ranks and waits for their end. An interrupt is passed on as USR1, on which ranks that train write a
    /// checkpoint and stop; so does USR1 to `mpirun`.
    ///
    /// # Errors
    /// When there is nothing to start ranks with, or one of them failed; [`Error::Interrupted`] after an interrupt.
    pub fn run(&self) -> Result<()> {
        let mut command = self.command()?;
        let starter = command.get_program().to_owned();
        let io = |error| Error::io("start", &starter, error);
        let mut ranks = command.spawn().map_err(io)?;
        let (status, interrupted) = wait(&mut ranks).map_err(io)?;
        if interrupted {
            return Err(Error::Interrupted(format!("running {}", self.title())));
        }
        match status.success() {
            true => Ok(()),
            false => Err(Error::Distributed(format!(
                "{} ended with {status}; see the ranks' messages above",
                self.title()
            ))),
        }
    }

    fn title(&self) -> String {
        format!(
            "{} on {} ranks",
            Path::new(&self.program).display(),
            self.ranks
        )
    }

    /// Returns the command that [`run`](Self::run) starts.
    ///
    /// # Errors
    /// When there is neither `mpirun` nor `srun`, or no rank is asked for.
    pub fn command(&self) -> Result<Command> {
        if self.ranks == 0 {
            return Err(Error::argument("ranks", "must be at least 1"));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let in_slurm = std::env::var_os("SLURM_JOB_ID").is_some();
        let starter = match (in_slurm.then(|| find("srun")).flatten(), find("mpirun")) {
            (Some(srun), _) => Starter::Srun(srun),
            (None, Some(mpirun)) => match says(&mpirun) {
                text if text.contains("HYDRA") || text.contains("mpich") => Starter::Mpich(mpirun),
                _ => Starter::OpenMpi(mpirun),
            },
            (None, None) => {
                return Err(Error::Distributed(
                    "no launcher was found: neither mpirun nor, in a Slurm job, srun is on the search path; \
                     install Open MPI (Debian: openmpi-bin) or MPICH, or load its module"
                        .to_owned(),
                ));
            }
        };
        let mut command = starter.command(self.ranks, cores);
        let local = (cores / self.ranks).max(1);
        if std::env::var_os("RAYON_NUM_THREADS").is_none() && !matches!(starter, Starter::Srun(_)) {
            command.env("RAYON_NUM_THREADS", local.to_string());
        }
        command.arg(&self.program).args(&self.arguments);
        Ok(command)
    }
}

/// Waits for the end of the ranks, and returns whether they were asked for it.
fn wait(ranks: &mut Child) -> std::io::Result<(ExitStatus, bool)> {
    let mut interrupted = false;
    loop {
        if let Some(status) = ranks.try_wait()? {
            return Ok((status, interrupted));
        }
        // Asked once: a checkpoint takes as long as it takes.
        if interrupt::take() && !std::mem::replace(&mut interrupted, true) {
            ask_to_stop(ranks);
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(unix)]
fn ask_to_stop(ranks: &Child) {
    // SAFETY: sends a signal to a child that was not waited for yet, so that its number is still its own.
    unsafe {
        libc::kill(ranks.id() as libc::pid_t, libc::SIGUSR1);
    }
}

#[cfg(not(unix))]
fn ask_to_stop(_: &Child) {}

/// The program that starts ranks.
enum Starter {
    OpenMpi(PathBuf),
    Mpich(PathBuf),
    Srun(PathBuf),
}

impl Starter {
    fn command(&self, ranks: usize, cores: usize) -> Command {
        let mut command = match self {
            Self::OpenMpi(path) | Self::Mpich(path) | Self::Srun(path) => Command::new(path),
        };
        command.arg("-n").arg(ranks.to_string());
        let each = cores / ranks;
        match self {
            // More ranks than cores take turns.
            Self::OpenMpi(_) if each == 0 => {
                command.args(["--oversubscribe", "--bind-to", "none"]);
            }
            Self::OpenMpi(_) => {
                command.args(["--map-by", &format!("slot:PE={each}"), "--bind-to", "core"]);
            }
            Self::Mpich(_) if each == 0 => {}
            Self::Mpich(_) => {
                command.args(["-bind-to", &format!("core:{each}")]);
            }
            Self::Srun(_) => {
                command.args(["--mpi=pmix", "--cpu-bind=cores"]);
            }
        }
        if is_root() && matches!(self, Self::OpenMpi(_)) {
            // Within a container everybody is; mpirun refuses otherwise.
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
            command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        }
        command
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let files = std::env::split_paths(&path).map(|folder| folder.join(name));
    files.into_iter().find(|file| file.is_file())
}

/// Returns the version that a program prints.
fn says(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[cfg(unix)]
fn is_root() -> bool {
    // SAFETY: asks for a number.
    unsafe { libc::geteuid() == 0 }
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(starter: &Starter, ranks: usize, cores: usize) -> String {
        let command = starter.command(ranks, cores);
        let words = command.get_args().map(|word| word.to_string_lossy());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_rank_is_bound_to_its_own_cores() {
        let open = Starter::OpenMpi("mpirun".into());
        assert_eq!(
            words(&open, 2, 16),
            "-n 2 --map-by slot:PE=8 --bind-to core"
        );
        assert_eq!(words(&open, 3, 2), "-n 3 --oversubscribe --bind-to none");
        let mpich = Starter::Mpich("mpirun".into());
        assert_eq!(words(&mpich, 4, 8), "-n 4 -bind-to core:2");
        let srun = Starter::Srun("srun".into());
        assert_eq!(words(&srun, 4, 8), "-n 4 --mpi=pmix --cpu-bind=cores");
    }

    #[test]
    fn zero_ranks_are_an_error() {
        let error = Launch::new(0, "true").command().unwrap_err().to_string();
        assert!(error.contains("at least 1"), "{error}");
    }
}
