//! Tables in Arrow IPC files: memory-mapped when read, whole or not at all when written.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, StreamDecoder, read_footer_length};
use arrow::ipc::writer::FileWriter;
use arrow::ipc::{root_as_footer, root_as_message};
use bytes::Bytes;
use rayon::prelude::*;

use super::cast::cast_batch;
use super::data_type::{check_depth, plain_schema};
use crate::base::files::Temporary;
use crate::base::panics::caught;
use crate::ops::MappedFile;
use crate::{Error, Result};

/// Files smaller than this are read; larger ones are mapped.
const MAP_FROM: u64 = 16 << 20;

const MAGIC: &[u8] = b"ARROW1";
/// The marker before the length of a message.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Batches of one (plain) schema, and the file's metadata about them.
pub(crate) struct Table {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) metadata: HashMap<String, String>,
}

/// Returns the table in the Arrow file at `path`, in the file or the stream format.
///
/// Large files are mapped: their pages come and go as the system sees fit. They must not be changed in place while the
/// table is in use; replacing them by another file is fine.
pub(crate) fn read(path: &Path) -> Result<Table> {
    let buffer = contents(path)?;
    read_buffer(buffer).map_err(|error| {
        Error::format(
            path,
            format!("not a complete Arrow file ({error}); it may be truncated or damaged: download or write it again"),
        )
    })
}

fn contents(path: &Path) -> Result<Buffer> {
    let io = |error| Error::io("read", path, error);
    if path.metadata().map_err(io)?.len() < MAP_FROM {
        return Ok(Buffer::from_vec(std::fs::read(path).map_err(io)?));
    }
    Ok(Buffer::from(Bytes::from_owner(Mapped(MappedFile::open(
        path,
    )?))))
}

struct Mapped(MappedFile);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn read_buffer(buffer: Buffer) -> Result<Table, ArrowError> {
    // Damaged files have been seen to panic in decoders; here that is an error like any other.
    caught(|| {
        let mut claims = Claims::new(buffer.len());
        let (schema, batches, metadata) = if buffer.starts_with(MAGIC) {
            decode_file(&buffer, &mut claims)?
        } else {
            decode_stream(buffer, &mut claims)?
        };
        if schema.fields().is_empty() {
            return Err(ArrowError::IpcError("it has no columns".to_owned()));
        }
        let unfolded = batches
            .iter()
            .flat_map(RecordBatch::columns)
            .map(plain_size);
        claims.bytes(unfolded.fold(0, u64::saturating_add))?;
        let plain = plain_schema(&schema);
        let batches = batches
            .iter()
            .map(|batch| cast_batch(batch, &plain))
            .collect::<Result<_, _>>()?;
        Ok(Table {
            schema: plain,
            batches,
            metadata,
        })
    })
    .unwrap_or_else(|_| Err(ArrowError::IpcError("its structure is broken".to_owned())))
}

/// Compares the sizes that a file claims with those possible for its length.
struct Claims {
    rows: u64,
    bytes: u64,
}

impl Claims {
    /// Nulls and truth values take next to nothing, and compression shrinks what repeats.
    fn new(length: usize) -> Self {
        Self {
            rows: (length as u64).saturating_mul(2048).saturating_add(1 << 20),
            bytes: (length as u64).saturating_mul(1100).max(64 << 20),
        }
    }

    fn bytes(&mut self, claimed: u64) -> Result<(), ArrowError> {
        take_from(&mut self.bytes, claimed, "bytes")
    }

    /// Checks the numbers in a message, whose body is at `body`, before anything is allocated from them.
    fn message(&mut self, message: &[u8], body: &[u8]) -> Result<(), ArrowError> {
        let message = root_as_message(message)
            .map_err(|error| ArrowError::IpcError(format!("a message can't be read: {error}")))?;
        let batch = message.header_as_record_batch().or_else(|| {
            let dictionary = message.header_as_dictionary_batch()?;
            dictionary.data()
        });
        let Some(batch) = batch else {
            return Ok(());
        };
        // A negative length is refused as well.
        take_from(&mut self.rows, batch.length() as u64, "rows")?;
        if batch.compression().is_none() {
            return Ok(());
        }
        for buffer in batch.buffers().iter().flatten() {
            let start = usize::try_from(buffer.offset()).unwrap_or(usize::MAX);
            let length = start
                .checked_add(8)
                .filter(|_| buffer.length() >= 8)
                .and_then(|end| body.get(start..end))
                .map_or(0, |bytes| {
                    i64::from_le_bytes(bytes.try_into().unwrap_or_default())
                });
            // Minus one says that the buffer is not compressed after all.
            if length != -1 {
                self.bytes(length as u64)?;
            }
        }
        Ok(())
    }
}

fn take_from(left: &mut u64, claimed: u64, what: &str) -> Result<(), ArrowError> {
    *left = left.checked_sub(claimed).ok_or_else(|| {
        ArrowError::IpcError(format!(
            "it claims to contain {claimed} {what}, which is impossible for a file of its size"
        ))
    })?;
    Ok(())
}

/// Returns the additional bytes that an array takes in its plain form: dictionary values and views may repeat one text
/// many times.
fn plain_size(array: &ArrayRef) -> u64 {
    let of_values = |array: &ArrayRef, count: u64| {
        let each = plain_size(array) / (array.len() as u64).max(1) + 1;
        each.saturating_mul(count)
    };
    match array.data_type() {
        DataType::Utf8View => {
            let lengths = array
                .as_string_view()
                .views()
                .iter()
                .map(|view| *view as u32);
            lengths.map(u64::from).sum()
        }
        DataType::BinaryView => {
            let lengths = array
                .as_binary_view()
                .views()
                .iter()
                .map(|view| *view as u32);
            lengths.map(u64::from).sum()
        }
        DataType::Utf8 => array.as_string::<i32>().value_data().len() as u64,
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let values = dictionary.values();
            let size = |value: usize| match values.data_type() {
                DataType::Utf8 => values.as_string::<i32>().value_length(value) as u64,
                DataType::LargeUtf8 => values.as_string::<i64>().value_length(value) as u64,
                _ => 8,
            };
            match values.is_empty() {
                true => 0,
                false => dictionary.normalized_keys().into_iter().map(size).sum(),
            }
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(plain_size).sum(),
        DataType::List(_) => plain_size(array.as_list::<i32>().values()),
        DataType::LargeList(_) => plain_size(array.as_list::<i64>().values()),
        DataType::FixedSizeList(_, _) => plain_size(array.as_fixed_size_list().values()),
        DataType::ListView(_) => {
            let list = array.as_list_view::<i32>();
            let items = list.sizes().iter().map(|&size| size.max(0) as u64).sum();
            of_values(list.values(), items)
        }
        DataType::LargeListView(_) => {
            let list = array.as_list_view::<i64>();
            let items = list.sizes().iter().map(|&size| size.max(0) as u64).sum();
            of_values(list.values(), items)
        }
        _ => 0,
    }
}

type Decoded = (SchemaRef, Vec<RecordBatch>, HashMap<String, String>);

fn decode_file(buffer: &Buffer, claims: &mut Claims) -> Result<Decoded, ArrowError> {
    let broken = |what: &str| ArrowError::IpcError(what.to_owned());
    let trailer = buffer
        .len()
        .checked_sub(10)
        .ok_or_else(|| broken("it is too short"))?;
    let tail = buffer[trailer..]
        .try_into()
        .map_err(|_| broken("it is too short"))?;
    let start = trailer
        .checked_sub(read_footer_length(tail)?)
        .ok_or_else(|| broken("its footer is larger than the file"))?;
    let footer = root_as_footer(&buffer[start..trailer])
        .map_err(|error| broken(&format!("its footer can't be read: {error}")))?;
    let schema = footer.schema().ok_or_else(|| broken("it has no schema"))?;
    let schema: SchemaRef = Arc::new(try_fb_to_schema(schema)?);
    let block = |block: &arrow::ipc::Block| -> Result<Buffer, ArrowError> {
        let length = (block.metaDataLength() as i64).checked_add(block.bodyLength());
        let part = length
            .and_then(|length| usize::try_from(length).ok())
            .zip(usize::try_from(block.offset()).ok());
        match part {
            Some((length, offset))
                if offset.checked_add(length).is_some_and(|end| end <= start) =>
            {
                Ok(buffer.slice_with_length(offset, length))
            }
            _ => Err(broken("a block is outside the file")),
        }
    };
    let mut decoder = FileDecoder::new(schema.clone(), footer.version());
    let all = footer.dictionaries().into_iter().flatten();
    for described in all.chain(footer.recordBatches().into_iter().flatten()) {
        let bytes = block(described)?;
        let length = usize::try_from(described.metaDataLength()).unwrap_or(usize::MAX);
        let (metadata, body) = bytes
            .split_at_checked(length)
            .ok_or_else(|| broken("a block is outside the file"))?;
        let prefix = if metadata.starts_with(&CONTINUATION) {
            8
        } else {
            4
        };
        let message = metadata
            .get(prefix..)
            .ok_or_else(|| broken("a block is too short"))?;
        claims.message(message, body)?;
    }
    for dictionary in footer.dictionaries().iter().flatten() {
        decoder.read_dictionary(dictionary, &block(dictionary)?)?;
    }
    let blocks: Vec<_> = footer.recordBatches().iter().flatten().collect();
    // Validation reads every page: on all cores.
    let batches = blocks
        .par_iter()
        .map(|record_batch| decoder.read_record_batch(record_batch, &block(record_batch)?))
        .collect::<Result<Vec<_>, _>>()?;
    let metadata = footer
        .custom_metadata()
        .iter()
        .flatten()
        .filter_map(|pair| Some((pair.key()?.to_owned(), pair.value()?.to_owned())))
        .collect();
    Ok((schema, batches.into_iter().flatten().collect(), metadata))
}

fn decode_stream(mut buffer: Buffer, claims: &mut Claims) -> Result<Decoded, ArrowError> {
    let mut rest = buffer.as_slice();
    // What is broken here is told by the decoder.
    while let Some((message, body, after)) = next_message(rest) {
        claims.message(message, body)?;
        rest = after;
    }
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while !buffer.is_empty() {
        batches.extend(decoder.decode(&mut buffer)?);
    }
    decoder.finish()?;
    let schema = decoder
        .schema()
        .ok_or_else(|| ArrowError::IpcError("it is empty".to_owned()))?;
    Ok((schema, batches, HashMap::new()))
}

/// Returns the first message of a stream, its body, and the rest.
fn next_message(stream: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let stream = stream.strip_prefix(&CONTINUATION).unwrap_or(stream);
    let (length, rest) = stream.split_first_chunk::<4>()?;
    let (message, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let body = usize::try_from(root_as_message(message).ok()?.bodyLength()).ok()?;
    let (body, rest) = rest.split_at_checked(body)?;
    Some((message, body, rest))
}

/// An Arrow file in the making: it has its name only when it is complete.
pub(crate) struct Writer {
    writer: FileWriter<BufWriter<File>>,
    temporary: Temporary,
    path: PathBuf,
}

impl Writer {
    /// Returns a file that will be at `path`, or nowhere.
    pub(crate) fn create(path: &Path, schema: &SchemaRef) -> Result<Self> {
        check_depth(schema)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        let temporary = Temporary::beside(path)?;
        let file =
            File::create(temporary.path()).map_err(|error| Error::io("create", path, error))?;
        let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), schema)
            .map_err(|error| write_error(path, error))?;
        let path = path.to_owned();
        Ok(Self {
            writer,
            temporary,
            path,
        })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer
            .write(batch)
            .map_err(|error| write_error(&self.path, error))
    }

    /// Completes the file and gives it its name.
    pub(crate) fn keep(mut self, metadata: &[(&str, String)]) -> Result<()> {
        self.complete(metadata)?;
        self.temporary
            .put(&self.path)
            .map_err(|error| Error::io("write", &self.path, error))
    }

    /// Completes the file and gives its table; the file goes away with it.
    pub(crate) fn into_table(mut self) -> Result<Table> {
        self.complete(&[])?;
        read(self.temporary.path())
    }

    fn complete(&mut self, metadata: &[(&str, String)]) -> Result<()> {
        for (key, value) in metadata {
            self.writer.write_metadata(*key, value);
        }
        // This empties the buffer too.
        self.writer
            .finish()
            .map_err(|error| write_error(&self.path, error))
    }
}

fn write_error(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, source) => Error::io("write", path, source),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::column::IntoColumn;
    use arrow::array::{DictionaryArray, NullArray};
    use arrow::datatypes::{Field, Int32Type, Schema};
    use arrow::ipc::writer::StreamWriter;

    fn write(path: &Path, rows: i64) {
        let schema = Arc::new(Schema::new(vec![
            Field::new("n", DataType::Int64, true),
            Field::new("text", DataType::Utf8, true),
        ]));
        let mut writer = Writer::create(path, &schema).unwrap();
        for start in 0..4 {
            let numbers: Vec<i64> = (start * rows..(start + 1) * rows).collect();
            let texts: Vec<String> = numbers.iter().map(|n| format!("row {n}")).collect();
            let columns = vec![numbers.into_column(), texts.into_column()];
            writer
                .write(&RecordBatch::try_new(schema.clone(), columns).unwrap())
                .unwrap();
        }
        assert!(
            !path.exists(),
            "the file has its name before it is complete"
        );
        writer.keep(&[("made", "here".to_owned())]).unwrap();
    }

    #[test]
    fn tables_are_read_back_from_memory_or_a_map() {
        let folder = tempfile::tempdir().unwrap();
        for rows in [10, 250_000] {
            let path = folder.path().join("deep/table.arrow");
            let _ = std::fs::remove_file(&path);
            write(&path, rows);
            assert_eq!(
                std::fs::metadata(&path).unwrap().len() >= MAP_FROM,
                rows > 10
            );
            let table = read(&path).unwrap();
            assert_eq!(table.batches.len(), 4);
            assert_eq!(table.metadata["made"], "here");
            let last = table.batches[3].column(0).to_data();
            let expected = (3 * rows..4 * rows).collect::<Vec<_>>().into_column();
            assert_eq!(last, expected.to_data());
        }
    }

    fn stream_of(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns
                .into_iter()
                .map(|(name, column)| (name, column, true)),
        )
        .unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        writer.into_inner().unwrap()
    }

    #[test]
    fn impossible_numbers_of_rows_and_bytes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claims.arrow");
        let read = |bytes: Vec<u8>| {
            std::fs::write(&path, bytes).unwrap();
            read(&path).map(|table| {
                table
                    .batches
                    .iter()
                    .map(RecordBatch::num_rows)
                    .sum::<usize>()
            })
        };
        let nulls =
            |rows: usize| stream_of(vec![("n", Arc::new(NullArray::new(rows)) as ArrayRef)]);
        assert_eq!(read(nulls(500_000)).unwrap(), 500_000);
        let error = read(nulls(1 << 50)).unwrap_err().to_string();
        assert!(error.contains("1125899906842624 rows"), "{error}");
        // One long text, a hundred thousand times.
        let texts = |length: usize, rows: usize| {
            let values: ArrayRef = vec!["x".repeat(length)].into_column();
            let keys = arrow::array::Int32Array::from(vec![0; rows]);
            let texts = DictionaryArray::<Int32Type>::try_new(keys, values).unwrap();
            stream_of(vec![("t", Arc::new(texts) as ArrayRef)])
        };
        assert_eq!(read(texts(100, 1000)).unwrap(), 1000);
        let error = read(texts(100_000, 100_000)).unwrap_err().to_string();
        assert!(error.contains("bytes, which is impossible"), "{error}");
        let empty = Arc::new(Schema::empty());
        let mut writer = StreamWriter::try_new(Vec::new(), &empty).unwrap();
        writer.finish().unwrap();
        let error = read(writer.into_inner().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no columns"), "{error}");
    }

    #[test]
    fn truncated_and_damaged_files_are_errors_and_never_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.arrow");
        write(&path, 50);
        let whole = std::fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = read(&path).map(|_| ()).unwrap_err().to_string();
            assert!(
                error.contains("table.arrow: not a complete Arrow file"),
                "{length}: {error}"
            );
        }
        for byte in (0..whole.len()).step_by(3) {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0xff;
            std::fs::write(&path, &damaged).unwrap();
            // Some damage only changes values; all of it must end in a table or an error.
            let _ = read(&path);
        }
    }
}
