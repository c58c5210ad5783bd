//! From records back to columns, and functions on single records.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, NullArray, StringArray,
    StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields};

use super::batch::Batch;
use super::cast::cast_array;
use super::data_type::{common, list_of, type_name};
use super::map::{BatchFunction, Map};
use super::row::{Row, Value};
use super::table::Dataset;
use crate::{Error, Result};

impl Dataset {
    /// Returns a dataset of records. A field that a record does not have is null there; whole numbers become `int64`,
    /// decimal ones `float64`.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::from_rows([
    ///     Row::new().with("text", "a").with("scores", vec![1, 2]),
    ///     Row::new().with("text", "b"),
    /// ])?;
    /// assert_eq!(dataset.column::<Option<Vec<i64>>>("scores")?, [Some(vec![1, 2]), None]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn from_rows(rows: impl IntoIterator<Item = Row>) -> Result<Self> {
        let rows: Vec<Row> = rows.into_iter().collect();
        let batch = columns_of(&rows, None)?.to_record_batch()?;
        Self::from_batches(&batch.schema(), vec![batch])
    }
}

impl Map {
    /// Calls `function` on each record: it returns the fields to add or to replace.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder().column("text", vec!["one", "three"]).build()?;
    /// let measured = dataset.map(Map::rows(|row| {
    ///     Ok(Row::new().with("length", row["text"].as_str().map_or(0, str::len) as i64))
    /// }))?;
    /// assert_eq!(measured.column::<i64>("length")?, [3, 5]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn rows(function: impl Fn(&Row) -> Result<Row> + Send + Sync + 'static) -> Self {
        Self::rows_with_indices(move |row, _| function(row))
    }

    /// Like [`Map::rows`], with a function that is also given the number of the row in the dataset, counted from 0
    /// (`with_indices=True` in Python).
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder().column("text", vec!["a", "b"]).build()?;
    /// let numbered = dataset.map(Map::rows_with_indices(|_, index| Ok(Row::new().with("id", index as i64))))?;
    /// assert_eq!(numbered.column::<i64>("id")?, [0, 1]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn rows_with_indices(
        function: impl Fn(&Row, usize) -> Result<Row> + Send + Sync + 'static,
    ) -> Self {
        Self::new(RowFunction(function)).batched()
    }
}

struct RowFunction<F>(F);

impl<F: Fn(&Row, usize) -> Result<Row> + Send + Sync> BatchFunction for RowFunction<F> {
    fn call(&self, batch: &Batch) -> Result<Batch> {
        let columns = batch.to_record_batch()?;
        let rows = (0..batch.len())
            .map(|row| {
                let index = batch.rows().start + row;
                (self.0)(&Row::of_batch(&columns, row), index).map_err(|error| Error::User {
                    context: format!("row {index}"),
                    source: Box::new(error),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        columns_of(&rows, Some(batch))
    }
}

/// Returns the records as columns. A column that `like` has too keeps its type, if its values fit.
fn columns_of(rows: &[Row], like: Option<&Batch>) -> Result<Batch> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        for (position, name) in row.names().enumerate() {
            // Mostly all records have the same fields in the same order.
            if names.get(position) != Some(&name) && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let mut batch = Batch::new();
    for name in names {
        let values: Vec<&Value> = rows
            .iter()
            .map(|row| row.get(name).unwrap_or(&Value::Null))
            .collect();
        let data_type = type_of(name, &values)?;
        let mut column = build(&values, &data_type);
        if let Some(known) = like.and_then(|like| like.array(name).ok())
            && let Ok(fitting) = cast_array(&column, known.data_type())
        {
            column = fitting;
        }
        batch = batch.with_column(name, column)?;
    }
    Ok(batch)
}

fn type_of(name: &str, values: &[&Value]) -> Result<DataType> {
    let mut all = DataType::Null;
    for value in values {
        let data_type = match value {
            Value::Null => continue,
            Value::Bool(_) => DataType::Boolean,
            Value::Int(_) => DataType::Int64,
            Value::Float(_) => DataType::Float64,
            Value::String(_) => DataType::Utf8,
            Value::List(items) => list_of(type_of(name, &items.iter().collect::<Vec<_>>())?),
            Value::Record(row) => {
                let fields = row
                    .fields()
                    .iter()
                    .map(|(name, value)| Ok(Field::new(name, type_of(name, &[value])?, true)))
                    .collect::<Result<Vec<_>>>()?;
                DataType::Struct(Fields::from(fields))
            }
        };
        all = common(&all, &data_type).ok_or_else(|| Error::ColumnType {
            name: name.to_owned(),
            operation: "making it of records".to_owned(),
            expected: format!("{} as in the records before", type_name(&all)),
            found: type_name(&data_type),
        })?;
    }
    Ok(all)
}

/// Returns the values as an array of `data_type`, which is that of [`type_of`] them.
fn build(values: &[&Value], data_type: &DataType) -> ArrayRef {
    match data_type {
        DataType::Boolean => Arc::new(
            values
                .iter()
                .map(|value| value.as_bool())
                .collect::<BooleanArray>(),
        ),
        DataType::Int64 => Arc::new(
            values
                .iter()
                .map(|value| value.as_i64())
                .collect::<Int64Array>(),
        ),
        DataType::Float64 => Arc::new(
            values
                .iter()
                .map(|value| value.as_f64())
                .collect::<Float64Array>(),
        ),
        DataType::Utf8 => Arc::new(
            values
                .iter()
                .map(|value| value.as_str())
                .collect::<StringArray>(),
        ),
        DataType::List(item) => {
            let lists: Vec<&[Value]> = values
                .iter()
                .map(|value| value.as_list().unwrap_or_default())
                .collect();
            let items: Vec<&Value> = lists.iter().copied().flatten().collect();
            let offsets = OffsetBuffer::from_lengths(lists.iter().map(|list| list.len()));
            Arc::new(ListArray::new(
                item.clone(),
                offsets,
                build(&items, item.data_type()),
                nulls(values),
            ))
        }
        DataType::Struct(fields) => {
            let columns = fields
                .iter()
                .map(|field| {
                    let inner: Vec<&Value> = values
                        .iter()
                        .map(|value| {
                            value
                                .as_record()
                                .and_then(|row| row.get(field.name()).ok())
                                .unwrap_or(&Value::Null)
                        })
                        .collect();
                    build(&inner, field.data_type())
                })
                .collect();
            match StructArray::try_new_with_length(
                fields.clone(),
                columns,
                nulls(values),
                values.len(),
            ) {
                Ok(array) => Arc::new(array),
                Err(_) => Arc::new(NullArray::new(values.len())),
            }
        }
        _ => Arc::new(NullArray::new(values.len())),
    }
}

fn nulls(values: &[&Value]) -> Option<NullBuffer> {
    values.iter().any(|value| value.is_null()).then(|| {
        values
            .iter()
            .map(|value| !value.is_null())
            .collect::<Vec<_>>()
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let rows = [
            Row::new()
                .with("a", 1)
                .with("b", vec![Row::new().with("x", 1.5).with("y", "t")])
                .with("c", true),
            Row::new()
                .with("a", Value::Null)
                .with("b", Vec::<Row>::new())
                .with("c", false),
            Row::new()
                .with("a", 3)
                .with("b", Value::Null)
                .with("c", Value::Null),
        ];
        let dataset = Dataset::from_rows(rows.clone()).unwrap();
        assert_eq!(dataset.iter().collect::<Vec<_>>(), rows);
        let mixed =
            Dataset::from_rows([Row::new().with("a", 1), Row::new().with("a", "x")]).unwrap_err();
        assert!(mixed.to_string().contains("\"a\" holds string"), "{mixed}");
    }

    #[test]
    fn a_function_on_records_keeps_the_types_of_unchanged_columns() {
        let dataset = Dataset::builder()
            .column("n", (0..2500).collect::<Vec<i32>>())
            .column("ids", vec![Vec::<u8>::new(); 2500])
            .build()
            .unwrap();
        let add_half = Map::rows(|row| {
            let n = row["n"].as_f64().unwrap_or_default();
            Ok(row.clone().with("half", n / 2.0))
        });
        let mapped = dataset.map(add_half).unwrap();
        let features: Vec<String> = mapped
            .features()
            .into_iter()
            .map(|(_, data_type)| data_type)
            .collect();
        assert_eq!(features, ["int32", "list<uint8>", "float64"]);
        assert_eq!(mapped.column::<f64>("half").unwrap()[2499], 1249.5);
        let failing = Map::rows(|row| match row["n"].as_i64() {
            Some(1234) => Err(Error::Dataset("not this".to_owned())),
            _ => Ok(Row::new()),
        });
        let error = dataset.map(failing).unwrap_err().to_string();
        assert_eq!(error, "map, rows 1000..2000: row 1234: not this");
    }
}
