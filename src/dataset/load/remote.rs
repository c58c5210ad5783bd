//! Datasets that lie on the Hub.

use std::path::PathBuf;

use super::hub::{HubDataset, open};
use super::{FileFormat, Loader, Selection, files};
use crate::dataset::concatenate::concatenate;
use crate::dataset::split::{self, Term};
use crate::dataset::{Dataset, DatasetDict};
use crate::hub::{self, Hub};
use crate::{Error, Result};

/// Returns the dataset on the Hub that `name` means, if it means one: no pattern, nothing bundled, no file and no
/// folder.
pub(in crate::dataset) fn on_hub(name: &str, request: &Selection) -> Result<Option<HubDataset>> {
    let is_local = files::is_pattern(name)
        || name.starts_with(hub::BUNDLED)
        || hub::find_here("dataset", name)?.is_some();
    if is_local || hub::Repo::parse(hub::RepoKind::Dataset, name).is_err() {
        return Ok(None);
    }
    open(name, request)
        .map(Some)
        .map_err(|error| hub::after_looking_here(name, error))
}

impl Loader {
    /// This loader with the addresses among its files fetched; `None` where there are none.
    pub(super) fn with_fetched_files(&self) -> Result<Option<Self>> {
        let files = self.request.data_files.iter().flat_map(|(_, files)| files);
        if !files.chain([&self.name]).any(|name| hub::is_url(name)) {
            return Ok(None);
        }
        let client = Hub::from_env()?;
        let local = |name: &mut String| -> Result<()> {
            if hub::is_url(name) {
                *name = client.fetch(name)?.to_string_lossy().into_owned();
            }
            Ok(())
        };
        let mut fetched = self.clone();
        local(&mut fetched.name)?;
        for (_, files) in &mut fetched.request.data_files {
            files.iter_mut().try_for_each(local)?;
        }
        Ok(Some(fetched))
    }

    /// Loads only the part `split` (`train[:10%]`; see [`DatasetDict::split`]). From a dataset on the Hub only the
    /// files with its rows are downloaded, as far as they can be determined: those of its splits, and of Parquet files
    /// only those that a slice counted from the beginning covers.
    ///
    /// # Errors
    /// Like [`Loader::load`] and [`DatasetDict::split`].
    pub fn part(&self, split: impl AsRef<str>) -> Result<Dataset> {
        let split = split.as_ref();
        if let Some(fetched) = self.with_fetched_files()? {
            return fetched.part(split);
        }
        if split == "all" || files::named(&self.name, &self.request).is_some() {
            return self.load()?.split(split);
        }
        match on_hub(&self.name, &self.request)? {
            Some(dataset) => self.part_of(&dataset, split, &|name| name.to_owned()),
            None => self.load()?.split(split),
        }
    }

    /// Returns the part `split` of a dataset on the Hub; `rename` gives the names of its splits there.
    pub(in crate::dataset) fn part_of(
        &self,
        dataset: &HubDataset,
        split: &str,
        rename: &dyn Fn(&str) -> String,
    ) -> Result<Dataset> {
        let format = self.request.format.unwrap_or(dataset.format());
        let mut parts = Vec::new();
        for term in split::parse(split)? {
            let name = rename(&term.name);
            let mut range = 0..0;
            let (paths, before) = match format {
                FileFormat::Parquet => dataset.part(&name, |rows| {
                    range = term.range(split, rows)?;
                    Ok(range.clone())
                })?,
                _ => (self.files_of_rows(dataset, &name, &term)?, 0),
            };
            let loaded = self.load_split(format, &paths, dataset.options())?;
            if format != FileFormat::Parquet {
                range = term.range(split, loaded.len())?;
            }
            let within = |row: usize| row.saturating_sub(before).min(loaded.len());
            let (start, end) = (within(range.start), within(range.end));
            parts.push(loaded.slice(start..end.max(start)));
        }
        if parts.iter().all(Dataset::is_empty) {
            return Err(Error::Split {
                split: split.to_owned(),
                message: format!("it contains no rows of {}", self.name),
            });
        }
        Ok(concatenate(&parts)?.with_origin(Some(dataset.name())))
    }

    /// Returns the files with the rows of `term` if only reading a file tells how many rows it has: as many files from
    /// the first on as necessary, or all.
    fn files_of_rows(&self, dataset: &HubDataset, name: &str, term: &Term) -> Result<Vec<PathBuf>> {
        let (Some(wanted), count) = (term.fixed(), dataset.shard_count(name)?) else {
            return dataset.first(name, usize::MAX);
        };
        let format = self.request.format.unwrap_or(dataset.format());
        if format == FileFormat::Audio {
            // Metadata files stand for no rows.
            return dataset.first(name, usize::MAX);
        }
        let mut rows = 0;
        for shards in 1..count {
            let paths = dataset.first(name, shards)?;
            rows += self
                .load_split(format, &paths[shards - 1..], dataset.options())?
                .len();
            if rows >= wanted.end {
                return Ok(paths);
            }
        }
        dataset.first(name, count)
    }

    /// Loads all splits of a dataset on the Hub.
    pub(super) fn load_from_hub(&self, dataset: &HubDataset) -> Result<DatasetDict> {
        let format = self.request.format.unwrap_or(dataset.format());
        dataset
            .splits()
            .into_iter()
            .map(|split| {
                let paths = dataset.first(split, usize::MAX)?;
                let loaded = self.load_split(format, &paths, dataset.options())?;
                Ok((split.to_owned(), loaded.with_origin(Some(dataset.name()))))
            })
            .collect::<Result<Vec<_>>>()
            .map(DatasetDict::from_iter)
    }
}
