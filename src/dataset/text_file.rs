//! Writes datasets as text that other programs read: CSV and JSON, compressed if the file's name says so.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema};
use arrow::error::ArrowError;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::table::Dataset;
use crate::{Error, Result};

/// Rows that are written at once.
const ROWS: usize = 8192;

impl Dataset {
    /// Writes a CSV file with a header line, as pandas and `datasets` do: a missing value is an empty cell, booleans
    /// are `True` and `False`, cells with commas, quotes or line ends are quoted. Lists and records, which CSV does not
    /// support, are written as JSON. A name that ends in `.gz`, `.bz2`, `.xz`, `.zst` or `.lz4` makes a compressed
    /// file.
    ///
    /// # Errors
    /// A column of bytes; a file that can't be written.
    pub fn to_csv(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.write_file(path, |file| {
            packed(path, file, |out| {
                let io = |error| Error::io("write", path, error);
                let names = self.column_names();
                let only = names.len() == 1;
                let mut text = String::new();
                for (column, name) in names.iter().enumerate() {
                    push_cell(&mut text, column, name, only);
                }
                text.push('\n');
                out.write_all(text.as_bytes()).map_err(io)?;
                for range in self.chunks(ROWS) {
                    crate::interrupt::check("writing a CSV file")?;
                    let batch = self.gather(range)?;
                    let columns = batch
                        .columns()
                        .iter()
                        .zip(&names)
                        .map(|(column, name)| cells(name, column))
                        .collect::<Result<Vec<_>>>()?;
                    text.clear();
                    for row in 0..batch.num_rows() {
                        for (column, cells) in columns.iter().enumerate() {
                            push_cell(&mut text, column, &cells[row], only);
                        }
                        text.push('\n');
                    }
                    out.write_all(text.as_bytes()).map_err(io)?;
                }
                Ok(())
            })
        })
    }

    /// Writes JSON lines: one object per row, nulls included, as `datasets` does by default. A name that ends in `.gz`,
    /// `.bz2`, `.xz`, `.zst` or `.lz4` makes a compressed file.
    pub fn to_json(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.write_file(path, |file| {
            packed(path, file, |out| {
                let io = |error| Error::io("write", path, error);
                for range in self.chunks(ROWS) {
                    crate::interrupt::check("writing a JSON file")?;
                    out.write_all(&json_lines(&self.gather(range)?)?)
                        .map_err(io)?;
                }
                Ok(())
            })
        })
    }
}

/// Writes the rows as JSON, a line each.
fn json_lines(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

/// Adds a cell to a line of CSV.
fn push_cell(line: &mut String, column: usize, cell: &str, only: bool) {
    if column > 0 {
        line.push(',');
    }
    // A line with nothing in it would be none.
    let quoted = cell.contains(['"', ',', '\n', '\r']) || (only && cell.is_empty());
    if !quoted {
        return line.push_str(cell);
    }
    line.push('"');
    for part in cell.split_inclusive('"') {
        line.push_str(part);
        if part.ends_with('"') {
            line.push('"');
        }
    }
    line.push('"');
}

/// Returns the values of a column as CSV cells.
fn cells(name: &str, column: &ArrayRef) -> Result<Vec<String>> {
    let rows = 0..column.len();
    let data_type = column.data_type();
    Ok(match data_type {
        DataType::Null => vec![String::new(); column.len()],
        DataType::Utf8 => column
            .as_string::<i32>()
            .iter()
            .map(|text| text.unwrap_or_default().to_owned())
            .collect(),
        DataType::Boolean => column
            .as_boolean()
            .iter()
            .map(|truth| match truth {
                None => "",
                Some(true) => "True",
                Some(false) => "False",
            })
            .map(str::to_owned)
            .collect(),
        DataType::Float64 => column
            .as_primitive::<Float64Type>()
            .iter()
            .map(|value| {
                value.map_or(String::new(), |value| {
                    python_float(&format!("{value:e}"), value)
                })
            })
            .collect(),
        DataType::Float16 | DataType::Float32 => cast(column, &DataType::Float32)?
            .as_primitive::<Float32Type>()
            .iter()
            .map(|value| {
                value.map_or(String::new(), |value| {
                    python_float(&format!("{value:e}"), value.into())
                })
            })
            .collect(),
        DataType::List(_) | DataType::Struct(_) => {
            let schema = Schema::new(vec![Field::new("c", data_type.clone(), true)]);
            let batch = RecordBatch::try_new(schema.into(), vec![column.clone()])?;
            let lines = json_lines(&batch)?;
            let lines = String::from_utf8_lossy(&lines);
            let values = lines.lines().zip(rows).map(|(line, row)| {
                let value = line
                    .strip_prefix("{\"c\":")
                    .and_then(|line| line.strip_suffix('}'));
                match column.is_null(row) {
                    true => String::new(),
                    false => value.unwrap_or_default().to_owned(),
                }
            });
            values.collect()
        }
        DataType::Binary | DataType::FixedSizeBinary(_) => {
            return Err(Error::ColumnType {
                name: name.to_owned(),
                operation: "writing CSV".to_owned(),
                expected: "text, numbers, truth values, times, lists or records".to_owned(),
                found: super::type_name(data_type),
            });
        }
        _ => {
            let options = FormatOptions::default()
                .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
                .with_datetime_format(Some("%Y-%m-%d"));
            let formatter = ArrayFormatter::try_new(column, &options)?;
            let mut cells = Vec::with_capacity(column.len());
            for row in rows {
                let mut cell = String::new();
                if column.is_valid(row) {
                    write!(cell, "{}", formatter.value(row)).map_err(|_| {
                        Error::Dataset(format!("column {name:?}: row {row} can't be formatted"))
                    })?;
                }
                cells.push(cell);
            }
            cells
        }
    })
}

/// Writes a number as Python does: `scientific` is its shortest form with an exponent. NaN is written as no value.
fn python_float(scientific: &str, value: f64) -> String {
    if value.is_nan() {
        return String::new();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let (digits, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let text = positional(digits, exponent);
    match text.contains('.') {
        true => text,
        false => format!("{text}.0"),
    }
}

/// Writes `digits` (one before the point) times ten to the `exponent`, without an exponent.
pub(super) fn positional(digits: &str, exponent: i32) -> String {
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits),
    };
    let digits = digits.replace('.', "");
    let point = exponent + 1;
    if point <= 0 {
        return format!(
            "{sign}0.{}{digits}",
            "0".repeat(point.unsigned_abs() as usize)
        );
    }
    let point = point as usize;
    match digits.len() {
        length if length <= point => format!("{sign}{digits}{}", "0".repeat(point - length)),
        _ => format!("{sign}{}.{}", &digits[..point], &digits[point..]),
    }
}

/// Lets `write` write into `file`, compressed according to the extension of `path`.
fn packed(
    path: &Path,
    file: BufWriter<File>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let io = |error| Error::io("write", path, error);
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let mut file = match ending.to_ascii_lowercase().as_str() {
        "gz" | "gzip" => {
            let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::default());
            write(&mut packed)?;
            packed.finish().map_err(io)?
        }
        "bz2" => {
            let mut packed = bzip2::write::BzEncoder::new(file, bzip2::Compression::default());
            write(&mut packed)?;
            packed.finish().map_err(io)?
        }
        "xz" => {
            let options = lzma_rust2::XzOptions::default();
            let mut packed = lzma_rust2::XzWriter::new(file, options).map_err(io)?;
            write(&mut packed)?;
            packed.finish().map_err(io)?
        }
        "zst" | "zstd" => {
            let mut packed = zstd::stream::write::Encoder::new(file, 0).map_err(io)?;
            write(&mut packed)?;
            packed.finish().map_err(io)?
        }
        "lz4" => {
            let mut packed = lz4_flex::frame::FrameEncoder::new(file);
            write(&mut packed)?;
            packed
                .finish()
                .map_err(|error| io(std::io::Error::other(error)))?
        }
        _ => {
            let mut file = file;
            write(&mut file)?;
            file
        }
    };
    file.flush().map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Row, Value, load_dataset};

    #[test]
    fn numbers_are_formatted_as_in_python() {
        for (value, expected) in [
            (1.0, "1.0"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (123456789.123, "123456789.123"),
            (-0.0, "-0.0"),
            (-2.5e-7, "-2.5e-07"),
            (1.5e300, "1.5e+300"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, ""),
        ] {
            assert_eq!(python_float(&format!("{value:e}"), value), expected);
        }
        assert_eq!(python_float(&format!("{:e}", 0.1f32), 0.1), "0.1");
    }

    #[test]
    fn csv_equals_that_of_datasets() {
        let dataset = Dataset::builder()
            .column("f", vec![Some(1.5), None, Some(f64::NAN), Some(-0.0)])
            .column("i", vec![Some(0), Some(1), None, Some(3)])
            .column("s", vec![Some("b,\"c\""), Some("a\nb"), None, Some("é ")])
            .column("g", vec![Some(true), Some(false), None, Some(true)])
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        dataset.to_csv(&path).unwrap();
        // datasets 5.2, Dataset.to_csv
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "f,i,s,g\n1.5,0,\"b,\"\"c\"\"\",True\n,1,\"a\nb\",False\n,,,\n-0.0,3,é ,True\n"
        );
        let texts = vec![
            Some(""),
            None,
            Some("a,b"),
            Some("q\"q"),
            Some(" s "),
            Some("r\rr"),
        ];
        let one = Dataset::builder().column("only", texts).build().unwrap();
        one.to_csv(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "only\n\"\"\n\"\"\n\"a,b\"\n\"q\"\"q\"\n s \n\"r\rr\"\n"
        );
        assert_eq!(
            load_dataset(path.to_str().unwrap()).unwrap()["train"].len(),
            6
        );
        let nested = Dataset::builder()
            .column("l", vec![Some(vec![1, 2]), Some(vec![]), None])
            .column("n", vec![1, 2, 3]);
        nested.build().unwrap().to_csv(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "l,n\n\"[1,2]\",1\n[],2\n,3\n"
        );
        one.slice(0..0).to_csv(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "only\n");
    }

    #[test]
    fn compressed_files_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let rows = (0..20_000).map(|i| {
            Row::new()
                .with("n", i as i64)
                .with("t", Value::from(format!("text {i}")))
        });
        let dataset = Dataset::from_rows(rows).unwrap();
        for ending in ["", ".gz", ".bz2", ".xz", ".zst", ".lz4"] {
            for format in ["csv", "jsonl"] {
                let path = folder.path().join(format!("a.{format}{ending}"));
                match format {
                    "csv" => dataset.to_csv(&path).unwrap(),
                    _ => dataset.to_json(&path).unwrap(),
                }
                let back = load_dataset(path.to_str().unwrap()).unwrap();
                let back = &back["train"];
                assert_eq!(
                    back.column::<i64>("n").unwrap(),
                    dataset.column::<i64>("n").unwrap()
                );
                assert_eq!(back.row(19_999).unwrap(), dataset.row(19_999).unwrap());
                let size = path.metadata().unwrap().len();
                assert_eq!(size < 200_000, !ending.is_empty(), "{ending} {size}");
            }
        }
    }
}
