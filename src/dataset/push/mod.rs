//! Datasets onto the Hub: Parquet files and a card, in the layout that `datasets` pushes.

mod card;

use std::collections::BTreeSet;
use std::path::Path;

use self::card::{Published, Split};
use super::dict::DatasetDict;
use super::table::Dataset;
use crate::hub::{Hub, PushOptions, Pushed};
use crate::{Error, Result};

/// The size of a file of rows, in memory, if nothing else is asked for: that of `datasets`.
const SHARD_BYTES: usize = 500_000_000;

/// How a dataset is pushed. Mirrors the arguments of `datasets.Dataset.push_to_hub`.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// let blocks = load_eli5("train_asks")?.train_test_split(0.2)?;
/// let options = PushDataset::new().private(true).commit_message("Split by question");
/// blocks.push_to_hub("me/eli5_sample", &options)?;
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PushDataset {
    config_name: String,
    set_default: Option<bool>,
    split: Option<String>,
    data_dir: Option<String>,
    max_shard_size: Option<usize>,
    num_shards: Option<usize>,
    push: PushOptions,
}

impl Default for PushDataset {
    fn default() -> Self {
        Self {
            config_name: "default".to_owned(),
            set_default: None,
            split: None,
            data_dir: None,
            max_shard_size: None,
            num_shards: None,
            push: PushOptions::new().message("Upload dataset"),
        }
    }
}

impl PushDataset {
    /// Returns the configuration `default`; of a single dataset the split `train`; files of at most 500 MB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the configuration that the rows become (default: `default`). Others of the repository stay.
    pub fn config_name(mut self, name: impl Into<String>) -> Self {
        self.config_name = name.into();
        self
    }

    /// Sets whether this configuration is the one that is loaded when none is named.
    pub fn set_default(mut self, is_default: bool) -> Self {
        self.set_default = Some(is_default);
        self
    }

    /// Sets the split that a single dataset becomes (default: `train`). Others of the configuration stay.
    pub fn split(mut self, name: impl Into<String>) -> Self {
        self.split = Some(name.into());
        self
    }

    /// Sets the folder of the files (default: `data`, or the configuration's name).
    pub fn data_dir(mut self, folder: impl Into<String>) -> Self {
        self.data_dir = Some(folder.into());
        self
    }

    /// Sets the most bytes of rows, as they lie in memory, that a file gets (default: 500 MB).
    pub fn max_shard_size(mut self, bytes: usize) -> Self {
        self.max_shard_size = Some(bytes);
        self
    }

    /// Sets the number of files of each split.
    pub fn num_shards(mut self, shards: usize) -> Self {
        self.num_shards = Some(shards);
        self
    }

    /// Sets whether a repository created by this push is private. An existing one is unchanged.
    pub fn private(mut self, private: bool) -> Self {
        self.push = self.push.private(private);
        self
    }

    /// Sets the first line of the commit's message (default: `Upload dataset`).
    pub fn commit_message(mut self, message: impl Into<String>) -> Self {
        self.push = self.push.message(message);
        self
    }

    /// Sets the rest of the commit's message.
    pub fn commit_description(mut self, description: impl Into<String>) -> Self {
        self.push = self.push.description(description);
        self
    }
}

impl Dataset {
    /// Pushes the rows to the dataset repository `repo` (`owner/name`, or `name` for your own), which is created if it
    /// does not exist: as Parquet files with a card, in one commit. Other splits and configurations of the repository
    /// are kept. [`load_dataset`](super::load_dataset) and the Python library can load it.
    ///
    /// ```no_run
    /// use cloze::prelude::*;
    /// let dataset = load_dataset("answers.jsonl")?["train"].clone();
    /// dataset.push_to_hub("me/answers", &PushDataset::new().private(true))?;
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the Hub does not accept a name; if the columns differ from those of the configuration's other splits; if you
    /// are not logged in or lack write permission; or if there is no connection. The commit is made last, so the
    /// repository is then unchanged.
    pub fn push_to_hub(&self, repo: &str, options: &PushDataset) -> Result<Pushed> {
        self.push_to(&Hub::from_env()?, repo, options)
    }

    /// Like [`Dataset::push_to_hub`], with your own settings.
    pub fn push_to(&self, hub: &Hub, repo: &str, options: &PushDataset) -> Result<Pushed> {
        let split = options.split.as_deref().unwrap_or("train");
        push(hub, repo, &[(split, self)], options, true)
    }
}

impl DatasetDict {
    /// Pushes all splits to the dataset repository `repo`, as [`Dataset::push_to_hub`] pushes one; the earlier content
    /// of the configuration is replaced.
    ///
    /// # Errors
    /// Like [`Dataset::push_to_hub`]; splits whose columns differ.
    pub fn push_to_hub(&self, repo: &str, options: &PushDataset) -> Result<Pushed> {
        self.push_to(&Hub::from_env()?, repo, options)
    }

    /// Like [`DatasetDict::push_to_hub`], with your own settings.
    pub fn push_to(&self, hub: &Hub, repo: &str, options: &PushDataset) -> Result<Pushed> {
        if options.split.is_some() {
            let message = "the splits already have names; give a name only for a single dataset";
            return Err(Error::argument("split", message));
        }
        let splits: Vec<(&str, &Dataset)> = self.iter().collect();
        push(hub, repo, &splits, options, false)
    }
}

/// Returns whether a name consists of letters, digits and underscores, in parts separated by dots.
fn is_name(name: &str) -> bool {
    let is_word =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_');
    name.split('.').all(is_word)
}

/// Checks names, columns and options before anything is sent.
fn check(splits: &[(&str, &Dataset)], options: &PushDataset) -> Result<()> {
    let Some((_, first)) = splits.first() else {
        return Err(Error::argument("splits", "there is no split to push"));
    };
    for (split, dataset) in splits {
        if !is_name(split) {
            return Err(Error::argument(
                "split",
                format!(
                    "{split:?} may only contain letters, digits, underscores, and dots between them"
                ),
            ));
        }
        if dataset.features() != first.features() {
            return Err(Error::Dataset(format!(
                "the splits {:?} and {split:?} have different columns; push them as separate configurations",
                splits[0].0
            )));
        }
    }
    let config = &options.config_name;
    if config == "data"
        || config.is_empty()
        || config.contains(['/', '\\', '\n', '<', '>', ':', '"', '|', '?', '*'])
    {
        return Err(Error::argument(
            "config_name",
            format!("{config:?} can't be the name of a configuration; choose another"),
        ));
    }
    match (options.max_shard_size, options.num_shards) {
        (Some(_), Some(_)) => Err(Error::argument(
            "num_shards",
            "give this or max_shard_size, not both",
        )),
        (Some(0), _) => Err(Error::argument("max_shard_size", "must be at least 1")),
        (_, Some(0)) => Err(Error::argument("num_shards", "must be at least 1")),
        _ => Ok(()),
    }
}

fn push(
    hub: &Hub,
    repo: &str,
    splits: &[(&str, &Dataset)],
    options: &PushDataset,
    keep_others: bool,
) -> Result<Pushed> {
    check(splits, options)?;
    let folder = match (&options.data_dir, options.config_name.as_str()) {
        (Some(folder), _) => folder.trim_matches('/'),
        (None, "default") => "data",
        (None, config) => config,
    };
    let before = hub.published_dataset(repo, &options.push)?;
    let local =
        tempfile::tempdir().map_err(|error| Error::io("create", std::env::temp_dir(), error))?;
    let place = local.path().join(folder);
    std::fs::create_dir_all(&place).map_err(|error| Error::io("create", &place, error))?;
    let mut written = Vec::new();
    let mut paths = BTreeSet::new();
    for (name, dataset) in splits {
        let (bytes, shards) = write_shards(dataset, name, &place, options)?;
        let mut download = 0;
        for shard in shards {
            let size = place
                .join(&shard)
                .metadata()
                .map_err(|error| Error::io("read", &place, error))?;
            download += size.len();
            paths.insert(format!("{folder}/{shard}"));
        }
        written.push(Split {
            name: (*name).to_owned(),
            bytes,
            rows: dataset.len() as u64,
            download,
        });
    }
    // What these splits had before, or with all splits replaced everything.
    let replaced = |path: &&String| {
        let inner = path
            .strip_prefix(folder)
            .and_then(|rest| rest.strip_prefix('/'));
        inner.is_some_and(|inner| match keep_others {
            true => splits.iter().any(|(split, _)| {
                inner
                    .strip_prefix(split)
                    .is_some_and(|rest| rest.starts_with('-'))
            }),
            false => !inner.contains('/'),
        })
    };
    let deleted: Vec<String> = before
        .files
        .iter()
        .filter(replaced)
        .filter(|path| !paths.contains(*path))
        .cloned()
        .collect();
    let published = Published {
        config: &options.config_name,
        is_default: options.set_default,
        folder,
        schema: splits[0].1.schema(),
        splits: &written,
        keep_others,
    };
    let readme = published.update(before.card.as_deref().unwrap_or_default(), |pattern| {
        let prefix = pattern.trim_end_matches('*');
        let kept = before.files.iter().filter(|path| path.starts_with(prefix));
        kept.map(|path| hub.size_in_dataset(&before, path)).sum()
    })?;
    let card = local.path().join("README.md");
    std::fs::write(&card, readme).map_err(|error| Error::io("write", &card, error))?;
    hub.push_dataset_folder(&before, local.path(), &deleted, &options.push)
}

/// Writes a split as Parquet files into `folder` and returns the bytes of its rows and the files' names.
fn write_shards(
    dataset: &Dataset,
    split: &str,
    folder: &Path,
    options: &PushDataset,
) -> Result<(u64, Vec<String>)> {
    let mut bytes = 0u64;
    for range in dataset.chunks(8192) {
        crate::interrupt::check("pushing a dataset")?;
        for column in dataset.gather(range)?.columns() {
            bytes += column.to_data().get_slice_memory_size()? as u64;
        }
    }
    let most = options.max_shard_size.unwrap_or(SHARD_BYTES) as u64;
    let by_size = usize::try_from(bytes / most + 1).unwrap_or(usize::MAX);
    // A file needs a row.
    let shards = options
        .num_shards
        .unwrap_or(by_size)
        .clamp(1, dataset.len().max(1));
    let (whole, rest) = (dataset.len() / shards, dataset.len() % shards);
    let mut names = Vec::new();
    let mut start = 0;
    for shard in 0..shards {
        let rows = whole + usize::from(shard < rest);
        let name = format!("{split}-{shard:05}-of-{shards:05}.parquet");
        dataset
            .slice(start..start + rows)
            .to_parquet(folder.join(&name))?;
        names.push(name);
        start += rows;
    }
    Ok((bytes, names))
}
