//! The Rust toolchain that compiles the cells.

pub mod environment;
pub mod gpu;
pub mod guard;
pub mod outline;
pub mod prelude;
pub mod work;

use std::path::{Path, PathBuf};
use std::process::Command;

use self::work::Work;
use crate::{Error, Result};

/// A Rust toolchain.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub sysroot: PathBuf,
    /// The full output of `rustc -vV`, which identifies the compiler of a library.
    pub version: String,
    /// For example `x86_64-unknown-linux-gnu`.
    pub host: String,
}

impl Toolchain {
    /// Finds the toolchain of the `rustc` and `cargo` on the path, or in cargo's home.
    pub fn find() -> Result<Self> {
        let rustc = find_tool("rustc")?;
        let sysroot =
            PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?.trim());
        // The tools themselves: rustup's proxies would look up the toolchain at every call.
        let direct = |name: &str| Some(sysroot.join("bin").join(name)).filter(|path| path.exists());
        let cargo = direct("cargo").map_or_else(|| find_tool("cargo"), Ok)?;
        let rustc = direct("rustc").unwrap_or(rustc);
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let host = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .ok_or("`rustc -vV` does not name its host")?
            .to_owned();
        Ok(Self {
            rustc,
            cargo,
            sysroot,
            version,
            host,
        })
    }

    /// `rustc 1.95.0 (...)`.
    pub fn name(&self) -> &str {
        self.version.lines().next().unwrap_or_default()
    }

    /// Makes a command, and everything that it starts, use this toolchain, whatever toolchain a folder on the way asks
    /// for.
    pub fn pin<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        pin(command, &self.sysroot)
    }

    /// Returns the folder of the standard library, for the linker and for loading cells.
    pub fn libraries(&self) -> PathBuf {
        self.sysroot
            .join("lib/rustlib")
            .join(&self.host)
            .join("lib")
    }

    /// Returns where the standard library's sources belong.
    pub fn std_sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// Whether the standard library's sources are installed; without them no variable's type can be inferred.
    pub fn has_sources(&self) -> bool {
        self.std_sources().join("core/src/lib.rs").exists()
    }

    /// Installs the standard library's sources through rustup, if they are not there.
    pub fn add_sources(&self, work: &Work) -> Result<()> {
        if self.has_sources() {
            return Ok(());
        }
        work.tell(
            "installing the sources of Rust's standard library (rustup component add rust-src)",
        );
        let toolchain = self.sysroot.file_name().unwrap_or_default();
        if let Ok(rustup) = find_tool("rustup") {
            let mut rustup = guard::command(&rustup)?;
            rustup
                .args(["component", "add", "rust-src", "--toolchain"])
                .arg(toolchain);
            let added = work.stop.output(&mut rustup)?;
            if added.status.success() && self.has_sources() {
                return Ok(());
            }
        }
        Err("The sources of Rust's standard library are missing, and `rustup component add rust-src` did not bring \
             them: without them the type of a notebook's variables can't be inferred. Run that command where there is a \
             network, or install your distribution's rust-src package."
            .into())
    }
}

/// Like [`Toolchain::pin`], for a toolchain of which only the root is known.
pub fn pin<'a>(command: &'a mut Command, sysroot: &Path) -> &'a mut Command {
    if std::env::var_os("RUSTUP_TOOLCHAIN").is_none() {
        command.env("RUSTUP_TOOLCHAIN", sysroot);
    }
    command
}

/// Returns the first file called `name` on the path that is not one of our stand-ins, or else the one in cargo's home.
fn find_tool(name: &str) -> Result<PathBuf> {
    let path = environment::original_path().unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| dirs::home_dir().map(|home| home.join(".cargo")))
        .map(|home| home.join("bin"));
    std::env::split_paths(&path)
        .chain(cargo_home)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            format!(
                "`{name}` was not found: notebooks need a Rust toolchain, see https://rustup.rs"
            )
            .into()
        })
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .map_err(Error::file(Path::new(command.get_program())))?;
    if !output.status.success() {
        return Err(format!(
            "`{command:?}` failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
