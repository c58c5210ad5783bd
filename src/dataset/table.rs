//! The [`Dataset`] itself: record batches, the rows of them that count, and how to look at them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{concat_batches, interleave_record_batch};
use arrow::datatypes::{Schema, SchemaRef};

use super::batch::Batch;
use super::builder::DatasetBuilder;
use super::cast::cast_batch;
use super::column::{FromColumn, read_column};
use super::data_type::{plain_schema, type_name};
use super::fingerprint::Fingerprint;
use super::row::Row;
use crate::{Error, Result};

/// A table of nested records, cheap to clone: the rows are shared, in memory or in a memory-mapped file.
///
/// Operations return a new dataset and leave this one unchanged. Mirrors `datasets.Dataset`.
///
/// ```
/// use cloze::prelude::*;
///
/// let dataset = Dataset::builder()
///     .column("title", vec!["Why is the sky blue?", "Why do cats purr?"])
///     .column("score", vec![5i64, 3])
///     .build()?;
/// assert_eq!(dataset.len(), 2);
/// assert_eq!(dataset.row(0)?["title"].as_str(), Some("Why is the sky blue?"));
/// assert_eq!(dataset.column::<i64>("score")?, [5, 3]);
/// let good = dataset.filter(|row| row["score"].as_i64() > Some(4))?;
/// assert_eq!(good.len(), 1);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone)]
pub struct Dataset {
    schema: SchemaRef,
    batches: Arc<[RecordBatch]>,
    /// The first row of every batch, and at the end the number of rows in all of them.
    starts: Arc<[usize]>,
    /// The rows that count and their order, where that is not simply all of them.
    indices: Option<Arc<[usize]>>,
    fingerprint: Fingerprint,
    /// The name on the Hub of the dataset that the rows were made from.
    origin: Option<Arc<str>>,
}

impl Dataset {
    /// Returns a builder that takes columns one by one.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder()
    ///     .column("text", vec!["a", "b"])
    ///     .column("ids", vec![vec![1, 2], vec![3]])
    ///     .build()?;
    /// assert_eq!(dataset.len(), 2);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn builder() -> DatasetBuilder {
        DatasetBuilder::default()
    }

    /// Returns a dataset of Arrow record batches, which must all fit `schema`.
    ///
    /// Large, view and dictionary types become their plain forms (`LargeUtf8` → `Utf8`); schema metadata is dropped.
    pub fn from_batches(schema: &Schema, batches: Vec<RecordBatch>) -> Result<Self> {
        let schema = plain_schema(schema);
        check_unique(&schema)?;
        let batches = batches
            .iter()
            .map(|batch| cast_batch(batch, &schema))
            .collect::<Result<Vec<_>, _>>()?;
        let fingerprint = Fingerprint::of_batches(&schema, &batches)?;
        Ok(Self::from_parts(schema, batches, fingerprint))
    }

    /// Batches that already have the plain `schema`.
    pub(crate) fn from_parts(
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
        fingerprint: Fingerprint,
    ) -> Self {
        let batches: Arc<[RecordBatch]> =
            batches.into_iter().filter(|b| b.num_rows() > 0).collect();
        let mut starts = Vec::with_capacity(batches.len() + 1);
        let mut end = 0;
        starts.push(0);
        for batch in batches.iter() {
            end += batch.num_rows();
            starts.push(end);
        }
        Self {
            schema,
            batches,
            starts: starts.into(),
            indices: None,
            fingerprint,
            origin: None,
        }
    }

    /// Returns the name on the Hub of the dataset that these rows come from; `None` for your own data. Operations in
    /// memory keep it, and a model card names it.
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// Returns the same rows, known to come from `origin`.
    pub(crate) fn with_origin(mut self, origin: Option<&str>) -> Self {
        self.origin = origin.map(Arc::from);
        self
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        match &self.indices {
            Some(indices) => indices.len(),
            None => self.starts[self.batches.len()],
        }
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the columns' names, in order.
    pub fn column_names(&self) -> Vec<String> {
        self.schema
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect()
    }

    /// Returns the columns' names and types (see [`type_name`]), in order.
    pub fn features(&self) -> Vec<(String, String)> {
        self.schema
            .fields()
            .iter()
            .map(|field| (field.name().clone(), type_name(field.data_type())))
            .collect()
    }

    /// Returns the Arrow schema.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns 64 hexadecimal digits: datasets with equal fingerprints have equal rows.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.to_hex()
    }

    /// Returns row `index`, counted from 0, as a nested record.
    pub fn row(&self, index: usize) -> Result<Row> {
        let len = self.len();
        if index >= len {
            return Err(Error::argument(
                "row",
                format!("there is no row {index}: the dataset has {len} rows, counted from 0"),
            ));
        }
        let physical = self.indices.as_ref().map_or(index, |rows| rows[index]);
        let (batch, row) = self.locate(physical);
        Ok(Row::of_batch(&self.batches[batch], row))
    }

    /// Returns the rows one after the other, as nested records.
    pub fn iter(&self) -> Rows {
        Rows {
            rows: 0..self.len(),
            dataset: self.clone(),
        }
    }

    /// Returns all values of a column: `dataset.column::<String>("title")?`, `column::<Vec<u32>>("input_ids")`.
    ///
    /// Numbers convert to any type that holds them. A null is an error unless the type is an `Option`.
    pub fn column<T: FromColumn>(&self, name: &str) -> Result<Vec<T>> {
        let position = self.position(name)?;
        let only = self.project(&[position]);
        let mut values = Vec::with_capacity(self.len());
        for range in only.natural_chunks() {
            let start = range.start;
            let batch = only.gather(range)?;
            values.extend(read_column(name, batch.column(0), start)?);
        }
        if values.is_empty() {
            // The type is checked even where there is no value to read.
            read_column::<T>(name, only.gather(0..0)?.column(0), 0)?;
        }
        Ok(values)
    }

    /// Returns the rows of `range` as one batch of columns; without copying where they lie together.
    pub fn batch(&self, range: Range<usize>) -> Result<Batch> {
        let len = self.len();
        if range.start > range.end || range.end > len {
            return Err(Error::argument(
                "range",
                format!("{range:?} is outside the dataset's {len} rows"),
            ));
        }
        let start = range.start;
        Ok(Batch::from_record_batch(&self.gather(range)?, start))
    }

    /// Returns the rows at `indices`, in that order and with repetition, as one batch of columns.
    pub fn take(&self, indices: &[usize]) -> Result<Batch> {
        let selected = self.select(indices)?;
        selected.batch(0..selected.len())
    }

    /// Returns the rows as Arrow record batches of at most `size` rows.
    pub fn record_batches(&self, size: usize) -> Result<Vec<RecordBatch>> {
        if size == 0 {
            return Err(Error::argument("size", "must be at least 1"));
        }
        self.chunks(size).map(|range| self.gather(range)).collect()
    }

    /// Returns all batches, including those without selected rows.
    pub(crate) fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    /// Returns the rows of [`Dataset::batches`] that count, if not all of them do.
    pub(crate) fn indices(&self) -> Option<&[usize]> {
        self.indices.as_deref()
    }

    pub(crate) fn content(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn with_content(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    /// Returns the position of the column `name`.
    pub(crate) fn position(&self, name: &str) -> Result<usize> {
        self.schema
            .fields()
            .iter()
            .position(|field| field.name() == name)
            .ok_or_else(|| Error::MissingColumn {
                name: name.to_owned(),
                available: self.column_names(),
            })
    }

    /// Returns the columns at `positions`; the fingerprint is the caller's business.
    pub(crate) fn project(&self, positions: &[usize]) -> Self {
        let fields = positions
            .iter()
            .map(|&position| self.schema.field(position).clone())
            .collect::<Vec<_>>();
        let schema = Arc::new(Schema::new(fields));
        self.with_columns(schema, |batch| {
            positions
                .iter()
                .map(|&position| batch.column(position).clone())
                .collect()
        })
    }

    /// Returns the same rows with other columns, made batch by batch without changing the number of rows.
    pub(crate) fn with_columns(
        &self,
        schema: SchemaRef,
        columns: impl Fn(&RecordBatch) -> Vec<ArrayRef>,
    ) -> Self {
        let batches = self
            .batches
            .iter()
            .map(|batch| {
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                RecordBatch::try_new_with_options(schema.clone(), columns(batch), &options)
                    .expect("columns made from a batch's own columns fit it")
            })
            .collect();
        Self {
            schema,
            batches,
            ..self.clone()
        }
    }

    /// Returns the same batches with only the rows `indices` (of the batches, not of this view) selected.
    pub(crate) fn with_indices(&self, indices: Arc<[usize]>, fingerprint: Fingerprint) -> Self {
        Self {
            indices: Some(indices),
            fingerprint,
            ..self.clone()
        }
    }

    /// Returns the batch that holds a row, and the row's place in it.
    pub(crate) fn locate(&self, row: usize) -> (usize, usize) {
        let batch = self.starts.partition_point(|&start| start <= row) - 1;
        (batch, row - self.starts[batch])
    }

    /// Ranges of `size` rows that cover the dataset (the last one may be shorter).
    pub(crate) fn chunks(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = self.len();
        (0..len)
            .step_by(size)
            .map(move |start| start..len.min(start + size))
    }

    /// Ranges that cover the dataset in the pieces that cost least to gather.
    pub(crate) fn natural_chunks(&self) -> Vec<Range<usize>> {
        match self.indices {
            Some(_) => self.chunks(8192).collect(),
            None => self
                .starts
                .windows(2)
                .map(|pair| pair[0]..pair[1])
                .collect(),
        }
    }

    /// Returns the rows of `range`, which is within the dataset.
    pub(crate) fn gather(&self, range: Range<usize>) -> Result<RecordBatch> {
        if range.is_empty() {
            return Ok(RecordBatch::new_empty(self.schema.clone()));
        }
        if self.schema.fields().is_empty() {
            let options = RecordBatchOptions::new().with_row_count(Some(range.len()));
            return Ok(RecordBatch::try_new_with_options(
                self.schema.clone(),
                vec![],
                &options,
            )?);
        }
        let Some(indices) = &self.indices else {
            return self.gather_consecutive(range);
        };
        let indices = &indices[range];
        if indices.windows(2).all(|pair| pair[1] == pair[0] + 1) {
            return self.gather_consecutive(indices[0]..indices[indices.len() - 1] + 1);
        }
        // Only the batches that are touched take part: their number, not the table's, sets the cost.
        let mut used: Vec<usize> = Vec::new();
        let mut slot = vec![usize::MAX; self.batches.len()];
        let places: Vec<(usize, usize)> = indices
            .iter()
            .map(|&row| {
                let (batch, row) = self.locate(row);
                if slot[batch] == usize::MAX {
                    slot[batch] = used.len();
                    used.push(batch);
                }
                (slot[batch], row)
            })
            .collect();
        let batches: Vec<&RecordBatch> = used.iter().map(|&batch| &self.batches[batch]).collect();
        Ok(interleave_record_batch(&batches, &places)?)
    }

    fn gather_consecutive(&self, range: Range<usize>) -> Result<RecordBatch> {
        let (first, offset) = self.locate(range.start);
        let first_rows = self.batches[first].num_rows() - offset;
        if range.len() <= first_rows {
            return Ok(self.batches[first].slice(offset, range.len()));
        }
        let mut parts = vec![self.batches[first].slice(offset, first_rows)];
        let mut missing = range.len() - first_rows;
        for batch in &self.batches[first + 1..] {
            let rows = missing.min(batch.num_rows());
            parts.push(batch.slice(0, rows));
            missing -= rows;
            if missing == 0 {
                break;
            }
        }
        Ok(concat_batches(&self.schema, &parts)?)
    }
}

/// Two columns of one name would make every look-up ambiguous.
pub(crate) fn check_unique(schema: &Schema) -> Result<()> {
    let mut names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::Dataset(format!(
            "there would be two columns named {:?}; rename or remove one of them first",
            pair[0]
        ))),
        None => Ok(()),
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self
            .schema
            .fields()
            .iter()
            .map(|field| format!("'{}'", field.name()))
            .collect();
        write!(
            f,
            "Dataset({{\n    features: [{}],\n    num_rows: {}\n}})",
            names.join(", "),
            self.len()
        )
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The rows of a [`Dataset`], one after the other; owns its (shared) dataset.
#[derive(Clone, Debug)]
pub struct Rows {
    dataset: Dataset,
    rows: Range<usize>,
}

impl Iterator for Rows {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        let row = self.rows.next()?;
        self.dataset.row(row).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rows.size_hint()
    }
}

impl ExactSizeIterator for Rows {}

impl IntoIterator for &Dataset {
    type Item = Row;
    type IntoIter = Rows;

    fn into_iter(self) -> Rows {
        self.iter()
    }
}

impl IntoIterator for Dataset {
    type Item = Row;
    type IntoIter = Rows;

    fn into_iter(self) -> Rows {
        self.iter()
    }
}
