//! The rows of a dataset as examples.

use arrow::array::{Array, AsArray, PrimitiveArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};

use super::{Example, Examples};
use crate::dataset::{Dataset, type_name};
use crate::{Error, Result};

/// The list columns `input_ids` (which must be there), `attention_mask`, `token_type_ids`, `special_tokens_mask` and
/// `labels`, of whatever kind of whole numbers; other columns are left alone.
impl Examples for Dataset {
    fn len(&self) -> usize {
        Dataset::len(self)
    }

    fn get(&self, index: usize) -> Result<Example> {
        let column = |name| list::<u32>(self, name, index);
        Ok(Example {
            input_ids: column("input_ids")?.unwrap_or_default(),
            attention_mask: column("attention_mask")?,
            token_type_ids: column("token_type_ids")?,
            special_tokens_mask: column("special_tokens_mask")?,
            labels: list::<i64>(self, "labels", index)?,
            offsets: None,
        })
    }

    fn validate(&self) -> Result<()> {
        // That it is there at all; what it holds, the first row tells as well as any.
        self.position("input_ids").map_err(|error| match error {
            Error::MissingColumn { name, available } => Error::Dataset(format!(
                "there is no column {name:?} to make batches of; the columns are {}: tokenize a text column first \
                 (Map::new(tokenizer.tokenize_column(..)))",
                available.join(", ")
            )),
            error => error,
        })?;
        if !self.is_empty() {
            self.get(0)?;
        }
        Ok(())
    }

    fn origin(&self) -> Option<&str> {
        Dataset::origin(self)
    }
}

/// The list of whole numbers in a row of a column; `None` if there is no such column.
fn list<T: TryFrom<i64>>(dataset: &Dataset, name: &str, index: usize) -> Result<Option<Vec<T>>> {
    let Ok(position) = dataset.position(name) else {
        return Ok(None);
    };
    let physical = dataset.indices().map_or(index, |rows| rows[index]);
    let (batch, row) = dataset.locate(physical);
    let array = dataset.batches()[batch].column(position);
    let unsuitable = |found: String| Error::ColumnType {
        name: name.to_owned(),
        operation: "making batches".to_owned(),
        expected: "list<int32> or another list of whole numbers".to_owned(),
        found,
    };
    let Some(lists) = array.as_list_opt::<i32>() else {
        return Err(unsuitable(type_name(array.data_type())));
    };
    if lists.is_null(row) {
        return Err(unsuitable(format!("a null in row {index}")));
    }
    let items = lists.value(row);
    let numbers = match items.data_type() {
        DataType::Int8 => numbers(items.as_primitive::<Int8Type>()),
        DataType::Int16 => numbers(items.as_primitive::<Int16Type>()),
        DataType::Int32 => numbers(items.as_primitive::<Int32Type>()),
        DataType::Int64 => numbers(items.as_primitive::<Int64Type>()),
        DataType::UInt8 => numbers(items.as_primitive::<UInt8Type>()),
        DataType::UInt16 => numbers(items.as_primitive::<UInt16Type>()),
        DataType::UInt32 => numbers(items.as_primitive::<UInt32Type>()),
        DataType::UInt64 => numbers(items.as_primitive::<UInt64Type>()),
        DataType::Null if items.is_empty() => Some(vec![]),
        _ => return Err(unsuitable(type_name(array.data_type()))),
    };
    numbers
        .map(Some)
        .ok_or_else(|| unsuitable(format!("a null or a number out of range in row {index}")))
}

/// The values, if all are there and fit.
fn numbers<A: ArrowPrimitiveType, T: TryFrom<i64>>(items: &PrimitiveArray<A>) -> Option<Vec<T>>
where
    i64: TryFrom<A::Native>,
{
    if items.null_count() > 0 {
        return None;
    }
    let fit = |&value| T::try_from(i64::try_from(value).ok()?).ok();
    items.values().iter().map(fit).collect()
}
