//! Reads from the environment which group of processes a launcher put this process into.

/// The launcher and the rank of this process, according to the environment. Known before any library is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The launcher, in words; `None` for a process that was started alone.
    pub launcher: Option<&'static str>,
    /// This process's number.
    pub rank: usize,
    /// The number of processes.
    pub size: usize,
    /// This process's number among those of its machine.
    pub local_rank: usize,
    /// The number of processes on this machine; 0 where the launcher does not say.
    pub local_size: usize,
}

/// A launcher's name, and its variables for the size, the rank, and both on one machine.
const LAUNCHERS: [(&str, [&str; 4]); 4] = [
    (
        "Open MPI's mpirun",
        [
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
    ),
    (
        "MPICH's mpiexec",
        ["PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    ),
    (
        "Slurm's srun",
        ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", ""],
    ),
    (
        "Slurm",
        ["SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", ""],
    ),
];

/// If it is `off`, a program trains alone whatever its environment says.
pub(super) const SWITCH: &str = "CLOZE_DISTRIBUTED";

/// Reads the environment of this process.
pub fn environment() -> Environment {
    read(|name| std::env::var(name).ok())
}

/// Returns whether this process is the only one or the first of its group: the one that shows, logs and writes.
pub(crate) fn is_main() -> bool {
    environment().rank == 0
}

fn read(variable: impl Fn(&str) -> Option<String>) -> Environment {
    let alone = Environment {
        launcher: None,
        rank: 0,
        size: 1,
        local_rank: 0,
        local_size: 1,
    };
    if variable(SWITCH).is_some_and(|value| value.eq_ignore_ascii_case("off")) {
        return alone;
    }
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    for (launcher, [size, rank, local_rank, local_size]) in LAUNCHERS {
        // An allocation says how many tasks it has in every shell within it; only a task has a number.
        let (Some(size), Some(rank)) = (number(size), number(rank)) else {
            continue;
        };
        return Environment {
            launcher: Some(launcher),
            rank,
            size,
            local_rank: number(local_rank).unwrap_or(0),
            local_size: number(local_size).unwrap_or(0),
        };
    }
    alone
}

/// Returns why a group that was started by something else than MPI can't be joined.
pub(super) fn foreign() -> Option<String> {
    foreign_in(|name| std::env::var(name).ok())
}

fn foreign_in(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    if read(&variable).launcher.is_some() || variable(SWITCH).is_some() {
        return None;
    }
    let world = number("WORLD_SIZE").filter(|&size| size > 1)?;
    variable("MASTER_ADDR")?;
    let by = match variable("TORCHELASTIC_RUN_ID") {
        Some(_) => "torchrun",
        None => "a launcher that sets torch.distributed's variables (WORLD_SIZE, MASTER_ADDR)",
    };
    Some(format!(
        "{by} started this program as one of {world}, but it does not tell the ranks how to find each other: start it with \
         `mpirun -n {world} PROGRAM`, `srun --mpi=pmix PROGRAM` or `cloze launch -n {world} -- PROGRAM` instead \
         (or set {SWITCH}=off to train alone)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(variables: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn every_launcher_is_recognised_by_its_variables() {
        assert_eq!(read(with(&[])).size, 1);
        let found = read(with(&[
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_PROCID", "0"),
        ]));
        assert_eq!((found.rank, found.size), (3, 4));
        assert_eq!((found.local_rank, found.local_size), (1, 2));
        let found = read(with(&[("PMI_SIZE", "2"), ("PMI_RANK", "1")]));
        assert_eq!((found.rank, found.size), (1, 2));
        let found = read(with(&[
            ("SLURM_NTASKS", "8"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_PROCID", "2"),
            ("SLURM_LOCALID", "1"),
        ]));
        assert_eq!((found.rank, found.size, found.local_rank), (2, 4, 1));
        // A shell in an allocation is no task of it.
        assert_eq!(read(with(&[("SLURM_NTASKS", "8")])).size, 1);
        let off = [
            ("PMI_SIZE", "2"),
            ("PMI_RANK", "1"),
            ("CLOZE_DISTRIBUTED", "off"),
        ];
        assert_eq!(read(with(&off)).size, 1);
    }

    #[test]
    fn launchers_without_mpi_are_refused_with_an_alternative() {
        let torchrun = [
            ("WORLD_SIZE", "4"),
            ("RANK", "1"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("TORCHELASTIC_RUN_ID", "none"),
        ];
        let message = foreign_in(with(&torchrun)).unwrap();
        assert!(message.contains("torchrun"), "{message}");
        assert!(message.contains("mpirun -n 4"), "{message}");
        assert_eq!(foreign_in(with(&[("WORLD_SIZE", "1")])), None);
        let under_mpi = [
            ("WORLD_SIZE", "4"),
            ("MASTER_ADDR", "a"),
            ("PMI_SIZE", "4"),
            ("PMI_RANK", "0"),
        ];
        assert_eq!(foreign_in(with(&under_mpi)), None);
    }
}
