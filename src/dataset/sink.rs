//! Collects batches as they are made: in memory while they are few, in an Arrow file when they are many, and in the
//! cache if they are to be found again.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};

use super::arrow_file::{self, Writer};
use super::cache::Cache;
use super::cast::cast_batch;
use super::data_type::{common, type_name};
use super::fingerprint::{Fingerprint, Hashing};
use super::table::Dataset;
use crate::base::files::sweep_folders;
use crate::{Error, Result};

/// Results up to this size stay in memory.
pub(crate) const MEMORY_LIMIT: usize = 256 << 20;

/// The name under which a file in the cache keeps the fingerprint of its rows.
const FINGERPRINT: &str = "fingerprint";

/// Collects batches into a dataset.
pub(crate) struct Sink {
    cache: Cache,
    /// The fingerprint of the result in the cache, if it goes there.
    key: Option<Fingerprint>,
    limit: usize,
    schema: Option<SchemaRef>,
    /// All batches so far, until they go beyond the limit and only the file has them.
    memory: Option<Vec<RecordBatch>>,
    bytes: usize,
    file: Option<Writer>,
    /// Why there is no file although there should be one.
    failed: Option<Error>,
}

impl Sink {
    pub(crate) fn new(cache: Cache, key: Option<Fingerprint>, limit: usize) -> Self {
        Self {
            key: key.filter(|_| cache.is_enabled()),
            cache,
            limit,
            schema: None,
            memory: Some(Vec::new()),
            bytes: 0,
            file: None,
            failed: None,
        }
    }

    /// Returns the dataset known as `key` in the cache, if there is one.
    pub(crate) fn cached(cache: &Cache, key: Fingerprint) -> Option<Dataset> {
        let table = cache.find(key)?;
        let fingerprint = Fingerprint::from_hex(table.metadata.get(FINGERPRINT)?)?;
        Some(Dataset::from_parts(
            table.schema,
            table.batches,
            fingerprint,
        ))
    }

    /// Sets the schema ahead of the first batch, which then has to fit it.
    pub(crate) fn set_schema(&mut self, schema: SchemaRef) {
        self.schema = Some(schema);
    }

    pub(crate) fn write(&mut self, batch: RecordBatch) -> Result<()> {
        let schema = self.fit(&batch)?;
        let batch = cast_batch(&batch, &schema)?;
        self.bytes += batch
            .columns()
            .iter()
            .map(|column| column.to_data().get_slice_memory_size().unwrap_or(0))
            .sum::<usize>();
        let fits = self.bytes <= self.limit;
        if self.file.is_none() && self.failed.is_none() && (self.key.is_some() || !fits) {
            self.open(&schema);
        }
        if let Some(file) = &mut self.file
            && let Err(error) = file.write(&batch)
        {
            self.fail(error);
        }
        match &mut self.memory {
            Some(batches) if fits => batches.push(batch),
            Some(_) if self.file.is_some() => self.memory = None,
            None if self.file.is_some() => {}
            // Too much for memory, and no file to take it.
            _ => {
                let error = self.failed.take();
                return Err(error.unwrap_or_else(|| {
                    Error::Dataset("the result does not fit memory".to_owned())
                }));
            }
        }
        Ok(())
    }

    /// Returns the schema for all batches so far and `batch`.
    fn fit(&mut self, batch: &RecordBatch) -> Result<SchemaRef> {
        let Some(schema) = self.schema.clone() else {
            self.schema = Some(batch.schema());
            return Ok(batch.schema());
        };
        if schema == batch.schema() {
            return Ok(schema);
        }
        let mut fields = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            let other = batch
                .schema_ref()
                .field_with_name(field.name())
                .map_err(|_| {
                    different(
                        field.name(),
                        type_name(field.data_type()),
                        "nothing".to_owned(),
                    )
                })?;
            let data_type = common(field.data_type(), other.data_type()).ok_or_else(|| {
                different(
                    field.name(),
                    type_name(field.data_type()),
                    type_name(other.data_type()),
                )
            })?;
            fields.push(Field::new(field.name(), data_type, true));
        }
        for field in batch.schema_ref().fields() {
            if schema.field_with_name(field.name()).is_err() {
                return Err(different(
                    field.name(),
                    "nothing".to_owned(),
                    type_name(field.data_type()),
                ));
            }
        }
        let wider = Arc::new(Schema::new(fields));
        if wider == schema {
            return Ok(schema);
        }
        // What was a column of nulls has a type now: what is there already follows.
        let Some(batches) = &mut self.memory else {
            return Err(Error::Dataset(
                "the type of a column became known only after much of the result was written; give it a typed column \
                 from the first batch on"
                    .to_owned(),
            ));
        };
        for batch in batches.iter_mut() {
            *batch = cast_batch(batch, &wider)?;
        }
        if self.file.take().is_some() {
            self.open(&wider);
        }
        self.schema = Some(wider.clone());
        Ok(wider)
    }

    /// Starts the file with the rows in memory. If that fails, work continues in memory while there is enough.
    fn open(&mut self, schema: &SchemaRef) {
        // Results that killed processes were making, whatever their names.
        sweep_folders(&self.cache.folder(), ".");
        let started = Writer::create(&self.path(), schema).and_then(|mut file| {
            for batch in self.memory.iter().flatten() {
                file.write(batch)?;
            }
            Ok(file)
        });
        match started {
            Ok(file) => self.file = Some(file),
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: Error) {
        tracing::warn!("a result could not be cached: {error}");
        self.file = None;
        self.failed = Some(error);
    }

    fn path(&self) -> PathBuf {
        match self.key {
            Some(key) => self.cache.path(key),
            None => self.cache.folder().join("result.arrow"),
        }
    }

    /// Returns the dataset of all batches, with the fingerprint `fingerprint`; `schema` is used if there were none.
    pub(crate) fn finish(
        mut self,
        schema: &SchemaRef,
        fingerprint: Fingerprint,
    ) -> Result<Dataset> {
        let schema = self.schema.clone().unwrap_or_else(|| schema.clone());
        let path = self.path();
        let file = self.file.take();
        let Some(batches) = self.memory.take() else {
            // Only the file has all of it.
            let table = match (file, self.key) {
                (Some(file), Some(_)) => {
                    file.keep(&[(FINGERPRINT, fingerprint.to_hex())])?;
                    arrow_file::read(&path)?
                }
                (Some(file), None) => file.into_table()?,
                (None, _) => return Err(Error::Dataset("a result without batches".to_owned())),
            };
            return Ok(Dataset::from_parts(
                table.schema,
                table.batches,
                fingerprint,
            ));
        };
        if let Some(file) = file
            && let Err(error) = file.keep(&[(FINGERPRINT, fingerprint.to_hex())])
        {
            self.fail(error);
        }
        Ok(Dataset::from_parts(schema, batches, fingerprint))
    }
}

fn different(name: &str, expected: String, found: String) -> Error {
    Error::ColumnType {
        name: name.to_owned(),
        operation: "putting batches together".to_owned(),
        expected: format!("{expected} as in the batches before it"),
        found,
    }
}

/// Returns the fingerprint of a dataset that consists of pieces with these fingerprints.
pub(crate) fn of_pieces(pieces: &[Fingerprint]) -> Fingerprint {
    let mut hashing = Hashing::new("pieces");
    for piece in pieces {
        hashing.part(piece.as_bytes());
    }
    hashing.finish()
}
