//! What ships with the crate: a small model, questions and answers, text, spoken digits.
//!
//! The files are in the program (the crate `cloze-data`), and nothing is asked of the machine that compiled it. Models and
//! datasets are opened from folders, so what a name asks for is written to the user's cache when it is first used:
//! `~/.cache/cloze/bundled/HASH/NAME` (or in `CLOZE_CACHE`), where the hash is that of the contents.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::BUNDLED;
#[cfg(feature = "bundled")]
use crate::base::cache_dir::{CACHE, cache_dir};
use crate::{Error, Result};

/// A folder to look in instead.
const DATA: &str = "CLOZE_DATA";

/// Returns the file or folder for a `bundled:` name.
pub(super) fn find(kind: &'static str, bundled: &str) -> Result<PathBuf> {
    match std::env::var_os(DATA) {
        Some(data) => find_in(kind, bundled, Path::new(&data)),
        None => unpacked(kind, bundled),
    }
}

/// Looks in the folder that `CLOZE_DATA` names.
fn find_in(kind: &'static str, bundled: &str, data: &Path) -> Result<PathBuf> {
    let path = data.join(bundled);
    // A bundled name is a plain word: it never leaves the data folder.
    if !bundled.is_empty() && !bundled.contains(['/', '\\']) && bundled != ".." && path.exists() {
        return Ok(path);
    }
    let entries = std::fs::read_dir(data).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let place = format!("{}, which {DATA} names,", data.display());
    Err(missing(kind, bundled, &place, names.collect()))
}

/// Writes the named data to the cache, unless they are there.
#[cfg(feature = "bundled")]
fn unpacked(kind: &'static str, bundled: &str) -> Result<PathBuf> {
    let top = |name: &'static str| name.split('/').next().unwrap_or(name);
    let files: Vec<(&str, &[u8])> = cloze_data::files()
        .filter(|(name, _)| top(name) == bundled)
        .collect();
    if files.is_empty() {
        let names = cloze_data::files().map(|(name, _)| top(name).to_owned());
        return Err(missing(kind, bundled, "the crate", names.collect()));
    }
    unpack(&files, &cache_dir().join("bundled")).map(|folder| folder.join(bundled))
}

#[cfg(not(feature = "bundled"))]
fn unpacked(kind: &'static str, bundled: &str) -> Result<PathBuf> {
    let place = "this build of cloze, which is without the feature \"bundled\",";
    Err(missing(kind, bundled, place, BTreeSet::new()))
}

/// Writes the files to a folder of the cache named by the hash of their contents, and returns it. A file that exists in
/// full length is not written again; a truncated or missing one is.
#[cfg(feature = "bundled")]
fn unpack(files: &[(&str, &[u8])], cache: &Path) -> Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in files {
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    let folder = cache.join(&hasher.finalize().to_hex()[..16]);
    for (name, bytes) in files {
        let path = folder.join(name);
        let is_there = std::fs::metadata(&path).is_ok_and(|file| file.len() == bytes.len() as u64);
        if !is_there {
            let parent = path.parent().unwrap_or(&folder);
            std::fs::create_dir_all(parent).map_err(|error| no_place(parent, &error))?;
            crate::files::write_atomically(&path, bytes)?;
        }
    }
    Ok(folder)
}

#[cfg(feature = "bundled")]
fn no_place(folder: &Path, error: &std::io::Error) -> Error {
    Error::Argument {
        name: CACHE,
        message: format!(
            "the bundled data can't be written to {}: {error}; set {CACHE} to a writable folder, or {DATA} to a folder with the data",
            folder.display()
        ),
    }
}

fn missing(kind: &'static str, bundled: &str, place: &str, names: BTreeSet<String>) -> Error {
    let names: Vec<String> = names
        .iter()
        .map(|name| format!("{BUNDLED}{name}"))
        .collect();
    let names = match names.as_slice() {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    };
    Error::NotFound {
        kind,
        name: format!("{BUNDLED}{bundled}"),
        message: format!("{place} holds {names}"),
    }
}

#[cfg(all(test, feature = "bundled"))]
mod tests {
    use super::*;

    const FILES: [(&str, &[u8]); 2] = [("set/a.txt", b"one"), ("set/deep/b.txt", b"two")];

    #[test]
    fn unpacked_files_are_complete_and_missing_ones_are_restored() {
        let cache = tempfile::tempdir().unwrap();
        let folder = unpack(&FILES, cache.path()).unwrap();
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        assert_eq!(
            (read("set/a.txt"), read("set/deep/b.txt")),
            (b"one".into(), b"two".into())
        );
        std::fs::remove_dir_all(folder.join("set/deep")).unwrap();
        std::fs::write(folder.join("set/a.txt"), "o").unwrap();
        assert_eq!(unpack(&FILES, cache.path()).unwrap(), folder);
        assert_eq!(
            (read("set/a.txt"), read("set/deep/b.txt")),
            (b"one".into(), b"two".into())
        );
    }

    #[test]
    fn different_contents_have_different_folders() {
        let cache = tempfile::tempdir().unwrap();
        let first = unpack(&FILES, cache.path()).unwrap();
        let other = unpack(&[("set/a.txt", b"1ne"), FILES[1]], cache.path()).unwrap();
        assert_ne!(first, other);
        assert_eq!(std::fs::read(first.join("set/a.txt")).unwrap(), b"one");
    }

    #[test]
    fn an_unwritable_cache_is_reported_with_the_variable_to_set() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("file");
        std::fs::write(&file, "").unwrap();
        let text = unpack(&FILES, &file).unwrap_err().to_string();
        assert!(text.contains(CACHE) && text.contains(DATA), "{text}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_names() {
        let text = unpacked("model", "tiny_robert").unwrap_err().to_string();
        let names = "bundled:eli5_sample.jsonl, bundled:pretraining_heldout.txt, bundled:pretraining_sample.txt, \
                     bundled:spoken_digits, bundled:tiny_roberta";
        assert!(
            text.contains("bundled:tiny_robert") && text.contains(names),
            "{text}"
        );
    }

    #[test]
    fn the_index_names_both_shards_of_the_model() {
        let index = cloze_data::files()
            .find(|(name, _)| *name == "tiny_roberta/model.safetensors.index.json")
            .map(|(_, bytes)| serde_json::from_slice::<serde_json::Value>(bytes).unwrap())
            .unwrap();
        let shards: BTreeSet<String> = index["weight_map"]
            .as_object()
            .unwrap()
            .values()
            .map(|file| format!("tiny_roberta/{}", file.as_str().unwrap()))
            .collect();
        let there: BTreeSet<String> = cloze_data::files()
            .filter(|(name, _)| name.ends_with(".safetensors"))
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(shards, there);
    }

    #[test]
    fn an_overridden_data_folder_is_never_left() {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir(data.path().join("mine")).unwrap();
        assert_eq!(
            find_in("model", "mine", data.path()).unwrap(),
            data.path().join("mine")
        );
        for name in ["", "..", "../mine", "other"] {
            let text = find_in("model", name, data.path()).unwrap_err().to_string();
            assert!(
                text.contains("bundled:mine") && text.contains(DATA),
                "{name}: {text}"
            );
        }
    }
}
