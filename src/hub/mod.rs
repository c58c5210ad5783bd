//! From names to local folders: what ships with the crate, local paths, and the Hub's cache.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The prefix of names that are served from the crate's own `data/` folder.
pub const BUNDLED: &str = "bundled:";

/// The folder with the data that ships with the crate: `CLOZE_DATA` if set, else `data/` of the crate's source.
pub fn data_dir() -> PathBuf {
    std::env::var_os("CLOZE_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("data"),
        PathBuf::from,
    )
}

/// The local file or folder that `name` stands for: `bundled:NAME`, a path, or `owner/name` (with an optional
/// `@revision`) in the Hub's cache on this machine.
///
/// `kind` ("model", "tokenizer", "dataset") only words the error.
pub fn resolve(kind: &'static str, name: &str) -> Result<PathBuf> {
    if let Some(bundled) = name.strip_prefix(BUNDLED) {
        return resolve_bundled(kind, name, bundled);
    }
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    if let Some(snapshot) = cached_snapshot(kind, name) {
        return Ok(snapshot);
    }
    Err(Error::NotFound {
        kind,
        name: name.to_owned(),
        message: format!(
            "there is no such file or folder (looked from {}), and no copy in the Hub's cache {}. \
             Give a local path, a name that starts with {BUNDLED:?}, or download it there first \
             (huggingface-cli download {name})",
            std::env::current_dir().unwrap_or_default().display(),
            cache_dir().display(),
        ),
    })
}

fn resolve_bundled(kind: &'static str, name: &str, bundled: &str) -> Result<PathBuf> {
    let data = data_dir();
    let path = data.join(bundled);
    // A bundled name is a plain word: it never leaves the data folder.
    if !bundled.is_empty() && !bundled.contains(['/', '\\']) && bundled != ".." && path.exists() {
        return Ok(path);
    }
    let mut available: Vec<String> = std::fs::read_dir(&data)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| format!("{BUNDLED}{}", entry.file_name().to_string_lossy()))
        .collect();
    available.sort();
    Err(Error::NotFound {
        kind,
        name: name.to_owned(),
        message: format!(
            "{} holds {}; set CLOZE_DATA if the crate's data folder was moved",
            data.display(),
            if available.is_empty() {
                "nothing".to_owned()
            } else {
                available.join(", ")
            }
        ),
    })
}

/// Where the Python library keeps downloads: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
pub fn cache_dir() -> PathBuf {
    if let Some(cache) = std::env::var_os("HF_HUB_CACHE") {
        return cache.into();
    }
    if let Some(home) = std::env::var_os("HF_HOME") {
        return Path::new(&home).join("hub");
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("huggingface").join("hub")
}

fn cached_snapshot(kind: &str, name: &str) -> Option<PathBuf> {
    let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
    if repo.split('/').count() > 2
        || repo
            .split('/')
            .any(|part| part.is_empty() || part.starts_with('.'))
    {
        return None;
    }
    let kind = if kind == "dataset" {
        "datasets"
    } else {
        "models"
    };
    let folder = cache_dir().join(format!("{kind}--{}", repo.replace('/', "--")));
    let commit = std::fs::read_to_string(folder.join("refs").join(revision))
        .map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    let snapshot = folder.join("snapshots").join(commit);
    snapshot.is_dir().then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundled_names_never_leave_the_data_folder() {
        for name in [
            "bundled:../Cargo.toml",
            "bundled:..",
            "bundled:",
            "bundled:nothing",
        ] {
            assert!(
                matches!(resolve("model", name), Err(Error::NotFound { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn an_unknown_name_says_where_was_looked() {
        let text = resolve("model", "nobody/nothing").unwrap_err().to_string();
        assert!(
            text.contains("model \"nobody/nothing\"") && text.contains("cache"),
            "{text}"
        );
    }
}
