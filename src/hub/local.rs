//! Resolves a name on this machine, before any request to the network.

use std::path::{Path, PathBuf};

use super::BUNDLED;
use super::name::{Repo, RepoKind};
use super::needs::VOCABULARIES;
use crate::base::files;
use crate::{Error, Result};

/// The endings of files that people load: a name with one of them means a file, and no repository.
const FILE_ENDINGS: [&str; 41] = [
    "json",
    "jsonl",
    "ndjson",
    "csv",
    "tsv",
    "txt",
    "parquet",
    "arrow",
    "feather",
    "ipc",
    "wav",
    "flac",
    "gz",
    "gzip",
    "bz2",
    "xz",
    "zst",
    "zstd",
    "lz4",
    "zip",
    "7z",
    "rar",
    "tar",
    "tgz",
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "model",
    "ipynb",
    "md",
    "yaml",
    "yml",
    "toml",
    "html",
    "xml",
    "xlsx",
    "onnx",
    "npz",
    "pkl",
];

/// Returns the file or folder called `name`, if there is one; `None` if the name can only mean a repository on the Hub.
///
/// # Errors
/// [`Error::NotFound`] for a missing file, a broken link, and an empty folder; a separate error for Git LFS pointers in
/// place of a tokenizer.
pub(crate) fn find(kind: &'static str, name: &str) -> Result<Option<PathBuf>> {
    let path = Path::new(name);
    let not_found = |message: String| Error::NotFound {
        kind,
        name: name.to_owned(),
        message,
    };
    if name.is_empty() {
        return Err(not_found("the name is empty".to_owned()));
    }
    files::recover_folder(path);
    if path.is_dir() {
        if is_empty(path) {
            return Err(not_found(empty_folder(kind, name)));
        }
        if kind != "dataset" {
            files::finish_replacing(path)?;
        }
        if kind == "tokenizer" {
            let found = VOCABULARIES
                .iter()
                .map(|file| path.join(file))
                .find(|file| file.is_file());
            found.map_or(Ok(()), |file| files::refuse_lfs_pointer(&file))?;
        }
        return Ok(Some(path.to_path_buf()));
    }
    if path.exists() {
        return Ok(Some(path.to_path_buf()));
    }
    if let Ok(target) = std::fs::read_link(path) {
        return Err(not_found(format!(
            "it is a link to {}, which does not exist",
            target.display()
        )));
    }
    let ending = path.extension().and_then(|ending| ending.to_str());
    let is_file_name =
        ending.is_some_and(|ending| FILE_ENDINGS.contains(&ending.to_ascii_lowercase().as_str()));
    if is_file_name && !name.contains('@') {
        return Err(not_found(format!(
            "{}{}",
            missing(name),
            did_you_mean(path)
        )));
    }
    Ok(None)
}

/// Returns the error that nothing of that name exists, and where it was searched for.
pub(crate) fn missing(name: &str) -> String {
    format!(
        "there is no such file or folder {name:?} (looked from {})",
        std::env::current_dir().unwrap_or_default().display()
    )
}

/// Returns an error of the Hub about a name that may have been meant for a local path: that is said first.
pub(crate) fn after_looking_here(name: &str, error: Error) -> Error {
    let first = |message: String| {
        format!(
            "{}, so it was looked up on the Hub: {message}",
            missing(name)
        )
    };
    match error {
        Error::NotFound {
            kind,
            name,
            message,
        } => Error::NotFound {
            kind,
            name,
            message: first(message),
        },
        Error::Hub(message) => Error::Hub(first(message)),
        other => other,
    }
}

/// Returns where a local path was mistyped, the name in the same folder that is nearest to it.
pub(crate) fn did_you_mean(path: &Path) -> String {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!("; there is no folder {} either", folder.display());
    };
    let wanted: Vec<char> = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .chars()
        .take(100)
        .collect();
    let nearest = entries
        .flatten()
        .take(1000)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .map(|name| {
            (
                distance(&wanted, &name.chars().take(100).collect::<Vec<_>>()),
                name,
            )
        })
        .min();
    match nearest {
        Some((distance, name)) if distance <= 1 + wanted.len() / 4 => {
            format!(
                "; did you mean {:?}?",
                folder
                    .join(name)
                    .display()
                    .to_string()
                    .trim_start_matches("./")
            )
        }
        _ => String::new(),
    }
}

/// Returns how many letters must be put in, left out or replaced, or neighbours swapped, to make `b` of `a`.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let differs = usize::from(a[i - 1] != b[j - 1]);
            next[j] = (row[j - 1] + differs).min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                next[j] = next[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

/// Returns whether a folder holds nothing but hidden files and folders that are empty themselves.
fn is_empty(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().all(|entry| {
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        hidden || (entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_empty(&entry.path()))
    })
}

fn empty_folder(kind: &str, name: &str) -> String {
    let repo_kind = match kind {
        "dataset" => RepoKind::Dataset,
        _ => RepoKind::Model,
    };
    let way_out = match Repo::parse(repo_kind, name) {
        Ok(repo) if !name.contains('@') => format!(
            ", and it shadows the {kind} of that name on the Hub: remove or rename the folder, or write \"{}@main\" for the \
             one on the Hub",
            repo.id()
        ),
        _ => format!("; give a folder with a {kind} in it, or a name that starts with {BUNDLED:?}"),
    };
    format!("the folder {name:?} is empty{way_out}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_path_is_reported_without_network_access() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train.jsonl"), "{}").unwrap();
        let name = folder.path().join("trian.jsonl");
        let error = find("dataset", name.to_str().unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no such file or folder") && error.contains("train.jsonl\"?"),
            "{error}"
        );
        for name in ["data/trian.jsonl.gz", "trian.CSV", "weights.safetensors"] {
            let error = find("model", name).unwrap_err().to_string();
            assert!(error.contains("looked from"), "{error}");
        }
        for name in ["owner/name", "gpt2", "a/model-v1.5", "owner/notes.txt@main"] {
            assert!(find("model", name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn an_empty_folder_and_a_broken_link_are_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("deep/er")).unwrap();
        std::fs::write(folder.path().join(".DS_Store"), "").unwrap();
        let error = find("model", folder.path().to_str().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("is empty"), "{error}");
        assert!(empty_folder("model", "owner/name").contains("owner/name@main"));
        #[cfg(unix)]
        {
            let link = folder.path().join("weights");
            std::os::unix::fs::symlink("../blobs/gone", &link).unwrap();
            let error = find("model", link.to_str().unwrap())
                .unwrap_err()
                .to_string();
            assert!(error.contains("a link to ../blobs/gone"), "{error}");
        }
    }

    #[test]
    fn an_lfs_pointer_in_place_of_a_tokenizer_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let pointer = "version https://git-lfs.example/spec/v1\noid sha256:00\nsize 1\n";
        std::fs::write(folder.path().join("tokenizer.json"), pointer).unwrap();
        let error = find("tokenizer", folder.path().to_str().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("Git LFS pointer"), "{error}");
    }

    #[test]
    fn edit_distance_counts_a_transposition_once() {
        let of = |a: &str, b: &str| {
            distance(
                &a.chars().collect::<Vec<_>>(),
                &b.chars().collect::<Vec<_>>(),
            )
        };
        assert_eq!(of("trian", "train"), 1);
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("kitten", "sitting"), 3);
    }
}
