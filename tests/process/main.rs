//! What concerns a whole process: interrupts, which are heard by whatever runs, and the memory that work takes. One test runs
//! at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod config_numbers;
mod dataset_process;
mod fill_mask_interrupt;
#[cfg(all(feature = "hub", unix))]
mod hub_processes;
mod hub_waits;
#[path = "../support/small_disk.rs"]
mod small_disk;
#[cfg(feature = "hub")]
#[path = "../support/mod.rs"]
mod support;
mod train_interrupt;

/// Waits until no other test of this process runs; every test begins with it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
