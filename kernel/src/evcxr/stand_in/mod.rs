//! Stand-ins for the tools that evcxr and rust-analyzer call, so that a cell costs one call of the compiler.
//!
//! For each cell evcxr asks cargo to build a crate whose dependencies have not changed; cargo checks that anew every
//! time, and compiles the prelude if it is a dependency. Here `cargo build` of a cell is one call of rustc that links
//! against the prebuilt prelude. Cells with other crates (`:dep`) go through the real cargo, and so does everything
//! else.

mod compile;
mod known_cells;
mod metadata;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use super::session_dir::{BuildPlan, Compilation, NAMES};
use crate::toolchain::environment::outside;
use crate::toolchain::pin;
use crate::{Error, Result};

/// The variable that names the file to which evcxr wants the path of the compiled library written.
const LIBRARY_PATH_FILE: &str = "EVCXR_EXECUTION_SO_PATH";

/// The level that a session sets unless the user chooses another: evcxr's default, spelled so that it differs from what
/// a user writes.
pub const OPT_LEVEL: &str = "+2";

/// Acts as the tool under whose name this program was called, if it was called as one in a session.
pub fn run_as_tool() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    let name = Path::new(&name).file_name()?.to_str()?.to_owned();
    if !NAMES.contains(&name.as_str()) {
        return None;
    }
    let (folder, plan) = BuildPlan::here()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match name.as_str() {
        "rustup" => rustup(&folder, &plan, &arguments),
        _ => cargo(&folder, &plan, &arguments),
    };
    Some(done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    }))
}

/// `rustup which TOOL`: returns the stand-in for cargo, and the real compiler.
fn rustup(folder: &Path, plan: &BuildPlan, arguments: &[String]) -> Result<ExitCode> {
    match arguments {
        [which, tool] if which == "which" && tool == "cargo" => {
            println!("{}", folder.join("cargo-home/bin/cargo").display());
        }
        [which, tool] if which == "which" && tool == "rustc" => {
            println!("{}", plan.rustc.display())
        }
        _ => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}

fn cargo(folder: &Path, plan: &BuildPlan, arguments: &[String]) -> Result<ExitCode> {
    let verb = verb(arguments);
    let in_session = std::env::current_dir().is_ok_and(|here| here == folder);
    match verb {
        "build" | "check" if in_session => compile::compile_cell(folder, plan, verb, arguments),
        "locate-project" if in_session => {
            let manifest = folder.join("Cargo.toml");
            println!("{}", serde_json::json!({ "root": manifest }));
            Ok(ExitCode::SUCCESS)
        }
        "metadata" => {
            let of_workspace = arguments.iter().any(|it| it == "--manifest-path");
            let may_begin = Compilation::begin(folder);
            // rust-analyzer, which names a manifest, may ask again at any time; evcxr asks for a cell.
            match may_begin || of_workspace {
                true => metadata::metadata(folder, plan, arguments),
                false => Ok(ExitCode::FAILURE),
            }
        }
        // rust-analyzer asks this of every workspace. Cells are compiled without cargo's configuration.
        "config" if in_session => Ok(ExitCode::SUCCESS),
        "rustc" if in_session && arguments.iter().any(|argument| argument == "--print") => {
            let asked = metadata::answer(folder, plan, &arguments.join(" "), || {
                let mut cargo = Command::new(&plan.cargo);
                cargo.args(arguments);
                cargo
            });
            asked.and_then(|asked| asked.pass_on(|stdout| stdout))
        }
        _ => real_cargo(plan, arguments),
    }
}

/// Returns the first argument that is neither an option nor the value of `-Z`.
fn verb(arguments: &[String]) -> &str {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "-Z" {
            rest.next();
        } else if !argument.starts_with('-') {
            return argument;
        }
    }
    ""
}

/// Runs the real cargo in this process's group.
fn real_cargo(plan: &BuildPlan, arguments: &[String]) -> Result<ExitCode> {
    let mut cargo = Command::new(&plan.cargo);
    let cargo = pin(outside(cargo.args(arguments)), &plan.sysroot);
    let status = cargo.status().map_err(Error::file(&plan.cargo))?;
    Ok(match status.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Tells evcxr where the cell's library is.
fn done(library: &Path) -> Result<ExitCode> {
    if let Some(file) = std::env::var_os(LIBRARY_PATH_FILE) {
        write(Path::new(&file), &library.to_string_lossy())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a file of the session.
fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::file(path))
}

/// Writes a file of the session, with its folder.
fn write(path: &Path, contents: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
    }
    fs::write(path, contents).map_err(Error::file(path))
}
