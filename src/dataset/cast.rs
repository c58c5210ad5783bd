//! Bringing arrays to a given type, records field by field by their names.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, NullArray, RecordBatch, RecordBatchOptions, StructArray,
    new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::CastOptions;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;

/// Returns `array` as `target`. Fields that the array does not have become null; a value that does not fit is an error.
pub(crate) fn cast_array(array: &ArrayRef, target: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_leaves(array, target, &strict_cast)
}

/// Like [`cast_array`], with `cast` for everything that is neither a record nor a list.
pub(crate) fn cast_leaves(
    array: &ArrayRef,
    target: &DataType,
    cast: &dyn Fn(&ArrayRef, &DataType) -> Result<ArrayRef, ArrowError>,
) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == target {
        return Ok(array.clone());
    }
    match (array.data_type(), target) {
        (DataType::Null, _) => Ok(new_null_array(target, array.len())),
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let array = array.as_struct();
            let columns = fields
                .iter()
                .map(|field| match array.column_by_name(field.name()) {
                    Some(column) => cast_leaves(column, field.data_type(), cast),
                    None => Ok(new_null_array(field.data_type(), array.len())),
                })
                .collect::<Result<Vec<_>, _>>()?;
            let nulls = array.nulls().cloned();
            Ok(Arc::new(StructArray::try_new_with_length(
                fields.clone(),
                columns,
                nulls,
                array.len(),
            )?))
        }
        (DataType::List(_), DataType::List(item)) => {
            let array = array.as_list::<i32>();
            // A slice has the items of all rows.
            let offsets = array.offsets();
            let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
            let used = array
                .values()
                .slice(first as usize, (last - first) as usize);
            let values = cast_leaves(&used, item.data_type(), cast)?;
            let offsets = offsets.iter().map(|offset| offset - first).collect();
            Ok(Arc::new(ListArray::try_new(
                item.clone(),
                OffsetBuffer::new(offsets),
                values,
                array.nulls().cloned(),
            )?))
        }
        (
            DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::ListView(item)
            | DataType::LargeListView(item),
            DataType::List(_),
        ) => {
            let list = DataType::List(Arc::new(Field::new_list_field(
                item.data_type().clone(),
                true,
            )));
            cast_leaves(&strict_cast(array, &list)?, target, cast)
        }
        _ => cast(array, target),
    }
}

/// Returns a cast in which a value that does not fit is an error.
pub(crate) fn strict_cast(array: &ArrayRef, target: &DataType) -> Result<ArrayRef, ArrowError> {
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    arrow::compute::cast_with_options(array, target, &options)
}

/// Returns `batch` with the columns of `schema`, in that order; columns that the batch does not have become null.
pub(crate) fn cast_batch(
    batch: &RecordBatch,
    schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let rows = batch.num_rows();
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            let absent: ArrayRef = Arc::new(NullArray::new(rows));
            let column = batch.column_by_name(field.name()).unwrap_or(&absent);
            cast_array(column, field.data_type()).map_err(|error| {
                ArrowError::CastError(format!("column {:?}: {error}", field.name()))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
}
