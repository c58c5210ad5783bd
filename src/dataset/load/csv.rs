//! Comma- and tab-separated values.
//!
//! Files are parsed here instead of by a library for better errors: the line of an unclosed quote, rows that are too
//! long or too short, names that are missing or duplicate.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::chunks::CHUNK;
use super::source::{self, Source};
use super::{Options, Rows, agree};
use crate::dataset::parallel;
use crate::{Error, Result};

/// Columns are whole or decimal numbers or truth values where all values of all rows are; text otherwise. An empty
/// value is null, and so are those that a short row lacks. Among numbers and truth values the words for a missing one ("NA",
/// "null", ...) are null too; among texts they are texts.
pub(super) fn load(
    paths: &[PathBuf],
    delimiter: u8,
    options: &Options,
    rows: &mut Rows,
) -> Result<SchemaRef> {
    let mut tables = Vec::new();
    for path in paths {
        tables.push(Table::open(path, delimiter, options)?);
    }
    forget_missing(&mut tables);
    let schemas: Vec<_> = tables
        .iter()
        .map(|table| (table.path, table.schema()))
        .collect();
    let schema = agree(&schemas)?;
    for table in &tables {
        // Columns of a file may come in another order.
        let agreed: HashMap<&str, &DataType> = schema
            .fields()
            .iter()
            .map(|field| (field.name().as_str(), field.data_type()))
            .collect();
        let fields = table.names.iter().map(|name| {
            let data_type = agreed
                .get(name.as_str())
                .copied()
                .unwrap_or(&DataType::Null);
            Field::new(name, data_type.clone(), true)
        });
        let here = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        rows.fill(table.chunks()?, |chunk| {
            let bytes = chunk.bytes.len();
            Ok((vec![table.decode(&chunk, &here)?], bytes))
        })?;
    }
    Ok(schema)
}

/// Takes the words for missing values for nulls where a file has nothing else in a column that another file has numbers or
/// truth values in.
fn forget_missing(tables: &mut [Table]) {
    let mut known: HashMap<String, Kind> = HashMap::new();
    for table in &*tables {
        for (name, &kind) in table.names.iter().zip(&table.kinds) {
            let common = known.entry(name.clone()).or_default();
            *common = common.and(kind);
        }
    }
    for table in tables {
        for (name, kind) in table.names.iter().zip(&mut table.kinds) {
            let is_text = matches!(known[name], Kind::Text | Kind::Missing);
            if *kind == Kind::Missing && !is_text {
                *kind = Kind::Null;
            }
        }
    }
}

/// A column takes some hundred bytes, however few the file has for it.
const MOST_COLUMNS: usize = 1 << 17;

/// A file, its columns and what their values have in common.
struct Table<'a> {
    path: &'a Path,
    options: &'a Options,
    delimiter: u8,
    /// Whether the first record holds the names.
    has_header: bool,
    names: Vec<String>,
    kinds: Vec<Kind>,
}

/// Returns whether a value is one of the words that pandas takes for a missing one. "NaN" is a number here.
fn is_missing(value: &[u8]) -> bool {
    const WORDS: [&[u8]; 15] = [
        b"NA",
        b"N/A",
        b"n/a",
        b"null",
        b"NULL",
        b"None",
        b"<NA>",
        b"#N/A",
        b"#NA",
        b"#N/A N/A",
        b"1.#IND",
        b"-1.#IND",
        b"1.#QNAN",
        b"-1.#QNAN",
        b"-NaN",
    ];
    WORDS.contains(&value)
}

/// The common type of a column's values so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    #[default]
    Null,
    /// Words for a missing value, and nothing else.
    Missing,
    Bool,
    Int,
    Float,
    Text,
}

impl Kind {
    fn of(value: &[u8]) -> Self {
        let digits = |bytes: &[u8]| {
            bytes
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count()
        };
        if value.is_empty() {
            return Self::Null;
        }
        // Spaces around a number, and a sign before it, are no part of a text.
        let number = value.trim_ascii();
        let signs = [b"-", b"+"];
        let unsigned = signs.iter().find_map(|sign| number.strip_prefix(*sign));
        let unsigned = unsigned.unwrap_or(number);
        let whole = digits(unsigned);
        if whole > 0 && whole == unsigned.len() {
            // Beyond 64 bits it stays as it is written.
            let fits = whole < 19
                || std::str::from_utf8(number).is_ok_and(|text| text.parse::<i64>().is_ok());
            return if fits { Self::Int } else { Self::Text };
        }
        if is_missing(value) {
            return Self::Missing;
        }
        if value.eq_ignore_ascii_case(b"true") || value.eq_ignore_ascii_case(b"false") {
            return Self::Bool;
        }
        let infinite = [&b"inf"[..], b"infinity"];
        let is_infinite = infinite
            .iter()
            .any(|word| unsigned.eq_ignore_ascii_case(word));
        if is_infinite || matches!(value, b"NaN" | b"nan") {
            return Self::Float;
        }
        let mut rest = &unsigned[whole..];
        let mut fraction = 0;
        if let Some(after) = rest.strip_prefix(b".") {
            fraction = digits(after);
            rest = &after[fraction..];
        }
        if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
            let exponent = exponent
                .strip_prefix(b"+")
                .or_else(|| exponent.strip_prefix(b"-"))
                .unwrap_or(exponent);
            rest = match digits(exponent) {
                0 => rest,
                length => &exponent[length..],
            };
        }
        match whole + fraction > 0 && rest.is_empty() {
            true => Self::Float,
            false => Self::Text,
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (kind, Self::Null) | (Self::Null, kind) => kind,
            (kind, other) if kind == other => kind,
            (kind, Self::Missing) | (Self::Missing, kind) => kind,
            (Self::Int | Self::Float, Self::Int | Self::Float) => Self::Float,
            _ => Self::Text,
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Null => DataType::Null,
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Text | Self::Missing => DataType::Utf8,
        }
    }
}

impl<'a> Table<'a> {
    /// Reads the names of the columns and finds their types.
    fn open(path: &'a Path, delimiter: u8, options: &'a Options) -> Result<Self> {
        let mut table = Self {
            path,
            options,
            delimiter,
            has_header: options.column_names.is_none(),
            names: Vec::new(),
            kinds: Vec::new(),
        };
        table.names = match &options.column_names {
            Some(names) => {
                let mut seen = HashSet::new();
                if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
                    return Err(Error::argument(
                        "column_names",
                        format!("it contains {twice:?} twice"),
                    ));
                }
                names.clone()
            }
            None => table.header()?,
        };
        table.kinds = vec![Kind::Null; table.names.len()];
        let mut kinds = std::mem::take(&mut table.kinds);
        parallel::ordered(
            "reading CSV",
            parallel::default_threads(),
            table.chunks()?,
            |chunk| table.infer(&chunk),
            |found| {
                for (kind, found) in kinds.iter_mut().zip(found) {
                    *kind = kind.and(found);
                }
                Ok(())
            },
        )?;
        table.kinds = kinds;
        Ok(table)
    }

    fn schema(&self) -> SchemaRef {
        let fields = self
            .names
            .iter()
            .zip(&self.kinds)
            .map(|(name, kind)| Field::new(name, kind.data_type(), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    fn all_chunks(&self) -> Result<Chunks<'a>> {
        Ok(Chunks {
            source: source::open(self.path, self.options.encoding)?,
            path: self.path,
            delimiter: self.delimiter,
            rest: Vec::new(),
            line: 1,
            state: State::Start,
            quote: 0,
            done: false,
        })
    }

    /// Returns the chunks without the header.
    fn chunks(&self) -> Result<impl Iterator<Item = Result<Chunk>> + use<'a>> {
        let (mut has_header, delimiter) = (self.has_header, self.delimiter);
        Ok(self.all_chunks()?.map(move |chunk| {
            let mut chunk = chunk?;
            if has_header {
                let mut records = Records::new(delimiter, &chunk);
                if records.next().is_some() {
                    has_header = false;
                }
                (chunk.start, chunk.line) = (records.at, records.line);
            }
            Ok(chunk)
        }))
    }

    /// Returns the names in the first record; missing and duplicate ones are replaced as in pandas.
    fn header(&self) -> Result<Vec<String>> {
        for chunk in self.all_chunks()? {
            let chunk = chunk?;
            let mut records = Records::new(self.delimiter, &chunk);
            if let Some((line, record)) = records.next() {
                if record.len() > MOST_COLUMNS {
                    let message = format!(
                        "its first line names {} columns, and at most {MOST_COLUMNS} are read: is the delimiter right?",
                        record.len()
                    );
                    return Err(self.malformed(line, message));
                }
                let names = record
                    .iter()
                    .map(|name| String::from_utf8_lossy(name).into_owned());
                return Ok(distinct(names.collect()));
            }
        }
        Ok(Vec::new())
    }

    fn infer(&self, chunk: &Chunk) -> Result<Vec<Kind>> {
        let mut kinds = vec![Kind::Null; self.names.len()];
        let mut records = Records::new(self.delimiter, chunk);
        let mut lacking = 0usize;
        while let Some((line, record)) = records.next() {
            if record.len() > kinds.len() {
                let message = match self.has_header {
                    true => format!(
                        "the row has {} values, and the header names {} columns; put values with a delimiter in them \
                         between quotes, or choose another delimiter with Loader::delimiter",
                        record.len(),
                        kinds.len()
                    ),
                    false => format!(
                        "the row has {} values, and {} names were given",
                        record.len(),
                        kinds.len()
                    ),
                };
                return Err(self.malformed(line, message));
            }
            for (kind, value) in kinds.iter_mut().zip(record.iter()) {
                if *kind != Kind::Text {
                    *kind = kind.and(Kind::of(value));
                }
            }
            // Every value that is there takes a byte of the file, but those that are not take none.
            lacking += kinds.len() - record.len();
            if lacking > 16 * chunk.bytes.len() + (1 << 20) {
                let message = format!(
                    "too many rows up to here lack most of the {} columns: a table of them would be many times the size of the file; is the header right?",
                    kinds.len()
                );
                return Err(self.malformed(line, message));
            }
        }
        Ok(kinds)
    }

    fn malformed(&self, line: usize, message: String) -> Error {
        Error::Format {
            path: self.path.to_owned(),
            line: Some(line),
            message,
        }
    }

    fn decode(&self, chunk: &Chunk, schema: &SchemaRef) -> Result<RecordBatch> {
        let mut columns: Vec<Option<Builder>> = schema.fields().iter().map(|_| None).collect();
        let mut records = Records::new(self.delimiter, chunk);
        let mut row = 0;
        while let Some((line, record)) = records.next() {
            if record.len() > columns.len() {
                let message = "the file changed while it was read".to_owned();
                return Err(self.malformed(line, message));
            }
            for ((column, field), value) in
                columns.iter_mut().zip(schema.fields()).zip(record.iter())
            {
                if value.is_empty() {
                    continue;
                }
                let builder = column.get_or_insert_with(|| Builder::new(field.data_type()));
                builder.pad(row);
                builder.push(value).ok_or_else(|| {
                    let shown = String::from_utf8_lossy(value);
                    self.malformed(
                        line,
                        format!("{shown:?} in column {:?} is not what it was before: the file changed while it was read", field.name()),
                    )
                })?;
            }
            row += 1;
        }
        let columns =
            columns
                .into_iter()
                .zip(schema.fields())
                .map(|(column, field)| match column {
                    Some(builder) => builder.finish(row),
                    None => new_null_array(field.data_type(), row),
                });
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(row));
        Ok(RecordBatch::try_new_with_options(
            schema.clone(),
            columns.collect(),
            &options,
        )?)
    }
}

/// Names as pandas makes them distinct: "Unnamed: 2" for none, and "a.1" for a second "a".
fn distinct(mut names: Vec<String>) -> Vec<String> {
    let mut order: Vec<usize> = (0..names.len()).filter(|&i| !names[i].is_empty()).collect();
    let unnamed: Vec<usize> = (0..names.len()).filter(|&i| names[i].is_empty()).collect();
    for &index in &unnamed {
        names[index] = format!("Unnamed: {index}");
    }
    // Names that were given come before those that were made up.
    order.extend(unnamed);
    let mut present: HashMap<String, usize> = HashMap::new();
    for name in &names {
        *present.entry(name.clone()).or_default() += 1;
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for index in order {
        let given = names[index].clone();
        let mut name = given.clone();
        let mut count = counts.get(&name).copied().unwrap_or(0);
        while count > 0 {
            counts.insert(given.clone(), count + 1);
            name = format!("{given}.{count}");
            count = match present.get(&name).copied().unwrap_or(0) {
                0 => counts.get(&name).copied().unwrap_or(0),
                _ => count + 1,
            };
        }
        if name != given {
            if let Some(left) = present.get_mut(&given) {
                *left -= 1;
            }
            *present.entry(name.clone()).or_default() += 1;
            names[index].clone_from(&name);
        }
        counts.insert(name, count + 1);
    }
    names
}

/// The initial capacity of a column, in rows: with many columns there may be few.
const FIRST_ROWS: usize = 16;

/// A column in the making.
enum Builder {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
}

impl Builder {
    fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Bool(BooleanBuilder::with_capacity(FIRST_ROWS)),
            DataType::Int64 => Self::Int(Int64Builder::with_capacity(FIRST_ROWS)),
            DataType::Float64 => Self::Float(Float64Builder::with_capacity(FIRST_ROWS)),
            _ => Self::Text(StringBuilder::with_capacity(FIRST_ROWS, 4 * FIRST_ROWS)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Bool(builder) => arrow::array::ArrayBuilder::len(builder),
            Self::Int(builder) => arrow::array::ArrayBuilder::len(builder),
            Self::Float(builder) => arrow::array::ArrayBuilder::len(builder),
            Self::Text(builder) => arrow::array::ArrayBuilder::len(builder),
        }
    }

    /// Fills up with nulls to `rows` rows.
    fn pad(&mut self, rows: usize) {
        match self {
            Self::Bool(builder) => {
                builder.append_nulls(rows - arrow::array::ArrayBuilder::len(builder))
            }
            Self::Int(builder) => {
                builder.append_nulls(rows - arrow::array::ArrayBuilder::len(builder))
            }
            Self::Float(builder) => {
                builder.append_nulls(rows - arrow::array::ArrayBuilder::len(builder))
            }
            Self::Text(builder) => {
                for _ in arrow::array::ArrayBuilder::len(builder)..rows {
                    builder.append_null();
                }
            }
        }
    }

    fn push(&mut self, value: &[u8]) -> Option<()> {
        let text = std::str::from_utf8(value).ok()?;
        if is_missing(value) && !matches!(self, Self::Text(_)) {
            let rows = self.len();
            self.pad(rows + 1);
            return Some(());
        }
        match self {
            Self::Bool(builder) => {
                let yes = text.eq_ignore_ascii_case("true");
                if !yes && !text.eq_ignore_ascii_case("false") {
                    return None;
                }
                builder.append_value(yes);
            }
            Self::Int(builder) => builder.append_value(text.trim_ascii().parse().ok()?),
            Self::Float(builder) => builder.append_value(text.trim_ascii().parse().ok()?),
            Self::Text(builder) => builder.append_value(text),
        }
        Some(())
    }

    fn finish(mut self, rows: usize) -> ArrayRef {
        self.pad(rows);
        match self {
            Self::Bool(mut builder) => Arc::new(builder.finish()),
            Self::Int(mut builder) => Arc::new(builder.finish()),
            Self::Float(mut builder) => Arc::new(builder.finish()),
            Self::Text(mut builder) => Arc::new(builder.finish()),
        }
    }
}

/// The parser's position in a record.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// At the start of a value: only here does a quote open one.
    Start,
    Plain,
    Quoted,
    /// After a quote in a quoted value: its end, or the first of two that represent one.
    AfterQuote,
}

impl State {
    fn next(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::AfterQuote,
            (Self::Quoted, _) => Self::Quoted,
            (Self::Start | Self::AfterQuote, b'"') => Self::Quoted,
            (_, b'\n' | b'\r') => Self::Start,
            (_, byte) if byte == delimiter => Self::Start,
            _ => Self::Plain,
        }
    }
}

/// Whole records of a file.
struct Chunk {
    bytes: Vec<u8>,
    /// The offset of the first record, after the header.
    start: usize,
    /// The line at `start`, counted from 1.
    line: usize,
}

/// A file in chunks of whole records.
struct Chunks<'a> {
    source: Source,
    path: &'a Path,
    delimiter: u8,
    /// The bytes read beyond the last whole record.
    rest: Vec<u8>,
    /// The line that the next chunk begins with.
    line: usize,
    state: State,
    /// The place in the chunk of the quote that is open.
    quote: usize,
    done: bool,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

impl Chunks<'_> {
    fn malformed(&self, bytes: &[u8], at: usize, message: &str) -> Error {
        Error::Format {
            path: self.path.to_owned(),
            line: Some(self.line + line_ends(&bytes[..at])),
            message: message.to_owned(),
        }
    }

    fn read(&mut self) -> Result<Option<Chunk>> {
        let delimiter = self.delimiter;
        let mut bytes = std::mem::take(&mut self.rest);
        let (mut scanned, mut end) = (0, 0);
        self.state = State::Start;
        loop {
            while scanned < bytes.len() {
                let rest = &bytes[scanned..];
                let skipped = match self.state {
                    State::Quoted => memchr::memchr(b'"', rest),
                    State::Plain => memchr::memchr3(delimiter, b'\n', b'\r', rest),
                    State::Start | State::AfterQuote => Some(0),
                };
                let Some(skipped) = skipped else {
                    scanned = bytes.len();
                    break;
                };
                scanned += skipped;
                let byte = bytes[scanned];
                let before = self.state;
                self.state = before.next(byte, delimiter);
                if before == State::Start && self.state == State::Quoted {
                    self.quote = scanned;
                }
                scanned += 1;
                if self.state == State::Start && byte != delimiter {
                    end = scanned;
                }
            }
            // A carriage return may be the first half of a line's end.
            let is_half = end > 0 && end == bytes.len() && bytes[end - 1] == b'\r';
            if self.done || (end > 0 && !is_half && bytes.len() >= CHUNK) {
                break;
            }
            let read = (&mut self.source)
                .take(CHUNK as u64)
                .read_to_end(&mut bytes)
                .map_err(|error| Error::io("read", self.path, error))?;
            self.done = read < CHUNK;
        }
        if self.done {
            if self.state == State::Quoted {
                return Err(self.malformed(
                    &bytes,
                    self.quote,
                    "the quoted value that begins here never ends: a quote is missing, or the file was cut short",
                ));
            }
            end = bytes.len();
        }
        self.rest = bytes.split_off(end);
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Err(error) = std::str::from_utf8(&bytes) {
            return Err(self.malformed(
                &bytes,
                error.valid_up_to(),
                "the text is not valid UTF-8; name its encoding with Loader::encoding, or convert the file",
            ));
        }
        let line = self.line;
        self.line += line_ends(&bytes);
        Ok(Some(Chunk {
            bytes,
            start: 0,
            line,
        }))
    }
}

/// Returns the number of lines that end in `bytes`, whichever way.
fn line_ends(bytes: &[u8]) -> usize {
    let mut ends = memchr::memchr_iter(b'\n', bytes).count();
    for at in memchr::memchr_iter(b'\r', bytes) {
        ends += usize::from(bytes.get(at + 1) != Some(&b'\n'));
    }
    ends
}

/// The records of a chunk.
struct Records<'a> {
    bytes: &'a [u8],
    delimiter: u8,
    at: usize,
    line: usize,
    values: Vec<Cow<'a, [u8]>>,
}

impl<'a> Records<'a> {
    fn new(delimiter: u8, chunk: &'a Chunk) -> Self {
        Self {
            bytes: &chunk.bytes,
            delimiter,
            at: chunk.start,
            line: chunk.line,
            values: Vec::new(),
        }
    }

    /// Returns the line of the next record and its values; empty lines, and those with nothing but spaces, are none.
    fn next(&mut self) -> Option<(usize, &[Cow<'a, [u8]>])> {
        while self.end_line() || self.blank() {}
        if self.at == self.bytes.len() {
            return None;
        }
        let line = self.line;
        self.values.clear();
        loop {
            let value = match self.bytes.get(self.at) {
                Some(b'"') => self.quoted(),
                _ => Cow::Borrowed(self.plain()),
            };
            self.values.push(value);
            match self.bytes.get(self.at) {
                Some(&byte) if byte == self.delimiter => self.at += 1,
                _ => {
                    self.end_line();
                    return Some((line, &self.values));
                }
            }
        }
    }

    /// Steps over spaces, if there is nothing else in the line that begins here.
    fn blank(&mut self) -> bool {
        let rest = &self.bytes[self.at..];
        let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t') && **byte != self.delimiter;
        let spaces = rest.iter().take_while(is_space).count();
        let ends = matches!(rest.get(spaces), None | Some(b'\r' | b'\n'));
        if ends {
            self.at += spaces;
        }
        ends && spaces > 0
    }

    /// Steps over the end of a line, if there is one here.
    fn end_line(&mut self) -> bool {
        let length = match self.bytes[self.at..] {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => return false,
        };
        self.at += length;
        self.line += 1;
        true
    }

    /// Returns the bytes up to the end of a value without quotes.
    fn plain(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        let end = memchr::memchr3(self.delimiter, b'\n', b'\r', rest).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Returns the quoted value that begins here, with doubled quotes replaced by one. Text after the closing quote is
    /// part of the value.
    fn quoted(&mut self) -> Cow<'a, [u8]> {
        let from = self.at;
        let mut value = Cow::Borrowed(&[][..]);
        let mut append = |part: &'a [u8]| match &mut value {
            Cow::Borrowed([]) => value = Cow::Borrowed(part),
            Cow::Borrowed(before) => value = Cow::Owned([*before, part].concat()),
            Cow::Owned(value) => value.extend_from_slice(part),
        };
        self.at += 1;
        loop {
            let rest = &self.bytes[self.at..];
            let end = memchr::memchr(b'"', rest).unwrap_or(rest.len());
            let is_escape = rest.get(end + 1) == Some(&b'"');
            append(&rest[..end + usize::from(is_escape)]);
            self.at = (self.at + end + 1 + usize::from(is_escape)).min(self.bytes.len());
            if !is_escape {
                break;
            }
        }
        self.line += line_ends(&self.bytes[from..self.at]);
        append(self.plain());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Dataset, Loader};

    fn load_with(text: &[u8], loader: impl FnOnce(Loader) -> Loader) -> Result<Dataset> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.csv");
        std::fs::write(&path, text).unwrap();
        let loader = loader(Loader::new(path.to_str().unwrap()).cache(false));
        Ok(loader.load()?["train"].clone())
    }

    fn load(text: &str) -> Result<Dataset> {
        load_with(text.as_bytes(), |loader| loader)
    }

    fn rows(text: &str) -> Vec<String> {
        let dataset = load(text).unwrap();
        dataset.iter().map(|row| row.to_string()).collect()
    }

    #[test]
    fn quotes_protect_delimiters_line_ends_and_quotes() {
        assert_eq!(
            rows(
                "a,b\n\"x, \"\"y\"\"\",1\r\n\"two\r\nlines\",2\rplain \"q\",3\n\n\"\"\"\",4\n\"z\"z,5"
            ),
            [
                "{'a': 'x, \"y\"', 'b': 1}",
                "{'a': 'two\\r\\nlines', 'b': 2}",
                "{'a': 'plain \"q\"', 'b': 3}",
                "{'a': '\"', 'b': 4}",
                "{'a': 'zz', 'b': 5}",
            ]
        );
    }

    #[test]
    fn an_unclosed_quote_is_reported_with_its_line() {
        for (text, line) in [
            ("a,b\n1,x\n2,\"open\n3,lost\n4,lost\n", 3),
            ("a,b\r\"x\ry\",1\r\"", 4),
            ("a\n\"cut in a quoted", 2),
            ("\"a\n1\n", 1),
            ("a\n\"x\"\"", 2),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(
                error.contains(&format!(
                    "line {line}: the quoted value that begins here never ends"
                )),
                "{text:?}: {error}"
            );
        }
        // One that is whole at the end of the file is fine.
        assert_eq!(rows("a\n\"x\""), ["{'a': 'x'}"]);
    }

    #[test]
    fn short_rows_are_filled_and_long_rows_reported() {
        assert_eq!(
            rows("a,b,c\n1,2\n4,5,6\n7\n"),
            [
                "{'a': 1, 'b': 2, 'c': None}",
                "{'a': 4, 'b': 5, 'c': 6}",
                "{'a': 7, 'b': None, 'c': None}"
            ]
        );
        let error = load("a,b\n1,2\n\n\"x\ny\",4,5\n").unwrap_err().to_string();
        assert!(
            error.contains("line 4: the row has 3 values, and the header names 2 columns"),
            "{error}"
        );
    }

    #[test]
    fn duplicate_names_are_numbered_as_in_pandas() {
        let of = |names: &[&str]| distinct(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(
            of(&["", "a", "b", ""]),
            ["Unnamed: 0", "a", "b", "Unnamed: 3"]
        );
        assert_eq!(of(&["a", "a", "b", "a"]), ["a", "a.1", "b", "a.2"]);
        assert_eq!(of(&["a", "a", "a.1", "a"]), ["a", "a.2", "a.1", "a.3"]);
        assert_eq!(of(&["a.1", "a", "a", "a.1"]), ["a.1", "a", "a.2", "a.1.1"]);
        assert_eq!(of(&["", "Unnamed: 0"]), ["Unnamed: 0.1", "Unnamed: 0"]);
        assert_eq!(
            load(",a,a\n0,x,1\n").unwrap().column_names(),
            ["Unnamed: 0", "a", "a.1"]
        );
    }

    #[test]
    fn options_set_delimiter_names_and_encoding() {
        let dataset = load_with(b"x;1\n\xe9;2\n", |loader| {
            loader
                .delimiter(';')
                .column_names(["text", "n"])
                .encoding("latin-1")
        })
        .unwrap();
        assert_eq!(dataset.column::<String>("text").unwrap(), ["x", "\u{e9}"]);
        assert_eq!(dataset.column::<i64>("n").unwrap(), [1, 2]);
        let error = load_with(b"a\nb\n\xe9\n", |loader| loader)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 3: the text is not valid UTF-8"),
            "{error}"
        );
        let error = load_with(b"a\n", |loader| loader.delimiter('\u{e9}'))
            .unwrap_err()
            .to_string();
        assert!(error.contains("delimiter"), "{error}");
    }

    #[test]
    fn inferred_types_fit_the_values_of_all_rows() {
        let types = |text: &str| {
            load(text)
                .unwrap()
                .features()
                .iter()
                .map(|(_, kind)| kind.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            types(
                "i,f,b,t,d,n,big,e\n1,1,TRUE,x,2020-01-02,,99999999999999999999,1e5\n-2,.5,false,1,2021-01-01,,1,\n"
            ),
            [
                "int64", "float64", "bool", "string", "string", "null", "string", "float64"
            ]
        );
        assert_eq!(types("a,b\n1,1e\nx,2\n"), ["string", "string"]);
        assert_eq!(types("a\nnan\n1\n"), ["float64"]);
        // As pandas reads them.
        assert_eq!(
            types("a,b,c,d,e\n+4, 5,-Infinity,1_0,+\n7,\t6 ,INF,2,1\n,  ,+inf,,\n"),
            ["int64", "string", "float64", "string", "string"]
        );
        let spaced = load("a,b\n 5 ,+1.5\n+6,\t2e3 \n").unwrap();
        assert_eq!(spaced.column::<i64>("a").unwrap(), [5, 6]);
        assert_eq!(spaced.column::<f64>("b").unwrap(), [1.5, 2000.0]);
    }

    #[test]
    fn lines_of_spaces_are_no_rows() {
        assert_eq!(
            rows("  \n\t\na,b\n \t \n 1,2\r\n   \r\n3,\n    "),
            ["{'a': 1, 'b': 2}", "{'a': 3, 'b': None}"]
        );
        // A tab between values is no space.
        let options = |loader: Loader| loader.delimiter('\t');
        let table = load_with(b"a\tb\n1\t2\n\t\n  \n", options).unwrap();
        let numbers = table.column::<Option<i64>>("a").unwrap();
        assert_eq!(numbers, [Some(1), None]);
        // The line of a fault counts them.
        let error = load("a\n  \n1,2\n").unwrap_err().to_string();
        assert!(error.contains("line 3: the row has 2"), "{error}");
    }

    #[test]
    fn markers_of_missing_values_are_nulls_in_number_columns_and_text_in_text_columns() {
        let dataset = load(
            "n,f,b,t,only\nNA,null,None,NA,NA\n1,2.5,true,x,None\nN/A,<NA>,n/a,None,null\n-7,#N/A,false,null,\n",
        )
        .unwrap();
        let kinds: Vec<_> = dataset
            .features()
            .into_iter()
            .map(|(_, kind)| kind)
            .collect();
        assert_eq!(kinds, ["int64", "float64", "bool", "string", "string"]);
        let numbers = dataset.column::<Option<i64>>("n").unwrap();
        assert_eq!(numbers, [None, Some(1), None, Some(-7)]);
        let fractions = dataset.column::<Option<f64>>("f").unwrap();
        assert_eq!(fractions, [None, Some(2.5), None, None]);
        let truths = dataset.column::<Option<bool>>("b").unwrap();
        assert_eq!(truths, [None, Some(true), None, Some(false)]);
        let texts = dataset.column::<String>("t").unwrap();
        assert_eq!(texts, ["NA", "x", "None", "null"]);
        // A column of nothing else says nothing about numbers.
        let only = dataset.column::<Option<String>>("only").unwrap();
        assert_eq!(
            only[..3],
            ["NA", "None", "null"].map(|it| Some(it.to_owned()))
        );
        assert_eq!(only[3], None);
        // The same holds for several files, in any order.
        let folder = tempfile::tempdir().unwrap();
        let files = ["n,t\nNA,null\n", "n,t\n3,x\n", "n,t\n,NA\n"];
        for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
            let paths = order.map(|at: usize| {
                let path = folder.path().join(format!("{at}.csv"));
                std::fs::write(&path, files[at]).unwrap();
                path
            });
            let loaded = Loader::from_files(paths).cache(false).load().unwrap();
            let mut numbers = loaded["train"].column::<Option<i64>>("n").unwrap();
            numbers.sort();
            assert_eq!(numbers, [None, None, Some(3)]);
            let mut texts = loaded["train"].column::<String>("t").unwrap();
            texts.sort();
            assert_eq!(texts, ["NA", "null", "x"]);
        }
        // Whatever is no such word makes it text, and so do numbers of another kind keep them numbers.
        let mixed = load("a,b\nNA,null\nnone,1\n2,0.5\n").unwrap();
        let kinds: Vec<_> = mixed.features().into_iter().map(|(_, kind)| kind).collect();
        assert_eq!(kinds, ["string", "float64"]);
    }

    #[test]
    fn chunks_join_seamlessly_wherever_they_end() {
        for end in ["\n", "\r\n", "\r"] {
            let mut text = format!("n,text{end}");
            let rows = 3 * CHUNK / 20;
            for row in 0..rows {
                let quoted = if row % 3 == 0 {
                    "\"a,\r\n\"\"b\""
                } else {
                    "ab"
                };
                text.push_str(&format!("{row},{quoted}{end}"));
            }
            let dataset = load(&text).unwrap();
            let numbers = dataset.column::<i64>("n").unwrap();
            assert!(numbers.iter().copied().eq(0..rows as i64), "{end:?}");
            let texts = dataset.column::<String>("text").unwrap();
            assert_eq!(texts[rows - 1 - (rows - 1) % 3], "a,\r\n\"b");
            text.push_str("1,2,3");
            let lines = text.replace("\r\n", "\n").matches(['\r', '\n']).count();
            let error = load(&text).unwrap_err().to_string();
            assert!(
                error.contains(&format!("line {}: the row has 3", lines + 1)),
                "{error}"
            );
        }
    }

    #[test]
    fn a_wide_header_over_empty_rows_does_not_exhaust_memory() {
        let text = format!("{}\n{}", "a,".repeat(25_000), "1\n".repeat(25_000));
        let started = std::time::Instant::now();
        let error = load(&text).unwrap_err().to_string();
        assert!(error.contains("lack most of the 25001 columns"), "{error}");
        let error = load(&format!("{}\n", ",".repeat(1 << 20)))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 1: its first line names 1048577 columns"),
            "{error}"
        );
        let wide = load(&format!(
            "{}\n{}\n",
            "a,".repeat(40_000),
            "1,".repeat(40_000)
        ))
        .unwrap();
        assert_eq!(wide.column_names().len(), 40_001);
        assert!(started.elapsed().as_secs_f64() < 2.0);
    }
}
