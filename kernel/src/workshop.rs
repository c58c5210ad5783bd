//! The folder in which one session's cells are compiled, and what is in it.
//!
//! Sessions take numbered folders from a pool, each locked while in use, so that several run side by side without
//! waiting for each other and what one built (crates brought in with `:dep`) is there for the next.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The session's folder, for the stand-in tools.
const WORKSHOP: &str = "CLOZE_WORKSHOP";
/// What the variables were before the kernel put its stand-in tools in front.
const ORIGINAL_PATH: &str = "CLOZE_ORIGINAL_PATH";
const ORIGINAL_CARGO_HOME: &str = "CLOZE_ORIGINAL_CARGO_HOME";
const ORIGINAL_LIBRARY: &str = "CLOZE_ORIGINAL_RUST_SRC_PATH";
/// Where rust-analyzer looks for the standard library's sources first.
const LIBRARY_VARIABLE: &str = "RUST_SRC_PATH";
/// Where everything that the kernel builds is kept; by default `cloze/kernel` in the user's cache folder.
const CACHE: &str = "CLOZE_KERNEL_CACHE";

const RECIPE: &str = "recipe.json";

/// So many cells that were compiled once for all sessions stay.
const KNOWN_CELLS: usize = 64;

/// How cells are compiled in a workshop; the stand-in tools read it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Recipe {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub sysroot: PathBuf,
    pub host: String,
    /// What the compiler says of itself.
    pub version: String,
    /// The standard library's sources, which rust-analyzer is shown under [`library`].
    pub library: PathBuf,
    /// Arguments of rustc that make the prelude and the cell library known.
    pub flags: Vec<String>,
    /// The folder whose sources tell the types of the prelude, if there is one.
    pub analysis: Option<PathBuf>,
}

/// A session's folder, locked until it is dropped.
#[derive(Debug)]
pub struct Workshop {
    folder: PathBuf,
    _lock: File,
}

impl Workshop {
    /// Takes a free folder of the pool, or makes one.
    pub fn enter() -> Result<Self> {
        let pool = cache()?.join("sessions");
        for number in 1.. {
            let folder = pool.join(number.to_string());
            fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
            let lock = folder.join("lock");
            let lock = File::create(&lock).map_err(Error::file(&lock))?;
            match lock.try_lock() {
                Ok(()) => {
                    let workshop = Self {
                        folder,
                        _lock: lock,
                    };
                    workshop.sweep()?;
                    workshop.lay_out_tools()?;
                    return Ok(workshop);
                }
                Err(fs::TryLockError::WouldBlock) => continue,
                Err(fs::TryLockError::Error(error)) => return Err(Error::file(&folder)(error)),
            }
        }
        unreachable!("there is always a next number")
    }

    /// Leaves out the cells of the session that was here before; what cargo built for them stays, and so do the last
    /// of those that every session begins with.
    fn sweep(&self) -> Result<()> {
        let known = fs::read_dir(crate::tools::known_cells(&self.folder));
        let mut known: Vec<_> = known.into_iter().flatten().flatten().collect();
        let last_used =
            |file: &fs::DirEntry| file.metadata().and_then(|about| about.modified()).ok();
        known.sort_by_cached_key(|file| std::cmp::Reverse(last_used(file)));
        for old in known.iter().skip(KNOWN_CELLS) {
            fs::remove_file(old.path()).map_err(Error::file(&old.path()))?;
        }
        let Ok(hosts) = fs::read_dir(self.folder.join("target")) else {
            return Ok(());
        };
        for host in hosts.flatten() {
            let Ok(files) = fs::read_dir(host.path().join("debug")) else {
                continue;
            };
            for file in files
                .flatten()
                .filter(|file| file.path().extension().is_some_and(|e| e == "so"))
            {
                fs::remove_file(file.path()).map_err(Error::file(&file.path()))?;
            }
        }
        Ok(())
    }

    /// evcxr and rust-analyzer find `cargo` here, which is this program (see [`crate::tools`]).
    fn lay_out_tools(&self) -> Result<()> {
        let program = std::env::current_exe().map_err(Error::system("the path of this program"))?;
        let bin = self.bin();
        fs::create_dir_all(&bin).map_err(Error::file(&bin))?;
        for tool in crate::tools::NAMES {
            let link = bin.join(tool);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&program, &link).map_err(Error::file(&link))?;
        }
        Ok(())
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn bin(&self) -> PathBuf {
        self.folder.join("cargo-home/bin")
    }

    /// Points evcxr and rust-analyzer at this workshop, through the environment, the only way that they offer.
    ///
    /// Must be called before any other thread is started.
    pub fn move_in(&self) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.bin()).chain(std::env::split_paths(&path));
        let ours = std::env::join_paths(folders).unwrap_or_else(|_| path.clone());
        // SAFETY: called while the program has one thread.
        unsafe {
            std::env::set_var(ORIGINAL_PATH, &path);
            if let Some(home) = std::env::var_os("CARGO_HOME") {
                std::env::set_var(ORIGINAL_CARGO_HOME, home);
            }
            std::env::set_var("PATH", ours);
            std::env::set_var("CARGO_HOME", self.folder.join("cargo-home"));
            if let Some(library) = std::env::var_os(LIBRARY_VARIABLE) {
                std::env::set_var(ORIGINAL_LIBRARY, library);
            }
            std::env::set_var(LIBRARY_VARIABLE, library(&self.folder));
            std::env::set_var("EVCXR_TMPDIR", &self.folder);
            std::env::set_var(WORKSHOP, &self.folder);
        }
    }

    /// Shows rust-analyzer no library at all: what evcxr starts with needs none.
    pub fn show_nothing(&self) -> Result<()> {
        let bare = self.folder.join("bare");
        // There must be something called so for the folder to be taken for a library.
        let core = bare.join("core");
        fs::create_dir_all(&core).map_err(Error::file(&core))?;
        self.show_library(&bare)
    }

    /// Shows rust-analyzer the standard library in `shown`.
    pub fn show_library(&self, shown: &Path) -> Result<()> {
        let link = library(&self.folder);
        if fs::read_link(&link).is_ok_and(|to| to == shown) {
            return Ok(());
        }
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(shown, &link).map_err(Error::file(&link))
    }

    /// Changes the manifest of the cells as evcxr will after `:opt LEVEL`.
    pub fn set_opt_level(&self, level: &str) -> Result<()> {
        let path = self.folder.join("Cargo.toml");
        let manifest = fs::read_to_string(&path).map_err(Error::file(&path))?;
        let changed = manifest
            .lines()
            .map(|line| match line.starts_with("opt-level = ") {
                true => format!("opt-level = {level}\n"),
                false => format!("{line}\n"),
            });
        fs::write(&path, changed.collect::<String>()).map_err(Error::file(&path))
    }

    pub fn write_recipe(&self, recipe: &Recipe) -> Result<()> {
        let path = self.folder.join(RECIPE);
        let json = serde_json::to_string_pretty(recipe).map_err(|error| error.to_string())?;
        fs::write(&path, json).map_err(Error::file(&path))
    }
}

/// Where rust-analyzer finds the standard library in a workshop.
pub fn library(folder: &Path) -> PathBuf {
    folder.join("library")
}

/// Whether rust-analyzer is shown a library in a workshop by now.
pub fn shows_library(folder: &Path) -> bool {
    library(folder).join("Cargo.toml").exists()
}

/// The compilation of a cell, as seen from outside of it: it can be stopped.
#[derive(Clone, Debug)]
pub struct Compilation {
    folder: PathBuf,
}

impl Compilation {
    pub fn of(workshop: &Workshop) -> Self {
        Self {
            folder: workshop.folder.clone(),
        }
    }

    /// There is no compilation before this, and the next one may begin.
    pub fn allow(&self) {
        let _ = fs::remove_file(self.stop_file());
        let _ = fs::remove_file(self.group_file());
    }

    /// Stops the compilation that is under way, and any that is about to begin.
    pub fn stop(&self) {
        let _ = fs::write(self.stop_file(), "");
        let group = fs::read_to_string(self.group_file())
            .ok()
            .and_then(|text| text.parse().ok());
        if let Some(group) = group.filter(|group: &libc::pid_t| *group > 1) {
            // SAFETY: a signal to the process group that a stand-in made for itself and wrote down.
            unsafe {
                libc::kill(-group, libc::SIGTERM);
            }
        }
    }

    /// In a stand-in tool: this process and those that it starts are the compilation. False if it must not begin.
    pub fn begin(folder: &Path) -> bool {
        let this = Self {
            folder: folder.to_owned(),
        };
        // SAFETY: makes this process the first of a group of its own.
        unsafe {
            libc::setpgid(0, 0);
        }
        let _ = fs::write(this.group_file(), std::process::id().to_string());
        !this.stop_file().exists()
    }

    fn stop_file(&self) -> PathBuf {
        self.folder.join("stop")
    }

    fn group_file(&self) -> PathBuf {
        self.folder.join("compiling")
    }
}

impl Recipe {
    /// The recipe of the workshop that the process was started in.
    pub fn here() -> Option<(PathBuf, Self)> {
        let folder = PathBuf::from(std::env::var_os(WORKSHOP)?);
        let json = fs::read(folder.join(RECIPE)).ok()?;
        Some((folder, serde_json::from_slice(&json).ok()?))
    }
}

/// Everything that the kernel builds.
pub fn cache() -> Result<PathBuf> {
    let folder = match std::env::var_os(CACHE) {
        Some(folder) => PathBuf::from(folder),
        None => dirs::cache_dir()
            .ok_or("There is no cache folder: set CLOZE_KERNEL_CACHE to one.")?
            .join("cloze/kernel"),
    };
    fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    folder.canonicalize().map_err(Error::file(&folder))
}

/// `PATH` without the stand-in tools.
pub fn original_path() -> Option<OsString> {
    std::env::var_os(ORIGINAL_PATH).or_else(|| std::env::var_os("PATH"))
}

/// What a process outside of the workshop must find in its environment: variables and their values, or `None` where the
/// variable was not set.
pub fn original_environment() -> Vec<(OsString, Option<OsString>)> {
    let mut all: Vec<(OsString, Option<OsString>)> = std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_str().is_some_and(is_of_cargo_run))
        .map(|name| (name, None))
        .collect();
    if std::env::var_os(WORKSHOP).is_none() {
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
        (WORKSHOP, None),
    ];
    all.extend(ours.map(|(name, value)| (name.into(), value)));
    all
}

/// Whether `cargo run` sets a variable for the program that it starts. A cargo that finds it, started by that program,
/// takes it for a change: some crates ask to be compiled anew then.
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
    fn what_cargo_run_sets_is_told_from_what_a_person_sets() {
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
