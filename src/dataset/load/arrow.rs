//! Arrow IPC files.

use std::path::PathBuf;

use super::{agree, refuse_empty};
use crate::Result;
use crate::dataset::arrow_file;
use crate::dataset::cast::cast_batch;
use crate::dataset::fingerprint::Fingerprint;
use crate::dataset::table::Dataset;

/// Returns the files' batches, memory-mapped; `known` is their fingerprint, if it is known without reading them.
pub(super) fn load(paths: &[PathBuf], known: Option<Fingerprint>) -> Result<Dataset> {
    let tables = paths
        .iter()
        .map(|path| Ok((path.as_path(), arrow_file::read(path)?)))
        .collect::<Result<Vec<_>>>()?;
    let schemas: Vec<_> = tables
        .iter()
        .map(|(path, table)| (*path, table.schema.clone()))
        .collect();
    let schema = agree(&schemas)?;
    let batches = tables
        .iter()
        .flat_map(|(_, table)| &table.batches)
        .map(|batch| Ok(cast_batch(batch, &schema)?))
        .collect::<Result<Vec<_>>>()?;
    let fingerprint = match known {
        Some(known) => known,
        None => Fingerprint::of_batches(&schema, &batches)?,
    };
    let dataset = Dataset::from_parts(schema, batches, fingerprint);
    refuse_empty(&dataset, paths)?;
    Ok(dataset)
}
