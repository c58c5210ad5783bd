//! Loading datasets from files.

mod arrow;
mod audio;
pub(super) mod card;
mod chunks;
mod csv;
mod document;
mod files;
mod from_row;
#[cfg(feature = "hub")]
mod hub;
mod infer;
mod json;
mod layout;
mod options;
mod parquet;
mod parquet_pages;
mod parquet_schema;
#[cfg(feature = "hub")]
mod remote;
mod shards;
mod source;
mod special;
mod stream;
mod text;
mod thrift;

pub(in crate::dataset) use from_row::ShardBatches;
pub(crate) use layout::Selection;
#[cfg(feature = "hub")]
pub(crate) use layout::{Layout, default_config, plan};
pub(crate) use options::Options;
pub use options::SampleBy;
#[cfg(feature = "hub")]
pub(super) use remote::on_hub;
pub(in crate::dataset) use shards::Shards;
pub use stream::load_dataset_streaming;

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
use crate::base::files::{Temporary, sweep_folders};
use crate::notebook::progress::Progress;
use crate::{Error, Result};

/// The formats that datasets are loaded from.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// // Files whose names don't say what they are.
/// let logs = Loader::new("logs/*.log").format(FileFormat::Text).load()?;
/// let table = Loader::new("table.dat").format(FileFormat::Csv).delimiter(';').load()?;
/// # Ok::<(), cloze::Error>(())
/// ```
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
    /// WAV and FLAC recordings, by their names, joined with `metadata.csv` or `metadata.jsonl`: `audiofolder`.
    Audio,
}

/// Loads a dataset with all its splits: see [`Loader`], whose defaults this uses.
///
/// `path_or_name` is a file, its address (`https://...`; it is fetched once, and again when the server has another), a folder, a pattern such as `data/*.jsonl`, a name that starts with `bundled:`, or
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
/// A single file or a pattern gives the split `train`. In a folder, files and folders with the words train, validation
/// and test (and variants) in their names give those splits; otherwise everything is `train`. Formats are recognised by
/// the files' names.
///
/// JSON takes its types from the values of the whole file, as datasets does from its beginning: whole numbers are
/// `int64`, decimal ones `float64`, a list that is always empty holds nulls. Dates stay text.
///
/// A card (README.md) whose YAML header has the field `configs` determines the splits of a folder or repository;
/// [`Loader::data_files`] takes precedence. If names give no split, the most common format is used, and files such as a
/// licence or a list of requirements are ignored.
///
/// Files that are compressed with gzip, bzip2, xz, zstd or lz4 are unpacked while they are read. Lines of text and JSON
/// may end in `\n`, `\r\n` or `\r`. Fields that a JSON record lacks are null, and so are the last values of a short CSV
/// row; several files of a split must have the same columns, and what differs is brought together with
/// [`concatenate`](super::concatenate).
///
/// How much a small file may become is limited, so that none takes all memory: what is compressed unpacks to 256 times its
/// size or 16 MB, and Parquet and Arrow, in which a run of one value takes next to nothing, unfold to 1,100 times their
/// size or, when that is more, 256 MB (Parquet) and 64 MB (Arrow). A column that says the same in every row opens: some
/// ten million short words, or thirty million numbers, in a Parquet file of a few kilobytes.
///
/// ```
/// use cloze::prelude::*;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("scores.csv");
///
/// std::fs::write(&path, "text;score\na;1\nb;2\n").unwrap();
/// let scores = Loader::new(path.to_str().unwrap()).delimiter(';').cache(false).load()?;
/// assert_eq!(scores["train"].column::<i64>("score")?, [1, 2]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Loader {
    name: String,
    request: Selection,
    field: Option<String>,
    delimiter: Option<char>,
    column_names: Option<Vec<String>>,
    encoding: Option<String>,
    sample_by: Option<SampleBy>,
    cache: Cache,
    memory_limit: usize,
}

impl Loader {
    /// Loads `path_or_name` (see [`load_dataset`]) with the defaults.
    pub fn new(path_or_name: impl AsRef<str>) -> Self {
        Self {
            name: path_or_name.as_ref().to_owned(),
            request: Selection::default(),
            field: None,
            delimiter: None,
            column_names: None,
            encoding: None,
            sample_by: None,
            cache: Cache::default(),
            memory_limit: MEMORY_LIMIT,
        }
    }

    /// Loads the files (or patterns, or folders) `paths` as the one split `train`.
    ///
    /// ```no_run
    /// use cloze::prelude::*;
    /// let dataset = Loader::from_files(["2023.jsonl.gz", "2024/*.jsonl"]).load()?;
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn from_files<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Self {
        Self::new("").data_files("train", paths)
    }

    /// Sets the files of a split; call it once for every split. They are paths, patterns or folders, relative to the
    /// folder or repository that is loaded (or anywhere, if it is a local folder). Only these files are loaded. With
    /// the name of a format ("json", "csv", "text", "parquet", "arrow") in place of a folder, they are relative to the
    /// working folder.
    pub fn data_files<P: AsRef<Path>>(
        mut self,
        split: impl Into<String>,
        paths: impl IntoIterator<Item = P>,
    ) -> Self {
        let split = split.into();
        let paths = paths
            .into_iter()
            .map(|path| path.as_ref().to_string_lossy().into_owned());
        let splits = &mut self.request.data_files;
        match splits.iter_mut().find(|(name, _)| *name == split) {
            Some((_, files)) => files.extend(paths),
            None => splits.push((split, paths.collect())),
        }
        self
    }

    /// Sets the subfolder in which files are looked for.
    pub fn data_dir(mut self, folder: impl Into<String>) -> Self {
        self.request.data_dir = Some(folder.into());
        self
    }

    /// Sets the delimiter of CSV files (default: a comma, or a tab in .tsv files).
    pub fn delimiter(mut self, delimiter: char) -> Self {
        self.delimiter = Some(delimiter);
        self
    }

    /// Sets the names of the columns of CSV files without a header line: their first line is a row then.
    pub fn column_names<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.column_names = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the encoding of text, CSV and JSON files ("latin-1", "cp1252", "utf-16", ...; default UTF-8).
    pub fn encoding(mut self, name: impl Into<String>) -> Self {
        self.encoding = Some(name.into());
        self
    }

    /// Sets the unit that becomes a row of a text file (default: [`SampleBy::Line`]).
    pub fn sample_by(mut self, sample_by: SampleBy) -> Self {
        self.sample_by = Some(sample_by);
        self
    }

    /// Sets the files' format, if their names don't determine it.
    pub fn format(mut self, format: FileFormat) -> Self {
        self.request.format = Some(format);
        self
    }

    /// Sets the field of a JSON document that holds the records, where it has several.
    pub fn field(mut self, name: impl Into<String>) -> Self {
        self.field = Some(name.into());
        self
    }

    /// Sets the configuration of a dataset that has several, by its card or by its folders.
    pub fn config(mut self, name: impl Into<String>) -> Self {
        self.request.config = Some(name.into());
        self
    }

    /// Sets whether large files are kept in the cache in a form that opens at once (default: yes).
    pub fn cache(mut self, enabled: bool) -> Self {
        self.cache.set_enabled(enabled);
        self
    }

    /// Sets the cache's folder (default [`cache_dir`](super::cache_dir)).
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache.set_folder(folder.into());
        self
    }

    /// Sets the size in bytes beyond which rows lie in a memory-mapped file and not in memory (default 256 MiB). Files
    /// of a quarter of that and more are cached.
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
        if let Some(fetched) = self.with_fetched_files()? {
            return fetched.load();
        }
        if let Some(found) = files::named(&self.name, &self.request) {
            return self.load_files(&found?);
        }
        #[cfg(feature = "hub")]
        if let Some(dataset) = remote::on_hub(&self.name, &self.request)? {
            return self.load_from_hub(&dataset);
        }
        let path = files::locate(&self.name)?;
        let is_plain = self.request.data_files.is_empty() && self.request.data_dir.is_none();
        if is_plain && let Some(dict) = super::save::saved(&path)? {
            return Ok(dict);
        }
        self.load_files(&files::find(&self.name, &path, &self.request)?)
    }

    fn load_files(&self, found: &files::Found) -> Result<DatasetDict> {
        found
            .splits
            .iter()
            .map(|(split, paths)| {
                let loaded = self.load_split(found.format, paths, &found.options)?;
                Ok((split.clone(), loaded))
            })
            .collect::<Result<Vec<_>>>()
            .map(DatasetDict::from_iter)
    }

    /// Returns the requested options, or else the card's.
    fn options(&self, card: &Options) -> Result<Options> {
        let mut options = card.clone();
        if let Some(delimiter) = self.delimiter {
            options.set_delimiter(delimiter)?;
        }
        if let Some(encoding) = &self.encoding {
            options.set_encoding(encoding)?;
        }
        options.sample_by = self.sample_by.unwrap_or(options.sample_by);
        options.field = self.field.clone().or(options.field);
        options.column_names = self.column_names.clone().or(options.column_names);
        Ok(options)
    }

    fn load_split(&self, format: FileFormat, paths: &[PathBuf], card: &Options) -> Result<Dataset> {
        let options = self.options(card)?;
        let (content, bytes) = key(format, paths, &options)?;
        let unpacked = match format {
            FileFormat::Parquet | FileFormat::Arrow => self.unpack(paths)?,
            _ => Vec::new(),
        };
        let whole: Vec<PathBuf> = unpacked
            .iter()
            .zip(paths)
            .map(|(unpacked, path)| {
                unpacked
                    .as_ref()
                    .map_or(path.clone(), |file| file.path().to_path_buf())
            })
            .collect();
        let paths = if whole.is_empty() { paths } else { &whole };
        if format == FileFormat::Arrow {
            let known = (bytes > self.memory_limit).then_some(content);
            return arrow::load(paths, known);
        }
        let large = bytes >= self.memory_limit / 4 && format != FileFormat::Audio;
        let key = (large && self.cache.is_enabled()).then_some(content);
        let _turn = key.and_then(|key| self.cache.one_rank_at_a_time(key));
        if let Some(found) = key.and_then(|key| Sink::cached(&self.cache, key)) {
            return Ok(found);
        }
        // Recordings are known by their names, and may become others under these.
        let of_files = match format {
            FileFormat::Audio => Some(content),
            _ => key,
        };
        let mut rows = Rows {
            sink: Sink::new(self.cache.clone(), key, self.memory_limit),
            pieces: of_files.is_none().then(Vec::new),
            progress: Progress::new("Loading", bytes as u64, "bytes"),
        };
        let schema = match format {
            FileFormat::Json => json::load(paths, &options, &mut rows)?,
            FileFormat::Parquet => parquet::load(paths, &mut rows)?,
            FileFormat::Csv => csv::load(
                paths,
                options.delimiter.unwrap_or(b','),
                &options,
                &mut rows,
            )?,
            FileFormat::Tsv => csv::load(
                paths,
                options.delimiter.unwrap_or(b'\t'),
                &options,
                &mut rows,
            )?,
            FileFormat::Text => text::load(paths, &options, &mut rows)?,
            FileFormat::Audio => audio::load(paths, &mut rows)?,
            FileFormat::Arrow => unreachable!("Arrow files are opened as they are"),
        };
        rows.progress.finish();
        let fingerprint = of_files.unwrap_or_else(|| of_pieces(&rows.pieces.unwrap_or_default()));
        let dataset = rows.sink.finish(&schema, fingerprint)?;
        refuse_empty(&dataset, paths)?;
        Ok(dataset)
    }

    /// Decompresses files into temporary files that live as long as the result: these formats need random access.
    fn unpack(&self, paths: &[PathBuf]) -> Result<Vec<Option<Temporary>>> {
        let unpack = |path: &PathBuf| {
            let (mut source, is_packed) = source::unpacked(path)?;
            if !is_packed {
                return Ok(None);
            }
            let folder = self.cache.folder();
            let io = |error| Error::io("write", &folder, error);
            std::fs::create_dir_all(&folder).map_err(io)?;
            sweep_folders(&folder, ".");
            let name = path.file_name().unwrap_or_default();
            let whole = Temporary::beside(&folder.join(name))?;
            let mut file = std::fs::File::create(whole.path()).map_err(io)?;
            std::io::copy(&mut source, &mut file)
                .map_err(|error| Error::io("read", path, error))?;
            Ok(Some(whole))
        };
        paths.iter().map(unpack).collect()
    }
}

/// Returns the key of the files' current content, and their size. Hashing large files would cost as much as a good part
/// of loading them, so their paths, sizes and times of change are used. The inode change time detects a file that was
/// replaced by another with the same name, size and date.
fn key(format: FileFormat, paths: &[PathBuf], options: &Options) -> Result<(Fingerprint, usize)> {
    let mut hashing = Hashing::new("files");
    hashing.part(format!("{format:?} {options:?}").as_bytes());
    let mut bytes = 0;
    for path in paths {
        let io = |error| Error::io("read", path, error);
        let metadata = path.metadata().map_err(io)?;
        let changed = metadata.modified().map_err(io)?;
        let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        let real = path.canonicalize().map_err(io)?;
        hashing.part(real.as_os_str().as_encoded_bytes());
        hashing.part(&metadata.len().to_le_bytes());
        hashing.part(&changed.as_nanos().to_le_bytes());
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            for number in [
                metadata.ctime(),
                metadata.ctime_nsec(),
                metadata.ino() as i64,
            ] {
                hashing.part(&number.to_le_bytes());
            }
        }
        bytes += metadata.len() as usize;
    }
    Ok((hashing.finish(), bytes))
}

/// The destination of the rows that the readers of formats produce.
struct Rows {
    sink: Sink,
    /// The fingerprints of the batches, where they make that of the dataset.
    pieces: Option<Vec<Fingerprint>>,
    progress: Progress,
}

impl Rows {
    /// Reads every item on several threads and keeps the batches in the items' order. `read` reports how many bytes of
    /// the files it processed.
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
                1 => "the file has no rows".to_owned(),
                files => format!(
                    "this file and the {} others of its split have no rows",
                    files - 1
                ),
            },
        )),
        _ => Ok(()),
    }
}

/// Merges the schemas of files: all must have the columns of the first, in types that can represent all their values.
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
            message.push_str("; load them separately and combine them with concatenate");
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
