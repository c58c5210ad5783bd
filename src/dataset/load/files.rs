//! From a name to files, their format and their splits.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::FileFormat;
use crate::{Error, Result};

/// Files by split.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) format: FileFormat,
    pub(super) splits: Vec<(String, Vec<PathBuf>)>,
}

/// Files that describe a dataset and are no part of it.
const DESCRIPTIONS: [&str; 6] = [
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
];

/// The words in the names of files and folders that make a split, and the split's name.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The file or folder that `name` means; a pattern stays as it is.
pub(super) fn locate(name: &str) -> Result<PathBuf> {
    if is_pattern(name) {
        return Ok(PathBuf::from(name));
    }
    crate::hub::resolve("dataset", name)
}

pub(super) fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '[']) && !Path::new(name).exists()
}

/// The files under `path`, which [`locate`] gave for `name`.
pub(super) fn find(name: &str, path: &Path, format: Option<FileFormat>) -> Result<Found> {
    let not_found = |message: String| Error::NotFound {
        kind: "dataset",
        name: name.to_owned(),
        message,
    };
    if is_pattern(name) {
        let mut paths: Vec<PathBuf> = glob::glob(name)
            .map_err(|error| not_found(format!("the pattern is malformed: {error}")))?
            .flatten()
            .filter(|path| path.is_file() && !is_ignored(path, Path::new("")))
            .collect();
        paths.sort();
        let (format, paths) = of_one_format(paths, format).ok_or_else(|| {
            not_found(format!(
                "no file that matches the pattern has a known format ({KNOWN})"
            ))
        })?;
        let splits = vec![("train".to_owned(), paths)];
        return Ok(Found { format, splits });
    }
    if path.is_file() {
        let format = match format.or_else(|| format_of(path)) {
            Some(format) => format,
            None => sniff(path)?,
        };
        let splits = vec![("train".to_owned(), vec![path.to_owned()])];
        return Ok(Found { format, splits });
    }
    let mut paths = Vec::new();
    walk(path, &mut paths)?;
    paths.retain(|file| !is_ignored(file, path));
    paths.sort();
    let (format, paths) = of_one_format(paths, format).ok_or_else(|| {
        not_found(format!(
            "no file in {} has a known format ({KNOWN})",
            path.display()
        ))
    })?;
    let splits = splits(path, paths);
    Ok(Found { format, splits })
}

const KNOWN: &str =
    ".jsonl, .ndjson, .json, .parquet, .arrow, .csv, .tsv, .txt; see Loader::format";

fn format_of(path: &Path) -> Option<FileFormat> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "json" | "jsonl" | "ndjson" => Some(FileFormat::Json),
        "parquet" => Some(FileFormat::Parquet),
        "arrow" | "feather" | "ipc" => Some(FileFormat::Arrow),
        "csv" => Some(FileFormat::Csv),
        "tsv" => Some(FileFormat::Tsv),
        "txt" => Some(FileFormat::Text),
        _ => None,
    }
}

/// The format of a file by its first bytes.
fn sniff(path: &Path) -> Result<FileFormat> {
    let io = |error| Error::io("read", path, error);
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(512).read_to_end(&mut start).map_err(io)?;
    let text = start
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(&start)
        .trim_ascii_start();
    match text.first() {
        _ if start.starts_with(b"PAR1") => Ok(FileFormat::Parquet),
        _ if start.starts_with(b"ARROW1") || start.starts_with(&[0xff; 4]) => Ok(FileFormat::Arrow),
        Some(b'{' | b'[') => Ok(FileFormat::Json),
        _ => Err(Error::format(
            path,
            format!("neither the name nor the content tells the format; known are {KNOWN}"),
        )),
    }
}

/// The files of `format`, or of the format that most of them have.
fn of_one_format(
    paths: Vec<PathBuf>,
    format: Option<FileFormat>,
) -> Option<(FileFormat, Vec<PathBuf>)> {
    if let Some(format) = format {
        return (!paths.is_empty()).then_some((format, paths));
    }
    let mut formats: BTreeMap<FileFormat, Vec<PathBuf>> = BTreeMap::new();
    for path in paths {
        if let Some(format) = format_of(&path) {
            formats.entry(format).or_default().push(path);
        }
    }
    // Of equally many, the format that is named first in the documentation.
    formats
        .into_iter()
        .rev()
        .max_by_key(|(_, paths)| paths.len())
}

fn walk(folder: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    let io = |error| Error::io("read", folder, error);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        // The Hub's cache links to files; links to folders could lead in circles.
        if entry.file_type().map_err(io)?.is_dir() {
            walk(&entry.path(), out)?;
        } else if entry.path().is_file() {
            out.push(entry.path());
        }
    }
    Ok(())
}

/// Whether a file is hidden, private or a description, as seen from `base`.
fn is_ignored(path: &Path, base: &Path) -> bool {
    let relative = path.strip_prefix(base).unwrap_or(path);
    let mut parts: Vec<_> = relative
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    let name = parts.pop().unwrap_or_default();
    let hidden = |part: &str| part.starts_with('.') && part != "." && part != "..";
    DESCRIPTIONS.contains(&name.as_str())
        || hidden(&name)
        || (!base.as_os_str().is_empty()
            && parts
                .iter()
                .any(|part| hidden(part) || part.starts_with("__")))
}

/// The paths of a repository's files by split, as seen from the folder `base`.
#[cfg(feature = "hub")]
pub(crate) fn by_split(base: &str, paths: Vec<String>) -> Vec<(String, Vec<String>)> {
    let found = splits(
        Path::new(base),
        paths.into_iter().map(PathBuf::from).collect(),
    );
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    found
        .into_iter()
        .map(|(split, paths)| (split, paths.into_iter().map(text).collect()))
        .collect()
}

fn splits(base: &Path, paths: Vec<PathBuf>) -> Vec<(String, Vec<PathBuf>)> {
    type Rule = fn(&Path) -> Option<String>;
    let rules: [Rule; 3] = [shard_split, folder_split, file_split];
    for rule in rules {
        let mut found: Vec<(String, Vec<PathBuf>)> = Vec::new();
        for path in &paths {
            let relative = path.strip_prefix(base).unwrap_or(path);
            if let Some(split) = rule(relative) {
                match found.iter_mut().find(|(name, _)| *name == split) {
                    Some((_, files)) => files.push(path.clone()),
                    None => found.push((split, vec![path.clone()])),
                }
            }
        }
        if !found.is_empty() {
            let rank = |name: &str| {
                KEYWORDS
                    .iter()
                    .position(|(split, _)| *split == name)
                    .unwrap_or(KEYWORDS.len())
            };
            found.sort_by(|(a, _), (b, _)| (rank(a), a).cmp(&(rank(b), b)));
            return found;
        }
    }
    vec![("train".to_owned(), paths)]
}

/// `data/NAME-00000-of-00003...`
fn shard_split(path: &Path) -> Option<String> {
    if path.parent()? != Path::new("data") {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    name.match_indices("-of-").find_map(|(of, _)| {
        let digits = |part: &str| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit());
        let (before, after) = (name.get(..of)?, name.get(of + 4..of + 9)?);
        let (split, number) = before.rsplit_once('-')?;
        (digits(number) && digits(after) && !split.is_empty()).then(|| split.to_owned())
    })
}

fn folder_split(path: &Path) -> Option<String> {
    let folders = path.parent()?.iter().rev();
    folders
        .filter_map(|folder| folder.to_str())
        .find_map(|folder| keyword_split(folder, true))
}

fn file_split(path: &Path) -> Option<String> {
    keyword_split(path.file_name()?.to_str()?, false)
}

/// The split whose word stands in `name` between separators; at its end only if `whole_end`.
fn keyword_split(name: &str, whole_end: bool) -> Option<String> {
    let separator = |byte: u8| b"-._ ".contains(&byte) || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let has = |word: &str| {
        name.match_indices(word).any(|(start, _)| {
            let end = start + word.len();
            let ends = if end == bytes.len() {
                whole_end
            } else {
                separator(bytes[end])
            };
            (start == 0 || separator(bytes[start - 1])) && ends
        })
    };
    KEYWORDS
        .iter()
        .find(|(_, words)| words.iter().any(|word| has(word)))
        .map(|(split, _)| (*split).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_of(files: &[&str]) -> Vec<(String, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = find("x", folder.path(), None).unwrap();
        let relative = |path: PathBuf| {
            path.strip_prefix(folder.path())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        found
            .splits
            .into_iter()
            .map(|(split, paths)| (split, paths.into_iter().map(relative).collect()))
            .collect()
    }

    fn splits(expected: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        let owned = |files: &[&str]| files.iter().map(|file| (*file).to_owned()).collect();
        expected
            .iter()
            .map(|(split, files)| ((*split).to_owned(), owned(files)))
            .collect()
    }

    #[test]
    fn folders_give_the_splits_that_the_reference_finds() {
        assert_eq!(
            split_of(&[
                "test.jsonl",
                "train-0.jsonl",
                "train-1.jsonl",
                "my_dev.jsonl",
                "README.md",
                "extra.jsonl"
            ]),
            splits(&[
                ("train", &["train-0.jsonl", "train-1.jsonl"]),
                ("validation", &["my_dev.jsonl"]),
                ("test", &["test.jsonl"]),
            ])
        );
        assert_eq!(
            split_of(&["train/a.csv", "train/b.csv", "test-set/a.csv"]),
            splits(&[
                ("train", &["train/a.csv", "train/b.csv"]),
                ("test", &["test-set/a.csv"])
            ])
        );
        assert_eq!(
            split_of(&[
                "data/zeta-00000-of-00001-abc.parquet",
                "data/test-00000-of-00001.parquet"
            ]),
            splits(&[
                ("test", &["data/test-00000-of-00001.parquet"]),
                ("zeta", &["data/zeta-00000-of-00001-abc.parquet"]),
            ])
        );
        assert_eq!(
            split_of(&[
                "b.txt",
                "deep/a.txt",
                ".hidden/train.txt",
                "__pycache__/x.txt",
                "trainers.txt"
            ]),
            splits(&[("train", &["b.txt", "deep/a.txt", "trainers.txt"])])
        );
        assert_eq!(
            split_of(&["a.jsonl", "b.jsonl", "notes.txt"]),
            splits(&[("train", &["a.jsonl", "b.jsonl"])])
        );
    }

    #[test]
    fn nothing_found_says_what_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("movie.mp4"), "x").unwrap();
        let error = find("x", folder.path(), None).unwrap_err().to_string();
        assert!(
            error.contains("no file in") && error.contains(".jsonl"),
            "{error}"
        );
        let pattern = folder.path().join("*.jsonl");
        let error = find(pattern.to_str().unwrap(), &pattern, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("matches the pattern"), "{error}");
        let error = find("x", &folder.path().join("movie.mp4"), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("neither the name nor the content"),
            "{error}"
        );
    }
}
