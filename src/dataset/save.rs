//! Writing datasets: a folder that opens at once, JSON lines, Parquet.
//!
//! The folder has the layout of `datasets`' `save_to_disk` (Arrow streams and `state.json`), so each library opens what
//! the other has saved.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde_json::json;

use super::arrow_file;
use super::cast::cast_batch;
use super::data_type::check_depth;
use super::dict::DatasetDict;
use super::fingerprint::Fingerprint;
use super::table::Dataset;
use crate::base::files::replace_atomically;
use crate::base::panics::caught;
use crate::{Error, Result};

const STATE: &str = "state.json";
const SPLITS: &str = "dataset_dict.json";
/// The key of a data file's own hash in [`STATE`].
const HASH: &str = "blake3";
/// Rows in one batch of a file.
const ROWS: usize = 8192;

/// Opens a folder written by `save_to_disk`, here or in Python. A single dataset becomes the split that it was saved
/// as, or `train`.
///
/// ```
/// use cloze::prelude::*;
/// # let temporary = tempfile::tempdir().unwrap();
/// # let folder = temporary.path().join("saved");
///
/// let dataset = Dataset::builder().column("text", vec!["a", "b"]).build()?;
/// dataset.save_to_disk(&folder)?;
/// assert_eq!(load_from_disk(&folder)?["train"].column::<String>("text")?, ["a", "b"]);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn load_from_disk(folder: impl AsRef<Path>) -> Result<DatasetDict> {
    let folder = folder.as_ref();
    crate::base::files::recover_folder(folder);
    saved(folder)?.ok_or_else(|| Error::NotFound {
        kind: "dataset",
        name: folder.display().to_string(),
        message: format!("a saved dataset is a folder with {STATE} or {SPLITS} in it"),
    })
}

/// Returns the dataset saved in `folder`, if there is one.
pub(super) fn saved(folder: &Path) -> Result<Option<DatasetDict>> {
    let list = folder.join(SPLITS);
    if list.is_file() {
        let splits = read_json(&list)?;
        let names = splits["splits"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut dict = DatasetDict::new();
        for name in names.iter().filter_map(|name| name.as_str()) {
            dict.insert(name, open(&folder.join(name))?.1);
        }
        return Ok(Some(dict));
    }
    if folder.join(STATE).is_file() {
        let (split, dataset) = open(folder)?;
        return Ok(Some(DatasetDict::from_iter([(split, dataset)])));
    }
    Ok(None)
}

fn read_json(path: &Path) -> Result<serde_json::Value> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::format(path, format!("malformed JSON: {error}")))
}

fn open(folder: &Path) -> Result<(String, Dataset)> {
    let path = folder.join(STATE);
    let state = read_json(&path)?;
    let files = state["_data_files"]
        .as_array()
        .ok_or_else(|| Error::format(&path, "it lists no data files (_data_files)"))?;
    let mut tables = Vec::new();
    let mut is_known = true;
    let path_of = |name: &str| folder.join(name);
    for entry in files {
        let name = entry["filename"].as_str().unwrap_or_default();
        let file = path_of(name);
        // A state file names its neighbours, never anything elsewhere.
        if name.is_empty() || Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(Error::format(
                &path,
                format!("{name:?} is not the name of a file in this folder"),
            ));
        }
        tables.push(arrow_file::read(&file)?);
        let hash = || -> Result<String> {
            let bytes = crate::ops::MappedFile::open(&path_of(name))?;
            Ok(blake3::hash(&bytes).to_hex().to_string())
        };
        // A fingerprint stands for rows only as long as the files are those that it was written beside.
        is_known &= match entry[HASH].as_str() {
            Some(noted) => hash()? == noted,
            None => false,
        };
    }
    let Some(first) = tables.first() else {
        return Err(Error::format(&path, "it lists no data files (_data_files)"));
    };
    let schema = first.schema.clone();
    let batches = tables
        .iter()
        .flat_map(|table| &table.batches)
        .map(|batch| cast_batch(batch, &schema))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::format(&path, format!("its files do not fit together: {error}")))?;
    let noted = state["_fingerprint"].as_str().filter(|_| is_known);
    let fingerprint = match noted.and_then(Fingerprint::from_hex) {
        Some(known) => known,
        None => Fingerprint::of_batches(&schema, &batches)?,
    };
    let split = state["_split"].as_str().unwrap_or("train").to_owned();
    Ok((split, Dataset::from_parts(schema, batches, fingerprint)))
}

impl Dataset {
    /// Saves the dataset as the folder `folder`, which appears whole or not at all; [`Dataset::load_from_disk`] and the
    /// Python library open it. A dataset that was saved there before is replaced; other files never are.
    pub fn save_to_disk(&self, folder: impl AsRef<Path>) -> Result<()> {
        save(folder.as_ref(), |folder| self.write_folder(folder, None))
    }

    /// Opens a dataset that [`Dataset::save_to_disk`] or the Python library has saved.
    pub fn load_from_disk(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let dict = load_from_disk(folder)?;
        match dict.names().as_slice() {
            [only] => Ok(dict[only].clone()),
            names => Err(Error::Dataset(format!(
                "{} contains several splits ({}); open it with load_from_disk and choose one",
                folder.display(),
                names.join(", ")
            ))),
        }
    }

    /// Writes one JSON object per row; nulls are written out. The same as [`Dataset::to_json`].
    pub fn to_json_lines(&self, path: impl AsRef<Path>) -> Result<()> {
        self.to_json(path)
    }

    /// Writes a Parquet file, compressed with Snappy.
    pub fn to_parquet(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        check_depth(self.schema())?;
        self.write_file(path, |file| {
            let properties = WriterProperties::builder()
                .set_compression(Compression::SNAPPY)
                .build();
            let parquet = |error: ParquetError| match error {
                ParquetError::External(source) => match source.downcast::<std::io::Error>() {
                    Ok(source) => Error::io("write", path, *source),
                    Err(source) => Error::format(path, source.to_string()),
                },
                error => Error::format(path, error.to_string()),
            };
            let mut writer = ArrowWriter::try_new(file, self.schema().clone(), Some(properties))
                .map_err(parquet)?;
            for range in self.chunks(ROWS) {
                writer.write(&self.gather(range)?).map_err(parquet)?;
            }
            writer.close().map(drop).map_err(parquet)
        })
    }

    pub(super) fn write_file(
        &self,
        path: &Path,
        write: impl FnOnce(BufWriter<File>) -> Result<()>,
    ) -> Result<()> {
        replace_atomically(path, |temporary| {
            let file = File::create(temporary).map_err(|error| Error::io("write", path, error))?;
            let file = BufWriter::with_capacity(1 << 20, file);
            // Rare types of columns have been seen to panic in the libraries that write them.
            caught(|| write(file)).unwrap_or_else(|panic| {
                let columns: Vec<String> = self
                    .features()
                    .iter()
                    .map(|(name, kind)| format!("{name:?} ({kind})"))
                    .collect();
                Err(Error::format(
                    path,
                    format!(
                        "one of the columns {} can't be written in this format ({panic}); remove it or give it another type",
                        columns.join(", ")
                    ),
                ))
            })
        })
    }

    /// Fills the empty folder `folder`.
    fn write_folder(&self, folder: &Path, split: Option<&str>) -> Result<()> {
        check_depth(self.schema())?;
        let name = "data-00000-of-00001.arrow";
        let path = folder.join(name);
        let io = |error| Error::io("write", &path, error);
        let arrow = |error| failed(&path, error);
        let file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?);
        let mut writer = StreamWriter::try_new(file, self.schema()).map_err(arrow)?;
        for range in self.chunks(ROWS) {
            let batch: RecordBatch = self.gather(range)?;
            writer.write(&batch).map_err(arrow)?;
        }
        writer.finish().map_err(arrow)?;
        let mut file = writer.into_inner().map_err(arrow)?;
        file.flush().map_err(io)?;
        file.get_ref().sync_all().map_err(io)?;
        let hash = blake3::hash(&crate::ops::MappedFile::open(&path)?);
        let state = json!({
            "_data_files": [{"filename": name, HASH: hash.to_hex().to_string()}],
            "_fingerprint": self.fingerprint(),
            "_format_columns": null,
            "_format_kwargs": {},
            "_format_type": null,
            "_output_all_columns": false,
            "_split": split,
        });
        write_json(&folder.join(STATE), &state)?;
        // The columns' types are those of the Arrow file; Python infers them from there.
        write_json(&folder.join("dataset_info.json"), &json!({}))
    }
}

impl DatasetDict {
    /// Saves all datasets as the folder `folder`, as [`Dataset::save_to_disk`] does one; [`load_from_disk`] and the
    /// Python library open it.
    pub fn save_to_disk(&self, folder: impl AsRef<Path>) -> Result<()> {
        save(folder.as_ref(), |folder| {
            for (name, dataset) in self.iter() {
                if name.is_empty() || Path::new(name).file_name() != Some(name.as_ref()) {
                    return Err(Error::argument(
                        "split",
                        format!("{name:?} is not a valid folder name"),
                    ));
                }
                let split = folder.join(name);
                std::fs::create_dir(&split).map_err(|error| Error::io("create", &split, error))?;
                dataset.write_folder(&split, Some(name))?;
            }
            write_json(&folder.join(SPLITS), &json!({"splits": self.names()}))
        })
    }
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    crate::base::files::write_atomically(path, &serde_json::to_vec_pretty(value)?)
}

/// Lets `write` fill a new folder, which then takes the place of `folder` in one step.
fn save(folder: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    refuse_foreign(folder)?;
    crate::base::files::replace_folder(folder, write)
}

/// A folder that holds anything but a saved dataset is not replaced.
fn refuse_foreign(folder: &Path) -> Result<()> {
    crate::base::files::recover_folder(folder);
    if !folder.exists() {
        return Ok(());
    }
    let entries = std::fs::read_dir(folder).map_err(|error| Error::io("write", folder, error))?;
    let is_saved = folder.join(STATE).is_file() || folder.join(SPLITS).is_file();
    if is_saved || entries.count() == 0 {
        return Ok(());
    }
    Err(Error::argument(
        "folder",
        format!(
            "{} contains other files; choose a new or an empty folder",
            folder.display()
        ),
    ))
}

fn failed(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, source) => Error::io("write", path, source),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Dataset {
        Dataset::builder()
            .column("text", vec![Some("a \"quoted\"\nline"), None, Some("é")])
            .column("ids", vec![vec![1u32, 2], vec![], vec![3]])
            .build()
            .unwrap()
    }

    fn rows(dataset: &Dataset) -> Vec<String> {
        dataset.iter().map(|row| row.to_string()).collect()
    }

    #[test]
    fn every_format_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = sample().shuffle(3).unwrap();
        dataset
            .to_json_lines(folder.path().join("a.jsonl"))
            .unwrap();
        dataset.to_parquet(folder.path().join("a.parquet")).unwrap();
        dataset
            .save_to_disk(folder.path().join("deep/saved"))
            .unwrap();
        for name in ["a.jsonl", "a.parquet", "deep/saved"] {
            let path = folder.path().join(name);
            let back = crate::dataset::load_dataset(path.to_str().unwrap()).unwrap();
            assert_eq!(rows(&back["train"]), rows(&dataset), "{name}");
        }
        let back = Dataset::load_from_disk(folder.path().join("deep/saved")).unwrap();
        assert_eq!(back.fingerprint(), dataset.fingerprint());
        assert_eq!(back.features(), dataset.features());
    }

    #[test]
    fn deep_records_are_read_back_or_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for levels in [1, 20, 57, 58, 59, 60, 61, 62, 100] {
            for (open, close) in [("{\"f\": ", "}"), ("[", "]")] {
                // The number is a level of its own.
                let inner = levels - 1;
                let text = format!("{{\"a\": {}1{}}}", open.repeat(inner), close.repeat(inner));
                std::fs::write(path("in.jsonl"), text).unwrap();
                let dataset = crate::dataset::load_dataset(path("in.jsonl").to_str().unwrap());
                let dataset = dataset.unwrap()["train"].clone();
                let (saved, parquet) = (path("saved"), path("a.parquet"));
                let written = [dataset.save_to_disk(&saved), dataset.to_parquet(&parquet)];
                if levels > 60 {
                    for error in written.map(Result::unwrap_err) {
                        assert!(error.to_string().contains("60 levels"), "{levels}: {error}");
                    }
                    // Those of before.
                    assert_eq!(Dataset::load_from_disk(&saved).unwrap().len(), 1);
                    continue;
                }
                written.into_iter().for_each(Result::unwrap);
                let row = dataset.row(0).unwrap().to_string();
                let loaded = Dataset::load_from_disk(&saved).unwrap();
                assert_eq!(loaded.row(0).unwrap().to_string(), row, "{levels}");
                let loaded = crate::dataset::load_dataset(parquet.to_str().unwrap()).unwrap();
                assert_eq!(loaded["train"].row(0).unwrap().to_string(), row, "{levels}");
            }
        }
    }

    #[test]
    fn a_dict_is_saved_with_its_splits_and_can_overwrite_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dict");
        let dict = DatasetDict::from_iter([("train", sample()), ("test", sample().slice(0..0))]);
        dict.save_to_disk(&path).unwrap();
        let back = load_from_disk(&path).unwrap();
        assert_eq!(back.names(), ["train", "test"]);
        assert_eq!(rows(&back["train"]), rows(&sample()));
        assert!(back["test"].is_empty());
        assert_eq!(back["test"].column_names(), ["text", "ids"]);
        back.each(|dataset| dataset.remove_columns(["ids"]))
            .unwrap()
            .save_to_disk(&path)
            .unwrap();
        assert_eq!(
            load_from_disk(&path).unwrap()["train"].column_names(),
            ["text"]
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing else is left"
        );
        assert!(
            Dataset::load_from_disk(&path)
                .unwrap_err()
                .to_string()
                .contains("train, test")
        );
    }

    #[test]
    fn different_data_with_the_same_state_has_a_different_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        sample().save_to_disk(&a).unwrap();
        let other = sample().select(&[2, 1, 0]).unwrap();
        other.save_to_disk(&b).unwrap();
        let file = "data-00000-of-00001.arrow";
        std::fs::copy(b.join(file), a.join(file)).unwrap();
        let mixed = Dataset::load_from_disk(&a).unwrap();
        assert_eq!(rows(&mixed), rows(&other));
        assert_ne!(mixed.fingerprint(), sample().fingerprint());
        // What another library has saved notes no hash: its rows tell.
        let state = std::fs::read_to_string(b.join(STATE)).unwrap();
        let mut state: serde_json::Value = serde_json::from_str(&state).unwrap();
        state["_data_files"] = json!([{"filename": file}]);
        state["_fingerprint"] = json!("0123456789abcdef");
        std::fs::write(b.join(STATE), state.to_string()).unwrap();
        let foreign = Dataset::load_from_disk(&b).unwrap();
        assert_eq!(foreign.fingerprint(), mixed.fingerprint());
    }

    #[test]
    fn a_crash_between_two_renames_loses_no_dataset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("saved");
        sample().save_to_disk(&path).unwrap();
        std::fs::rename(&path, folder.path().join(".saved.old-aaaaaa")).unwrap();
        let back = Dataset::load_from_disk(&path).unwrap();
        assert_eq!(rows(&back), rows(&sample()));
        std::fs::rename(&path, folder.path().join(".saved.old-aaaaaa")).unwrap();
        let back = crate::dataset::load_dataset(path.to_str().unwrap()).unwrap();
        assert_eq!(rows(&back["train"]), rows(&sample()));
    }

    #[test]
    fn an_unsupported_column_type_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let empty = arrow::array::FixedSizeBinaryArray::try_new_with_len(
            0,
            arrow::buffer::Buffer::from(Vec::<u8>::new()),
            None,
            3,
        );
        let column: arrow::array::ArrayRef = std::sync::Arc::new(empty.unwrap());
        let batch = RecordBatch::try_from_iter([("nothing", column)]).unwrap();
        let dataset = Dataset::from_batches(&batch.schema(), vec![batch]).unwrap();
        let path = folder.path().join("x.parquet");
        let error = dataset.to_parquet(&path).unwrap_err().to_string();
        assert!(error.contains("\"nothing\""), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_with_other_files_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "precious").unwrap();
        let error = sample()
            .save_to_disk(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("contains other files"), "{error}");
        assert!(folder.path().join("thesis.tex").exists());
    }

    #[test]
    fn a_state_file_cannot_point_outside_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = json!({"_data_files": [{"filename": "../secret.arrow"}]});
        std::fs::write(folder.path().join(STATE), state.to_string()).unwrap();
        let error = load_from_disk(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("not the name of a file in this folder"),
            "{error}"
        );
    }
}
