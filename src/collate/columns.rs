//! The rows of a dataset as examples.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float32Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use super::{Example, Examples};
use crate::dataset::{Dataset, type_name};
use crate::model::{Column, INPUT_VALUES, Input, Per, known_input};
use crate::{Error, Result};

/// The list columns `input_ids` (which must be there, or `input_values` in its place), `attention_mask`, `token_type_ids`, `special_tokens_mask` and
/// `labels`, of whatever kind of whole numbers, and the inputs that some families declare; other columns are left alone.
impl Examples for Dataset {
    fn len(&self) -> usize {
        Dataset::len(self)
    }

    fn get(&self, index: usize) -> Result<Example> {
        let column = |name| list::<u32>(self, name, index);
        let mut columns = BTreeMap::new();
        for name in self.column_names() {
            if let Some(input) = known_input(&name)
                && let Some(column) = further(self, &name, input, index)?
            {
                columns.insert(name, column);
            }
        }
        let typed = !columns.contains_key("token_type_ids");
        Ok(Example {
            columns,
            input_ids: column("input_ids")?.unwrap_or_default(),
            attention_mask: column("attention_mask")?,
            token_type_ids: if typed {
                column("token_type_ids")?
            } else {
                None
            },
            special_tokens_mask: column("special_tokens_mask")?,
            labels: list::<i64>(self, "labels", index)?,
            offsets: None,
        })
    }

    fn tokens(&self, index: usize) -> Result<usize> {
        let found = cell(self, "input_ids", index, "a list of whole numbers")?;
        let Some((array, unsuitable)) = found else {
            return Ok(0);
        };
        let lists = array.as_list_opt::<i32>();
        let lists = lists.ok_or_else(|| unsuitable(type_name(array.data_type())))?;
        Ok(lists.value_length(0) as usize)
    }

    fn validate(&self) -> Result<()> {
        // Checks that it is there at all; what it holds, the first row tells as well as any.
        let tokens = self.position("input_ids");
        let found = tokens.or_else(|missing| self.position(INPUT_VALUES).map_err(|_| missing));
        found.map_err(|error| match error {
            Error::MissingColumn { name, available } => Error::Dataset(format!(
                "there is no column {name:?} to batch; the columns are {}: tokenize a text column first \
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

/// Returns the value in a row of a column, and the error that says it is not `expected`; `None` if there is no such column.
fn cell(
    dataset: &Dataset,
    name: &str,
    index: usize,
    expected: &str,
) -> Result<Option<(ArrayRef, impl Fn(String) -> Error)>> {
    let Ok(position) = dataset.position(name) else {
        return Ok(None);
    };
    let physical = dataset.indices().map_or(index, |rows| rows[index]);
    let (batch, row) = dataset.locate(physical);
    let array = dataset.batches()[batch].column(position).slice(row, 1);
    let (name, expected) = (name.to_owned(), expected.to_owned());
    let unsuitable = move |found: String| Error::ColumnType {
        name: name.clone(),
        operation: "making batches".to_owned(),
        expected: expected.clone(),
        found,
    };
    if array.is_null(0) {
        return Err(unsuitable(format!("a null in row {index}")));
    }
    Ok(Some((array, unsuitable)))
}

/// Returns the list of whole numbers in a row of a column; `None` if there is no such column.
fn list<T: TryFrom<i64>>(dataset: &Dataset, name: &str, index: usize) -> Result<Option<Vec<T>>> {
    let expected = "list<int32> or another list of whole numbers";
    let Some((array, unsuitable)) = cell(dataset, name, index, expected)? else {
        return Ok(None);
    };
    let Some(lists) = array.as_list_opt::<i32>() else {
        return Err(unsuitable(type_name(array.data_type())));
    };
    let items = lists.value(0);
    let nothing = items.is_empty() && items.data_type() == &DataType::Null;
    if !nothing && !is_whole(items.data_type()) {
        return Err(unsuitable(type_name(array.data_type())));
    }
    whole_numbers(&items)
        .map(Some)
        .ok_or_else(|| unsuitable(format!("a null or a number out of range in row {index}")))
}

/// Returns the input `input` in a row of the column of its name; `None` where that column holds something else by the
/// same name, as token_type_ids of one number a token are for all families but TAPAS.
fn further(dataset: &Dataset, name: &str, input: &Input, index: usize) -> Result<Option<Column>> {
    let depth = usize::from(input.per != Per::Example) + input.trailing.len();
    let expected = format!("{}numbers{}", "list<".repeat(depth), ">".repeat(depth));
    let Some((array, unsuitable)) = cell(dataset, name, index, &expected)? else {
        return Ok(None);
    };
    let found = type_name(array.data_type());
    let (mut items, mut shape) = (array, Vec::new());
    while let Some(lists) = items.as_list_opt::<i32>() {
        if lists.null_count() > 0 {
            return Err(unsuitable(format!("a null in row {index}")));
        }
        let length = if lists.is_empty() {
            0
        } else {
            lists.value_length(0) as usize
        };
        let mut lengths = (0..lists.len()).map(|i| lists.value_length(i) as usize);
        if lengths.any(|other| other != length) {
            return Err(unsuitable(format!(
                "lists of several lengths in row {index}"
            )));
        }
        shape.push(length);
        if lists.is_empty() {
            break;
        }
        let (from, to) = (lists.offsets()[0], lists.offsets()[lists.len()]);
        items = lists.values().slice(from as usize, (to - from) as usize);
    }
    if shape.len() != depth {
        return match name {
            "token_type_ids" => Ok(None),
            _ => Err(unsuitable(found)),
        };
    }
    let bad = || unsuitable(format!("a null or a number out of range in row {index}"));
    if is_whole(items.data_type()) || items.is_empty() {
        let numbers = whole_numbers(&items).ok_or_else(bad)?;
        return Column::ids(numbers, shape).map(Some);
    }
    let floats = arrow::compute::cast(&items, &DataType::Float32).map_err(|_| bad())?;
    let floats = floats.as_primitive::<Float32Type>();
    if floats.null_count() > 0 {
        return Err(bad());
    }
    Column::floats(floats.values().to_vec(), shape).map(Some)
}

fn is_whole(data_type: &DataType) -> bool {
    data_type.is_integer()
}

/// Returns the values of an array of whole numbers, if all are there and fit.
fn whole_numbers<T: TryFrom<i64>>(items: &dyn Array) -> Option<Vec<T>> {
    match items.data_type() {
        DataType::Int8 => numbers(items.as_primitive::<Int8Type>()),
        DataType::Int16 => numbers(items.as_primitive::<Int16Type>()),
        DataType::Int32 => numbers(items.as_primitive::<Int32Type>()),
        DataType::Int64 => numbers(items.as_primitive::<Int64Type>()),
        DataType::UInt8 => numbers(items.as_primitive::<UInt8Type>()),
        DataType::UInt16 => numbers(items.as_primitive::<UInt16Type>()),
        DataType::UInt32 => numbers(items.as_primitive::<UInt32Type>()),
        DataType::UInt64 => numbers(items.as_primitive::<UInt64Type>()),
        _ => items.is_empty().then(Vec::new),
    }
}

/// Returns the values, if all are there and fit.
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
