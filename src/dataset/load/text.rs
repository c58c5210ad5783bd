//! Plain text: every line, paragraph or file is a row.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use memchr::memmem;

use super::chunks::{Chunk, LineChunks};
use super::from_row::{ShardBatches, from_row};
use super::{Options, Rows, SampleBy};
use crate::{Error, Result};

/// Returns the rows in the column `text`. Lines may be empty, paragraphs may not.
pub(super) fn load(paths: &[PathBuf], options: &Options, rows: &mut Rows) -> Result<SchemaRef> {
    let schema = schema();
    for path in paths {
        let lines = LineChunks::open(path, options.encoding)?;
        rows.fill(chunks(lines, options.sample_by), |chunk| {
            let batch = decode(path, &chunk, options.sample_by)?;
            Ok((vec![batch], chunk.bytes.len()))
        })?;
    }
    Ok(schema)
}

/// Returns the one column that texts have.
pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]))
}

/// Returns the batches of `lines` from row `skip` on.
pub(super) fn batches(
    path: &Path,
    lines: LineChunks,
    sample_by: SampleBy,
    skip: usize,
) -> ShardBatches {
    let path = path.to_owned();
    let decoded = chunks(lines, sample_by)
        .map(move |chunk| chunk.and_then(|chunk| decode(&path, &chunk, sample_by)));
    Box::new(from_row(decoded, skip, RecordBatch::num_rows, Ok))
}

/// Returns pieces of a file that contain whole rows.
fn chunks(lines: LineChunks, sample_by: SampleBy) -> Box<dyn Iterator<Item = Result<Chunk>>> {
    match sample_by {
        SampleBy::Line => Box::new(lines),
        SampleBy::Paragraph => Box::new(Whole::new(lines, paragraphs_end)),
        SampleBy::Document => Box::new(Whole::new(lines, |_, _| None)),
    }
}

fn decode(path: &Path, chunk: &Chunk, sample_by: SampleBy) -> Result<RecordBatch> {
    let text = std::str::from_utf8(&chunk.bytes).map_err(|error| {
        let before = &chunk.bytes[..error.valid_up_to()];
        Error::Format {
            path: path.to_owned(),
            line: Some(chunk.first_line + before.iter().filter(|&&byte| byte == b'\n').count()),
            message:
                "the text is not valid UTF-8; name its encoding with Loader::encoding, or convert the file"
                    .to_owned(),
        }
    })?;
    if text.len() > i32::MAX as usize {
        return Err(Error::format(
            path,
            "it contains a text of more than 2 GB, which does not fit in a row",
        ));
    }
    let mut texts = StringBuilder::with_capacity(text.len() / 40, text.len());
    match sample_by {
        SampleBy::Line => text.lines().for_each(|line| texts.append_value(line)),
        SampleBy::Paragraph => {
            let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.is_empty());
            paragraphs.for_each(|paragraph| texts.append_value(paragraph));
        }
        SampleBy::Document => texts.append_value(text),
    }
    let texts: ArrayRef = Arc::new(texts.finish());
    Ok(RecordBatch::try_new(schema(), vec![texts])?)
}

/// Returns where the last complete paragraph ends: after an even number of consecutive line ends, counted in pairs from
/// the first. The first `searched` bytes are known to have no such position.
fn paragraphs_end(bytes: &[u8], searched: usize) -> Option<usize> {
    // A pair may have begun with the last byte.
    let from = searched.saturating_sub(1);
    memmem::find_iter(&bytes[from..], b"\n\n")
        .last()
        .map(|at| from + at + 2)
}

/// Chunks whose ends are found by `end`, and the end of the file.
struct Whole {
    lines: LineChunks,
    end: fn(&[u8], usize) -> Option<usize>,
    rest: Vec<u8>,
    first_line: usize,
    is_done: bool,
}

impl Whole {
    fn new(lines: LineChunks, end: fn(&[u8], usize) -> Option<usize>) -> Self {
        Self {
            lines,
            end,
            rest: Vec::new(),
            first_line: 1,
            is_done: false,
        }
    }

    fn read(&mut self) -> Result<Option<Chunk>> {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut searched = 0;
        while !self.is_done {
            crate::interrupt::check("loading a dataset")?;
            match self.lines.next().transpose()? {
                Some(chunk) => bytes.extend_from_slice(&chunk.bytes),
                None => self.is_done = true,
            }
            if let Some(end) = (self.end)(&bytes, searched).filter(|_| !self.is_done) {
                self.rest = bytes.split_off(end);
                break;
            }
            searched = bytes.len();
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let first_line = self.first_line;
        self.first_line += memchr::memchr_iter(b'\n', &bytes).count();
        Ok(Some(Chunk { bytes, first_line }))
    }
}

impl Iterator for Whole {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Loader;

    fn texts(content: &str, sample_by: SampleBy) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, content).unwrap();
        let loader = Loader::new(path.to_str().unwrap()).sample_by(sample_by);
        loader.load().unwrap()["train"].column("text").unwrap()
    }

    // load_dataset("text", data_files=..., sample_by=...) of datasets 5.2
    #[test]
    fn rows_equal_those_of_datasets() {
        let text = "one\ntwo\n\nthree\n\n\n\nfour\n";
        let lines = ["one", "two", "", "three", "", "", "", "four"];
        assert_eq!(texts(text, SampleBy::Line), lines);
        assert_eq!(
            texts(text, SampleBy::Paragraph),
            ["one\ntwo", "three", "four\n"]
        );
        assert_eq!(texts(text, SampleBy::Document), [text]);
        let ends = "\r\n\r\none\r\n\r\ntwo  \r\rthree\n\n";
        assert_eq!(texts(ends, SampleBy::Paragraph), ["one", "two  ", "three"]);
        assert_eq!(
            texts(ends, SampleBy::Document),
            ["\n\none\n\ntwo  \n\nthree\n\n"]
        );
        assert_eq!(texts("a\n\n\nb", SampleBy::Paragraph), ["a", "\nb"]);
    }

    #[test]
    fn paragraphs_across_chunks_stay_whole() {
        let paragraph = |i: usize| format!("{i} {}\nend", "word ".repeat(i % 700));
        let all: Vec<String> = (0..4000).map(paragraph).collect();
        assert!(all.iter().map(String::len).sum::<usize>() > 5 << 20);
        assert_eq!(texts(&all.join("\n\n"), SampleBy::Paragraph), all);
        let long = "x".repeat(3 << 20);
        assert_eq!(
            texts(&format!("{long}\n\n{long}"), SampleBy::Paragraph),
            [long.clone(), long]
        );
    }
}
