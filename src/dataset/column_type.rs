//! Types of columns as people name them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};

use super::data_type::{list_of, plain};
use crate::{Error, Result};

/// A column's type: an Arrow type, or its name as [`Dataset::features`](super::Dataset::features) shows it: `string`,
/// `int32`, `float64`, `bool`, `list<int64>`, `struct<text: string, score: int32>`, `timestamp[us]`, `date32`, `binary`, ...
///
/// ```
/// use cloze::prelude::*;
///
/// let dataset = Dataset::builder().column("score", vec![1i64, 2]).build()?;
/// let cast = dataset.cast_column("score", "float32")?;
/// assert_eq!(cast.features(), [("score".to_owned(), "float32".to_owned())]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ColumnType(Given);

#[derive(Clone, Debug)]
enum Given {
    Type(DataType),
    Name(String),
}

impl From<DataType> for ColumnType {
    fn from(data_type: DataType) -> Self {
        Self(Given::Type(data_type))
    }
}

impl From<&str> for ColumnType {
    fn from(name: &str) -> Self {
        Self(Given::Name(name.to_owned()))
    }
}

impl From<String> for ColumnType {
    fn from(name: String) -> Self {
        Self(Given::Name(name))
    }
}

impl ColumnType {
    /// Returns the type in the form that columns are kept in.
    pub(crate) fn resolve(&self) -> Result<DataType> {
        match &self.0 {
            Given::Type(data_type) => Ok(plain(data_type)),
            Given::Name(name) => parse(name.trim(), 0).ok_or_else(|| {
                Error::argument(
                    "type",
                    format!(
                        "{name:?} is not a known column type; known are string, binary, bool, int8 to int64, \
                         uint8 to uint64, float16 to float64, date32, date64, timestamp[s|ms|us|ns], list<TYPE> and \
                         struct<NAME: TYPE, ...>"
                    ),
                )
            }),
        }
    }
}

/// Deeper types are not written by hand.
const DEEPEST: usize = 32;

fn parse(name: &str, depth: usize) -> Option<DataType> {
    if depth > DEEPEST {
        return None;
    }
    let inside = |kind: &str| {
        name.strip_prefix(kind)?
            .trim_start()
            .strip_prefix('<')?
            .strip_suffix('>')
    };
    if let Some(item) = inside("list").or_else(|| inside("large_list")) {
        return Some(list_of(parse(item.trim(), depth + 1)?));
    }
    if let Some(fields) = inside("struct") {
        let fields = at_commas(fields)
            .into_iter()
            .map(|field| {
                let (name, kind) = field.split_once(':')?;
                Some(Field::new(
                    name.trim(),
                    parse(kind.trim(), depth + 1)?,
                    true,
                ))
            })
            .collect::<Option<Vec<_>>>()?;
        return Some(DataType::Struct(fields.into()));
    }
    if let Some(unit) = name.strip_prefix("timestamp[") {
        let (unit, zone) = match unit.strip_suffix(']')?.split_once(',') {
            Some((unit, zone)) => {
                let zone = zone.trim();
                (unit.trim(), Some(zone.strip_prefix("tz=").unwrap_or(zone)))
            }
            None => (unit.strip_suffix(']')?, None),
        };
        let unit = match unit {
            "s" => TimeUnit::Second,
            "ms" => TimeUnit::Millisecond,
            "us" => TimeUnit::Microsecond,
            "ns" => TimeUnit::Nanosecond,
            _ => return None,
        };
        return Some(DataType::Timestamp(unit, zone.map(Arc::from)));
    }
    Some(match name {
        "string" | "large_string" => DataType::Utf8,
        "binary" | "large_binary" => DataType::Binary,
        "bool" => DataType::Boolean,
        "int8" => DataType::Int8,
        "int16" => DataType::Int16,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "uint8" => DataType::UInt8,
        "uint16" => DataType::UInt16,
        "uint32" => DataType::UInt32,
        "uint64" => DataType::UInt64,
        "float16" => DataType::Float16,
        "float32" | "float" => DataType::Float32,
        "float64" | "double" => DataType::Float64,
        "date32" => DataType::Date32,
        "date64" => DataType::Date64,
        "null" => DataType::Null,
        _ => return None,
    })
}

/// Splits at the commas that are in no brackets.
fn at_commas(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '<' | '[' => depth += 1,
            '>' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::type_name;

    #[test]
    fn type_names_round_trip() {
        for name in [
            "string",
            "bool",
            "int8",
            "uint64",
            "float16",
            "float64",
            "list<int32>",
            "list<list<string>>",
            "struct<a: list<string>, b: struct<c: int64, d: bool>>",
            "binary",
            "date32",
        ] {
            let data_type = ColumnType::from(name).resolve().unwrap();
            assert_eq!(type_name(&data_type), name);
        }
        let zoned = ColumnType::from("timestamp[us, tz=UTC]").resolve().unwrap();
        assert_eq!(
            zoned,
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        );
        for wrong in [
            "",
            "str",
            "int",
            "list<",
            "list<x>",
            "struct<a>",
            "int32>",
            "timestamp[y]",
        ] {
            assert!(ColumnType::from(wrong).resolve().is_err(), "{wrong}");
        }
        assert!(ColumnType::from("list<".repeat(100_000)).resolve().is_err());
        let deep = format!("{}int8{}", "list<".repeat(1000), ">".repeat(1000));
        assert!(ColumnType::from(deep).resolve().is_err());
    }
}
