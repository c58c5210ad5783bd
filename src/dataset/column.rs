//! Conversion between columns and Rust values.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayBuilder, ArrayRef, ArrowPrimitiveType, AsArray, BooleanBuilder, ListBuilder,
    PrimitiveBuilder, StringBuilder,
};
use arrow::compute::{filter, is_not_null};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};

use super::data_type::type_name;
use crate::{Error, Result};

/// A Rust type that a column can be read as: text, numbers, truth values, and lists and options of them.
pub trait FromColumn: Sized {
    /// Returns the words for the type in an error.
    fn expected() -> String;

    /// Returns all values of `array`.
    fn read(array: &dyn Array) -> Result<Vec<Self>, ReadError>;
}

/// Why an array can't be read as a Rust type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The array holds values of another kind.
    Type,
    /// There is no value in this row, and the type has no room for that.
    Null(usize),
    /// The value in this row does not fit the type.
    Overflow(usize),
}

impl ReadError {
    fn at(self, row: usize) -> Self {
        match self {
            Self::Type => Self::Type,
            Self::Null(_) => Self::Null(row),
            Self::Overflow(_) => Self::Overflow(row),
        }
    }
}

/// Returns the values of the column `name`, whose first row is row `first` of the dataset.
pub(crate) fn read_column<T: FromColumn>(
    name: &str,
    array: &ArrayRef,
    first: usize,
) -> Result<Vec<T>> {
    T::read(array).map_err(|error| {
        let found = match error {
            ReadError::Type => type_name(array.data_type()),
            ReadError::Null(row) => format!(
                "no value in row {} (read it as an Option, or filter such rows out)",
                first + row
            ),
            ReadError::Overflow(row) => format!("a value beyond that type in row {}", first + row),
        };
        Error::ColumnType {
            name: name.to_owned(),
            operation: "reading it".to_owned(),
            expected: T::expected(),
            found,
        }
    })
}

/// Returns the row of the first null, where there is one.
fn refuse_nulls(array: &dyn Array) -> Result<(), ReadError> {
    if array.logical_null_count() == 0 {
        return Ok(());
    }
    let nulls = array.logical_nulls();
    let row = nulls.and_then(|nulls| (0..nulls.len()).find(|&row| nulls.is_null(row)));
    Err(ReadError::Null(row.unwrap_or(0)))
}

impl FromColumn for String {
    fn expected() -> String {
        "string".to_owned()
    }

    fn read(array: &dyn Array) -> Result<Vec<Self>, ReadError> {
        Ok(read_str(array)?.into_iter().map(str::to_owned).collect())
    }
}

/// Returns the texts of a string array, where they lie.
pub(crate) fn read_str(array: &dyn Array) -> Result<Vec<&str>, ReadError> {
    refuse_nulls(array)?;
    match array.data_type() {
        DataType::Null => Ok(vec![]),
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            Ok((0..array.len()).map(|row| array.value(row)).collect())
        }
        _ => Err(ReadError::Type),
    }
}

impl FromColumn for bool {
    fn expected() -> String {
        "bool".to_owned()
    }

    fn read(array: &dyn Array) -> Result<Vec<Self>, ReadError> {
        refuse_nulls(array)?;
        match array.data_type() {
            DataType::Null => Ok(vec![]),
            DataType::Boolean => Ok(array.as_boolean().values().iter().collect()),
            _ => Err(ReadError::Type),
        }
    }
}

/// Returns the values of a primitive array, converted one by one.
fn convert<P: ArrowPrimitiveType, T>(
    array: &dyn Array,
    convert: impl Fn(P::Native) -> Option<T>,
) -> Result<Vec<T>, ReadError> {
    let values = array.as_primitive::<P>().values();
    let mut out = Vec::with_capacity(values.len());
    for (row, &value) in values.iter().enumerate() {
        out.push(convert(value).ok_or(ReadError::Overflow(row))?);
    }
    Ok(out)
}

macro_rules! whole_numbers {
    ($($type:ty),*) => {
        $(impl FromColumn for $type {
            fn expected() -> String {
                format!("whole numbers that fit {}", stringify!($type))
            }

            fn read(array: &dyn Array) -> Result<Vec<Self>, ReadError> {
                refuse_nulls(array)?;
                match array.data_type() {
                    DataType::Null => Ok(vec![]),
                    DataType::Int8 => convert::<Int8Type, _>(array, |v| v.try_into().ok()),
                    DataType::Int16 => convert::<Int16Type, _>(array, |v| v.try_into().ok()),
                    DataType::Int32 => convert::<Int32Type, _>(array, |v| v.try_into().ok()),
                    DataType::Int64 => convert::<Int64Type, _>(array, |v| v.try_into().ok()),
                    DataType::UInt8 => convert::<UInt8Type, _>(array, |v| v.try_into().ok()),
                    DataType::UInt16 => convert::<UInt16Type, _>(array, |v| v.try_into().ok()),
                    DataType::UInt32 => convert::<UInt32Type, _>(array, |v| v.try_into().ok()),
                    DataType::UInt64 => convert::<UInt64Type, _>(array, |v| v.try_into().ok()),
                    _ => Err(ReadError::Type),
                }
            }
        })*
    };
}

whole_numbers!(i8, i16, i32, i64, u8, u16, u32, u64, usize);

macro_rules! decimal_numbers {
    ($($type:ty),*) => {
        $(impl FromColumn for $type {
            fn expected() -> String {
                "numbers".to_owned()
            }

            fn read(array: &dyn Array) -> Result<Vec<Self>, ReadError> {
                refuse_nulls(array)?;
                match array.data_type() {
                    DataType::Null => Ok(vec![]),
                    DataType::Float32 => convert::<Float32Type, _>(array, |v| Some(v as $type)),
                    DataType::Float64 => convert::<Float64Type, _>(array, |v| Some(v as $type)),
                    _ => Ok(i64::read(array)?.into_iter().map(|v| v as $type).collect()),
                }
            }
        })*
    };
}

decimal_numbers!(f32, f64);

impl<T: FromColumn> FromColumn for Option<T> {
    fn expected() -> String {
        T::expected()
    }

    fn read(array: &dyn Array) -> Result<Vec<Self>, ReadError> {
        if array.logical_null_count() == 0 {
            return Ok(T::read(array)?.into_iter().map(Some).collect());
        }
        if *array.data_type() == DataType::Null {
            return Ok((0..array.len()).map(|_| None).collect());
        }
        let present = is_not_null(array).map_err(|_| ReadError::Type)?;
        let values = filter(array, &present).map_err(|_| ReadError::Type)?;
        let mut values = T::read(&values)?.into_iter();
        Ok((0..array.len())
            .map(|row| present.value(row).then(|| values.next()).flatten())
            .collect())
    }
}

impl<T: FromColumn> FromColumn for Vec<T> {
    fn expected() -> String {
        format!("list<{}>", T::expected())
    }

    fn read(array: &dyn Array) -> Result<Vec<Self>, ReadError> {
        refuse_nulls(array)?;
        let list = match array.data_type() {
            DataType::Null => return Ok(vec![]),
            DataType::List(_) => array.as_list::<i32>(),
            _ => return Err(ReadError::Type),
        };
        let offsets = list.offsets();
        let first = offsets[0] as usize;
        let last = offsets[offsets.len() - 1] as usize;
        let row_of = |item: usize| {
            let position = (first + item) as i32;
            offsets.partition_point(|&offset| offset <= position) - 1
        };
        let mut values = T::read(&list.values().slice(first, last - first))
            .map_err(|error| match error {
                ReadError::Null(item) | ReadError::Overflow(item) => error.at(row_of(item)),
                ReadError::Type => error,
            })?
            .into_iter();
        Ok(offsets
            .windows(2)
            .map(|pair| values.by_ref().take((pair[1] - pair[0]) as usize).collect())
            .collect())
    }
}

/// A Rust type whose values a column can be built of: text, numbers, truth values, and lists and options of them.
pub trait ColumnItem {
    /// The builder that collects the values.
    type Builder: ArrayBuilder;

    /// Returns an empty builder.
    fn builder() -> Self::Builder;

    /// Adds this value.
    fn append(self, builder: &mut Self::Builder);

    /// Adds a row without a value.
    fn append_null(builder: &mut Self::Builder);
}

macro_rules! number_items {
    ($($type:ty => $arrow:ty),* $(,)?) => {
        $(impl ColumnItem for $type {
            type Builder = PrimitiveBuilder<$arrow>;

            fn builder() -> Self::Builder {
                Self::Builder::new()
            }

            fn append(self, builder: &mut Self::Builder) {
                builder.append_value(self);
            }

            fn append_null(builder: &mut Self::Builder) {
                builder.append_null();
            }
        })*
    };
}

number_items!(i8 => Int8Type, i16 => Int16Type, i32 => Int32Type, i64 => Int64Type, u8 => UInt8Type, u16 => UInt16Type,
    u32 => UInt32Type, u64 => UInt64Type, f32 => Float32Type, f64 => Float64Type);

macro_rules! text_items {
    ($($type:ty),*) => {
        $(impl ColumnItem for $type {
            type Builder = StringBuilder;

            fn builder() -> Self::Builder {
                Self::Builder::new()
            }

            fn append(self, builder: &mut Self::Builder) {
                builder.append_value(self);
            }

            fn append_null(builder: &mut Self::Builder) {
                builder.append_null();
            }
        })*
    };
}

text_items!(String, &str, std::borrow::Cow<'_, str>);

impl ColumnItem for bool {
    type Builder = BooleanBuilder;

    fn builder() -> Self::Builder {
        Self::Builder::new()
    }

    fn append(self, builder: &mut Self::Builder) {
        builder.append_value(self);
    }

    fn append_null(builder: &mut Self::Builder) {
        builder.append_null();
    }
}

impl<T: ColumnItem> ColumnItem for Option<T> {
    type Builder = T::Builder;

    fn builder() -> Self::Builder {
        T::builder()
    }

    fn append(self, builder: &mut Self::Builder) {
        match self {
            Some(value) => value.append(builder),
            None => T::append_null(builder),
        }
    }

    fn append_null(builder: &mut Self::Builder) {
        T::append_null(builder);
    }
}

impl<T: ColumnItem> ColumnItem for Vec<T> {
    type Builder = ListBuilder<T::Builder>;

    fn builder() -> Self::Builder {
        ListBuilder::new(T::builder())
    }

    fn append(self, builder: &mut Self::Builder) {
        for value in self {
            value.append(builder.values());
        }
        builder.append(true);
    }

    fn append_null(builder: &mut Self::Builder) {
        builder.append(false);
    }
}

/// The sources of a column: a `Vec` of [`ColumnItem`]s, or an Arrow array.
pub trait IntoColumn {
    /// Returns the column.
    fn into_column(self) -> ArrayRef;
}

impl<T: ColumnItem> IntoColumn for Vec<T> {
    fn into_column(self) -> ArrayRef {
        let mut builder = T::builder();
        for value in self {
            value.append(&mut builder);
        }
        builder.finish()
    }
}

impl IntoColumn for ArrayRef {
    fn into_column(self) -> ArrayRef {
        self
    }
}

impl<A: Array + 'static> IntoColumn for Arc<A> {
    fn into_column(self) -> ArrayRef {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: ColumnItem + FromColumn + Clone + PartialEq + std::fmt::Debug>(
        values: Vec<T>,
    ) {
        let column = values.clone().into_column();
        assert_eq!(T::read(&column), Ok(values));
    }

    #[test]
    fn values_round_trip() {
        round_trip(vec!["a".to_owned(), String::new()]);
        round_trip(vec![1u32, 2, u32::MAX]);
        round_trip(vec![true, false]);
        round_trip(vec![Some(1.5f64), None]);
        round_trip(vec![vec![1i64, 2], vec![], vec![3]]);
        round_trip(vec![Some(vec![Some("x".to_owned()), None]), None]);
        round_trip(Vec::<Vec<Vec<i32>>>::new());
        round_trip(vec![vec![vec![1], vec![]], vec![]]);
    }

    #[test]
    fn slices_of_lists_read_their_own_rows() {
        let column = vec![vec![1, 2], vec![3], vec![], vec![4, 5, 6]].into_column();
        assert_eq!(
            Vec::<u32>::read(&column.slice(1, 3)),
            Ok(vec![vec![3], vec![], vec![4, 5, 6]])
        );
    }

    #[test]
    fn a_type_mismatch_names_its_row() {
        let column = vec![vec![1i64], vec![2, -3]].into_column();
        assert_eq!(Vec::<u32>::read(&column), Err(ReadError::Overflow(1)));
        let column = vec![vec![Some(1)], vec![], vec![None]].into_column();
        assert_eq!(Vec::<u32>::read(&column), Err(ReadError::Null(2)));
        assert_eq!(Vec::<String>::read(&column), Err(ReadError::Null(2)));
        assert_eq!(String::read(&vec![1].into_column()), Err(ReadError::Type));
        assert_eq!(i64::read(&vec![1.5].into_column()), Err(ReadError::Type));
    }

    #[test]
    fn always_empty_lists_read_as_lists_of_any_type() {
        let nothing: ArrayRef = Arc::new(arrow::array::ListArray::new_null(
            Arc::new(arrow::datatypes::Field::new_list_field(
                DataType::Null,
                true,
            )),
            0,
        ));
        assert_eq!(Vec::<String>::read(&nothing), Ok(vec![]));
        assert_eq!(Vec::<u32>::read(&nothing), Ok(vec![]));
    }
}
