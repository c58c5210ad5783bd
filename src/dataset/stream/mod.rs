//! Datasets that are read as they are used.

mod lane;

use std::fmt;
use std::sync::Arc;

pub(crate) use self::lane::{Lane, Position};
use super::column_type::ColumnType;
use super::concatenate::concatenate;
use super::group_texts::GroupTexts;
use super::load::Shards;
use super::map::Map;
use super::row::Row;
use super::table::{Dataset, Rows};
use crate::base::interrupt;
use crate::{Error, Result};

/// The rows that are worked on at once, unless a larger batch or buffer is asked for.
const SECTION: usize = 1000;

/// In how many lanes a training reads, unless another number is set.
const LANES: usize = 8;

/// A dataset that is read as it is used, for data that do not fit in memory or on the disk a second time, like
/// `datasets.IterableDataset`. Cheap to clone; [`Loader::stream`](super::Loader::stream) opens one.
///
/// [`map`](Self::map), [`group_texts`](Self::group_texts), [`shuffle`](Self::shuffle) and the others do nothing by themselves:
/// they are done to some rows at a time (a *section*: 1000 rows, or as many as the largest batch or buffer asks for, but not
/// more than 32 MB) when these are read. Nothing is cached.
///
/// The files are divided into shards: a row group of Parquet, up to 32 MB of a plain file of lines, or a compressed
/// file. Training reads them in [`lanes`](Self::lanes), a batch of each in turn, in an order that depends only on the
/// files, the seed and the epoch, and resumes where it stopped.
///
/// ```
/// use cloze::prelude::*;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("texts.jsonl");
/// # std::fs::write(&path, "{\"text\": \"one two\"}\n{\"text\": \"three\"}\n").unwrap();
/// # let path = path.to_str().unwrap();
/// let stream = load_dataset_streaming(path, "train")?.map(Map::rows(|row| {
///     let words = row["text"].as_str().unwrap_or_default().split(' ').count();
///     Ok(row.clone().with("words", words as i64))
/// }))?;
/// let counts: Vec<i64> = stream.iter().map(|row| Ok(row?["words"].as_i64().unwrap_or(0))).collect::<Result<_>>()?;
/// assert_eq!(counts, [2, 1]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone)]
pub struct IterableDataset {
    shards: Arc<Shards>,
    steps: Vec<Step>,
    lanes: usize,
    epoch: u64,
    origin: Option<Arc<str>>,
}

/// Transforms rows.
type Change = dyn Fn(&Dataset) -> Result<Dataset> + Send + Sync;

/// The operations on the rows, section by section.
#[derive(Clone)]
enum Step {
    Map(Map),
    /// The steps that process rows one by one, by name.
    Table(&'static str, Arc<Change>),
    Shuffle {
        seed: u64,
        buffer_size: usize,
    },
    Take(usize),
    Skip(usize),
}

impl IterableDataset {
    pub(super) fn new(shards: Shards, origin: Option<&str>) -> Self {
        Self {
            shards: Arc::new(shards),
            steps: Vec::new(),
            lanes: LANES,
            epoch: 0,
            origin: origin.map(Arc::from),
        }
    }

    fn with(&self, step: Step) -> Self {
        let mut next = self.clone();
        next.steps.push(step);
        next
    }

    fn table(
        &self,
        name: &'static str,
        function: impl Fn(&Dataset) -> Result<Dataset> + Send + Sync + 'static,
    ) -> Self {
        self.with(Step::Table(name, Arc::new(function)))
    }

    /// Returns the stream with the columns that a function makes of its rows: see [`Dataset::map`]. The settings of threads and
    /// of the cache have no effect. Row numbers that the function is given count from the section's first row.
    ///
    /// # Errors
    /// A batch size of 0. Errors of the function, and columns to remove that do not exist, are returned when the rows
    /// are read.
    pub fn map(&self, map: impl Into<Map>) -> Result<Self> {
        let map = map.into();
        if map.rows_per_call() == 0 {
            return Err(Error::argument("batch_size", "must be at least 1"));
        }
        Ok(self.with(Step::Map(map)))
    }

    /// Returns the stream with every nested record as a column for each of its fields: see [`Dataset::flatten`].
    pub fn flatten(&self) -> Result<Self> {
        Ok(self.table("flatten", Dataset::flatten))
    }

    /// Returns the stream with texts joined and cut into blocks: see [`Dataset::group_texts`]. With
    /// [`GroupTexts::whole_dataset`], the texts of a section are joined.
    ///
    /// # Errors
    /// If the block size is 0 or above [`GroupTexts::max_length`]; when rows are read, if a column contains no lists.
    pub fn group_texts(&self, group: impl Into<GroupTexts>) -> Result<Self> {
        let group = group.into();
        group.check_sizes()?;
        let map = group.for_stream();
        let checked = self.table("group_texts", move |rows| {
            group.check_columns(rows)?;
            Ok(rows.clone())
        });
        checked.map(map)
    }

    /// Returns the stream of the rows for which `keep` is true.
    pub fn filter(&self, keep: impl Fn(&Row) -> bool + Send + Sync + 'static) -> Self {
        self.table("filter", move |rows| {
            let kept = (0..rows.len()).map(|row| Ok((row, keep(&rows.row(row)?))));
            let kept: Vec<(usize, bool)> = kept.collect::<Result<_>>()?;
            let kept: Vec<usize> = kept
                .into_iter()
                .filter_map(|(row, kept)| kept.then_some(row))
                .collect();
            rows.select(&kept)
        })
    }

    /// Returns the stream without the columns `names`.
    pub fn remove_columns<S: Into<String>>(&self, names: impl IntoIterator<Item = S>) -> Self {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        self.table("remove_columns", move |rows| rows.remove_columns(&names))
    }

    /// Returns the stream with only the columns `names`, in that order.
    pub fn select_columns<S: Into<String>>(&self, names: impl IntoIterator<Item = S>) -> Self {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        self.table("select_columns", move |rows| rows.select_columns(&names))
    }

    /// Returns the stream with the column `old` named `new`.
    pub fn rename_column(&self, old: impl Into<String>, new: impl Into<String>) -> Self {
        let (old, new) = (old.into(), new.into());
        self.table("rename_column", move |rows| rows.rename_column(&old, &new))
    }

    /// Returns the stream with the column `name` in another type: see [`Dataset::cast_column`].
    pub fn cast_column(&self, name: impl Into<String>, to: impl Into<ColumnType>) -> Self {
        let (name, to) = (name.into(), to.into());
        self.table("cast_column", move |rows| {
            rows.cast_column(&name, to.clone())
        })
    }

    /// Returns the stream in an order that `seed` and the epoch decide: the shards in a random order, and the rows that are in
    /// memory at once, at least `buffer_size` of them where the shards have as many, among each other. Every row comes once an
    /// epoch.
    ///
    /// Unlike in Python the buffer is emptied before it is filled again, so that iteration can resume at any row. A
    /// buffer holds up to 32 MB of rows; in a training each lane has one.
    pub fn shuffle(&self, seed: u64, buffer_size: usize) -> Self {
        self.with(Step::Shuffle { seed, buffer_size })
    }

    /// Returns the first `rows` rows of the stream, in its current order. Rows after a `take` or a `skip` are read in
    /// one lane.
    pub fn take(&self, rows: usize) -> Self {
        self.with(Step::Take(rows))
    }

    /// Returns the stream without its first `rows` rows, in its current order; skipped rows are read nevertheless.
    /// `stream.take(1000)` and `stream.skip(1000)` give a part for evaluation and one for training.
    pub fn skip(&self, rows: usize) -> Self {
        self.with(Step::Skip(rows))
    }

    /// Sets the number of lanes in which a training reads (default 8; never more than there are shards). Each lane has
    /// its share of the shards, batches come from each in turn, and a rank reads only the lanes of its batches: of N
    /// ranks that divide the lanes (and the batches of a step), an N-th of the data.
    ///
    /// The order of the batches follows from this number, and not from that of the ranks. A lane that is through begins its
    /// next epoch.
    ///
    /// # Errors
    /// For 0.
    pub fn lanes(mut self, lanes: usize) -> Result<Self> {
        if lanes == 0 {
            return Err(Error::argument("lanes", "there must be at least 1"));
        }
        self.lanes = lanes;
        Ok(self)
    }

    /// Sets the epoch (default 0) whose order [`iter`](Self::iter) has and a training begins with.
    #[must_use]
    pub fn set_epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Returns the number of shards.
    pub fn num_shards(&self) -> usize {
        self.shards.len()
    }

    /// Returns the name on the Hub of the dataset that is read.
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// Reads the rows of an epoch, one after the other.
    pub fn iter(&self) -> StreamRows {
        StreamRows {
            lane: Lane::new(self, 0, 1, None),
            rows: None,
        }
    }

    /// Reads the rows of an epoch into memory: of a part, such as `stream.take(1000)`, that is evaluated on.
    ///
    /// # Errors
    /// When the stream has no rows, and what reading them can come to.
    pub fn to_dataset(&self) -> Result<Dataset> {
        let mut lane = Lane::new(self, 0, 1, None);
        let mut parts = Vec::new();
        while let Some((_, rows)) = lane.next_section()? {
            interrupt::check("reading a stream")?;
            if !rows.is_empty() {
                parts.push(rows);
            }
        }
        if parts.is_empty() {
            return Err(Error::Dataset("the stream has no rows".to_owned()));
        }
        let whole = concatenate(&parts)?;
        Ok(
            Dataset::from_batches(whole.schema(), vec![whole.gather(0..whole.len())?])?
                .with_origin(self.origin()),
        )
    }

    /// Returns in how many lanes a training reads this stream.
    pub(crate) fn training_lanes(&self) -> usize {
        match self.counting().next() {
            None => self.lanes.min(self.shards.len()).max(1),
            // Which rows are the first ones only one who reads them all knows.
            Some(_) => 1,
        }
    }

    /// Describes what the order of the batches depends on, as far as it can be described: files, lanes, and operations.
    pub(crate) fn identity(&self) -> String {
        let (epoch, lanes) = (self.epoch, self.training_lanes() as u64);
        let files = self.shards.fingerprint();
        let mut content = files.derive("stream", &[&epoch.to_le_bytes(), &lanes.to_le_bytes()]);
        for step in &self.steps {
            content = match step {
                // Closures can't be told apart.
                Step::Map(map) => map.key(content).unwrap_or(content),
                other => content.derive("step", &[format!("{other:?}").as_bytes()]),
            };
        }
        content.to_hex()
    }

    /// Returns the steps that count the rows that come to them.
    fn counting(&self) -> impl Iterator<Item = &Step> {
        let counts = |step: &&Step| matches!(step, Step::Take(_) | Step::Skip(_));
        self.steps.iter().filter(counts)
    }

    /// Returns how many rows are read at once.
    fn section(&self) -> usize {
        let mut rows = SECTION;
        let mut multiple = 1;
        for step in &self.steps {
            match step {
                // The whole section is one batch.
                Step::Map(map) if map.rows_per_call() == usize::MAX => {}
                Step::Map(map) => {
                    rows = rows.max(map.rows_per_call());
                    // Batches of the first one are full wherever sections begin.
                    if multiple == 1 {
                        multiple = map.rows_per_call();
                    }
                }
                Step::Shuffle { buffer_size, .. } => rows = rows.max(*buffer_size),
                _ => {}
            }
        }
        rows.checked_next_multiple_of(multiple).unwrap_or(rows)
    }

    /// Returns the seed of the order of the shards, if they have one.
    fn seed(&self) -> Option<u64> {
        self.steps.iter().find_map(|step| match step {
            Step::Shuffle { seed, .. } => Some(*seed),
            _ => None,
        })
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(map) => map.fmt(f),
            Self::Table(name, _) => f.write_str(name),
            Self::Shuffle { seed, buffer_size } => write!(f, "shuffle({seed}, {buffer_size})"),
            Self::Take(rows) => write!(f, "take({rows})"),
            Self::Skip(rows) => write!(f, "skip({rows})"),
        }
    }
}

impl fmt::Debug for IterableDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = match self.steps.is_empty() {
            true => {
                let fields = self.shards.schema().fields().iter();
                let names: Vec<String> =
                    fields.map(|field| format!("'{}'", field.name())).collect();
                format!("[{}]", names.join(", "))
            }
            false => "Unknown".to_owned(),
        };
        write!(
            f,
            "IterableDataset({{\n    features: {columns},\n    num_shards: {}\n}})",
            self.num_shards()
        )
    }
}

impl fmt::Display for IterableDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The rows of an [`IterableDataset`] as they are read; none follow an error.
pub struct StreamRows {
    lane: Lane,
    rows: Option<Rows>,
}

impl Iterator for StreamRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                return Some(Ok(row));
            }
            let section =
                interrupt::check("reading a stream").and_then(|()| self.lane.next_section());
            match section {
                Ok(section) => self.rows = Some(section?.1.iter()),
                Err(error) => {
                    self.lane.end();
                    return Some(Err(error));
                }
            }
        }
    }
}

impl IntoIterator for &IterableDataset {
    type Item = Result<Row>;
    type IntoIter = StreamRows;

    fn into_iter(self) -> StreamRows {
        self.iter()
    }
}
