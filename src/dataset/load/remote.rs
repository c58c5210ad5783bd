//! Datasets that lie on the Hub.

use std::path::Path;

use super::{FileFormat, Loader, files};
use crate::dataset::concatenate::concatenate;
use crate::dataset::split;
use crate::dataset::{Dataset, DatasetDict};
use crate::hub::{self, HubDataset};
use crate::{Error, Result};

/// The dataset on the Hub that `name` means, if it means one: no pattern, nothing bundled, no file and no folder.
pub(in crate::dataset) fn on_hub(name: &str, config: Option<&str>) -> Result<Option<HubDataset>> {
    let is_local =
        files::is_pattern(name) || name.starts_with(hub::BUNDLED) || Path::new(name).exists();
    if is_local || hub::Repo::parse(hub::RepoKind::Dataset, name).is_err() {
        return Ok(None);
    }
    hub::open_dataset(name, config).map(Some)
}

impl Loader {
    /// Loads the part `split` (`train[:10%]`; see [`DatasetDict::split`]) alone. Of a dataset on the Hub only the files
    /// with its rows are downloaded.
    ///
    /// # Errors
    /// As [`Loader::load`] and [`DatasetDict::split`].
    pub fn part(&self, split: impl AsRef<str>) -> Result<Dataset> {
        let split = split.as_ref();
        match on_hub(&self.name, self.config.as_deref())? {
            Some(dataset) if dataset.splits().is_some() => {
                self.part_of(&dataset, split, &|name| name.to_owned())
            }
            _ => self.load()?.split(split),
        }
    }

    /// The part `split` of a dataset whose splits are told by its files; `rename` says what its splits are called there.
    pub(in crate::dataset) fn part_of(
        &self,
        dataset: &HubDataset,
        split: &str,
        rename: &dyn Fn(&str) -> String,
    ) -> Result<Dataset> {
        let mut parts = Vec::new();
        for term in split::parse(split)? {
            let mut range = 0..0;
            let (paths, before) = dataset.part(&rename(&term.name), |rows| {
                range = term.range(split, rows)?;
                Ok(range.clone())
            })?;
            let loaded = self.load_split(FileFormat::Parquet, &paths)?;
            let within = |row: usize| row.saturating_sub(before).min(loaded.len());
            let (start, end) = (within(range.start), within(range.end));
            parts.push(loaded.slice(start..end.max(start)));
        }
        if parts.iter().all(Dataset::is_empty) {
            return Err(Error::Split {
                split: split.to_owned(),
                message: format!("no rows of {} lie in it", self.name),
            });
        }
        concatenate(&parts)
    }

    /// Loads all splits of a dataset on the Hub.
    pub(super) fn load_from_hub(&self, dataset: &HubDataset) -> Result<DatasetDict> {
        let Some(splits) = dataset.splits() else {
            let folder = dataset.folder()?;
            return self.load_files(&files::find(&self.name, &folder, self.format)?);
        };
        splits
            .into_iter()
            .map(|split| {
                let paths = dataset.split(split)?;
                Ok((
                    split.to_owned(),
                    self.load_split(FileFormat::Parquet, &paths)?,
                ))
            })
            .collect::<Result<Vec<_>>>()
            .map(DatasetDict::from_iter)
    }
}
