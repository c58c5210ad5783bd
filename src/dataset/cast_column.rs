//! Other types for columns, as `datasets` casts: what would change a value is refused.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use arrow::error::ArrowError;

use super::batch::Batch;
use super::cast::{cast_leaves, strict_cast};
use super::column_type::ColumnType;
use super::data_type::type_name;
use super::map::Map;
use super::table::Dataset;
use crate::{Error, Result};

impl Dataset {
    /// Casts the column `name` to another type: `dataset.cast_column("label", "int32")?`. Mirrors
    /// `datasets.Dataset.cast_column`.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder().column("stars", vec!["4", "5"]).build()?;
    /// let cast = dataset.cast_column("stars", "int64")?;
    /// assert_eq!(cast.column::<i64>("stars")?, [4, 5]);
    /// assert!(dataset.cast_column("stars", "list<int64>").is_err());
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the column does not exist, or the type can't represent a value; the error names the row.
    pub fn cast_column(&self, name: &str, to: impl Into<ColumnType>) -> Result<Self> {
        self.position(name)?;
        self.cast_columns(vec![(name.to_owned(), to.into())])
    }

    /// Casts all columns to the given types: `dataset.cast([("id", "int32"), ("text", "string")])?`. Mirrors
    /// `datasets.Dataset.cast`, which requires all columns, too.
    ///
    /// # Errors
    /// Like [`Dataset::cast_column`]; other names than those of the columns.
    pub fn cast<N: AsRef<str>, T: Into<ColumnType>>(
        &self,
        features: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self> {
        let features: Vec<(String, ColumnType)> = features
            .into_iter()
            .map(|(name, to)| (name.as_ref().to_owned(), to.into()))
            .collect();
        let mut given: Vec<&str> = features.iter().map(|(name, _)| name.as_str()).collect();
        let names = self.column_names();
        let mut own: Vec<&str> = names.iter().map(String::as_str).collect();
        given.sort_unstable();
        own.sort_unstable();
        if given != own {
            return Err(Error::argument(
                "features",
                format!(
                    "give a type for each of the columns {}; given were {}. cast_column changes a single column",
                    own.join(", "),
                    given.join(", ")
                ),
            ));
        }
        self.cast_columns(features)
    }

    fn cast_columns(&self, to: Vec<(String, ColumnType)>) -> Result<Self> {
        let mut types: HashMap<String, DataType> = HashMap::new();
        for (name, to) in to {
            let to = to.resolve()?;
            if *self.schema().field(self.position(&name)?).data_type() != to {
                types.insert(name, to);
            }
        }
        if types.is_empty() {
            return Ok(self.clone());
        }
        let mut named: Vec<String> = types
            .iter()
            .map(|(name, to)| format!("{name}\0{to}"))
            .collect();
        named.sort_unstable();
        let work = move |batch: &Batch| {
            let mut cast = Batch::new();
            for (name, to) in &types {
                let column = convert(name, batch.array(name)?, to, batch.rows().start)?;
                cast = cast.with_column(name, column)?;
            }
            Ok(cast)
        };
        let map = Map::new(work)
            .batched()
            .description("Casting")
            .cache(false)
            .fingerprint(format!("cast\0{}", named.join("\0")));
        self.map(map).map_err(|error| match error {
            // The row says more than the rows that were cast together.
            Error::User { source, .. } => match source.downcast::<Error>() {
                Ok(inner) => *inner,
                Err(source) => Error::Dataset(source.to_string()),
            },
            error => error,
        })
    }
}

/// Returns whether values are nested alike on both sides: lists of lists, records of the same fields.
fn same_nesting(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (DataType::List(from), DataType::List(to)) => {
            same_nesting(from.data_type(), to.data_type())
        }
        (DataType::Struct(from), DataType::Struct(to)) => {
            from.len() == to.len()
                && from.iter().all(|field| {
                    let other = to.find(field.name());
                    other.is_some_and(|(_, other)| {
                        same_nesting(field.data_type(), other.data_type())
                    })
                })
        }
        // A column of nothing but nulls may become anything.
        (from, to) => from.is_null() || from.is_nested() == to.is_nested(),
    }
}

fn convert(name: &str, column: &ArrayRef, to: &DataType, start: usize) -> Result<ArrayRef> {
    if !same_nesting(column.data_type(), to) {
        return Err(Error::ColumnType {
            name: name.to_owned(),
            operation: format!("casting to {}", type_name(to)),
            expected:
                "values that are nested in the same way: lists of lists, records of the same fields"
                    .to_owned(),
            found: type_name(column.data_type()),
        });
    }
    let converted = |array: &ArrayRef| cast_leaves(array, to, &exact);
    converted(column).map_err(|error| {
        let rows = 0..column.len();
        let mut failing = rows.filter_map(|row| {
            let error = converted(&column.slice(row, 1)).err()?;
            Some((row, error))
        });
        let (row, error) = failing
            .next()
            .map_or((None, error), |(row, error)| (Some(row), error));
        let place = row.map_or(String::new(), |row| format!(" in row {}", start + row));
        let reason = match error {
            ArrowError::CastError(text) | ArrowError::InvalidArgumentError(text) => text,
            error => error.to_string(),
        };
        Error::ColumnType {
            name: name.to_owned(),
            operation: format!("casting to {}", type_name(to)),
            expected: "values that the type can represent".to_owned(),
            found: format!("{}{place} ({reason})", type_name(column.data_type())),
        }
    })
}

/// Casts single values; one that would change is an error.
fn exact(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let from = array.data_type();
    match to {
        to if from.is_floating() && to.is_integer() => {
            let values = cast(array, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            if let Some(value) = values.iter().flatten().find(|value| value.fract() != 0.0) {
                let message = format!("{value} is not a whole number");
                return Err(ArrowError::CastError(message));
            }
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 if from.is_integer() => {
            let most = match to {
                DataType::Float16 => 1u64 << 11,
                DataType::Float32 => 1 << 24,
                _ => 1 << 53,
            };
            let beyond = |value: u64| {
                let message = format!(
                    "{value} has more digits than {} can represent",
                    type_name(to)
                );
                Err(ArrowError::CastError(message))
            };
            let magnitudes: Box<dyn Iterator<Item = u64>> = match from {
                DataType::UInt64 => Box::new(array.as_primitive::<UInt64Type>().iter().flatten()),
                _ => {
                    let wide = cast(array, &DataType::Int64)?;
                    let values: Vec<i64> =
                        wide.as_primitive::<Int64Type>().iter().flatten().collect();
                    Box::new(values.into_iter().map(i64::unsigned_abs))
                }
            };
            if let Some(value) = { magnitudes }.find(|&value| value > most) {
                return beyond(value);
            }
        }
        DataType::Utf8 if from.is_floating() => {
            let text = |value: f64| match from {
                DataType::Float64 => float_text(&format!("{value:e}"), value),
                // As short as the narrow number needs.
                _ => float_text(&format!("{:e}", value as f32), value),
            };
            let values = cast(array, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            let texts: StringArray = values.iter().map(|value| value.map(text)).collect();
            return Ok(Arc::new(texts));
        }
        to if to.is_numeric() && *from == DataType::Utf8 => {
            let mut values = array.as_string::<i32>().iter().flatten();
            if let Some(value) = values.find(|value| value.trim() != *value) {
                let message = format!("{value:?} begins or ends with white space");
                return Err(ArrowError::CastError(message));
            }
        }
        DataType::Boolean if *from == DataType::Utf8 => {
            let truth = |text: &str| match text {
                "1" => Ok(true),
                "0" => Ok(false),
                text if text.eq_ignore_ascii_case("true") => Ok(true),
                text if text.eq_ignore_ascii_case("false") => Ok(false),
                text => Err(ArrowError::CastError(format!(
                    "{text:?} is neither true nor false"
                ))),
            };
            let values = array.as_string::<i32>().iter();
            let values = values.map(|value| value.map(truth).transpose());
            return Ok(Arc::new(values.collect::<Result<BooleanArray, _>>()?));
        }
        _ => {}
    }
    strict_cast(array, to)
}

/// Writes a number as pyarrow does: `scientific` is its shortest form with an exponent.
fn float_text(scientific: &str, value: f64) -> String {
    if !value.is_finite() {
        return match value {
            value if value.is_nan() => "nan",
            value if value > 0.0 => "inf",
            _ => "-inf",
        }
        .to_owned();
    }
    let (digits, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    match exponent {
        -6..=9 => super::text_file::positional(digits, exponent),
        10.. => format!("{digits}e+{exponent}"),
        _ => format!("{digits}e{exponent}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::column::IntoColumn;

    fn cast_to(values: impl IntoColumn, to: &str) -> Result<Dataset> {
        let dataset = Dataset::builder().column("a", values).build()?;
        let cast = dataset.cast_column("a", to)?;
        assert_eq!(cast.features()[0].1, to);
        Ok(cast)
    }

    #[test]
    fn values_equal_those_of_datasets() {
        // datasets 5.2, Dataset.from_dict({"a": values}).cast_column("a", Value(type))["a"]
        let ints = cast_to(vec![1.0, 2.0], "int64").unwrap();
        assert_eq!(ints.column::<i64>("a").unwrap(), [1, 2]);
        let nulls = cast_to(vec![Some(1), None], "int32").unwrap();
        assert_eq!(nulls.column::<Option<i32>>("a").unwrap(), [Some(1), None]);
        let texts = cast_to(
            vec![
                1.0,
                2.5,
                1e300,
                1e-7,
                f64::NAN,
                1e10,
                0.000015,
                123456.789,
                -0.0,
                12345678901234567890.0,
                f64::INFINITY,
                1e-6,
            ],
            "string",
        )
        .unwrap();
        assert_eq!(
            texts.column::<String>("a").unwrap(),
            [
                "1",
                "2.5",
                "1e+300",
                "1e-7",
                "nan",
                "1e+10",
                "0.000015",
                "123456.789",
                "-0",
                "1.2345678901234567e+19",
                "inf",
                "0.000001"
            ]
        );
        let narrow = cast_to(vec![0.1f32, 16777216.0], "string").unwrap();
        assert_eq!(narrow.column::<String>("a").unwrap(), ["0.1", "16777216"]);
        let truths = cast_to(vec!["true", "0", "False"], "bool").unwrap();
        assert_eq!(truths.column::<bool>("a").unwrap(), [true, false, false]);
        assert_eq!(
            cast_to(vec![0, 2], "bool")
                .unwrap()
                .column::<bool>("a")
                .unwrap(),
            [false, true]
        );
        assert_eq!(
            cast_to(vec![true], "int64")
                .unwrap()
                .column::<i64>("a")
                .unwrap(),
            [1]
        );
        assert_eq!(
            cast_to(vec![true], "string")
                .unwrap()
                .column::<String>("a")
                .unwrap(),
            ["true"]
        );
        assert_eq!(
            cast_to(vec![0.1], "float32")
                .unwrap()
                .column::<f32>("a")
                .unwrap(),
            [0.1]
        );
        let lists = cast_to(vec![vec![1i64, 2], vec![]], "list<float64>").unwrap();
        assert_eq!(
            lists.column::<Vec<f64>>("a").unwrap(),
            [vec![1.0, 2.0], vec![]]
        );
    }

    #[test]
    fn lossy_casts_are_refused_with_their_row() {
        let refused = |result: Result<Dataset>, told: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        };
        refused(cast_to(vec![1, 2, 300], "int8"), "row 2");
        refused(
            cast_to(vec![1.0, 1.5], "int64"),
            "row 1 (1.5 is not a whole number)",
        );
        refused(cast_to(vec![f64::NAN], "int64"), "NaN");
        refused(cast_to(vec!["1", "x"], "int64"), "row 1");
        refused(cast_to(vec!["1.5", " 2"], "float64"), "row 1");
        refused(cast_to(vec!["yes"], "bool"), "neither true nor false");
        refused(cast_to(vec![9_007_199_254_740_993i64], "float64"), "row 0");
        refused(cast_to(vec![16_777_217], "float32"), "float32");
        refused(cast_to(vec![-1], "uint8"), "row 0");
        refused(cast_to(vec![vec![1], vec![400]], "list<int8>"), "row 1");
        refused(cast_to(vec!["a"], "struct<x: int8>"), "struct");
        refused(cast_to(vec!["a"], "text"), "not a known column type");
    }

    #[test]
    fn rows_outside_the_selection_are_not_cast() {
        let dataset = Dataset::builder()
            .column("a", vec!["1", "x", "3"])
            .column("b", vec![1, 2, 3])
            .build()
            .unwrap();
        let chosen = dataset.select(&[2, 0]).unwrap();
        let cast = chosen.cast([("a", "int16"), ("b", "string")]).unwrap();
        assert_eq!(cast.column::<i16>("a").unwrap(), [3, 1]);
        assert_eq!(cast.column::<String>("b").unwrap(), ["3", "1"]);
        let empty = dataset.slice(0..0).cast_column("a", "int16").unwrap();
        assert_eq!(empty.features()[0].1, "int16");
        let error = chosen.cast([("a", "int16")]).unwrap_err().to_string();
        assert!(error.contains("a, b"), "{error}");
        assert!(dataset.cast_column("c", "int8").is_err());
        assert_eq!(
            dataset.cast_column("a", "string").unwrap().fingerprint(),
            dataset.fingerprint()
        );
    }
}
