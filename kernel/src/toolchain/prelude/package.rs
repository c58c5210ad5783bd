//! Generates the package that the prelude is built from where there is no clone.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The name of the package.
pub const NAME: &str = "cloze-prelude";

/// The files of the package, besides its manifest.
const FILES: [(&str, &str); 3] = [
    ("src/lib.rs", include_str!("../../../prelude/lib.rs")),
    ("src/shared.rs", include_str!("../../../prelude/shared.rs")),
    // The versions that this program was tested with; cargo leaves out packages that are not used.
    (
        "Cargo.lock",
        include_str!(concat!(env!("OUT_DIR"), "/Cargo.lock")),
    ),
];

/// Returns the manifest: it depends on this version of Cloze from the registry, or on the package in a folder.
fn manifest(cloze: Option<&Path>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let cloze = match cloze {
        Some(folder) => format!("{{ path = {:?} }}", folder.display().to_string()),
        None => format!("\"={version}\""),
    };
    format!(
        "[package]\nname = \"{NAME}\"\nversion = \"{version}\"\nedition = \"2024\"\npublish = false\n\n\
         [lib]\nname = \"cloze_prelude\"\n\n\
         [features]\ncuda = [\"cloze/cuda\"]\nxet = [\"cloze/xet\"]\n\n\
         [dependencies]\ncloze = {cloze}\n\n\
         [workspace]\n"
    )
}

/// Returns a hash that changes when anything in the package does.
pub fn fingerprint(cloze: Option<&Path>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(manifest(cloze).as_bytes());
    for (_, text) in FILES {
        hasher.update(text.as_bytes());
    }
    hasher.finalize()
}

/// Writes the package to the cache, and returns its folder.
pub fn write(cloze: Option<&Path>, cache: &Path) -> Result<PathBuf> {
    let key = fingerprint(cloze).to_hex();
    let folder = cache.join(format!("package-{}", &key[..16]));
    let manifest = manifest(cloze);
    for (name, text) in FILES.into_iter().chain([("Cargo.toml", manifest.as_str())]) {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).map_err(Error::file(parent))?;
        fs::write(&path, text).map_err(Error::file(&path))?;
    }
    Ok(folder)
}

/// Removes what cargo compiled in the package's own folder; the prelude has its copy.
pub fn clean(folder: &Path) {
    let _ = fs::remove_dir_all(folder.join("target"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_depends_on_this_version_or_on_the_folder() {
        let of_registry: toml::Table = manifest(None).parse().expect("a manifest");
        assert_eq!(
            of_registry["dependencies"]["cloze"].as_str(),
            Some(concat!("=", env!("CARGO_PKG_VERSION")))
        );
        let folder = Path::new("/a \"quoted\" folder/cloze");
        let of_folder: toml::Table = manifest(Some(folder)).parse().expect("a manifest");
        assert_eq!(
            of_folder["dependencies"]["cloze"]["path"].as_str(),
            folder.to_str()
        );
        assert_ne!(fingerprint(None), fingerprint(Some(folder)));
    }

    #[test]
    fn cargo_can_read_the_generated_package() {
        let cache = tempfile::tempdir().expect("a folder");
        let folder = write(None, cache.path()).expect("written");
        let output = std::process::Command::new(env!("CARGO"))
            .args(["read-manifest", "--manifest-path"])
            .arg(folder.join("Cargo.toml"))
            .output()
            .expect("cargo runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("cloze_prelude"),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // The library's source is the clone's, byte for byte, and the lock file is included.
        let lock = fs::read_to_string(folder.join("Cargo.lock")).expect("the versions");
        assert!(lock.contains("name = \"candle-core\""));
        assert_eq!(write(None, cache.path()).expect("again"), folder);
    }
}
