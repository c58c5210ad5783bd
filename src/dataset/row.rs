//! One record of a dataset, readable at a glance.

use std::fmt;
use std::ops::Index;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::{Error, Result};

/// A value of a record: a scalar, a list, or a nested record.
///
/// ```
/// use cloze::prelude::*;
///
/// let row = Row::new().with("score", 3i64).with("text", "so it is");
/// assert_eq!(row["score"].as_i64(), Some(3));
/// assert_eq!(row["text"].as_i64(), None);
/// assert!(matches!(row["text"], Value::String(_)));
/// ```
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// No value.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number of any width.
    Int(i64),
    /// A decimal number of any width, or a whole one beyond `i64`.
    Float(f64),
    /// Text; also how values of rarer types (dates, binary) are shown.
    String(String),
    /// A list.
    List(Vec<Value>),
    /// A nested record.
    Record(Row),
}

/// A record: fields with names, in the dataset's order.
///
/// `Debug` and `Display` show it as Python shows a dict, over several lines where it is long.
///
/// ```
/// use cloze::prelude::*;
///
/// let row = Row::new().with("q_id", "abc").with("answers", Row::new().with("score", 7i64));
/// assert_eq!(row.names().collect::<Vec<_>>(), ["q_id", "answers"]);
/// assert_eq!(row["answers"]["score"].as_i64(), Some(7));
/// // The error for a missing name lists those that exist.
/// assert!(row.get("title").unwrap_err().to_string().contains("q_id"));
/// ```
#[derive(Clone, PartialEq, Default)]
pub struct Row {
    fields: Vec<(String, Value)>,
}

impl Row {
    /// Returns a record without fields, to be filled by [`Row::with`].
    pub fn new() -> Self {
        Self::default()
    }

    /// This record with the field `name` set.
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let (name, value) = (name.into(), value.into());
        match self.fields.iter_mut().find(|(field, _)| *field == name) {
            Some((_, old)) => *old = value,
            None => self.fields.push((name, value)),
        }
        self
    }

    pub(crate) fn of_batch(batch: &RecordBatch, row: usize) -> Self {
        let fields = batch
            .schema_ref()
            .fields()
            .iter()
            .zip(batch.columns())
            .map(|(field, column)| (field.name().clone(), value_at(column, row)))
            .collect();
        Self { fields }
    }

    /// Returns the field `name`; an error that lists the fields if there is none of that name.
    pub fn get(&self, name: &str) -> Result<&Value> {
        self.find(name).ok_or_else(|| Error::MissingColumn {
            name: name.to_owned(),
            available: self.names().map(str::to_owned).collect(),
        })
    }

    fn find(&self, name: &str) -> Option<&Value> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value)
    }

    /// Returns the fields' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the fields, in order.
    pub fn fields(&self) -> &[(String, Value)] {
        &self.fields
    }

    /// Returns the number of fields.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Returns whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }
}

impl Index<&str> for Row {
    type Output = Value;

    /// Returns the field `name`.
    ///
    /// # Panics
    /// If there is no such field; [`Row::get`] gives an error instead.
    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Value {
    /// Returns whether there is no value.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Returns the text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the whole number, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// Returns the number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// Returns `true` or `false`, if it is one of them.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the items, if it is a list.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// Returns the nested record, if it is one.
    pub fn as_record(&self) -> Option<&Row> {
        match self {
            Self::Record(row) => Some(row),
            _ => None,
        }
    }

    /// Returns the field `name` of a nested record: `row.get("answers")?.get("text")?`.
    pub fn get(&self, name: &str) -> Result<&Value> {
        match self {
            Self::Record(row) => row.get(name),
            other => Err(Error::Dataset(format!(
                "only a nested record has fields such as {name:?}, but this is {}",
                other.kind()
            ))),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a truth value",
            Self::Int(_) => "a whole number",
            Self::Float(_) => "a decimal number",
            Self::String(_) => "text",
            Self::List(_) => "a list",
            Self::Record(_) => "a nested record",
        }
    }
}

impl Index<&str> for Value {
    type Output = Value;

    /// Returns the field `name` of a nested record.
    ///
    /// # Panics
    /// If this is no record, or has no such field; [`Value::get`] gives an error instead.
    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Index<usize> for Value {
    type Output = Value;

    /// Item `index` of a list.
    ///
    /// # Panics
    /// If this is no list, or is shorter; [`Value::as_list`] gives the items to look through instead.
    fn index(&self, index: usize) -> &Value {
        match self {
            Self::List(items) if index < items.len() => &items[index],
            Self::List(items) => panic!("there is no item {index} in a list of {}", items.len()),
            other => panic!("{} is not a list, so it has no item {index}", other.kind()),
        }
    }
}

impl PartialEq<str> for Value {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == Some(other)
    }
}

impl PartialEq<&str> for Value {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == Some(*other)
    }
}

impl PartialEq<i64> for Value {
    fn eq(&self, other: &i64) -> bool {
        self.as_i64() == Some(*other)
    }
}

macro_rules! value_from {
    ($($from:ty => $variant:ident),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

value_from!(bool => Bool, i8 => Int, i16 => Int, i32 => Int, i64 => Int, u8 => Int, u16 => Int, u32 => Int,
    f32 => Float, f64 => Float, &str => String, String => String, Row => Record);

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(items: Vec<T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Binary values up to this length are shown in full, as hexadecimal digits.
const SHOWN_BYTES: usize = 64;

fn value_at(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    macro_rules! number {
        ($type:ty) => {
            array.as_primitive::<$type>().value(row).into()
        };
    }
    match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => {
            let number = array.as_primitive::<UInt64Type>().value(row);
            i64::try_from(number).map_or(Value::Float(number as f64), Value::Int)
        }
        DataType::Float16 => Value::Float(array.as_primitive::<Float16Type>().value(row).to_f64()),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::Utf8 => Value::String(array.as_string::<i32>().value(row).to_owned()),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            Value::List(
                (0..items.len())
                    .map(|item| value_at(&items, item))
                    .collect(),
            )
        }
        DataType::Struct(fields) => {
            let record = array.as_struct();
            let fields = fields
                .iter()
                .zip(record.columns())
                .map(|(field, column)| (field.name().clone(), value_at(column, row)))
                .collect();
            Value::Record(Row { fields })
        }
        // A file's content, which no one reads.
        DataType::Binary if array.as_binary::<i32>().value(row).len() > SHOWN_BYTES => {
            let bytes = array.as_binary::<i32>().value(row).len();
            Value::String(format!("({bytes} bytes)"))
        }
        _ => match ArrayFormatter::try_new(array, &FormatOptions::default()) {
            Ok(formatter) => Value::String(formatter.value(row).to_string()),
            Err(_) => Value::Null,
        },
    }
}

impl fmt::Display for Value {
    /// Formats strings verbatim, and everything else like [`fmt::Debug`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => f.write_str(text),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&Piece::of_value(self)))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&Piece::of_row(self)))
    }
}

/// Lists and records that fit on the rest of a line of this many characters stay on it.
const WIDTH: usize = 100;

/// A formatted value, measured before it is laid out, so that every level is visited once however deep it is.
enum Piece {
    Text(String),
    Parts {
        brackets: [char; 2],
        /// The prefix of each part (a field's name and a colon, or nothing), and the part.
        parts: Vec<(String, Piece)>,
        /// The characters between the brackets when all is on one line.
        width: usize,
    },
}

impl Piece {
    fn of_value(value: &Value) -> Self {
        Self::Text(match value {
            Value::Null => "None".to_owned(),
            Value::Bool(true) => "True".to_owned(),
            Value::Bool(false) => "False".to_owned(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::String(text) => quoted(text),
            Value::List(items) => {
                let parts = items
                    .iter()
                    .map(|item| (String::new(), Self::of_value(item)));
                return Self::of_parts(['[', ']'], parts.collect());
            }
            Value::Record(row) => return Self::of_row(row),
        })
    }

    fn of_row(row: &Row) -> Self {
        let part = |(name, value): &(String, Value)| (quoted(name) + ": ", Self::of_value(value));
        Self::of_parts(['{', '}'], row.fields.iter().map(part).collect())
    }

    fn of_parts(brackets: [char; 2], parts: Vec<(String, Piece)>) -> Self {
        let separators = 2 * parts.len().saturating_sub(1);
        let part = |(name, piece): &(String, Piece)| name.chars().count() + piece.width();
        let width = separators + parts.iter().map(part).sum::<usize>();
        Self::Parts {
            brackets,
            parts,
            width,
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::Text(text) => text.chars().count(),
            Self::Parts { width, .. } => width + 2,
        }
    }

    fn write(&self, out: &mut String, indent: usize) {
        let (brackets, parts, width) = match self {
            Self::Text(text) => return out.push_str(text),
            Self::Parts {
                brackets,
                parts,
                width,
            } => (brackets, parts, width),
        };
        let fits = width + indent <= WIDTH;
        out.push(brackets[0]);
        for (i, (name, piece)) in parts.iter().enumerate() {
            match (i, fits) {
                (0, _) => {}
                (_, true) => out.push_str(", "),
                (_, false) => {
                    out.push_str(",\n");
                    out.extend(std::iter::repeat_n(' ', indent + 1));
                }
            }
            out.push_str(name);
            piece.write(out, if fits { indent } else { indent + 1 });
        }
        out.push(brackets[1]);
    }
}

fn show(piece: &Piece) -> String {
    let mut text = String::new();
    piece.write(&mut text, 0);
    text
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    write_quoted(&mut out, text);
    out
}

/// Text between quotes as Python writes it: single ones, unless only they occur in the text.
fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_like_a_python_dict() {
        let row = Row::new()
            .with("q_id", "5lchat")
            .with("title", "It's \"why\"\nagain")
            .with(
                "answers",
                Row::new()
                    .with("text", vec!["a".repeat(60), "b's".repeat(20)])
                    .with("score", vec![3, 2])
                    .with("none", Value::Null)
                    .with("ratio", 1.0)
                    .with("kept", true),
            );
        let expected = format!(
            "{{'q_id': '5lchat',\n 'title': 'It\\'s \"why\"\\nagain',\n 'answers': {{'text': ['{}',\n   \"{}\"],\n  \
             'score': [3, 2],\n  'none': None,\n  'ratio': 1.0,\n  'kept': True}}}}",
            "a".repeat(60),
            "b's".repeat(20)
        );
        assert_eq!(format!("{row:?}"), expected);
        assert_eq!(row.to_string(), expected);
    }

    #[test]
    fn a_short_record_stays_on_one_line() {
        let row = Row::new().with("text", "hello").with("ids", vec![1, 2]);
        assert_eq!(row.to_string(), "{'text': 'hello', 'ids': [1, 2]}");
        assert_eq!(row["text"].to_string(), "hello");
    }

    #[test]
    fn deep_records_are_displayed_in_linear_time() {
        let mut value = Value::from("x".repeat(60));
        for depth in 0..400 {
            value = match depth % 2 {
                0 => Row::new().with("inner", value).with("depth", depth).into(),
                _ => Value::List(vec![value]),
            };
        }
        let started = std::time::Instant::now();
        let text = value.to_string();
        assert!(started.elapsed().as_secs_f64() < 1.0);
        assert_eq!(text.matches("'inner'").count(), 200);
    }

    #[test]
    fn a_missing_field_lists_the_existing_ones() {
        let row = Row::new()
            .with("text", "hello")
            .with("answers", Row::new().with("score", vec![1]));
        let error = row.get("title").unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no column \"title\"; the columns are text, answers"
        );
        assert!(row["answers"].get("text").is_err());
        assert!(
            row["text"]
                .get("text")
                .unwrap_err()
                .to_string()
                .contains("this is text")
        );
        assert_eq!(row["answers"]["score"][0], 1);
    }
}
