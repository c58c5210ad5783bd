//! The prebuilt prelude: Cloze as a dynamic library that cells link against, built once and cached.

mod build;
mod cache;
mod package;
mod sources;

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};

pub use build::target_folder;
pub use cache::list;
pub use sources::{SOURCES, Sources};

use crate::toolchain::environment::{cache_folder, outside};
use crate::toolchain::work::Work;
use crate::toolchain::{Toolchain, guard};
use crate::{Error, Result};

/// The libraries that cells are compiled against and that the process that runs them loads.
#[derive(Debug, Default)]
pub struct Libraries {
    /// Arguments of rustc.
    pub flags: Vec<String>,
    /// Libraries to load before the first cell, in this order.
    pub load: Vec<PathBuf>,
    /// The folder of the package from whose sources the prelude's types are learnt.
    pub analysis: Option<PathBuf>,
    /// Keeps the prelude in the cache.
    _hold: Option<cache::Hold>,
}

impl Libraries {
    /// Finds or builds the cell library and, if its sources are given, the prelude.
    pub fn prepare(toolchain: &Toolchain, sources: Option<&Sources>, work: &Work) -> Result<Self> {
        let mut libraries = Self::default();
        libraries.add("cloze_cell", &cell_library(toolchain, work)?);
        if let Some(sources) = sources {
            let built = build::find_or_build(toolchain, sources, work);
            let (prelude, hold) =
                built.map_err(|error| error.during("the prelude was being built"))?;
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

    /// Returns the source folders of the crates whose types appear in Cloze's own types.
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

/// Compiles the library that is linked into every cell, for this toolchain.
fn cell_library(toolchain: &Toolchain, work: &Work) -> Result<PathBuf> {
    const SOURCE: &str = include_str!("../../../cell/lib.rs");
    let key = blake3::hash(format!("{}\n{SOURCE}", toolchain.version).as_bytes()).to_hex();
    let folder = cache_folder()?.join(format!("cell-{}", &key[..16]));
    let library = folder.join(format!("{DLL_PREFIX}cloze_cell{DLL_SUFFIX}"));
    if library.exists() {
        return Ok(library);
    }
    std::fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    // Two sessions may get here at once, and a library that a process has loaded must not be replaced.
    let lock = folder.join("lock");
    let lock = std::fs::File::create(&lock).map_err(Error::file(&lock))?;
    work.lock(
        &lock,
        "another session is building the kernel's own library",
    )?;
    if library.exists() {
        return Ok(library);
    }
    let source = folder.join("lib.rs");
    std::fs::write(&source, SOURCE).map_err(Error::file(&source))?;
    // Built under a temporary name, so a file under the final name is complete. The lock is held, so any temporary file
    // is a leftover.
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
    let mut rustc = guard::command(&toolchain.rustc)?;
    rustc
        .args([
            "--crate-name=cloze_cell",
            "--edition=2024",
            "--crate-type=dylib",
        ])
        // From level 2 on a crate does not share its generic code, and each cell would compile it again.
        .args(["-Cprefer-dynamic", "-Copt-level=1", "-o"])
        .arg(unfinished.path())
        .arg(&source);
    let output = work.stop.output(outside(&mut rustc))?;
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
