//! Tables in Arrow IPC files: memory-mapped when read, whole or not at all when written.

use std::collections::HashMap;
use std::io::BufWriter;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, StreamDecoder, read_footer_length};
use arrow::ipc::root_as_footer;
use arrow::ipc::writer::FileWriter;
use bytes::Bytes;
use rayon::prelude::*;
use tempfile::NamedTempFile;

use super::cast::cast_batch;
use super::data_type::plain_schema;
use crate::ops::MappedFile;
use crate::{Error, Result};

/// Files smaller than this are read; larger ones are mapped.
const MAP_FROM: u64 = 16 << 20;

const MAGIC: &[u8] = b"ARROW1";

/// Batches of one (plain) schema, and what the file says about them.
pub(crate) struct Table {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
    pub(crate) metadata: HashMap<String, String>,
}

/// The table in the Arrow file at `path`, in the file or the stream format.
///
/// Large files are mapped: their pages come and go as the system sees fit. They must not be changed in place while the
/// table is in use; replacing them by another file is fine.
pub(crate) fn read(path: &Path) -> Result<Table> {
    let buffer = contents(path)?;
    read_buffer(buffer).map_err(|error| {
        Error::format(
            path,
            format!("this is no complete Arrow file ({error}); it may be cut short or damaged: get or write it again"),
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
    catch_unwind(|| {
        let (schema, batches, metadata) = if buffer.starts_with(MAGIC) {
            decode_file(&buffer)?
        } else {
            decode_stream(buffer)?
        };
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

type Decoded = (SchemaRef, Vec<RecordBatch>, HashMap<String, String>);

fn decode_file(buffer: &Buffer) -> Result<Decoded, ArrowError> {
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
            _ => Err(broken("a block lies outside of the file")),
        }
    };
    let mut decoder = FileDecoder::new(schema.clone(), footer.version());
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

fn decode_stream(mut buffer: Buffer) -> Result<Decoded, ArrowError> {
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

/// An Arrow file in the making: it has its name only when it is complete.
pub(crate) struct Writer {
    writer: FileWriter<BufWriter<NamedTempFile>>,
    path: PathBuf,
}

impl Writer {
    /// A file that will be at `path`, or nowhere.
    pub(crate) fn create(path: &Path, schema: &SchemaRef) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        let file =
            NamedTempFile::new_in(folder).map_err(|error| Error::io("create", path, error))?;
        let writer = FileWriter::try_new(BufWriter::with_capacity(1 << 20, file), schema)
            .map_err(|error| write_error(path, error))?;
        let path = path.to_owned();
        Ok(Self { writer, path })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer
            .write(batch)
            .map_err(|error| write_error(&self.path, error))
    }

    /// Completes the file and gives it its name.
    pub(crate) fn keep(self, metadata: &[(&str, String)]) -> Result<()> {
        let path = self.path.clone();
        let io = |error| Error::io("write", &path, error);
        let file = self.complete(metadata)?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(&path)
            .map(drop)
            .map_err(|error| io(error.error))
    }

    /// Completes the file and gives its table; the file goes away with it.
    pub(crate) fn into_table(self) -> Result<Table> {
        let file = self.complete(&[])?;
        read(file.path())
    }

    fn complete(mut self, metadata: &[(&str, String)]) -> Result<NamedTempFile> {
        for (key, value) in metadata {
            self.writer.write_metadata(*key, value);
        }
        self.writer
            .finish()
            .map_err(|error| write_error(&self.path, error))?;
        let buffered = self
            .writer
            .into_inner()
            .map_err(|error| write_error(&self.path, error))?;
        buffered
            .into_inner()
            .map_err(|error| Error::io("write", &self.path, error.into_error()))
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
    use arrow::array::Array;
    use arrow::datatypes::{DataType, Field, Schema};

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
    fn tables_come_back_read_or_mapped() {
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

    #[test]
    fn a_file_that_is_cut_short_or_damaged_is_an_error_and_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.arrow");
        write(&path, 50);
        let whole = std::fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = read(&path).map(|_| ()).unwrap_err().to_string();
            assert!(
                error.contains("table.arrow: this is no complete Arrow file"),
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
