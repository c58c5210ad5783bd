//! Cloze's Jupyter kernel, its installer and its headless runner.

mod building;
mod child;
mod cli;
mod code;
mod commands;
mod completion;
mod diagnostics;
mod doctor;
mod error;
mod event;
mod failure;
mod foreign;
mod gpu;
mod install;
mod jupyter;
mod kernelspec;
mod lab;
mod library;
mod lines;
mod notebook;
mod parameters;
mod pipes;
mod places;
mod prelude;
mod remote;
mod retype;
mod run;
mod session;
mod signals;
mod statics;
mod stdout;
mod streams;
mod toolchain;
mod tools;
mod workshop;

use std::io::Write;
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
    let command = Cli::parse().command;
    if !matches!(command, Command::Run(_) | Command::Kernel { .. }) {
        signals::end_with_the_pipe();
    }
    let done = match command {
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
            // Nobody may be left to read it.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
