//! The folder in which the cells of one session are compiled.
//!
//! Sessions take numbered folders from a pool and lock them while in use. Several can run side by side without waiting
//! for each other, and what one built (crates added with `:dep`) is there for the next.

use std::env::consts::DLL_EXTENSION;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::toolchain::environment::{
    LIBRARY_VARIABLE, ORIGINAL_CARGO_HOME, ORIGINAL_LIBRARY, ORIGINAL_PATH, SESSION_DIR,
    cache_folder,
};
use crate::toolchain::guard;
use crate::{Error, Result};

/// The names under which this program is called as a tool in a session.
pub const NAMES: [&str; 2] = ["cargo", "rustup"];

const PLAN: &str = "build-plan.json";

/// The number of precompiled cells that are kept.
const KNOWN_CELLS: usize = 64;

/// How cells are compiled in a session directory; the stand-in tools read it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BuildPlan {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub sysroot: PathBuf,
    pub host: String,
    /// The compiler's version, from `rustc -vV`.
    pub version: String,
    /// The standard library's sources, which rust-analyzer sees through [`library`].
    pub std_sources: PathBuf,
    /// Arguments of rustc that link the prelude and the cell library.
    pub flags: Vec<String>,
    /// The folder of sources from which rust-analyzer learns the prelude's types, if there is one.
    pub analysis: Option<PathBuf>,
}

/// A session's folder, locked until it is dropped.
#[derive(Debug)]
pub struct SessionDir {
    folder: PathBuf,
    _lock: File,
}

impl SessionDir {
    /// Takes a free folder of the pool, or creates one.
    pub fn enter() -> Result<Self> {
        let pool = cache_folder()?.join("sessions");
        for number in 1.. {
            let folder = pool.join(number.to_string());
            fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
            let lock = folder.join("lock");
            let lock = File::create(&lock).map_err(Error::file(&lock))?;
            match lock.try_lock() {
                Ok(()) => {
                    let session_dir = Self {
                        folder,
                        _lock: lock,
                    };
                    session_dir.sweep()?;
                    session_dir.lay_out_tools()?;
                    return Ok(session_dir);
                }
                Err(fs::TryLockError::WouldBlock) => continue,
                Err(fs::TryLockError::Error(error)) => return Err(Error::file(&folder)(error)),
            }
        }
        unreachable!("there is always a next number")
    }

    /// Removes the cells of the previous session. What cargo built for them stays, and so do the most recent of the
    /// cells that every session begins with.
    fn sweep(&self) -> Result<()> {
        let known = fs::read_dir(known_cells(&self.folder));
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
                .filter(|file| file.path().extension().is_some_and(|e| e == DLL_EXTENSION))
            {
                fs::remove_file(file.path()).map_err(Error::file(&file.path()))?;
            }
        }
        Ok(())
    }

    /// Puts this program where evcxr and rust-analyzer look for `cargo` (see [`crate::evcxr::stand_in`]).
    fn lay_out_tools(&self) -> Result<()> {
        let program =
            std::env::current_exe().map_err(Error::system("finding the path of this program"))?;
        let bin = self.bin();
        fs::create_dir_all(&bin).map_err(Error::file(&bin))?;
        for tool in NAMES {
            let link = bin.join(tool);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&program, &link).map_err(Error::file(&link))?;
        }
        Ok(())
    }

    /// Returns the path of the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn bin(&self) -> PathBuf {
        self.folder.join("cargo-home/bin")
    }

    /// Points evcxr and rust-analyzer at this folder through the environment, the only means they offer.
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
            std::env::set_var(SESSION_DIR, &self.folder);
        }
    }

    /// Shows rust-analyzer an empty library: the code that evcxr starts with needs none.
    pub fn show_nothing(&self) -> Result<()> {
        let bare = self.folder.join("bare");
        // rust-analyzer accepts the folder as a library only if `core` is in it.
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

    /// Changes the manifest of the cells as evcxr does after `:opt LEVEL`.
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

    pub fn write_plan(&self, plan: &BuildPlan) -> Result<()> {
        let path = self.folder.join(PLAN);
        let json = serde_json::to_string_pretty(plan).map_err(|error| error.to_string())?;
        fs::write(&path, json).map_err(Error::file(&path))
    }
}

/// Returns the folder of precompiled cells.
pub fn known_cells(folder: &Path) -> PathBuf {
    folder.join("known-cells")
}

/// Returns where rust-analyzer finds the standard library in a session directory.
pub fn library(folder: &Path) -> PathBuf {
    folder.join("library")
}

/// Whether rust-analyzer is shown a library in a session directory yet.
pub fn shows_library(folder: &Path) -> bool {
    library(folder).join("Cargo.toml").exists()
}

/// A handle with which other threads can stop the compilation of a cell.
#[derive(Clone, Debug)]
pub struct Compilation {
    folder: PathBuf,
}

impl Compilation {
    pub fn of(session_dir: &SessionDir) -> Self {
        Self {
            folder: session_dir.folder.clone(),
        }
    }

    /// Forgets any earlier compilation, and lets the next one begin.
    pub fn allow(&self) {
        let _ = fs::remove_file(self.stop_file());
        let _ = fs::remove_file(self.group_file());
    }

    /// Sends this signal to the running compilation, and keeps any other from beginning.
    pub fn stop(&self, signal: i32) {
        let _ = fs::write(self.stop_file(), "");
        let group = fs::read_to_string(self.group_file()).unwrap_or_default();
        if let Ok(group) = group.parse() {
            guard::signal_group(group, signal);
        }
    }

    /// Called in a stand-in tool: makes this process and its children the compilation, which ends with the kernel.
    /// Returns false if it must not begin.
    pub fn begin(folder: &Path) -> bool {
        let this = Self {
            folder: folder.to_owned(),
        };
        // SAFETY: makes this process the leader of its own group.
        unsafe {
            libc::setpgid(0, 0);
        }
        guard::end_with(std::os::unix::process::parent_id());
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

impl BuildPlan {
    /// Returns the build plan of the session directory in which this process was started.
    pub fn here() -> Option<(PathBuf, Self)> {
        let folder = PathBuf::from(std::env::var_os(SESSION_DIR)?);
        let json = fs::read(folder.join(PLAN)).ok()?;
        Some((folder, serde_json::from_slice(&json).ok()?))
    }
}
