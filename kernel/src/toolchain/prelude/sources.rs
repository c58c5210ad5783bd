//! The sources that the prelude is built from, and whether they have changed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::package;
use crate::{Error, Result};

/// Overrides the sources of Cloze that the prelude is built from: a clone, or the library's package.
pub const SOURCES: &str = "CLOZE_SOURCES";

/// The clone that this program was compiled in, unless it was installed from a registry.
const OWN_CLONE: Option<&str> = option_env!("CLOZE_CLONE");

/// The sources of Cloze, and the features to build.
#[derive(Clone, Debug)]
pub struct Sources {
    place: Place,
    pub features: Vec<String>,
    /// The compute capability of the GPU kernels, if there are any.
    pub capability: Option<String>,
}

#[derive(Clone, Debug)]
enum Place {
    /// A clone's workspace.
    Clone(PathBuf),
    /// The library's package in this folder.
    Folder(PathBuf),
    /// The library's package in the registry, in this program's version.
    Registry,
}

impl Sources {
    fn of(place: Place) -> Self {
        Self {
            place,
            features: Vec::new(),
            capability: None,
        }
    }

    /// Returns the sources at `path`, if it is a clone of Cloze or the library's package.
    pub fn at(path: &Path) -> Option<Self> {
        let folder = path.canonicalize().ok()?;
        if !folder.join("src/lib.rs").exists() {
            return None;
        }
        if folder.join("kernel/prelude/lib.rs").exists() {
            return Some(Self::of(Place::Clone(folder)));
        }
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).ok()?;
        let manifest: toml::Table = manifest.parse().ok()?;
        let is_cloze = manifest.get("package")?.get("name")?.as_str() == Some("cloze");
        is_cloze.then(|| Self::of(Place::Folder(folder)))
    }

    /// Returns the sources named by the environment; or the clone that this program was compiled in, if it still
    /// exists; or, for a program installed from a registry, the library in the registry.
    pub fn own() -> Option<Self> {
        if let Some(folder) = std::env::var_os(SOURCES) {
            return Self::at(Path::new(&folder));
        }
        match OWN_CLONE {
            Some(clone) => Self::at(Path::new(clone)),
            None => Some(Self::of(Place::Registry)),
        }
    }

    /// Returns the message for when there are no sources to build the prelude from.
    pub fn missing() -> Error {
        let place = match std::env::var_os(SOURCES) {
            Some(folder) => format!(
                "{SOURCES} is set to {}, which contains no sources of Cloze, so notebooks can't use it. Set it to a clone, or install the \
                 kernel again with `cloze install`.",
                Path::new(&folder).display()
            ),
            None => format!(
                "The sources of Cloze that this program was built from are gone from {}, so notebooks can't use Cloze. If the clone \
                 was moved, run `cargo run --release -- install` in its new place; or set {SOURCES} to a clone.",
                OWN_CLONE.unwrap_or_default()
            ),
        };
        Error::Message(place)
    }

    /// Returns the folder of the library's package, if it is local and not managed by cargo.
    pub fn folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Clone(folder) | Place::Folder(folder) => Some(folder),
            Place::Registry => None,
        }
    }

    /// Returns the clone, if the sources are one.
    pub fn clone_folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Clone(folder) => Some(folder),
            Place::Folder(_) | Place::Registry => None,
        }
    }

    /// Returns the folder to run cargo in, and the name of the prelude's package there.
    pub(super) fn package(&self, cache: &Path) -> Result<(PathBuf, &'static str)> {
        match &self.place {
            Place::Clone(folder) => Ok((folder.clone(), env!("CARGO_PKG_NAME"))),
            Place::Folder(_) | Place::Registry => {
                Ok((package::write(self.folder(), cache)?, package::NAME))
            }
        }
    }

    /// Returns the sources that a notebook's own `:dep cloze = { path = ".." }` refers to, relative to its folder.
    pub fn named_by(dep: &str, folder: &Path) -> Option<Self> {
        let (_, path) = dep.split_once("path")?;
        let path = path
            .trim_start()
            .strip_prefix('=')?
            .trim_start()
            .strip_prefix('"')?;
        Self::at(&folder.join(path.split('"').next()?))
    }

    /// Returns the same sources with these features.
    pub fn with_features(mut self, features: &[String]) -> Self {
        self.features = features.to_vec();
        let on_gpu = features.iter().any(|feature| feature == "cuda");
        self.capability = on_gpu.then(crate::toolchain::gpu::capability).flatten();
        self
    }

    /// Returns a hash that changes when any file does that the prelude is compiled from.
    pub fn fingerprint(&self) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        let parts = match &self.place {
            Place::Clone(_) => OF_CLONE.as_slice(),
            Place::Folder(_) => OF_PACKAGE.as_slice(),
            Place::Registry => &[],
        };
        if let Some(folder) = self.folder() {
            for part in parts {
                hash(&folder.join(part), &mut hasher)?;
            }
        }
        if self.clone_folder().is_none() {
            hasher.update(package::fingerprint(self.folder()).as_bytes());
        }
        for feature in &self.features {
            hasher.update(feature.as_bytes());
        }
        if let Some(capability) = &self.capability {
            hasher.update(capability.as_bytes());
        }
        Ok(hasher.finalize())
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Clone(folder) | Place::Folder(folder) => write!(f, "{}", folder.display()),
            Place::Registry => write!(f, "cloze {} of the registry", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// The files that the prelude is compiled from, in a clone and in the library's package.
const OF_CLONE: [&str; 7] = [
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    "src",
    "data",
    "kernel/Cargo.toml",
    "kernel/prelude",
];
const OF_PACKAGE: [&str; 3] = ["Cargo.toml", "build.rs", "src"];

fn hash(path: &Path, hasher: &mut blake3::Hasher) -> Result<()> {
    let Ok(metadata) = fs::metadata(path) else {
        return Ok(());
    };
    hasher.update(path.as_os_str().as_encoded_bytes());
    if metadata.is_dir() {
        let entries = fs::read_dir(path).map_err(Error::file(path))?;
        let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        return entries.iter().try_for_each(|entry| hash(entry, hasher));
    }
    hasher.update(&metadata.len().to_le_bytes());
    hasher.update(&fs::read(path).map_err(Error::file(path))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dep_line_gives_the_folder_of_the_sources() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let found =
            Sources::named_by(r#"cloze = { path = "../.." }"#, &folder).expect("the workspace");
        let clone = found.clone_folder().expect("a clone");
        assert!(clone.join("kernel").is_dir());
        assert!(Sources::named_by(r#"cloze = { path = "." }"#, &folder).is_none());
        assert!(Sources::named_by(r#"cloze = "0.1""#, &folder).is_none());
    }

    #[test]
    fn a_clone_and_a_package_are_recognised_as_sources() {
        // The tests are compiled in a clone.
        let own = Sources::at(Path::new(OWN_CLONE.expect("a clone"))).expect("it is there");
        assert!(own.clone_folder().is_some());
        assert!(
            own.to_string()
                .ends_with(&own.clone_folder().expect("a clone").display().to_string())
        );
        let folder = tempfile::tempdir().expect("a folder");
        assert!(Sources::at(folder.path()).is_none());
        fs::create_dir(folder.path().join("src")).expect("made");
        fs::write(folder.path().join("src/lib.rs"), "").expect("written");
        for (name, is_cloze) in [("cloze", true), ("other", false)] {
            let manifest = format!("[package]\nname = \"{name}\"\n");
            fs::write(folder.path().join("Cargo.toml"), manifest).expect("written");
            let found = Sources::at(folder.path());
            assert_eq!(found.is_some(), is_cloze);
            assert!(found.is_none_or(|found| found.clone_folder().is_none()));
        }
    }

    #[test]
    fn the_registrys_library_is_used_through_a_generated_package() {
        let cache = tempfile::tempdir().expect("a folder");
        let sources = Sources::of(Place::Registry);
        let (folder, name) = sources.package(cache.path()).expect("written");
        assert_eq!(name, package::NAME);
        assert!(folder.join("src/lib.rs").exists());
        let first = sources.fingerprint().expect("read");
        assert_eq!(sources.fingerprint().expect("read"), first);
        assert_ne!(
            sources
                .with_features(&["cuda".into()])
                .fingerprint()
                .expect("read"),
            first
        );
    }

    #[test]
    fn any_changed_source_or_feature_is_noticed_but_a_touched_file_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        for path in [
            "src/lib.rs",
            "kernel/prelude/lib.rs",
            "Cargo.lock",
            "data/words.txt",
        ] {
            write(path, "one");
        }
        let sources = Sources::at(folder.path()).expect("it looks like Cloze");
        let first = sources.fingerprint().expect("read");
        write("src/lib.rs", "one");
        assert_eq!(sources.fingerprint().expect("read"), first);
        let with_cuda = sources.clone().with_features(&["cuda".into()]);
        assert_ne!(with_cuda.fingerprint().expect("read"), first);
        let for_another = |capability: &str| {
            let mut sources = with_cuda.clone();
            sources.capability = Some(capability.into());
            sources.fingerprint().expect("read")
        };
        assert_ne!(for_another("80"), for_another("90"));
        for path in [
            "src/lib.rs",
            "src/new.rs",
            "data/words.txt",
            "Cargo.lock",
            "build.rs",
        ] {
            let before = sources.fingerprint().expect("read");
            write(path, "two");
            assert_ne!(sources.fingerprint().expect("read"), before, "{path}");
        }
    }
}
