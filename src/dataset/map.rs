//! A function on all rows, batch by batch, on all cores, with its results kept for the next time.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;

use super::batch::Batch;
use super::cache::Cache;
use super::fingerprint::Fingerprint;
use super::parallel;
use super::parts;
use super::sink::{MEMORY_LIMIT, Sink, of_pieces};
use super::table::Dataset;
use crate::distributed::{Group, share};
use crate::notebook::progress::Progress;
use crate::{Error, Result};

/// The rows that an interrupted map was processing.
const DOING: &str = "mapping a dataset";

/// A function from a batch of rows to new columns, as [`Dataset::map`] calls it.
///
/// Closures `|batch: &Batch| -> Result<Batch>` implement it. A type whose result depends only on its content (a
/// tokenizer, say) returns a fingerprint of that content, so that results can be found in the cache.
///
/// ```
/// use cloze::prelude::*;
///
/// /// Truncates texts to this many characters.
/// struct Cut(usize);
///
/// impl BatchFunction for Cut {
///     fn call(&self, batch: &Batch) -> cloze::Result<Batch> {
///         let cut = batch.strings("text")?.into_iter().map(|text| text.chars().take(self.0).collect::<String>());
///         Batch::new().with_column("text", cut.collect::<Vec<_>>())
///     }
///
///     fn fingerprint(&self) -> Option<String> {
///         Some(format!("cut to {}", self.0))
///     }
/// }
///
/// let texts = Dataset::builder().column("text", vec!["galaxy", "sun"]).build()?;
/// let cut = texts.map(Map::new(Cut(4)).batched())?;
/// assert_eq!(cut.column::<String>("text")?, ["gala", "sun"]);
/// # Ok::<(), cloze::Error>(())
/// ```
pub trait BatchFunction: Send + Sync {
    /// Returns the columns that `batch` gives: new ones, and replacements of those of the same name.
    fn call(&self, batch: &Batch) -> Result<Batch>;

    /// Text that differs whenever the function would give other results. `None`: unknown, so nothing is cached.
    fn fingerprint(&self) -> Option<String> {
        None
    }
}

impl<F: Fn(&Batch) -> Result<Batch> + Send + Sync> BatchFunction for F {
    fn call(&self, batch: &Batch) -> Result<Batch> {
        self(batch)
    }
}

/// The arguments of [`Dataset::map`]: a function and how it is called. Mirrors the arguments of `datasets.Dataset.map`.
///
/// ```
/// use cloze::prelude::*;
///
/// fn shout(batch: &Batch) -> Result<Batch> {
///     let texts: Vec<String> = batch.strings("text")?.iter().map(|text| text.to_uppercase()).collect();
///     Batch::new().with_column("loud", texts)
/// }
///
/// let dataset = Dataset::builder().column("text", vec!["a", "b"]).build()?;
/// let mapped = dataset.map(Map::new(shout).batched().num_proc(2).remove_columns(["text"]))?;
/// assert_eq!(mapped.column::<String>("loud")?, ["A", "B"]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone)]
pub struct Map {
    function: Arc<dyn BatchFunction>,
    batched: bool,
    batch_size: usize,
    num_proc: Option<usize>,
    remove_columns: Vec<String>,
    remove_all: bool,
    fingerprint: Option<String>,
    description: String,
    cache: Cache,
    memory_limit: usize,
    by_ranks: bool,
}

impl Map {
    /// Calls `function` on one row at a time (a batch of one row); see [`Map::batched`] for many at once.
    pub fn new(function: impl BatchFunction + 'static) -> Self {
        Self {
            function: Arc::new(function),
            batched: false,
            batch_size: 1000,
            num_proc: None,
            remove_columns: Vec::new(),
            remove_all: false,
            fingerprint: None,
            description: "Map".to_owned(),
            cache: Cache::default(),
            memory_limit: MEMORY_LIMIT,
            by_ranks: false,
        }
    }

    /// Like [`Map::new`], with a function that is also given the numbers of the batch's rows in the dataset, counted from 0
    /// (`with_indices=True` in Python).
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder().column("text", vec!["a", "b", "c"]).build()?;
    /// let numbered = dataset.map(
    ///     Map::with_indices(|_, indices| Batch::new().with_column("id", indices.map(|i| i as i64).collect::<Vec<_>>()))
    ///         .batched(),
    /// )?;
    /// assert_eq!(numbered.column::<i64>("id")?, [0, 1, 2]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn with_indices(
        function: impl Fn(&Batch, Range<usize>) -> Result<Batch> + Send + Sync + 'static,
    ) -> Self {
        Self::new(move |batch: &Batch| function(batch, batch.rows()))
    }

    /// Calls the function on batches of [`Map::batch_size`] rows. It may then give another number of rows than it got.
    pub fn batched(mut self) -> Self {
        self.batched = true;
        self
    }

    /// Sets the number of rows in a batch (default 1000; the last batch may be smaller).
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets the number of threads (default: one per core). The result does not depend on it.
    pub fn num_proc(mut self, num_proc: usize) -> Self {
        self.num_proc = Some(num_proc);
        self
    }

    /// Columns of the input that the result lacks. They are removed before the function's columns are added, so that a
    /// new column may have such a name.
    pub fn remove_columns<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.remove_columns = names.into_iter().map(Into::into).collect();
        self
    }

    /// Like [`remove_columns`](Self::remove_columns), with all columns of the input: only those stay that the function gives.
    pub fn remove_all_columns(mut self) -> Self {
        self.remove_all = true;
        self
    }

    /// Names the function, so that its results are cached. Change the name whenever the function (or anything that it
    /// uses) changes: the cache knows it only by this name.
    pub fn fingerprint(mut self, name: impl Into<String>) -> Self {
        self.fingerprint = Some(name.into());
        self
    }

    /// Sets the label of the progress bar (default "Map").
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Sets whether a result may come from the cache and go there (default: yes, where the function has a fingerprint).
    pub fn cache(mut self, enabled: bool) -> Self {
        self.cache.set_enabled(enabled);
        self
    }

    /// Sets the cache's folder (default [`cache_dir`](super::cache_dir)).
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache.set_folder(folder.into());
        self
    }

    /// Sets the size in bytes above which a result is stored in a memory-mapped file instead of memory (default 256
    /// MiB).
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Makes each of several ranks (see [`crate::distributed`]) process its part of the rows, into a separate file in
    /// the cache; otherwise one rank processes everything while the others wait. All ranks must call `map` and share
    /// the cache's folder, and the function must have a fingerprint. The result does not depend on the number of ranks.
    pub fn by_ranks(mut self) -> Self {
        self.by_ranks = true;
        self
    }

    pub(crate) fn with_cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Rows per call of the function.
    pub(super) fn rows_per_call(&self) -> usize {
        if self.batched { self.batch_size } else { 1 }
    }

    pub(super) fn key(&self, input: Fingerprint) -> Option<Fingerprint> {
        let function = self
            .fingerprint
            .clone()
            .or_else(|| self.function.fingerprint())?;
        let removed = match self.remove_all {
            // No column's name.
            true => "\0all".to_owned(),
            false => self.remove_columns.join("\0"),
        };
        let rows = self.rows_per_call().to_le_bytes();
        Some(input.derive("map", &[function.as_bytes(), &rows, removed.as_bytes()]))
    }

    /// Returns the result for the rows of `batch`, which start at row `start` of the dataset. After each call of the
    /// function, `done` receives the number of rows it took.
    pub(super) fn apply(
        &self,
        batch: &RecordBatch,
        start: usize,
        done: impl Fn(usize) -> Result<()>,
    ) -> Result<RecordBatch> {
        let size = self.rows_per_call().min(batch.num_rows().max(1));
        let mut results = Vec::with_capacity(batch.num_rows().div_ceil(size));
        let mut offset = 0;
        loop {
            let rows = size.min(batch.num_rows() - offset);
            results.push(self.call(&batch.slice(offset, rows), start + offset)?);
            done(rows)?;
            offset += rows;
            if offset >= batch.num_rows() {
                break;
            }
        }
        if results.len() == 1 {
            return Ok(results.swap_remove(0));
        }
        // One call's nulls may be another's numbers.
        let mut sink = Sink::new(Cache::default(), None, usize::MAX);
        for result in results {
            sink.write(result)?;
        }
        let schema = batch.schema();
        let whole = sink.finish(&schema, of_pieces(&[]))?;
        Ok(concat_batches(whole.schema(), whole.batches())?)
    }

    fn call(&self, batch: &RecordBatch, start: usize) -> Result<RecordBatch> {
        let rows = start..start + batch.num_rows();
        let input = Batch::from_record_batch(batch, start);
        let output = self.function.call(&input).map_err(|error| match error {
            Error::Interrupted(doing) => Error::Interrupted(doing),
            error => user_error(&rows, error),
        })?;
        let removed = |name: &String| self.remove_all || self.remove_columns.contains(name);
        let mut result = Batch::new();
        for (name, column) in input.columns().filter(|(name, _)| !removed(name)) {
            result = result.with_column(name, column.clone())?;
        }
        for (name, column) in output.columns() {
            // A function may hand on the whole batch that it got: what was to be removed still is.
            let handed_on = input
                .array(name)
                .is_ok_and(|mine| Arc::ptr_eq(mine, column));
            if handed_on && removed(name) {
                continue;
            }
            let kept: Vec<String> = result.column_names().to_vec();
            result = result.with_column(name, column.clone()).map_err(|_| {
                let message = format!(
                    "the function gave {} rows in column {name:?} for {} rows, but the columns {} are unchanged; name them in remove_columns if the function changes the number of rows",
                    column.len(),
                    rows.len(),
                    kept.join(", ")
                );
                user_error(&rows, Error::Dataset(message))
            })?;
        }
        if result.column_names().is_empty() && !input.column_names().is_empty() {
            let message = "the function gave a batch without columns, and remove_columns leaves none of the input's: \
                           nothing would be left of these rows. Give at least one column; one without values drops the rows";
            return Err(user_error(&rows, Error::Dataset(message.to_owned())));
        }
        result.to_record_batch()
    }
}

fn user_error(rows: &Range<usize>, error: Error) -> Error {
    Error::User {
        context: format!("map, rows {}..{}", rows.start, rows.end),
        source: Box::new(error),
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("batched", &self.batched)
            .field("batch_size", &self.batch_size)
            .field("num_proc", &self.num_proc)
            .field("remove_columns", &self.remove_columns)
            .field(
                "fingerprint",
                &self
                    .fingerprint
                    .clone()
                    .or_else(|| self.function.fingerprint()),
            )
            .finish_non_exhaustive()
    }
}

impl Dataset {
    /// Returns the dataset with the columns that a function makes of its rows, batch by batch, in order, on several
    /// threads.
    ///
    /// Columns of the input stay unless [`Map::remove_columns`] names them or the function gives new ones of the same
    /// name. The result is the same for any number of threads. Where the function has a fingerprint, the result is kept
    /// in the cache and found there the next time for the same input and arguments; large results lie in
    /// memory-mapped files. Mirrors `datasets.Dataset.map`.
    ///
    /// # Errors
    /// Errors of the function, with the rows it was called on; columns to remove that do not exist.
    pub fn map(&self, map: impl Into<Map>) -> Result<Self> {
        Ok(self.mapped(map.into())?.with_origin(self.origin()))
    }

    fn mapped(&self, map: Map) -> Result<Self> {
        for name in &map.remove_columns {
            self.position(name)?;
        }
        if map.rows_per_call() == 0 {
            return Err(Error::argument("batch_size", "must be at least 1"));
        }
        if map.num_proc == Some(0) {
            return Err(Error::argument("num_proc", "must be at least 1"));
        }
        let key = map.key(self.content());
        if let Some(key) = key.filter(|_| map.by_ranks && !self.is_empty()) {
            if let Some(found) = parts::cached(&map.cache, key) {
                return Ok(found);
            }
            let ranks = Group::current()?;
            if ranks.size() > 1 {
                return parts::make(&map.cache, key, &ranks, |part| {
                    self.mapped_rows(&map, Some(part), ranks.rank(), ranks.size())
                });
            }
        }
        let _turn = key.and_then(|key| map.cache.one_rank_at_a_time(key));
        if let Some(found) = key.and_then(|key| Sink::cached(&map.cache, key)) {
            return Ok(found);
        }
        self.mapped_rows(&map, key, 0, 1)
    }

    /// Returns the rows of one rank of several, known as `key`.
    fn mapped_rows(
        &self,
        map: &Map,
        key: Option<Fingerprint>,
        rank: usize,
        ranks: usize,
    ) -> Result<Self> {
        let mut sink = Sink::new(map.cache.clone(), key, map.memory_limit);
        let mut pieces = Vec::new();
        if self.is_empty() {
            // The function says which columns there are.
            let batch = map.apply(&self.gather(0..0)?, 0, |_| Ok(()))?;
            sink.set_schema(batch.schema());
        }
        // Small batches are handled several at a time, so that the pieces of the result are not small.
        let rows_at_once = map.rows_per_call() * (1000 / map.rows_per_call()).max(1);
        let chunks: Vec<_> = self.chunks(rows_at_once).collect();
        let own = chunks[share(chunks.len(), rank, ranks)].to_vec();
        let rows: usize = own.iter().map(ExactSizeIterator::len).sum();
        let progress = Progress::new(&map.description, rows as u64, "rows");
        parallel::ordered_until(
            DOING,
            map.num_proc.unwrap_or_else(parallel::default_threads),
            own.into_iter().map(Ok),
            |range, stopped| {
                let start = range.start;
                let result = map.apply(&self.gather(range)?, start, |rows| {
                    progress.inc(rows as u64);
                    match stopped.load(Ordering::Relaxed) {
                        true => Err(Error::Interrupted(DOING.to_owned())),
                        false => Ok(()),
                    }
                })?;
                let piece = match key {
                    Some(_) => None,
                    None => Some(Fingerprint::of_batches(
                        &result.schema(),
                        std::slice::from_ref(&result),
                    )?),
                };
                Ok((result, piece))
            },
            |(result, piece)| {
                pieces.extend(piece);
                sink.write(result)
            },
        )?;
        progress.finish();
        sink.finish(self.schema(), key.unwrap_or_else(|| of_pieces(&pieces)))
    }
}
