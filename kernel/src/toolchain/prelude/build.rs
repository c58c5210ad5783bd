//! Builds the prelude with cargo, in the target folder of the clone or of a generated package, and keeps a copy that
//! later builds can't change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::env::consts::{DLL_EXTENSION, DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Sources, cache, package};
use crate::toolchain::environment::{cache_folder, outside};
use crate::toolchain::gpu::CAPABILITY;
use crate::toolchain::work::{Pipe, Work};
use crate::toolchain::{Toolchain, guard};
use crate::{Error, Result};

/// Returns the file name of the dynamic library, in the prelude's folder.
pub fn library_name() -> String {
    format!("{DLL_PREFIX}{CRATE}{DLL_SUFFIX}")
}

/// The prelude's crate.
const CRATE: &str = "cloze_prelude";
/// The folder with the metadata of all crates in the library.
pub const METADATA: &str = "deps";
/// The folder of the packages from which rust-analyzer learns the types.
pub const ANALYSIS: &str = "analysis/cloze";

/// Returns the folder of the prelude for this toolchain and these sources, and a guard that keeps it in the cache.
pub fn find_or_build(
    toolchain: &Toolchain,
    sources: &Sources,
    work: &Work,
) -> Result<(PathBuf, cache::Hold)> {
    let mut key = blake3::Hasher::new();
    key.update(toolchain.version.as_bytes());
    key.update(env!("CARGO_PKG_VERSION").as_bytes());
    key.update(sources.fingerprint()?.as_bytes());
    let key = key.finalize().to_hex();
    let all = cache_folder()?;
    let folder = all.join(format!("{}{}", cache::PREFIX, &key[..16]));
    if let Some(hold) = cache::take(&folder)? {
        return Ok((folder, hold));
    }
    let lock = all.join("prelude.lock");
    let lock = fs::File::create(&lock).map_err(Error::file(&lock))?;
    work.lock(&lock, "another session is building the prelude")?;
    // That session may have built this one.
    if let Some(hold) = cache::take(&folder)? {
        return Ok((folder, hold));
    }
    work.tell(reason(&all));
    let unfinished = tempfile::Builder::new()
        .prefix(cache::UNFINISHED)
        .tempdir_in(&all)
        .map_err(Error::file(&all))?;
    let (place, package) = sources.package(&all)?;
    let packages = Packages::of(toolchain, sources, &place, work)?;
    let artifacts = compile(toolchain, sources, (&place, package), work)?;
    keep(&artifacts, &packages, unfinished.path())?;
    packages.write_analysis(&unfinished.path().join("analysis"), sources.folder())?;
    cache::label(unfinished.path(), &sources.features)?;
    fs::rename(unfinished.keep(), &folder).map_err(Error::file(&folder))?;
    if sources.clone_folder().is_none() {
        package::clean(&place);
    }
    let hold = cache::take(&folder)?.ok_or("the prelude disappeared right after it was built")?;
    cache::prune(&all);
    Ok((folder, hold))
}

fn reason(all: &Path) -> &'static str {
    if !cache::list(all).is_empty() {
        "building the prelude again: its sources, the compiler or this kernel changed"
    } else {
        "building the prelude: needed only once; takes minutes if nothing has been compiled yet"
    }
}

/// A file that cargo produced, and the package that it comes from.
struct Artifact {
    package: String,
    crate_name: String,
    files: Vec<PathBuf>,
    /// Whether a library was compiled for it just now.
    is_new: bool,
}

impl Artifact {
    /// Parses a line of cargo's output, if it is about an artifact.
    fn read(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let files = message["filenames"].as_array().into_iter().flatten();
        (message["reason"] == "compiler-artifact").then(|| Self {
            package: text(&message["package_id"]),
            crate_name: text(&message["target"]["name"]),
            files: files.filter_map(Value::as_str).map(Into::into).collect(),
            is_new: message["fresh"] == false && message["target"]["kind"][0] != "custom-build",
        })
    }
}

/// Compiles the prelude with cargo, and reports each crate.
fn compile(
    toolchain: &Toolchain,
    sources: &Sources,
    package: (&Path, &str),
    work: &Work,
) -> Result<Vec<Artifact>> {
    let mut cargo = cargo(toolchain, sources, package)?;
    let mut artifacts: Vec<Artifact> = Vec::new();
    let mut complaints: Vec<String> = Vec::new();
    let mut compiled = 0;
    let mut heard = |pipe, line: &str| match pipe {
        Pipe::Stdout => {
            let Some(artifact) = Artifact::read(line) else {
                return;
            };
            if artifact.is_new {
                compiled += 1;
                work.tell(format!(
                    "building the prelude: {compiled} crates compiled, last {}",
                    artifact.crate_name
                ));
            }
            artifacts.push(artifact);
        }
        Pipe::Stderr => {
            // Another cargo works in the folder, for however long that takes.
            if let Some(what) = line.trim_start().strip_prefix("Blocking waiting for ") {
                work.tell(format!(
                    "building the prelude: waiting until another cargo releases the {what}"
                ));
            }
            complaints.push(line.to_owned());
        }
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = work.stop.stream(&mut cargo, &mut |pipe, bytes| {
        let line = match pipe {
            Pipe::Stdout => &mut stdout,
            Pipe::Stderr => &mut stderr,
        };
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            line.extend(piece);
            if piece.ends_with(b"\n") {
                heard(pipe, String::from_utf8_lossy(line).trim_end());
                line.clear();
            }
        }
    })?;
    heard(Pipe::Stderr, String::from_utf8_lossy(&stderr).trim_end());
    if status.success() {
        return Ok(artifacts);
    }
    complaints.retain(|line| !line.trim_start().starts_with("Compiling "));
    Err(format!(
        "The prelude could not be built from {sources}:\n{}",
        complaints.join("\n").trim_end()
    )
    .into())
}

/// Returns the cargo command that compiles the prelude.
fn cargo(
    toolchain: &Toolchain,
    sources: &Sources,
    (folder, package): (&Path, &str),
) -> Result<Command> {
    let mut cargo = guard::command(&toolchain.cargo)?;
    let features = sources.features.iter();
    let target = target_folder().into_iter();
    // In a clone, build the package of this program, so that crates compiled for the program are reused.
    cargo
        .args(["rustc", "--release", "-p", package])
        .args(["--lib", "--crate-type", "dylib"])
        .arg("--message-format=json-render-diagnostics")
        .args(features.flat_map(|feature| ["--features", feature]))
        .args(target.flat_map(|folder| ["--target-dir".into(), folder]))
        // These flags apply only to the prelude's own crate, which does no long-running work, and not to the library:
        // cells can then use the generic code that the crate contains (see `prelude/shared.rs`).
        .args([
            "--",
            "-Cprefer-dynamic",
            "-Copt-level=0",
            "-Cdebug-assertions=off",
        ])
        .envs(sources.capability.iter().map(|it| (CAPABILITY, it)))
        .current_dir(folder);
    toolchain.pin(outside(&mut cargo));
    Ok(cargo)
}

/// Returns the target folder that contains this program, if there is one: crates compiled for the program are reused.
pub fn target_folder() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let profile = program
        .ancestors()
        .find(|folder| folder.join(".fingerprint").is_dir())?;
    Some(profile.parent()?.to_owned())
}

/// Copies the library and the metadata of its crates.
fn keep(artifacts: &[Artifact], packages: &Packages, folder: &Path) -> Result<()> {
    let metadata = folder.join(METADATA);
    fs::create_dir_all(&metadata).map_err(Error::file(&metadata))?;
    let mut found = false;
    for artifact in artifacts {
        let with = |extension: &str| {
            artifact
                .files
                .iter()
                .find(|file| file.extension().is_some_and(|e| e == extension))
        };
        if artifact.crate_name == CRATE {
            if let Some(library) = with(DLL_EXTENSION) {
                let to = folder.join(library_name());
                fs::copy(library, &to).map_err(Error::file(&to))?;
                found = true;
            }
        } else if packages.closure.contains(&artifact.package)
            && let Some(file) = with("rmeta")
                .or_else(|| with("rlib"))
                .or_else(|| with(DLL_EXTENSION))
        {
            let to = metadata.join(file.file_name().unwrap_or_default());
            // Cargo replaces its files instead of writing into them, so a hard link preserves the contents.
            if fs::hard_link(file, &to).is_err() {
                fs::copy(file, &to).map_err(Error::file(file))?;
            }
        }
    }
    if found {
        Ok(())
    } else {
        Err("cargo did not report where it put the prelude".into())
    }
}

/// The packages that the prelude consists of.
struct Packages {
    /// By id.
    packages: HashMap<String, Value>,
    /// By id: the enabled features, and the names under which it uses other packages.
    nodes: HashMap<String, Value>,
    root: String,
    /// The ids of all packages that the library needs.
    closure: HashSet<String>,
}

impl Packages {
    fn of(toolchain: &Toolchain, sources: &Sources, folder: &Path, work: &Work) -> Result<Self> {
        let mut cargo = guard::command(&toolchain.cargo)?;
        cargo
            .args([
                "metadata",
                "--format-version=1",
                "--filter-platform",
                &toolchain.host,
            ])
            .args(
                sources
                    .features
                    .iter()
                    .flat_map(|feature| ["--features", feature]),
            )
            .current_dir(folder);
        let output = work.stop.output(toolchain.pin(outside(&mut cargo)))?;
        if !output.status.success() {
            return Err(format!(
                "`cargo metadata` failed: {}",
                String::from_utf8_lossy(&output.stderr)
            )
            .into());
        }
        let metadata: Value =
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let by_id = |list: &Value| -> HashMap<String, Value> {
            let entries = list.as_array().into_iter().flatten();
            entries
                .filter_map(|entry| Some((entry["id"].as_str()?.to_owned(), entry.clone())))
                .collect()
        };
        let packages = by_id(&metadata["packages"]);
        let nodes = by_id(&metadata["resolve"]["nodes"]);
        let root = packages
            .iter()
            .find(|(_, package)| package["name"] == "cloze")
            .map(|(id, _)| id.clone())
            .ok_or("cargo's metadata contains no package `cloze`")?;
        let mut closure = HashSet::new();
        let mut next = vec![root.clone()];
        while let Some(id) = next.pop() {
            next.extend(
                normal_dependencies(&nodes[&id])
                    .map(|(_, id)| id.to_owned())
                    .filter(|id| !closure.contains(id)),
            );
            closure.insert(id);
        }
        Ok(Self {
            packages,
            nodes,
            root,
            closure,
        })
    }

    /// Writes manifests that point to the same sources, but list only dependencies whose types the prelude's users
    /// meet: rust-analyzer then loads a tenth of the crates, and still finds the types. Sources in the folder `own` are
    /// read in place.
    fn write_analysis(&self, folder: &Path, own: Option<&Path>) -> Result<()> {
        let mut folders: BTreeMap<&str, String> = BTreeMap::new();
        for (id, package) in self
            .packages
            .iter()
            .filter(|(id, _)| self.closure.contains(*id))
        {
            let name = package["name"].as_str().unwrap_or_default();
            if *id == self.root {
                folders.insert(id, "cloze".into());
            } else if SHOWN.contains(&name) {
                folders.insert(
                    id,
                    format!("{name}-{}", package["version"].as_str().unwrap_or_default()),
                );
            }
        }
        for (id, name) in &folders {
            let package = &self.packages[*id];
            let targets = package["targets"].as_array().into_iter().flatten();
            let library = targets
                .clone()
                .find(|target| target["doctest"] == true || target["kind"][0] == "lib");
            let library = library.unwrap_or(&package["targets"][0]);
            let target = folder.join(name);
            let source = Path::new(library["src_path"].as_str().unwrap_or_default());
            let source = match own {
                Some(own) if source.starts_with(own) => source.to_owned(),
                // Cargo deletes its copies of packages that have not been used for months.
                _ => copy_package(package, source, &target)?,
            };
            let mut manifest = format!(
                "[package]\nname = {}\nversion = {}\nedition = {}\nautobins = false\nautotests = false\nautobenches = false\nautoexamples = false\n\n\
                 [lib]\nname = {}\npath = {:?}\n\n[features]\n",
                package["name"],
                package["version"],
                package["edition"],
                library["name"],
                source.display().to_string()
            );
            let features: Vec<&str> = self.nodes[*id]["features"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let others: Vec<&&str> = features
                .iter()
                .filter(|feature| **feature != "default")
                .collect();
            manifest += &format!("default = {others:?}\n");
            for feature in others {
                manifest += &format!("{feature:?} = []\n");
            }
            manifest += "\n[dependencies]\n";
            for (extern_name, dependency) in normal_dependencies(&self.nodes[*id]) {
                let Some(folder) = folders.get(dependency) else {
                    continue;
                };
                manifest += &format!(
                    "{extern_name} = {{ path = \"../{folder}\", package = {} }}\n",
                    self.packages[dependency]["name"]
                );
            }
            fs::create_dir_all(&target).map_err(Error::file(&target))?;
            let file = target.join("Cargo.toml");
            fs::write(&file, manifest).map_err(Error::file(&file))?;
        }
        Ok(())
    }
}

/// Copies the sources of a package, whose library begins in the file `source`, to a folder. Returns the copy of that
/// file.
fn copy_package(package: &Value, source: &Path, to: &Path) -> Result<PathBuf> {
    let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    let root = manifest.parent().unwrap_or(Path::new(""));
    let inside = source.strip_prefix(root).map_err(|e| e.to_string())?;
    let sources = inside.parent().unwrap_or(Path::new(""));
    copy_folder(&root.join(sources), &to.join(sources))?;
    Ok(inside.to_owned())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::file(to))?;
    for entry in fs::read_dir(from).map_err(Error::file(from))? {
        let from = entry.map_err(Error::file(from))?.path();
        let to = to.join(from.file_name().unwrap_or_default());
        if from.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            fs::copy(&from, &to).map_err(Error::file(&from))?;
        }
    }
    Ok(())
}

/// Crates whose types appear in the prelude's own types.
const SHOWN: [&str; 3] = ["candle-core", "candle-nn", "half"];

/// Returns the packages that a package uses, and its names for them.
fn normal_dependencies(node: &Value) -> impl Iterator<Item = (&str, &str)> {
    node["deps"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|dependency| {
            let kinds = dependency["dep_kinds"].as_array()?;
            let normal = kinds.iter().any(|kind| kind["kind"].is_null());
            normal.then(|| Some((dependency["name"].as_str()?, dependency["pkg"].as_str()?)))?
        })
}
