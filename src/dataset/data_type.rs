//! Column types: their names, and the plain forms that every loaded table is converted to.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use crate::{Error, Result};

/// Returns a column type in the field's words: `string`, `int64`, `list<int32>`, `struct<text: list<string>>`.
pub fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_owned(),
        DataType::Boolean => "bool".to_owned(),
        DataType::Float16 => "float16".to_owned(),
        DataType::Float32 => "float32".to_owned(),
        DataType::Float64 => "float64".to_owned(),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            format!("list<{}>", type_name(item.data_type()))
        }
        DataType::Struct(fields) => format!(
            "struct<{}>",
            fields
                .iter()
                .map(|field| format!("{}: {}", field.name(), type_name(field.data_type())))
                .collect::<Vec<_>>()
                .join(", ")
        ),
        other => other.to_string().to_lowercase(),
    }
}

/// Returns a list of `item`, in the one form that this crate uses.
pub(crate) fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

/// Returns the form in which this crate keeps a type: large, view and dictionary kinds become the plain ones, and every
/// field may be null. Tables from different writers then agree with each other.
pub(crate) fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => plain(values),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => list_of(plain(item.data_type())),
        DataType::Struct(fields) => DataType::Struct(plain_fields(fields)),
        other => other.clone(),
    }
}

fn plain_fields(fields: &Fields) -> Fields {
    fields
        .iter()
        .map(|field| Field::new(field.name(), plain(field.data_type()), true))
        .collect()
}

/// Returns `schema` with every type in its [`plain`] form, and without the writers' metadata.
pub(crate) fn plain_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(plain_fields(schema.fields())))
}

/// The most levels of lists and records in a column of an Arrow or Parquet file: readers of both refuse to go down further.
const DEEPEST: usize = 60;

/// Checks that no column is nested deeper than files can be read again.
pub(crate) fn check_depth(schema: &Schema) -> Result<()> {
    fn depth(data_type: &DataType) -> usize {
        match data_type {
            DataType::List(item) => 1 + depth(item.data_type()),
            DataType::Struct(fields) => {
                let inner = fields.iter().map(|field| depth(field.data_type()));
                1 + inner.max().unwrap_or(0)
            }
            _ => 1,
        }
    }
    let mut fields = schema.fields().iter();
    match fields.find(|field| depth(field.data_type()) > DEEPEST) {
        None => Ok(()),
        Some(field) => Err(Error::Dataset(format!(
            "the column {:?} is nested more than {DEEPEST} levels deep, which Arrow and Parquet files can't hold: flatten or \
             remove it, or write JSON lines",
            field.name()
        ))),
    }
}

/// Returns the type that holds the values of both, if there is one: a column of nulls takes the other's type, whole
/// numbers go with decimal ones, narrow numbers with wide ones, and records have the fields of both.
pub(crate) fn common(left: &DataType, right: &DataType) -> Option<DataType> {
    match (left, right) {
        (left, right) if left == right => Some(left.clone()),
        (DataType::Null, other) | (other, DataType::Null) => Some(other.clone()),
        (DataType::List(left), DataType::List(right)) => {
            common(left.data_type(), right.data_type()).map(list_of)
        }
        (DataType::Struct(left), DataType::Struct(right)) => {
            let mut fields: Vec<Field> = Vec::new();
            for field in left {
                let data_type = match right.find(field.name()) {
                    Some((_, other)) => common(field.data_type(), other.data_type())?,
                    None => field.data_type().clone(),
                };
                fields.push(Field::new(field.name(), data_type, true));
            }
            let added = right.iter().filter(|f| left.find(f.name()).is_none());
            fields.extend(added.map(|field| field.as_ref().clone()));
            Some(DataType::Struct(fields.into()))
        }
        (left, right) if left.is_numeric() && right.is_numeric() => {
            if left.is_floating() || right.is_floating() {
                Some(DataType::Float64)
            } else if left.is_integer() && right.is_integer() {
                Some(DataType::Int64)
            } else {
                None
            }
        }
        _ => None,
    }
}
