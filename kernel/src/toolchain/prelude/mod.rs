//! The prebuilt prelude: Cloze as a dynamic library that cells link against, built once and kept.

mod build;
mod cache;
mod package;
mod sources;

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::Command;

pub use build::target_folder;
pub use cache::list;
pub use sources::{SOURCES, Sources};

use crate::toolchain::Toolchain;
use crate::toolchain::environment::{cache_folder, outside};
use crate::{Error, Result};

/// What the compiler of a cell must be told about, and the process that runs cells must load.
#[derive(Debug, Default)]
pub struct Libraries {
    /// Arguments of rustc.
    pub flags: Vec<String>,
    /// To be loaded before the first cell, in this order.
    pub load: Vec<PathBuf>,
    /// The folder of the package whose sources tell the types of the prelude.
    pub analysis: Option<PathBuf>,
    /// Keeps the prelude in the cache.
    _hold: Option<cache::Hold>,
}

impl Libraries {
    /// Finds or builds the cell library and, given its sources, the prelude. What takes long is reported to `waiting`.
    pub fn prepare(
        toolchain: &Toolchain,
        sources: Option<&Sources>,
        waiting: &dyn Fn(String),
    ) -> Result<Self> {
        let mut libraries = Self::default();
        libraries.add("cloze_cell", &cell_library(toolchain)?);
        if let Some(sources) = sources {
            let (prelude, hold) = build::find_or_build(toolchain, sources, waiting)?;
            libraries._hold = Some(hold);
            libraries.add("cloze", &prelude.join(build::library_name()));
            let metadata = prelude.join(build::METADATA);
            libraries
                .flags
                .push(format!("-Ldependency={}", metadata.display()));
            libraries.analysis = Some(prelude.join(build::ANALYSIS));
        }
        Ok(libraries)
    }

    /// The folders of the sources that tell the types, those of the crates that Cloze's own types are made of.
    pub fn analysed(&self) -> Vec<PathBuf> {
        let packages = self.analysis.iter().filter_map(|package| package.parent());
        let manifests = packages
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flat_map(|entries| entries.flatten())
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("Cargo.toml")).ok());
        let sources = manifests.filter_map(|manifest| {
            let path = manifest
                .lines()
                .find_map(|line| line.strip_prefix("path = "))?;
            let library: PathBuf = serde_json::from_str(path).ok()?;
            library.parent().map(Path::to_owned)
        });
        sources.collect()
    }

    fn add(&mut self, name: &str, library: &Path) {
        self.flags
            .push(format!("--extern={name}={}", library.display()));
        self.load.push(library.to_owned());
    }
}

/// The library that is part of every cell, compiled for this toolchain.
fn cell_library(toolchain: &Toolchain) -> Result<PathBuf> {
    const SOURCE: &str = include_str!("../../../cell/lib.rs");
    let key = blake3::hash(format!("{}\n{SOURCE}", toolchain.version).as_bytes()).to_hex();
    let folder = cache_folder()?.join(format!("cell-{}", &key[..16]));
    let library = folder.join(format!("{DLL_PREFIX}cloze_cell{DLL_SUFFIX}"));
    if library.exists() {
        return Ok(library);
    }
    std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    // Two sessions may get here at once, and a library must not be replaced that a process has loaded.
    let lock = folder.join("lock");
    let lock = std::fs::File::create(&lock).map_err(Error::file(&lock))?;
    lock.lock()
        .map_err(Error::system("locking the folder of the cell library"))?;
    if library.exists() {
        return Ok(library);
    }
    let source = folder.join("lib.rs");
    std::fs::write(&source, SOURCE).map_err(Error::file(&source))?;
    // Built under a name of its own: what has its name is whole. Nobody else is at it, so what there is was left.
    const UNFINISHED: &str = "unfinished-";
    for file in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        if file.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let _ = std::fs::remove_file(file.path());
        }
    }
    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .suffix(DLL_SUFFIX)
        .tempfile_in(&folder)
        .map_err(Error::file(&folder))?;
    let mut rustc = Command::new(&toolchain.rustc);
    rustc
        .args([
            "--crate-name=cloze_cell",
            "--edition=2024",
            "--crate-type=dylib",
        ])
        // From 2 on a crate keeps its generic code to itself, and each cell would compile it anew.
        .args(["-Cprefer-dynamic", "-Copt-level=1", "-o"])
        .arg(unfinished.path())
        .arg(&source);
    let output = outside(&mut rustc)
        .output()
        .map_err(Error::file(&toolchain.rustc))?;
    if !output.status.success() {
        return Err(format!(
            "The kernel's own part of each cell does not compile with {}:\n{}",
            toolchain.name(),
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    unfinished
        .persist(&library)
        .map_err(|error| Error::file(&library)(error.error))?;
    Ok(library)
}
