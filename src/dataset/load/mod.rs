//! Loading datasets from files.

mod arrow;
mod chunks;
mod csv;
mod document;
mod files;
mod infer;
mod json;
mod parquet;
#[cfg(feature = "hub")]
mod remote;
mod text;

#[cfg(feature = "hub")]
pub(crate) use files::by_split;
#[cfg(feature = "hub")]
pub(super) use remote::on_hub;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use ::arrow::array::RecordBatch;
use ::arrow::datatypes::{Field, Schema, SchemaRef};

use super::cache::Cache;
use super::data_type::{common, type_name};
use super::dict::DatasetDict;
use super::fingerprint::{Fingerprint, Hashing};
use super::parallel;
use super::sink::{MEMORY_LIMIT, Sink, of_pieces};
use super::table::{Dataset, check_unique};
use crate::progress::Progress;
use crate::{Error, Result};

/// The formats that datasets are loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FileFormat {
    /// JSON lines (one object per line), or one JSON document: an array of objects, or an object with such an array.
    Json,
    /// Parquet.
    Parquet,
    /// Arrow IPC, as a file or as a stream.
    Arrow,
    /// Comma-separated values with a header line.
    Csv,
    /// Tab-separated values with a header line.
    Tsv,
    /// Plain text: every line is a row of the column `text`.
    Text,
}

/// Loads a dataset with all its splits: see [`Loader`], whose defaults this uses.
///
/// `path_or_name` is a file, a folder, a pattern such as `data/*.jsonl`, a name that starts with `bundled:`, or
/// `owner/name` on the Hub, whose files are downloaded unless the cache has them. Of a dataset on the Hub its Parquet
/// form is taken, or else its own files; [`Loader::config`] chooses a configuration, [`Loader::part`] a part of it.
///
/// ```no_run
/// use cloze::prelude::*;
/// let dataset = load_dataset("questions.jsonl")?.split("train[:10%]")?;
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn load_dataset(path_or_name: impl AsRef<str>) -> Result<DatasetDict> {
    Loader::new(path_or_name).load()
}

/// How a dataset is loaded. Mirrors the arguments of `datasets.load_dataset`.
///
/// A single file or a pattern gives the one split `train`. In a folder, files and folders with the words train,
/// validation and test (and their kin) in their names give splits of those names; otherwise all is `train`. Formats
/// are known by the files' names.
///
/// JSON takes its types from the values of the whole file, as the reference does from its beginning: whole numbers are
/// `int64`, decimal ones `float64`, a list that is always empty holds nulls. Dates stay text.
#[derive(Clone, Debug)]
pub struct Loader {
    name: String,
    format: Option<FileFormat>,
    field: Option<String>,
    config: Option<String>,
    cache: Cache,
    memory_limit: usize,
}

/// What the readers of formats need to know.
struct Options {
    /// The field of a JSON document that holds the records.
    field: Option<String>,
}

impl Loader {
    /// Loads `path_or_name` (see [`load_dataset`]) with the defaults.
    pub fn new(path_or_name: impl AsRef<str>) -> Self {
        Self {
            name: path_or_name.as_ref().to_owned(),
            format: None,
            field: None,
            config: None,
            cache: Cache::default(),
            memory_limit: MEMORY_LIMIT,
        }
    }

    /// The files' format, where their names don't tell.
    pub fn format(mut self, format: FileFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// The field of a JSON document that holds the records, where it has several.
    pub fn field(mut self, name: impl Into<String>) -> Self {
        self.field = Some(name.into());
        self
    }

    /// The configuration of a dataset on the Hub that has several.
    pub fn config(mut self, name: impl Into<String>) -> Self {
        self.config = Some(name.into());
        self
    }

    /// Whether large files are kept in the cache in a form that opens at once (default: yes).
    pub fn cache(mut self, enabled: bool) -> Self {
        self.cache.set_enabled(enabled);
        self
    }

    /// The cache's folder (default [`cache_dir`](super::cache_dir)).
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache.set_folder(folder.into());
        self
    }

    /// The size in bytes beyond which rows lie in a memory-mapped file and not in memory (default 256 MiB). Files of a
    /// quarter of that and more are cached.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Loads all splits.
    ///
    /// # Errors
    /// Nothing found under the name; a malformed file, with its line where there is one; files whose columns don't
    /// agree; no rows at all.
    pub fn load(&self) -> Result<DatasetDict> {
        #[cfg(feature = "hub")]
        if let Some(dataset) = remote::on_hub(&self.name, self.config.as_deref())? {
            return self.load_from_hub(&dataset);
        }
        let path = files::locate(&self.name)?;
        if let Some(dict) = super::save::saved(&path)? {
            return Ok(dict);
        }
        self.load_files(&files::find(&self.name, &path, self.format)?)
    }

    fn load_files(&self, found: &files::Found) -> Result<DatasetDict> {
        found
            .splits
            .iter()
            .map(|(split, paths)| Ok((split.clone(), self.load_split(found.format, paths)?)))
            .collect::<Result<Vec<_>>>()
            .map(DatasetDict::from_iter)
    }

    fn load_split(&self, format: FileFormat, paths: &[PathBuf]) -> Result<Dataset> {
        let options = Options {
            field: self.field.clone(),
        };
        let (key, bytes) = self.key(format, paths)?;
        if format == FileFormat::Arrow {
            let known = (bytes > self.memory_limit).then_some(key);
            return arrow::load(paths, known);
        }
        let key = (bytes >= self.memory_limit / 4 && self.cache.is_enabled()).then_some(key);
        if let Some(found) = key.and_then(|key| Sink::cached(&self.cache, key)) {
            return Ok(found);
        }
        let mut rows = Rows {
            sink: Sink::new(self.cache.clone(), key, self.memory_limit),
            pieces: key.is_none().then(Vec::new),
            progress: Progress::new("Loading", bytes as u64, "bytes"),
        };
        let schema = match format {
            FileFormat::Json => json::load(paths, &options, &mut rows)?,
            FileFormat::Parquet => parquet::load(paths, &mut rows)?,
            FileFormat::Csv => csv::load(paths, b',', &mut rows)?,
            FileFormat::Tsv => csv::load(paths, b'\t', &mut rows)?,
            FileFormat::Text => text::load(paths, &mut rows)?,
            FileFormat::Arrow => unreachable!("Arrow files are opened as they are"),
        };
        rows.progress.finish();
        let fingerprint = key.unwrap_or_else(|| of_pieces(&rows.pieces.unwrap_or_default()));
        let dataset = rows.sink.finish(&schema, fingerprint)?;
        refuse_empty(&dataset, paths)?;
        Ok(dataset)
    }

    /// What the files' present content is known by, and their size. Reading large files to know them would cost as much
    /// as a good part of loading them: their path, size and time of change must do.
    fn key(&self, format: FileFormat, paths: &[PathBuf]) -> Result<(Fingerprint, usize)> {
        let mut hashing = Hashing::new("files");
        hashing.part(format!("{format:?}").as_bytes());
        hashing.part(self.field.as_deref().unwrap_or_default().as_bytes());
        let mut bytes = 0;
        for path in paths {
            let io = |error| Error::io("read", path, error);
            let metadata = path.metadata().map_err(io)?;
            let changed = metadata.modified().map_err(io)?;
            let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
            hashing.part(
                path.canonicalize()
                    .map_err(io)?
                    .as_os_str()
                    .as_encoded_bytes(),
            );
            hashing.part(&metadata.len().to_le_bytes());
            hashing.part(&changed.as_nanos().to_le_bytes());
            bytes += metadata.len() as usize;
        }
        Ok((hashing.finish(), bytes))
    }
}

/// Where the readers of formats put what they read.
struct Rows {
    sink: Sink,
    /// The fingerprints of the batches, where they make that of the dataset.
    pieces: Option<Vec<Fingerprint>>,
    progress: Progress,
}

impl Rows {
    /// Reads every item on several threads and keeps the batches in the items' order. `read` says how many bytes of the
    /// files it dealt with.
    fn fill<T: Send>(
        &mut self,
        items: impl Iterator<Item = Result<T>>,
        read: impl Fn(T) -> Result<(Vec<RecordBatch>, usize)> + Sync,
    ) -> Result<()> {
        let hash = self.pieces.is_some();
        parallel::ordered(
            "loading a dataset",
            parallel::default_threads(),
            items,
            |item| {
                let (batches, bytes) = read(item)?;
                let piece = match batches.first().filter(|_| hash) {
                    Some(first) => Some(Fingerprint::of_batches(&first.schema(), &batches)?),
                    None => None,
                };
                Ok((batches, piece, bytes))
            },
            |(batches, piece, bytes)| {
                if let (Some(pieces), Some(piece)) = (&mut self.pieces, piece) {
                    pieces.push(piece);
                }
                for batch in batches {
                    self.sink.write(batch)?;
                }
                self.progress.inc(bytes as u64);
                Ok(())
            },
        )
    }
}

fn refuse_empty(dataset: &Dataset, paths: &[PathBuf]) -> Result<()> {
    match paths {
        [first, ..] if dataset.is_empty() => Err(Error::format(
            first,
            match paths.len() {
                1 => "the file holds no rows".to_owned(),
                files => format!(
                    "this file and the {} others of its split hold no rows",
                    files - 1
                ),
            },
        )),
        _ => Ok(()),
    }
}

/// The schema for files with these schemas: the columns of the first one, which all must have, in types that hold all
/// their values.
fn agree(schemas: &[(&Path, SchemaRef)]) -> Result<SchemaRef> {
    let Some(((first_path, first), rest)) = schemas.split_first() else {
        return Ok(Arc::new(Schema::empty()));
    };
    check_unique(first)?;
    let mut fields: Vec<Field> = first
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .collect();
    for (path, schema) in rest {
        check_unique(schema)?;
        let names = |schema: &Schema, other: &Schema| {
            let only = schema
                .fields()
                .iter()
                .filter(|field| other.field_with_name(field.name()).is_err());
            only.map(|field| format!("{:?}", field.name()))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (extra, missing) = (names(schema, first), names(first, schema));
        if !extra.is_empty() || !missing.is_empty() {
            let mut message = format!("its columns differ from those of {}:", first_path.display());
            if !extra.is_empty() {
                message.push_str(&format!(" {extra} only here"));
            }
            if !missing.is_empty() {
                let and = if extra.is_empty() { "" } else { ", and" };
                message.push_str(&format!("{and} {missing} only there"));
            }
            message.push_str("; load them apart and bring them together with concatenate");
            return Err(Error::format(path, message));
        }
        for field in &mut fields {
            let other = schema.field_with_name(field.name())?;
            let data_type = common(field.data_type(), other.data_type()).ok_or_else(|| {
                Error::format(
                    path,
                    format!(
                        "column {:?} is {} here and {} in {}",
                        field.name(),
                        type_name(other.data_type()),
                        type_name(field.data_type()),
                        first_path.display()
                    ),
                )
            })?;
            *field = Field::new(field.name(), data_type, true);
        }
    }
    Ok(Arc::new(Schema::new(fields)))
}
