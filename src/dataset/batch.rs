//! Some rows of a dataset as columns: the input and output of a batched function.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema};

use super::cast::cast_array;
use super::column::{FromColumn, IntoColumn, ReadError, read_column, read_str};
use super::data_type::{plain, type_name};
use super::row::Row;
use crate::{Error, Result};

/// Columns of equal length, by name: a range of a dataset's rows, or the result of a function. Cheap to clone.
///
/// ```
/// use cloze::prelude::*;
///
/// let batch = Batch::new().with_column("text", vec!["a b", "c"])?.with_column("score", vec![3, 1])?;
/// assert_eq!(batch.strings("text")?, ["a b", "c"]);
/// assert_eq!(batch.column::<i32>("score")?, [3, 1]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Batch {
    names: Vec<String>,
    columns: Vec<ArrayRef>,
    len: usize,
    start: usize,
}

impl Batch {
    /// Returns a batch without columns, to be filled by [`Batch::with_column`].
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn from_record_batch(batch: &RecordBatch, start: usize) -> Self {
        let schema = batch.schema_ref();
        Self {
            names: schema.fields().iter().map(|f| f.name().clone()).collect(),
            columns: batch.columns().to_vec(),
            len: batch.num_rows(),
            start,
        }
    }

    /// Returns the columns as an Arrow record batch.
    pub fn to_record_batch(&self) -> Result<RecordBatch> {
        let fields: Vec<Field> = self
            .names
            .iter()
            .zip(&self.columns)
            .map(|(name, column)| Field::new(name, column.data_type().clone(), true))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.len));
        Ok(RecordBatch::try_new_with_options(
            Arc::new(Schema::new(fields)),
            self.columns.clone(),
            &options,
        )?)
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns which rows of the dataset these are (for a batch that a function was given).
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Returns the columns' names, in order.
    pub fn column_names(&self) -> &[String] {
        &self.names
    }

    /// Returns whether there is a column `name`.
    pub fn has_column(&self, name: &str) -> bool {
        self.names.iter().any(|column| column == name)
    }

    /// Returns the column `name` as an Arrow array, without copying.
    pub fn array(&self, name: &str) -> Result<&ArrayRef> {
        let position = self.names.iter().position(|column| column == name);
        position
            .map(|position| &self.columns[position])
            .ok_or_else(|| Error::MissingColumn {
                name: name.to_owned(),
                available: self.names.clone(),
            })
    }

    /// Returns the values of the column `name`: `batch.column::<Vec<String>>("answers.text")?`.
    pub fn column<T: FromColumn>(&self, name: &str) -> Result<Vec<T>> {
        read_column(name, self.array(name)?, self.start)
    }

    /// Returns the texts of the string column `name`, without copying.
    pub fn strings(&self, name: &str) -> Result<Vec<&str>> {
        let array = self.array(name)?;
        read_str(array).map_err(|error| self.string_error(name, error))
    }

    fn string_error(&self, name: &str, error: ReadError) -> Error {
        let array = &self.columns[self.names.iter().position(|n| n == name).unwrap_or(0)];
        Error::ColumnType {
            name: name.to_owned(),
            operation: "reading its texts".to_owned(),
            expected: "string".to_owned(),
            found: match error {
                ReadError::Null(row) | ReadError::Overflow(row) => format!(
                    "no value in row {} (read it as column::<Option<String>>, or filter such rows out)",
                    self.start + row
                ),
                ReadError::Type => type_name(array.data_type()),
            },
        }
    }

    /// This batch with the column `name` added, or replaced if there is one.
    pub fn with_column(mut self, name: impl Into<String>, values: impl IntoColumn) -> Result<Self> {
        let name = name.into();
        let column = values.into_column();
        let column = cast_array(&column, &plain(column.data_type()))?;
        let replaced = self.names.iter().position(|other| *other == name);
        let others = self.names.len() - usize::from(replaced.is_some());
        if others > 0 && column.len() != self.len {
            return Err(Error::Dataset(format!(
                "column {name:?} has {} rows where the batch's other columns have {}; a function that changes the \
                 number of rows gives a new batch with only the new columns",
                column.len(),
                self.len
            )));
        }
        self.len = column.len();
        match replaced {
            Some(position) => self.columns[position] = column,
            None => {
                self.names.push(name);
                self.columns.push(column);
            }
        }
        Ok(self)
    }

    /// This batch without the column `name`.
    pub fn without_column(mut self, name: &str) -> Result<Self> {
        self.array(name)?;
        let position = self.names.iter().position(|column| column == name);
        if let Some(position) = position {
            self.names.remove(position);
            self.columns.remove(position);
        }
        Ok(self)
    }

    /// Returns row `index` of the batch, counted from 0, as a nested record.
    pub fn row(&self, index: usize) -> Result<Row> {
        if index >= self.len {
            return Err(Error::argument(
                "row",
                format!(
                    "there is no row {index}: the batch has {} rows, counted from 0",
                    self.len
                ),
            ));
        }
        Ok(Row::of_batch(&self.to_record_batch()?, index))
    }

    pub(crate) fn columns(&self) -> impl Iterator<Item = (&String, &ArrayRef)> {
        self.names.iter().zip(&self.columns)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.names.iter().map(|name| format!("'{name}'")).collect();
        write!(
            f,
            "Batch({{\n    features: [{}],\n    num_rows: {}\n}})",
            names.join(", "),
            self.len
        )
    }
}
