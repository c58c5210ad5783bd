//! Groups of processes that train one model together: their members, and the exchange of numbers between them.
//!
//! A program that `mpirun`, `srun` or `cloze launch` started several times is a group of ranks.
//! [`crate::train::Trainer`] deals a step's batches out to them, sums their gradients, and makes all decisions
//! together, so that all ranks hold the same weights after every step. The program itself does not change.
//!
//! MPI is found when it is needed (Open MPI, MPICH, or any library with the ABI of MPI 5): a build needs none, and a
//! program that was started alone never looks for one.

mod communicator;
mod environment;
mod group;
mod launch;
mod mpi;
#[cfg(any(feature = "cuda", test))]
mod nccl;
mod signal;
#[cfg(test)]
mod threads;

pub use communicator::{Communicator, share};
pub(crate) use environment::is_main;
pub use environment::{Environment, environment};
pub use group::Group;
pub use launch::Launch;
#[cfg(test)]
pub(crate) use threads::on_threads;
