//! The environment that the user started the kernel with, and the cache folder.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::{Error, Result};

/// Holds the session's folder, for the stand-in tools.
pub const SESSION_DIR: &str = "CLOZE_SESSION_DIR";
/// The values of variables before the kernel put its stand-in tools first.
pub const ORIGINAL_PATH: &str = "CLOZE_ORIGINAL_PATH";
pub const ORIGINAL_CARGO_HOME: &str = "CLOZE_ORIGINAL_CARGO_HOME";
pub const ORIGINAL_LIBRARY: &str = "CLOZE_ORIGINAL_RUST_SRC_PATH";
/// The first place where rust-analyzer looks for the standard library's sources.
pub const LIBRARY_VARIABLE: &str = "RUST_SRC_PATH";
/// The variable with the dynamic linker's search path.
pub const LIBRARY_PATH: &str = match cfg!(target_os = "macos") {
    true => "DYLD_LIBRARY_PATH",
    false => "LD_LIBRARY_PATH",
};
/// Overrides the cache folder, by default `cloze/kernel` in the user's cache folder.
const CACHE: &str = "CLOZE_KERNEL_CACHE";

/// Returns the folder for everything that the kernel builds.
pub fn cache_folder() -> Result<PathBuf> {
    let folder = match std::env::var_os(CACHE) {
        Some(folder) => PathBuf::from(folder),
        None => dirs::cache_dir()
            .ok_or("No cache folder was found: set CLOZE_KERNEL_CACHE.")?
            .join("cloze/kernel"),
    };
    fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    folder.canonicalize().map_err(Error::file(&folder))
}

/// Returns `PATH` without the stand-in tools.
pub fn original_path() -> Option<OsString> {
    std::env::var_os(ORIGINAL_PATH).or_else(|| std::env::var_os("PATH"))
}

/// Returns the environment for processes outside the session: variables and their values, or `None` where the variable
/// was not set.
pub fn original_environment() -> Vec<(OsString, Option<OsString>)> {
    let mut all: Vec<(OsString, Option<OsString>)> = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_str().is_some_and(is_of_cargo_run))
        .map(|name| (name, None))
        .collect();
    if std::env::var_os(SESSION_DIR).is_none() {
        return all;
    }
    let ours = [
        ("PATH", original_path()),
        ("CARGO_HOME", std::env::var_os(ORIGINAL_CARGO_HOME)),
        (LIBRARY_VARIABLE, std::env::var_os(ORIGINAL_LIBRARY)),
        ("EVCXR_TMPDIR", None),
        (ORIGINAL_PATH, None),
        (ORIGINAL_CARGO_HOME, None),
        (ORIGINAL_LIBRARY, None),
        (SESSION_DIR, None),
    ];
    all.extend(ours.map(|(name, value)| (name.into(), value)));
    all
}

/// Whether `cargo run` sets a variable for the program that it starts. A cargo started by that program would treat the
/// variable as a change: some crates would then be compiled again.
fn is_of_cargo_run(name: &str) -> bool {
    let others = [
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_MANIFEST_LINKS",
        "CARGO_BIN_NAME",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "OUT_DIR",
    ];
    name.starts_with("CARGO_PKG_") || others.contains(&name)
}

/// Gives a command the environment that the user started the kernel with.
pub fn outside(command: &mut std::process::Command) -> &mut std::process::Command {
    for (name, value) in original_environment() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_cargo_run_are_told_from_those_of_the_user() {
        for name in [
            "CARGO_MANIFEST_DIR",
            "CARGO_PKG_VERSION",
            "CARGO_PKG_RUST_VERSION",
            "OUT_DIR",
        ] {
            assert!(is_of_cargo_run(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_TARGET_DIR",
            "CARGO_INCREMENTAL",
            "CARGO_NET_OFFLINE",
            "PATH",
        ] {
            assert!(!is_of_cargo_run(name), "{name}");
        }
    }
}
