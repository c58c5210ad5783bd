//! Checks what the pages of a Parquet file announce: the library that reads them allocates it without a look at the page.
//! Headers are parsed here because the library keeps its parser to itself.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use super::thrift::{FALSE, INTEGER, STRUCT, TRUE, Thrift};

/// A reason why a page can't be read.
type Problem = String;

/// The encodings whose pages hold how many lengths they have.
const DELTA_LENGTHS: [i64; 2] = [6, 7];
/// The longest header of a page; it may hold the smallest and the largest value.
const LONGEST_HEADER: u64 = 16 << 20;

/// Checks the pages of a row group: none may announce more than `limit` bytes, nor more than can come of its own bytes.
///
/// # Errors
/// When a page announces more, or its header can't be parsed.
pub(super) fn check(file: &File, group: &RowGroupMetaData, limit: u64) -> Result<(), Problem> {
    for column in group.columns() {
        if check_headers(file, column, limit)? {
            check_lengths(file, column, group, limit)?;
        }
    }
    Ok(())
}

/// Checks the headers of a column's pages. Returns whether some are encoded as lengths.
fn check_headers(file: &File, column: &ColumnChunkMetaData, limit: u64) -> Result<bool, Problem> {
    let (start, length) = column.byte_range();
    let end = start.checked_add(length).ok_or("a column has no end")?;
    let (mut at, mut has_lengths) = (start, false);
    while at < end {
        let header = Header::read(file, at, end)?;
        let body = at + header.length;
        let stored = u64::try_from(header.stored).unwrap_or(u64::MAX);
        if stored > end - body {
            return Err("a page is larger than its column".into());
        }
        let unpacked = u64::try_from(header.unpacked).map_err(|_| "a page has a negative size")?;
        let most = most(column.compression(), stored).min(limit);
        if column.compression() != Compression::UNCOMPRESSED && unpacked > most {
            return Err(format!(
                "a page of {stored} bytes announces {unpacked} bytes, but at most {most} can come of it"
            ));
        }
        if matches!(column.compression(), Compression::BROTLI(_)) {
            check_brotli(file, body, &header, unpacked)?;
        }
        // Every value of a dictionary takes a byte at least.
        if header.is_dictionary && u64::try_from(header.values).is_ok_and(|it| it > unpacked) {
            return Err(format!(
                "a dictionary of {unpacked} bytes announces {} values",
                header.values
            ));
        }
        has_lengths |= DELTA_LENGTHS.contains(&header.encoding);
        at = body + stored;
    }
    Ok(has_lengths)
}

/// Returns how many bytes can come of `stored` compressed ones.
fn most(codec: Compression, stored: u64) -> u64 {
    let ratio = match codec {
        Compression::SNAPPY => 32,
        Compression::LZ4 | Compression::LZ4_RAW => 256,
        Compression::GZIP(_) => 1040,
        // A few bytes can stand for any number.
        _ => return u64::MAX,
    };
    stored.saturating_mul(ratio).saturating_add(64)
}

/// Checks that no more than the announced bytes come of a page: the library unpacks it to its end, wherever that is.
fn check_brotli(file: &File, body: u64, header: &Header, unpacked: u64) -> Result<(), Problem> {
    let levels = header.levels;
    let (Some(stored), Some(unpacked)) = (
        u64::try_from(header.stored)
            .ok()
            .and_then(|it| it.checked_sub(levels)),
        unpacked.checked_sub(levels),
    ) else {
        return Err("the levels of a page are larger than the page".into());
    };
    if !header.is_compressed {
        return Ok(());
    }
    let page = file.get_read(body + levels).map_err(told)?.take(stored);
    let mut content = brotli::Decompressor::new(page, 4096).take(unpacked.saturating_add(1));
    // The library tells what can't be unpacked.
    match std::io::copy(&mut content, &mut std::io::sink()) {
        Ok(copied) if copied > unpacked => {
            Err(format!("a page announces {unpacked} bytes and holds more"))
        }
        _ => Ok(()),
    }
}

fn told(error: impl std::fmt::Display) -> Problem {
    error.to_string()
}

/// Checks how many lengths the pages of a column hold.
fn check_lengths(
    file: &File,
    column: &ColumnChunkMetaData,
    group: &RowGroupMetaData,
    limit: u64,
) -> Result<(), Problem> {
    let rows = usize::try_from(group.num_rows()).map_err(told)?;
    let file = Arc::new(file.try_clone().map_err(told)?);
    let mut pages = SerializedPageReader::new(file, column, rows, None).map_err(told)?;
    while let Some(page) = pages.get_next_page().map_err(told)? {
        let encoding = page.encoding();
        if !matches!(
            encoding,
            Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY
        ) {
            continue;
        }
        let values = values_of(&page, column).ok_or("the levels of a page are incomplete")?;
        // Each takes eight bytes in all.
        let most = limit / 8;
        let end = end_of_lengths(values, most)?;
        if encoding == Encoding::DELTA_BYTE_ARRAY {
            end_of_lengths(values.get(end..).unwrap_or_default(), most)?;
        }
    }
    Ok(())
}

/// Returns what follows the levels of a page; `None` if they are incomplete.
fn values_of<'a>(page: &'a Page, column: &ColumnChunkMetaData) -> Option<&'a [u8]> {
    match page {
        Page::DataPage {
            buf,
            num_values,
            def_level_encoding,
            rep_level_encoding,
            ..
        } => {
            let mut rest = &buf[..];
            let description = column.column_descr();
            for (most, encoding) in [
                (description.max_rep_level(), rep_level_encoding),
                (description.max_def_level(), def_level_encoding),
            ] {
                if most <= 0 {
                    continue;
                }
                let length = if *encoding == Encoding::RLE {
                    let length: [u8; 4] = rest.get(..4)?.try_into().ok()?;
                    4 + u32::from_le_bytes(length) as usize
                } else {
                    let bits = 16 - most.leading_zeros() as usize;
                    (*num_values as usize * bits).div_ceil(8)
                };
                rest = rest.get(length..)?;
            }
            Some(rest)
        }
        Page::DataPageV2 {
            buf,
            def_levels_byte_len,
            rep_levels_byte_len,
            ..
        } => buf.get(*def_levels_byte_len as usize + *rep_levels_byte_len as usize..),
        Page::DictionaryPage { .. } => Some(&[]),
    }
}

/// Reads over a list of lengths, written as differences in blocks, and returns its end. An incomplete one ends with the page,
/// for the library to report.
fn end_of_lengths(bytes: &[u8], most: u64) -> Result<usize, Problem> {
    let mut thrift = Thrift { bytes, at: 0 };
    let whole = Ok(bytes.len());
    let mut next = || thrift.varint();
    let (Some(block), Some(parts), Some(count), Some(_)) = (next(), next(), next(), next()) else {
        return whole;
    };
    if count > most {
        return Err(format!("a page announces {count} lengths"));
    }
    let per_part = block.checked_div(parts).unwrap_or(0);
    if per_part == 0 || parts > bytes.len() as u64 {
        return whole;
    }
    let mut left = count.saturating_sub(1);
    while left > 0 {
        let widths_end = thrift.varint().and(thrift.at.checked_add(parts as usize));
        let Some(widths) = widths_end.and_then(|end| bytes.get(thrift.at..end)) else {
            return whole;
        };
        thrift.at += widths.len();
        for &width in widths {
            if left == 0 {
                break;
            }
            let bytes_of_part = per_part.saturating_mul(u64::from(width)) / 8;
            let bytes_of_part = usize::try_from(bytes_of_part).unwrap_or(usize::MAX);
            thrift.at = thrift.at.saturating_add(bytes_of_part);
            left = left.saturating_sub(per_part);
        }
    }
    Ok(thrift.at)
}

/// The parts of a page's header that say how much is to come.
#[derive(Debug, Default)]
struct Header {
    /// The bytes of the header itself.
    length: u64,
    unpacked: i64,
    stored: i64,
    is_dictionary: bool,
    values: i64,
    encoding: i64,
    /// The bytes of levels before what is compressed.
    levels: u64,
    is_compressed: bool,
}

impl Header {
    /// Reads the header at `at`, before `end`.
    fn read(file: &File, at: u64, end: u64) -> Result<Self, Problem> {
        let mut window = 1024;
        loop {
            let length = (end - at).min(window);
            let mut bytes = Vec::new();
            let mut part = file.get_read(at).map_err(told)?.take(length);
            part.read_to_end(&mut bytes).map_err(told)?;
            let mut thrift = Thrift {
                bytes: &bytes,
                at: 0,
            };
            if let Some(mut header) = Self::parse(&mut thrift) {
                header.length = thrift.at as u64;
                return Ok(header);
            }
            if (bytes.len() as u64) < window || window >= LONGEST_HEADER {
                return Err("the header of a page is incomplete".into());
            }
            window *= 4;
        }
    }

    fn parse(thrift: &mut Thrift) -> Option<Self> {
        let mut header = Self {
            is_compressed: true,
            ..Self::default()
        };
        thrift.fields(0, &mut |thrift, field, kind| {
            match (field, kind) {
                (2, INTEGER) => header.unpacked = thrift.integer()?,
                (3, INTEGER) => header.stored = thrift.integer()?,
                // A page of values, a dictionary, a page of values in the second format.
                (5 | 7 | 8, STRUCT) => {
                    header.is_dictionary = field == 7;
                    header.levels = 0;
                    let at = if field == 8 { 4 } else { 2 };
                    return thrift.fields(1, &mut |thrift, inner, kind| {
                        match (inner, kind) {
                            (1, INTEGER) => header.values = thrift.integer()?,
                            (_, INTEGER) if inner == at => header.encoding = thrift.integer()?,
                            (5 | 6, INTEGER) if field == 8 => {
                                header.levels += u64::try_from(thrift.integer()?).ok()?;
                            }
                            (7, TRUE | FALSE) if field == 8 => header.is_compressed = kind == TRUE,
                            _ => thrift.skip(kind, 2)?,
                        }
                        Some(())
                    });
                }
                _ => thrift.skip(kind, 1)?,
            }
            Some(())
        })?;
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::path::Path;

    use arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray};
    use arrow::datatypes::Int64Type;
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{BrotliLevel, GzipLevel, ZstdLevel};
    use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;
    use crate::dataset::load_dataset;

    fn codecs() -> [Compression; 6] {
        [
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::ZSTD(ZstdLevel::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
            Compression::BROTLI(BrotliLevel::default()),
        ]
    }

    fn write(path: &Path, columns: &[(&str, ArrayRef)], properties: WriterProperties) {
        let batch = RecordBatch::try_from_iter(columns.iter().cloned()).unwrap();
        let file = File::create(path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    /// Returns properties for pages of this encoding, without a dictionary.
    fn encoded(
        codec: Compression,
        version: WriterVersion,
        encoding: Encoding,
    ) -> WriterPropertiesBuilder {
        WriterProperties::builder()
            .set_compression(codec)
            .set_writer_version(version)
            .set_dictionary_enabled(false)
            .set_column_encoding("c".into(), encoding)
    }

    fn numbers(rows: i64) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values((0..rows).map(|n| n * n)))
    }

    fn words(rows: i64) -> ArrayRef {
        let words = (0..rows).map(|n| (n % 3 > 0).then(|| format!("word {}", n * 7919)));
        Arc::new(StringArray::from_iter(words))
    }

    fn first_column(path: &Path) -> ColumnChunkMetaData {
        let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
        reader.metadata().row_group(0).column(0).clone()
    }

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    /// Returns where a number in the header at `at` is: field `field`, of the struct `outer` if there is one.
    fn place(bytes: &[u8], at: usize, outer: Option<i64>, field: i64) -> Range<usize> {
        let mut thrift = Thrift { bytes, at };
        let mut found = None;
        let mut look = |thrift: &mut Thrift, id: i64, kind: u8| {
            let start = thrift.at;
            thrift.skip(kind, 3)?;
            if id == field {
                found = Some(start..thrift.at);
            }
            Some(())
        };
        thrift
            .fields(0, &mut |thrift, id, kind| match outer {
                Some(outer) if outer == id => thrift.fields(1, &mut look),
                Some(_) => thrift.skip(kind, 1),
                None => look(thrift, id, kind),
            })
            .unwrap();
        found.unwrap()
    }

    /// Puts a longer number in the place of another, and leaves out as many bytes at the end of the first page.
    fn announce(path: &Path, place_of: impl Fn(&[u8], usize) -> Range<usize>, value: u64) {
        let at = first_column(path).byte_range().0 as usize;
        let mut bytes = std::fs::read(path).unwrap();
        let mut thrift = Thrift { bytes: &bytes, at };
        let header = Header::parse(&mut thrift).unwrap();
        let end = thrift.at + header.stored as usize;
        let (span, value) = (place_of(&bytes, at), varint(value));
        let more = value.len() - span.len();
        // A longer header leaves less to the page.
        if span.start < thrift.at {
            let stored = place(&bytes, at, None, 3);
            let less = varint(2 * (header.stored as u64 - more as u64));
            assert_eq!(less.len(), stored.len());
            bytes[stored].copy_from_slice(&less);
        }
        bytes.drain(end - more..end);
        bytes.splice(span, value);
        std::fs::write(path, bytes).unwrap();
    }

    /// Returns what loading says, and checks that it takes no time.
    fn refusal(path: &Path) -> String {
        let started = std::time::Instant::now();
        let error = load_dataset(path.to_str().unwrap()).unwrap_err();
        assert!(started.elapsed().as_secs() < 2, "{error}");
        assert!(error.to_string().contains("a.parquet"), "{error}");
        error.to_string()
    }

    #[test]
    fn sound_files_of_every_codec_and_encoding_are_read() {
        let lists: Vec<_> = (0..5000)
            .map(|n| (n % 5 > 0).then(|| vec![Some(n); n as usize % 4]))
            .collect();
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
        let nested: ArrayRef = {
            let offsets: arrow::buffer::OffsetBuffer<i32> =
                arrow::buffer::OffsetBuffer::from_lengths((0..5000).map(|n| n % 3));
            let count = i64::from(offsets[offsets.len() - 1]);
            let field = Arc::new(arrow::datatypes::Field::new_list_field(
                arrow::datatypes::DataType::Utf8,
                true,
            ));
            Arc::new(ListArray::new(field, offsets, words(count), None))
        };
        let columns = [
            ("n", numbers(5000)),
            ("w", words(5000)),
            ("l", lists),
            ("t", nested),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for codec in codecs().into_iter().chain([Compression::UNCOMPRESSED]) {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                for encoding in [
                    None,
                    Some(Encoding::DELTA_BYTE_ARRAY),
                    Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
                ] {
                    let mut properties = WriterProperties::builder()
                        .set_compression(codec)
                        .set_writer_version(version)
                        .set_data_page_row_count_limit(700)
                        .set_write_batch_size(100)
                        .set_dictionary_enabled(encoding.is_none());
                    if let Some(encoding) = encoding {
                        properties = properties
                            .set_column_encoding("w".into(), encoding)
                            .set_column_encoding("t.list.item".into(), encoding);
                    }
                    write(&path, &columns, properties.build());
                    let dict = load_dataset(path.to_str().unwrap()).unwrap();
                    assert_eq!(dict["train"].len(), 5000);
                    let row = dict["train"].row(4999).unwrap();
                    assert_eq!(row["n"].as_i64(), Some(4999 * 4999));
                    let word = format!("word {}", 4999 * 7919);
                    assert_eq!(row["w"].as_str(), Some(word.as_str()));
                }
            }
        }
    }

    #[test]
    fn a_page_that_announces_gigabytes_is_refused_before_they_are_allocated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for codec in codecs() {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let properties = encoded(codec, version, Encoding::PLAIN);
                write(&path, &[("c", numbers(900))], properties.build());
                // Twice the number, as all numbers are written.
                announce(&path, |bytes, at| place(bytes, at, None, 2), 2 << 30);
                let error = refusal(&path);
                assert!(error.contains("announces 1073741824 bytes"), "{error}");
            }
        }
    }

    #[test]
    fn a_page_that_holds_more_than_it_announces_is_not_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let codec = Compression::BROTLI(BrotliLevel::default());
            let properties =
                encoded(codec, version, Encoding::PLAIN).set_data_page_size_limit(64 << 20);
            let zeros: ArrayRef = Arc::new(Int64Array::from(vec![0; 4 << 20]));
            write(&path, &[("c", zeros)], properties.build());
            let at = first_column(&path).byte_range().0 as usize;
            let mut bytes = std::fs::read(&path).unwrap();
            let span = place(&bytes, at, None, 2);
            // As long as the other number.
            let last = span.len() - 1;
            let mut small = vec![0x80; last + 1];
            (small[0], small[1], small[last]) = (0x80, 0x90, 0);
            bytes[span].copy_from_slice(&small);
            std::fs::write(&path, &bytes).unwrap();
            let error = refusal(&path);
            assert!(error.contains("and holds more"), "{error}");
        }
    }

    #[test]
    fn a_dictionary_holds_no_more_values_than_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for codec in codecs().into_iter().chain([Compression::UNCOMPRESSED]) {
            let properties = WriterProperties::builder().set_compression(codec);
            write(&path, &[("c", numbers(900))], properties.build());
            announce(
                &path,
                |bytes, at| place(bytes, at, Some(7), 1),
                2_000_000_000 * 2,
            );
            let error = refusal(&path);
            assert!(error.contains("announces 2000000000 values"), "{error}");
        }
    }

    #[test]
    fn lengths_that_are_announced_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for (encoding, list) in [
            (Encoding::DELTA_LENGTH_BYTE_ARRAY, 0),
            (Encoding::DELTA_BYTE_ARRAY, 0),
            (Encoding::DELTA_BYTE_ARRAY, 1),
        ] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let properties = encoded(Compression::UNCOMPRESSED, version, encoding);
                write(&path, &[("c", words(900))], properties.build());
                let column = first_column(&path);
                let file = Arc::new(File::open(&path).unwrap());
                let page = SerializedPageReader::new(file, &column, 900, None)
                    .unwrap()
                    .get_next_page()
                    .unwrap()
                    .unwrap();
                let values = values_of(&page, &column).unwrap().to_vec();
                let count_in_list = |bytes: &[u8], at: usize| {
                    let mut thrift = Thrift { bytes, at };
                    Header::parse(&mut thrift).unwrap();
                    let start = thrift.at + page.buffer().len() - values.len();
                    let skipped = match list {
                        0 => 0,
                        _ => end_of_lengths(&values, 1 << 30).unwrap(),
                    };
                    thrift.at = start + skipped;
                    thrift.varint().unwrap();
                    thrift.varint().unwrap();
                    let start = thrift.at;
                    assert_eq!(thrift.varint(), Some(600));
                    start..thrift.at
                };
                announce(&path, count_in_list, 1 << 45);
                let error = refusal(&path);
                assert!(
                    error.contains("announces 35184372088832 lengths"),
                    "{error}"
                );
            }
        }
    }
}
