//! Cloze's Jupyter kernel, its installer and its headless runner.

mod child;
mod cli;
mod doctor;
mod error;
mod event;
mod failure;
mod gpu;
mod install;
mod jupyter;
mod lab;
mod library;
mod lines;
mod notebook;
mod parameters;
mod pipes;
mod prelude;
mod remote;
mod run;
mod session;
mod signals;
mod stdout;
mod streams;
mod toolchain;
mod tools;
mod workshop;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::error::{Error, Result};

/// What rust-analyzer does to learn the types of a session is made of small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    child::run_if_child();
    if let Some(done) = tools::run_as_tool() {
        return done;
    }
    let done = match Cli::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Install(arguments) => install::install(&arguments),
        Command::Uninstall(place) => install::uninstall(&place),
        Command::Lab(arguments) => lab::lab(&arguments),
        Command::Doctor => doctor::doctor(),
        Command::Kernel {
            features,
            connection_file,
        } => jupyter::serve(&connection_file, &features),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
