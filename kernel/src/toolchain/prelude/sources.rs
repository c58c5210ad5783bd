//! Where the prelude is built from, and whether that has changed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A checkout of Cloze to build the prelude from, if not the one that this program was built from.
pub const SOURCES: &str = "CLOZE_SOURCES";

/// The workspace that holds Cloze, and the features that it is built with.
#[derive(Clone, Debug)]
pub struct Sources {
    pub workspace: PathBuf,
    pub features: Vec<String>,
    /// The compute capability of the GPU kernels, if there are any.
    pub capability: Option<String>,
}

impl Sources {
    /// The workspace at `path`, if it is one of Cloze.
    pub fn at(path: &Path) -> Option<Self> {
        let workspace = path.canonicalize().ok()?;
        let is_cloze = workspace.join("kernel/prelude/lib.rs").exists()
            && workspace.join("src/lib.rs").exists();
        is_cloze.then(|| Self {
            workspace,
            features: Vec::new(),
            capability: None,
        })
    }

    /// The workspace that this program was compiled from, if it is still there, or the one that the environment names.
    pub fn own() -> Option<Self> {
        if let Some(folder) = std::env::var_os(SOURCES) {
            return Self::at(Path::new(&folder));
        }
        Self::at(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
    }

    /// What to say when there is nothing to build the prelude from.
    pub fn missing() -> Error {
        Error::Message(format!(
            "The sources of Cloze that this program was built from are gone from {}, so notebooks can't use Cloze. If the clone \
             was moved, run `cargo run --release -- install` in its new place; or set {SOURCES} to a clone.",
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .unwrap_or(Path::new("/"))
                .display(),
        ))
    }

    /// The sources that a notebook's own `:dep cloze = { path = ".." }` names, seen from its folder.
    pub fn named_by(dep: &str, folder: &Path) -> Option<Self> {
        let (_, path) = dep.split_once("path")?;
        let path = path
            .trim_start()
            .strip_prefix('=')?
            .trim_start()
            .strip_prefix('"')?;
        Self::at(&folder.join(path.split('"').next()?))
    }

    /// The same, built with these features.
    pub fn with_features(mut self, features: &[String]) -> Self {
        self.features = features.to_vec();
        let on_gpu = features.iter().any(|feature| feature == "cuda");
        self.capability = on_gpu.then(crate::toolchain::gpu::capability).flatten();
        self
    }

    /// A number that changes when any file does that the prelude is compiled from.
    pub fn fingerprint(&self) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        for part in [
            "Cargo.toml",
            "Cargo.lock",
            "build.rs",
            "src",
            "data",
            "kernel/Cargo.toml",
            "kernel/prelude",
        ] {
            hash(&self.workspace.join(part), &mut hasher)?;
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
    fn a_dep_line_names_the_folder_of_its_sources() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let found =
            Sources::named_by(r#"cloze = { path = "../.." }"#, &folder).expect("the workspace");
        assert!(found.workspace.join("kernel").is_dir());
        assert!(Sources::named_by(r#"cloze = { path = "." }"#, &folder).is_none());
        assert!(Sources::named_by(r#"cloze = "0.1""#, &folder).is_none());
    }

    #[test]
    fn a_change_of_any_source_or_feature_is_noticed_and_a_touch_is_not() {
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
