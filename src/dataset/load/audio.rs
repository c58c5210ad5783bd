//! Folders of recordings, as the `audiofolder` of `datasets` reads them.
//!
//! Only names are read here: the column `audio` has a record `{bytes, path}` for each file with only the path, as in
//! datasets on the Hub, which include the bytes. Transcripts and other metadata are in `metadata.csv` or
//! `metadata.jsonl` in the same folder or above, under `file_name`. Without such a file the folders' names become the
//! column `label`, if there are several.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use super::layout::is_metadata;
use super::{Loader, Rows};
use crate::dataset::concatenate::concatenate;
use crate::dataset::{Dataset, data_type::plain};
use crate::{Error, Result};

/// The column of a metadata file that names the recording of a row.
const FILE_NAME: &str = "file_name";

/// Reads the names of the recordings among `paths`, and the metadata files among them.
pub(super) fn load(paths: &[PathBuf], rows: &mut Rows) -> Result<SchemaRef> {
    let (metadata, recordings): (Vec<_>, Vec<_>) = paths
        .iter()
        .map(|path| clean(path))
        .partition(|path| is_metadata(&path.to_string_lossy()));
    let dataset = match metadata.is_empty() {
        true => bare(&recordings)?,
        false => described(&recordings, &metadata)?,
    };
    let schema = dataset.schema().clone();
    let batches = dataset.record_batches(8192)?;
    rows.fill(batches.into_iter().map(Ok), |batch: RecordBatch| {
        Ok((vec![batch], 0))
    })?;
    Ok(schema)
}

/// Returns only the recordings, with the names of their folders if these differ.
fn bare(recordings: &[PathBuf]) -> Result<Dataset> {
    let folder = |path: &PathBuf| {
        let name = path.parent().and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let labels: Vec<String> = recordings.iter().map(folder).collect();
    let mut columns = vec![("audio", column(recordings))];
    if labels.iter().any(|label| *label != labels[0]) {
        columns.push(("label", Arc::new(StringArray::from(labels)) as ArrayRef));
    }
    table(columns)
}

/// Returns the recordings joined with the metadata files.
fn described(recordings: &[PathBuf], metadata: &[PathBuf]) -> Result<Dataset> {
    let mut tables: BTreeMap<&Path, Described> = BTreeMap::new();
    for path in metadata {
        let folder = path.parent().unwrap_or(Path::new(""));
        let described = Described::read(path, folder)?;
        if let Some(other) = tables.insert(folder, described) {
            return Err(Error::format(
                path,
                format!(
                    "{} is in the same folder; remove one of them",
                    other.path.display()
                ),
            ));
        }
    }
    // By metadata file, which recordings it describes, and in which rows.
    let mut found: BTreeMap<&Path, (Vec<PathBuf>, Vec<usize>)> = BTreeMap::new();
    for recording in recordings {
        let folders = recording.ancestors().skip(1);
        let (folder, table) = folders
            .filter_map(|folder| tables.get_key_value(folder))
            .next()
            .ok_or_else(|| {
                Error::format(
                    recording,
                    "neither its folder nor one above it has a metadata file, as other recordings' folders have",
                )
            })?;
        let row = table.rows.get(recording).ok_or_else(|| {
            Error::format(
                &table.path,
                format!(
                    "it has no row for {}; its {FILE_NAME} must be the path relative to this file",
                    recording.display()
                ),
            )
        })?;
        let (paths, rows) = found.entry(folder).or_default();
        paths.push(recording.clone());
        rows.push(*row);
    }
    for table in tables.values() {
        table.warn_of_missing();
    }
    let mut parts = Vec::new();
    for (folder, (paths, rows)) in found {
        let table = &tables[folder].table;
        let batch = table
            .take(&rows)?
            .without_column(FILE_NAME)?
            .to_record_batch()?;
        let mut columns = vec![("audio", column(&paths))];
        let schema = batch.schema();
        for (field, array) in schema.fields().iter().zip(batch.columns()) {
            columns.push((field.name(), array.clone()));
        }
        parts.push(self::table(columns)?);
    }
    concatenate(&parts)
}

/// A metadata file.
struct Described {
    path: PathBuf,
    table: Dataset,
    /// The row of each recording.
    rows: HashMap<PathBuf, usize>,
}

impl Described {
    fn read(path: &Path, folder: &Path) -> Result<Self> {
        let table = Loader::from_files([path])
            .cache(false)
            .load()?
            .split("train")?;
        let names: Vec<String> = table.column(FILE_NAME).map_err(|error| {
            Error::format(
                path,
                format!("a metadata file needs the column {FILE_NAME:?} with the names of recordings: {error}"),
            )
        })?;
        if table.column_names().iter().any(|name| name == "audio") {
            return Err(Error::format(
                path,
                "it has a column \"audio\", which is reserved for the recordings; rename it",
            ));
        }
        let mut rows = HashMap::with_capacity(names.len());
        for (row, name) in names.iter().enumerate() {
            if rows.insert(clean(&folder.join(name)), row).is_some() {
                return Err(Error::format(path, format!("it contains {name:?} twice")));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            table,
            rows,
        })
    }

    /// Warns of recordings that are described but missing.
    fn warn_of_missing(&self) {
        let mut absent: Vec<&PathBuf> = self.rows.keys().filter(|path| !path.exists()).collect();
        absent.sort();
        if let Some(first) = absent.first() {
            eprintln!(
                "note: {} describes {} missing recordings, for example {}",
                self.path.display(),
                absent.len(),
                first.display()
            );
        }
    }
}

/// Returns a path without "." and "..", resolved by names only.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(cleaned.components().next_back(), Some(Component::Normal(_))) =>
            {
                cleaned.pop();
            }
            other => cleaned.push(other),
        }
    }
    cleaned
}

/// Returns the column of the recordings at `paths`.
fn column(paths: &[PathBuf]) -> ArrayRef {
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let nothing: Vec<Option<&[u8]>> = vec![None; paths.len()];
    let paths = paths.iter().map(|path| path.to_string_lossy());
    let paths = StringArray::from_iter_values(paths);
    Arc::new(StructArray::new(
        fields,
        vec![Arc::new(BinaryArray::from(nothing)), Arc::new(paths)],
        None,
    ))
}

fn table(columns: Vec<(&str, ArrayRef)>) -> Result<Dataset> {
    let field =
        |(name, array): &(&str, ArrayRef)| Field::new(*name, plain(array.data_type()), true);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(schema.clone()), arrays)?;
    Dataset::from_batches(&schema, vec![batch])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dataset::load_dataset;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn load(folder: &tempfile::TempDir) -> Result<crate::dataset::DatasetDict> {
        load_dataset(folder.path().to_str().unwrap())
    }

    fn paths(dataset: &Dataset) -> Vec<String> {
        let name = |row: crate::dataset::Row| {
            let path = row["audio"]["path"].as_str().unwrap().to_owned();
            path.rsplit('/').next().unwrap().to_owned()
        };
        dataset.iter().map(name).collect()
    }

    #[test]
    fn recordings_are_joined_with_their_metadata_in_every_split() {
        let csv = "file_name,transcription,speaker\ntest/c.flac,three,7\ntrain/b.wav,two,5\ntrain/a.wav,one,4\n";
        let folder = folder(&[
            ("metadata.csv", csv),
            ("train/a.wav", "x"),
            ("train/b.wav", "x"),
            ("test/c.flac", "x"),
        ]);
        let dict = load(&folder).unwrap();
        let train = &dict["train"];
        assert_eq!(train.column_names(), ["audio", "transcription", "speaker"]);
        assert_eq!(paths(train), ["a.wav", "b.wav"]);
        assert_eq!(
            train.column::<String>("transcription").unwrap(),
            ["one", "two"]
        );
        assert_eq!(dict["test"].column::<i64>("speaker").unwrap(), [7]);
        assert!(train.row(0).unwrap()["audio"]["bytes"].is_null());
    }

    #[test]
    fn json_lines_metadata_and_a_single_recording_work_too() {
        let folder = folder(&[
            (
                "metadata.jsonl",
                "{\"file_name\": \"./a.wav\", \"text\": \"one\"}\n",
            ),
            ("a.wav", "x"),
        ]);
        let train = load(&folder).unwrap()["train"].clone();
        assert_eq!(train.column::<String>("text").unwrap(), ["one"]);
    }

    #[test]
    fn folder_names_become_labels_without_metadata() {
        let folder = folder(&[("dog/a.wav", "x"), ("cat/b.wav", "x"), ("cat/c.wav", "x")]);
        let train = load(&folder).unwrap()["train"].clone();
        assert_eq!(
            train.column::<String>("label").unwrap(),
            ["cat", "cat", "dog"]
        );
        assert_eq!(paths(&train), ["b.wav", "c.wav", "a.wav"]);
    }

    #[test]
    fn inconsistent_metadata_is_reported() {
        let files =
            |metadata: &'static str| [("metadata.csv", metadata), ("a.wav", "x"), ("b.wav", "x")];
        for (metadata, words) in [
            ("file_name,text\na.wav,one\n", "no row for"),
            ("name,text\na.wav,one\nb.wav,two\n", "\"file_name\""),
            ("file_name,text\na.wav,one\n./a.wav,two\nb.wav,x\n", "twice"),
            ("file_name,audio\na.wav,one\nb.wav,two\n", "rename it"),
        ] {
            let error = load(&folder(&files(metadata))).unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("metadata.csv"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_changed_recording_changes_the_fingerprint() {
        let folder = folder(&[("a.wav", "x"), ("b.wav", "x")]);
        let before = load(&folder).unwrap()["train"].fingerprint();
        assert_eq!(load(&folder).unwrap()["train"].fingerprint(), before);
        fs::write(folder.path().join("b.wav"), "longer").unwrap();
        assert_ne!(load(&folder).unwrap()["train"].fingerprint(), before);
    }
}
