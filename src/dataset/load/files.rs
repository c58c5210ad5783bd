//! From a name to files on this machine, their format and their splits.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::layout::{self, KNOWN, Layout, Selection, Splits};
use super::{FileFormat, Options, source};
use crate::{Error, Result};

/// Files by split.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) format: FileFormat,
    pub(super) splits: Vec<(String, Vec<PathBuf>)>,
    pub(super) options: Options,
}

impl From<Layout> for Found {
    fn from(layout: Layout) -> Self {
        let paths = |paths: Vec<String>| paths.into_iter().map(PathBuf::from).collect();
        Self {
            format: layout.format,
            splits: layout
                .splits
                .into_iter()
                .map(|(split, files)| (split, paths(files)))
                .collect(),
            options: layout.options,
        }
    }
}

/// No card that people write is longer.
const LONGEST_CARD: u64 = 16 << 20;

/// Resolves `name` to a file or folder; patterns are unchanged.
pub(super) fn locate(name: &str) -> Result<PathBuf> {
    if is_pattern(name) {
        return Ok(PathBuf::from(name));
    }
    crate::hub::resolve("dataset", name)
}

pub(super) fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '[']) && !Path::new(name).exists()
}

/// Returns the format that a name refers to if files are given in addition, as in Python's `load_dataset("json",
/// data_files=...)`.
fn reader_called(name: &str) -> Option<FileFormat> {
    let format = match name {
        "json" => FileFormat::Json,
        "csv" => FileFormat::Csv,
        "tsv" => FileFormat::Tsv,
        "text" => FileFormat::Text,
        "parquet" => FileFormat::Parquet,
        "arrow" => FileFormat::Arrow,
        "audiofolder" => FileFormat::Audio,
        _ => return None,
    };
    (!Path::new(name).exists()).then_some(format)
}

/// Returns the files given in addition to an empty name or a format's name: no folder or repository is searched then.
pub(super) fn named(name: &str, request: &Selection) -> Option<Result<Found>> {
    if request.data_files.is_empty() {
        return None;
    }
    let format = reader_called(name);
    (name.is_empty() || format.is_some()).then(|| {
        let request = Selection {
            format: request.format.or(format),
            ..request.clone()
        };
        find_named(name, Path::new(""), &request)
    })
}

/// Returns the files under `path`, which [`locate`] gave for `name`.
pub(super) fn find(name: &str, path: &Path, request: &Selection) -> Result<Found> {
    let not_found = |message: String| Error::NotFound {
        kind: "dataset",
        name: name.to_owned(),
        message,
    };
    if !request.data_files.is_empty() && !is_pattern(name) && path.is_dir() {
        return find_named(name, path, request);
    }
    if is_pattern(name) {
        let paths = expand(name).map_err(not_found)?;
        if request.format.is_none() && paths.iter().all(|path| layout::format_of(path).is_none()) {
            return Err(not_found(format!(
                "no file that matches the pattern has a known format ({KNOWN})"
            )));
        }
        return of_splits(name, vec![("train".to_owned(), paths)], request.format);
    }
    if path.is_file() {
        let format = match request
            .format
            .or_else(|| layout::format_of(&path.to_string_lossy()))
        {
            Some(format) => format,
            None => sniff(path)?,
        };
        return Ok(Found {
            format,
            splits: vec![("train".to_owned(), vec![path.to_owned()])],
            options: Options::default(),
        });
    }
    let mut files = Vec::new();
    walk(path, "", &mut files)?;
    files.sort();
    let card = card(&path.join("README.md"))?;
    let layout = layout::plan(name, &files, card.as_deref(), request)?;
    let mut found = Found::from(layout);
    for (_, paths) in &mut found.splits {
        for file in paths {
            *file = path.join(&*file);
        }
    }
    Ok(found)
}

/// Returns the files that were named by split, seen from `base`.
fn find_named(name: &str, base: &Path, request: &Selection) -> Result<Found> {
    let base = match &request.data_dir {
        Some(folder) => base.join(folder),
        None => base.to_owned(),
    };
    let mut splits: Splits = Vec::new();
    for (split, patterns) in &request.data_files {
        let mut paths: Vec<String> = Vec::new();
        if patterns.is_empty() {
            let message = format!("no files are named for the split {split:?}");
            return Err(Error::argument("data_files", message));
        }
        for pattern in patterns {
            let place = base.join(pattern);
            let place = place.to_string_lossy();
            let mut found = expand(&place).map_err(|message| Error::NotFound {
                kind: "dataset",
                name: pattern.clone(),
                message: format!("{message}; the split {split:?} should contain it"),
            })?;
            found.retain(|path| !paths.contains(path));
            paths.extend(found);
        }
        splits.push((split.clone(), paths));
    }
    let name = match name {
        "" => request.data_files[0].1.first().map_or("", String::as_str),
        name => name,
    };
    of_splits(name, splits, request.format)
}

/// Files by split; the format of a single file may be unknown.
fn of_splits(name: &str, splits: Splits, format: Option<FileFormat>) -> Result<Found> {
    let format = match (format, &splits[..]) {
        (None, [(_, paths)]) if paths.len() == 1 && layout::format_of(&paths[0]).is_none() => {
            Some(sniff(Path::new(&paths[0]))?)
        }
        (format, _) => format,
    };
    Ok(layout::by_format(name, splits, format, Options::default())?.into())
}

/// Returns the file called `pattern`, the files of that folder, or those that match the pattern, in order.
fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let path = Path::new(pattern);
    if path.is_file() {
        return Ok(vec![pattern.to_owned()]);
    }
    let mut found: Vec<String> = if path.is_dir() {
        let mut files = Vec::new();
        walk(path, "", &mut files).map_err(|error| error.to_string())?;
        files.retain(|file| !layout::is_ignored(file));
        let join = |file: String| path.join(file).to_string_lossy().into_owned();
        files.into_iter().map(join).collect()
    } else {
        let name = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        glob::glob(pattern)
            .map_err(|error| format!("the pattern is malformed: {error}"))?
            .flatten()
            .filter(|path| path.is_file() && !layout::is_ignored(&name(path)))
            .map(|path| path.to_string_lossy().into_owned())
            .collect()
    };
    found.sort();
    if found.is_empty() {
        let from = std::env::current_dir().unwrap_or_default();
        return Err(match (path.is_dir(), pattern.contains(['*', '?', '['])) {
            (true, _) => format!("the folder {pattern:?} contains no files"),
            (_, true) => format!(
                "no file matches the pattern {pattern:?} (looked from {})",
                from.display()
            ),
            (_, false) => format!(
                "there is no such file or folder {pattern:?} (looked from {})",
                from.display()
            ),
        });
    }
    Ok(found)
}

/// Returns the card's text, if there is one.
fn card(path: &Path) -> Result<Option<String>> {
    let Ok(file) = std::fs::File::open(path) else {
        return Ok(None);
    };
    let mut text = Vec::new();
    file.take(LONGEST_CARD)
        .read_to_end(&mut text)
        .map_err(|error| Error::io("read", path, error))?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// Returns the format of a file by its first bytes.
fn sniff(path: &Path) -> Result<FileFormat> {
    let start = source::beginning(path, 512)?;
    match start.trim_ascii_start().first() {
        _ if start.starts_with(b"PAR1") => Ok(FileFormat::Parquet),
        _ if start.starts_with(b"ARROW1") || start.starts_with(&[0xff; 4]) => Ok(FileFormat::Arrow),
        Some(b'{' | b'[') => Ok(FileFormat::Json),
        _ => Err(Error::format(
            path,
            format!("the format can't be recognised by name or content; known are {KNOWN}"),
        )),
    }
}

/// The paths of all files under a folder, as seen from there.
fn walk(folder: &Path, prefix: &str, out: &mut Vec<String>) -> Result<()> {
    let io = |error| Error::io("read", folder, error);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        // A name that is no text is none of a data file.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let inner = format!("{prefix}{name}");
        // The Hub's cache links to files; links to folders could lead in circles.
        if entry.file_type().map_err(io)?.is_dir() {
            walk(&entry.path(), &format!("{inner}/"), out)?;
        } else if entry.path().is_file() {
            out.push(inner);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, file: &str, text: &str) {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn find_in(folder: &Path, request: &Selection) -> Result<Found> {
        find("x", folder, request)
    }

    #[test]
    fn a_folder_is_listed_with_its_card() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["one.jsonl", "two.jsonl", "deep/three.jsonl"] {
            write(folder.path(), file, "{}");
        }
        let found = find_in(folder.path(), &Selection::default()).unwrap();
        assert_eq!(found.splits[0].1.len(), 3);
        write(
            folder.path(),
            "README.md",
            "---\nconfigs:\n- config_name: c\n  data_files:\n  - split: held\n    path: deep/*\n  - split: train\n    path: one.jsonl\n---\n",
        );
        let found = find_in(folder.path(), &Selection::default()).unwrap();
        assert_eq!(
            found.splits,
            [
                (
                    "held".to_owned(),
                    vec![folder.path().join("deep/three.jsonl")]
                ),
                ("train".to_owned(), vec![folder.path().join("one.jsonl")]),
            ]
        );
    }

    #[test]
    fn files_are_found_by_relative_and_absolute_paths() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        write(folder.path(), "sub/a.txt", "a");
        write(elsewhere.path(), "b.txt", "b");
        let far = elsewhere
            .path()
            .join("*.txt")
            .to_string_lossy()
            .into_owned();
        let request = Selection {
            data_files: vec![("t".to_owned(), vec!["sub".to_owned(), far.clone()])],
            ..Selection::default()
        };
        let found = find_in(folder.path(), &request).unwrap();
        assert_eq!(found.format, FileFormat::Text);
        assert_eq!(found.splits[0].1.len(), 2);
        let request = Selection {
            data_files: vec![("t".to_owned(), vec![far])],
            ..Selection::default()
        };
        for name in ["", "json"] {
            let found = named(name, &request).unwrap().unwrap();
            assert_eq!(found.splits[0].1, [elsewhere.path().join("b.txt")]);
            let json = name == "json";
            assert_eq!(found.format == FileFormat::Json, json);
        }
        assert!(named("x", &request).is_none());
        assert!(named("json", &Selection::default()).is_none());
    }

    #[test]
    fn no_match_reports_what_was_searched_for() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "movie.mp4", "x");
        let error = find_in(folder.path(), &Selection::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no file in") && error.contains(".jsonl"),
            "{error}"
        );
        let pattern = folder.path().join("*.mp4");
        let error = find(pattern.to_str().unwrap(), &pattern, &Selection::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("that matches the pattern has a known format"),
            "{error}"
        );
        let pattern = folder.path().join("*.jsonl");
        let error = find(pattern.to_str().unwrap(), &pattern, &Selection::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no file matches the pattern"), "{error}");
        let error = find("x", &folder.path().join("movie.mp4"), &Selection::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("can't be recognised by name or content"),
            "{error}"
        );
        let request = Selection {
            data_files: vec![("train".to_owned(), vec!["absent.csv".to_owned()])],
            ..Selection::default()
        };
        let error = find_in(folder.path(), &request).unwrap_err().to_string();
        assert!(
            error.contains("no such file or folder") && error.contains("\"train\""),
            "{error}"
        );
    }
}
