//! Cloze's Jupyter kernel, its installer and its headless runner.

mod cli;
mod code;
mod error;
mod evcxr;
mod jupyter;
#[cfg(test)]
mod layers;
mod run;
mod session;
mod toolchain;

/// Makes damaged copies of the files that the tests read.
#[cfg(test)]
#[path = "../../tests/support/damage.rs"]
mod damage;

/// Reads which modules import which.
#[cfg(test)]
#[path = "../../tests/support/imports.rs"]
mod imports;

/// Entry points of the fuzzers, which compile this program as their library.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::jupyter::untrusted::message;
    pub use crate::run::untrusted::notebook;
}

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::error::{Error, Result};

/// Learning the types of a session makes rust-analyzer allocate many small pieces.
#[cfg(not(fuzzing))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    evcxr::child::run_if_child();
    if let Some(done) = toolchain::guard::run_as_guard() {
        return done;
    }
    if let Some(done) = evcxr::stand_in::run_as_tool() {
        return done;
    }
    let command = Cli::parse().command;
    if !matches!(command, Command::Run(_) | Command::Kernel { .. }) {
        run::signals::end_with_the_pipe();
    }
    let done = match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Launch(arguments) => cli::launch::launch(&arguments),
        Command::Install(arguments) => cli::install::install(&arguments),
        Command::Uninstall(place) => cli::install::uninstall(&place),
        Command::Lab(arguments) => cli::lab::lab(&arguments),
        Command::Notebooks { folder } => cli::notebooks::write(&folder),
        Command::Doctor => cli::doctor::doctor(),
        Command::Train { arguments } => cli::train::train(&arguments),
        Command::Fill { model, text, top_k } => cli::train::fill(&model, &text, top_k.get()),
        Command::Kernel {
            features,
            connection_file,
        } => jupyter::serve(&connection_file, &features),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // stderr may be closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
