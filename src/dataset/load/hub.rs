//! Datasets on the Hub: the Parquet files that it makes of every dataset (the branch `refs/convert/parquet`), or else the
//! repository's own files. Of a slice, only the files with its rows are fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::{FileFormat, Layout, Options, Selection, default_config, plan};
use crate::base::files;
use crate::hub::cache::{RepoCache, make_parent};
use crate::hub::failure::{Failure, FailureKind};
use crate::hub::http::{Client, Request};
use crate::hub::in_parallel::in_parallel;
use crate::hub::name::{Repo, RepoKind};
use crate::hub::remote::RepoInfo;
use crate::hub::snapshot::{explain, fetch_files};
use crate::hub::{Hub, Settings};
use crate::{Error, Result};

/// The branch with every dataset as Parquet, in `config/split/0000.parquet`.
const PARQUET: &str = "refs/convert/parquet";

/// A dataset on the Hub.
#[derive(Debug)]
pub(crate) struct HubDataset {
    client: Client,
    /// At the branch that the files are taken from.
    repo: Repo,
    commit: String,
    format: FileFormat,
    splits: Splits,
    options: Options,
}

/// The files of every split, in their order.
type Splits = Vec<(String, Vec<String>)>;

impl Hub {
    pub(crate) fn dataset(&self, name: &str, request: &Selection) -> Result<HubDataset> {
        let repo = Repo::parse(RepoKind::Dataset, name).map_err(|reason| Error::NotFound {
            kind: "dataset",
            name: name.to_owned(),
            message: format!("it {reason}"),
        })?;
        HubDataset::open(self.client.clone(), &repo, name.contains('@'), request)
    }
}

impl HubDataset {
    fn open(client: Client, repo: &Repo, own_revision: bool, request: &Selection) -> Result<Self> {
        let failed = |failure: Failure| explain(repo, failure);
        // Files that are named, or their folder, are the repository's own.
        let own_files = !request.data_files.is_empty() || request.data_dir.is_some();
        if !own_revision && !own_files {
            let converted = repo.at(PARQUET);
            let listing = list(&client, &converted).map_err(failed)?;
            if let Some(info) = listing {
                let mut config = request.config.clone();
                if config.is_none() && has_no_default(&info.files) {
                    // The card may say which of several is meant.
                    let own = Self::own(client.clone(), repo).ok();
                    config = own.and_then(|(_, _, card)| default_config(&card?));
                }
                if let Some(splits) = converted_splits(&info.files, config.as_deref(), repo.id())? {
                    return Ok(Self {
                        client,
                        repo: converted,
                        commit: info.commit,
                        format: FileFormat::Parquet,
                        splits,
                        options: Options::default(),
                    });
                }
            }
        }
        let (mut dataset, files, card) = Self::own(client, repo)?;
        let Layout {
            format,
            splits,
            options,
        } = plan(repo.id(), &files, card.as_deref(), request)?;
        (dataset.format, dataset.splits, dataset.options) = (format, splits, options);
        Ok(dataset)
    }

    /// Returns the repository without splits, the paths of its files and the text of its card.
    fn own(client: Client, repo: &Repo) -> Result<(Self, Vec<String>, Option<String>)> {
        let info = list(&client, repo)
            .map_err(|failure| explain(repo, failure))?
            .ok_or_else(|| missing(&client, repo))?;
        let dataset = Self {
            client,
            repo: repo.clone(),
            commit: info.commit,
            format: FileFormat::Parquet,
            splits: Vec::new(),
            options: Options::default(),
        };
        let card = dataset.card(&info.files)?;
        Ok((dataset, info.files.into_iter().collect(), card))
    }

    /// Returns the text of the repository's card, if it has one.
    fn card(&self, files: &BTreeSet<String>) -> Result<Option<String>> {
        const CARD: &str = "README.md";
        let is_cached = || self.cache().snapshot(&self.commit).join(CARD).is_file();
        if !files.contains(CARD) || (self.client.settings().offline && !is_cached()) {
            return Ok(None);
        }
        let path = self.fetch(&[CARD.to_owned()])?.join(CARD);
        let text = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Returns the card's arguments for reading the files.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    fn cache(&self) -> RepoCache {
        RepoCache::new(&self.client.settings().cache_dir, &self.repo)
    }

    /// Returns `owner/name`.
    pub(crate) fn name(&self) -> &str {
        self.repo.id()
    }

    /// Returns the format of the files.
    pub(crate) fn format(&self) -> FileFormat {
        self.format
    }

    /// Returns the names of the splits.
    pub(crate) fn splits(&self) -> Vec<&str> {
        self.splits.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Assigns the files to splits again if `split` recognises any of their paths.
    pub(crate) fn regroup(mut self, split: impl Fn(&str) -> Option<&'static str>) -> Self {
        let mut splits: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for path in self.splits.iter().flat_map(|(_, files)| files) {
            if let Some(name) = split(path) {
                splits.entry(name).or_default().push(path.clone());
            }
        }
        if !splits.is_empty() {
            let named = splits
                .into_iter()
                .map(|(name, files)| (name.to_owned(), files));
            self.splits = named.collect();
        }
        self
    }

    /// Returns the number of files that a split consists of.
    pub(crate) fn shard_count(&self, split: &str) -> Result<usize> {
        Ok(self.shards(split)?.len())
    }

    /// Returns the first `count` files of a split.
    pub(crate) fn first(&self, split: &str, count: usize) -> Result<Vec<PathBuf>> {
        let shards = self.shards(split)?;
        let shards = &shards[..count.min(shards.len())];
        let snapshot = self.fetch(shards)?;
        Ok(shards.iter().map(|path| snapshot.join(path)).collect())
    }

    /// Returns the Parquet files with the rows `rows(total)` of a split of `total` rows, and the number of rows in the
    /// files before them.
    pub(crate) fn part(
        &self,
        split: &str,
        rows: impl FnOnce(usize) -> Result<Range<usize>>,
    ) -> Result<(Vec<PathBuf>, usize)> {
        let shards = self.shards(split)?;
        if shards.len() == 1 {
            // It is needed anyway, if only for its columns.
            self.fetch(shards)?;
        }
        let counts = self.row_counts(shards)?;
        let (chosen, before) = overlapping(&counts, &rows(counts.iter().sum())?);
        let shards = &shards[chosen];
        let snapshot = self.fetch(shards)?;
        Ok((
            shards.iter().map(|path| snapshot.join(path)).collect(),
            before,
        ))
    }

    fn shards(&self, split: &str) -> Result<&[String]> {
        let found = self.splits.iter().find(|(name, _)| name == split);
        found
            .map(|(_, files)| files.as_slice())
            .ok_or_else(|| Error::Split {
                split: split.to_owned(),
                message: format!(
                    "{} has no split {split:?}; it has {}",
                    self.repo.id(),
                    self.splits().join(", ")
                ),
            })
    }

    /// Brings files into the cache.
    fn fetch(&self, paths: &[String]) -> Result<PathBuf> {
        let cache = self.cache();
        let snapshot = cache.snapshot(&self.commit);
        if self.client.settings().offline {
            return match paths.iter().find(|path| !snapshot.join(path).is_file()) {
                None => Ok(snapshot),
                Some(path) => Err(Error::NotFound {
                    kind: "dataset",
                    name: self.repo.id().to_owned(),
                    message: format!(
                        "HF_HUB_OFFLINE forbids downloads, and the cache does not contain its file {path}; go online once"
                    ),
                }),
            };
        }
        fetch_files(&self.client, &self.repo, &cache, &self.commit, paths)
            .map_err(|failure| explain(&self.repo, failure))?;
        cache.write_ref(self.repo.revision(), &self.commit)?;
        Ok(snapshot)
    }

    /// Returns the numbers of rows in Parquet files. The answers are cached, so that the same slice needs no further
    /// request.
    fn row_counts(&self, shards: &[String]) -> Result<Vec<usize>> {
        let path = self
            .cache()
            .own_folder()
            .join(format!("{}.rows.json", self.commit));
        let noted = std::fs::read(&path).ok();
        let mut known: BTreeMap<String, usize> = noted
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let unknown: Vec<&String> = shards
            .iter()
            .filter(|shard| !known.contains_key(*shard))
            .collect();
        if !unknown.is_empty() {
            let counts = in_parallel(&unknown, |path| self.rows_in(path)).map_err(Error::from)?;
            known.extend(unknown.into_iter().cloned().zip(counts));
            make_parent(&path)?;
            files::write_atomically(&path, serde_json::to_string(&known)?.as_bytes())?;
        }
        Ok(shards.iter().map(|shard| known[shard]).collect())
    }

    /// Returns the number of rows in a Parquet file, read from its end, which is all that is fetched of it.
    fn rows_in(&self, path: &str) -> Result<usize, Failure> {
        let local = self.cache().snapshot(&self.commit).join(path);
        let damaged = |e: ParquetError| {
            Failure::new(
                FailureKind::Refused,
                format!("{path} of {:?} is not a Parquet file: {e}", self.repo.id()),
            )
        };
        if let Ok(file) = std::fs::File::open(&local) {
            let metadata = ParquetMetaDataReader::new()
                .parse_and_finish(&file)
                .map_err(damaged)?;
            return Ok(rows(&metadata));
        }
        if self.client.settings().offline {
            let message = format!(
                "HF_HUB_OFFLINE forbids looking up how many rows {path} of {:?} has",
                self.repo.id()
            );
            return Err(Failure::new(FailureKind::Refused, message));
        }
        let size = self.client.head(&self.repo, &self.commit, path)?.size;
        let mut end = 64 << 10;
        loop {
            let start = size.saturating_sub(end);
            let bytes = self.range(path, start, size)?;
            let mut reader = ParquetMetaDataReader::new();
            match reader.try_parse_sized(&bytes, size) {
                Ok(()) => return Ok(rows(&reader.finish().map_err(damaged)?)),
                Err(ParquetError::NeedMoreData(needed)) if (needed as u64) > end && start > 0 => {
                    end = needed as u64
                }
                Err(e) => return Err(damaged(e)),
            }
        }
    }

    /// Returns the bytes of a file from `start` up to its `end`.
    fn range(&self, path: &str, start: u64, end: u64) -> Result<Bytes, Failure> {
        let url = self.client.file_url(&self.repo, &self.commit, path);
        let purpose = format!("look into {path} of {:?}", self.repo.id());
        let request =
            Request::get(url, purpose).header("range", format!("bytes={start}-{}", end - 1));
        let request = self.client.read(request);
        self.client.retry(|| {
            let mut response = self.client.send(&request)?;
            let body = self
                .client
                .read_body(&request, &mut response, end - start)?;
            if body.len() as u64 != end - start {
                let message =
                    "the server sent a different part of the file than requested".to_owned();
                return Err(self.client.failure(FailureKind::Refused, &request, message));
            }
            Ok(body.into())
        })
    }
}

fn rows(metadata: &ParquetMetaData) -> usize {
    usize::try_from(metadata.file_metadata().num_rows()).unwrap_or(0)
}

/// Returns the files, by their numbers of rows, that `range` reaches into, and the rows before the first of them. At
/// least one: an empty range still has columns.
fn overlapping(counts: &[usize], range: &Range<usize>) -> (Range<usize>, usize) {
    let (mut first, mut before, mut start) = (None, 0, 0);
    let mut last = 0;
    for (index, count) in counts.iter().enumerate() {
        let end = start + count;
        if start < range.end && range.start < end {
            if first.is_none() {
                (first, before) = (Some(index), start);
            }
            last = index + 1;
        }
        start = end;
    }
    match first {
        Some(first) => (first..last, before),
        None => (0..counts.len().min(1), 0),
    }
}

/// Returns the commit and files of a repository: from the Hub, or from the cached answer to an earlier request. `None`
/// if there is no such branch.
fn list(client: &Client, repo: &Repo) -> Result<Option<RepoInfo>, Failure> {
    let cache = RepoCache::new(&client.settings().cache_dir, repo);
    if client.settings().offline {
        return Ok(noted(&cache, repo));
    }
    match client.info(repo) {
        Ok(info) => {
            note(&cache, &info)?;
            Ok(Some(info))
        }
        Err(failure)
            if matches!(failure.kind, FailureKind::Missing) && repo.revision() == PARQUET =>
        {
            Ok(None)
        }
        Err(failure) if failure.is_outage() => match noted(&cache, repo) {
            Some(info) => {
                eprintln!(
                    "note: {}; using the copy in the cache, which may be older",
                    failure.message
                );
                Ok(Some(info))
            }
            None => Err(failure),
        },
        Err(failure) => Err(failure),
    }
}

/// Returns where the list of a commit's files is kept: the cache may contain only a few files of a large dataset, but
/// must know of the rest.
fn listing(cache: &RepoCache, commit: &str) -> PathBuf {
    cache.own_folder().join(format!("{commit}.json"))
}

fn note(cache: &RepoCache, info: &RepoInfo) -> Result<()> {
    let path = listing(cache, &info.commit);
    if path.exists() {
        return Ok(());
    }
    make_parent(&path)?;
    files::write_atomically(&path, serde_json::to_string(&info.files)?.as_bytes())
}

fn noted(cache: &RepoCache, repo: &Repo) -> Option<RepoInfo> {
    let commit = cache.commit(repo.revision())?;
    let files = match std::fs::read(listing(cache, &commit)) {
        Ok(text) => serde_json::from_slice(&text).ok()?,
        // Downloaded by the Python library, which fetches datasets whole.
        Err(_) => files_in(&cache.find(repo.revision())?),
    };
    Some(RepoInfo {
        commit,
        files,
        license: None,
    })
}

fn files_in(snapshot: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let mut open = vec![(snapshot.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.path().is_dir() {
                true => open.push((entry.path(), format!("{path}/"))),
                false => drop(files.insert(path)),
            }
        }
    }
    files
}

fn missing(client: &Client, repo: &Repo) -> Error {
    Error::NotFound {
        kind: "dataset",
        name: repo.id().to_owned(),
        message: format!(
            "HF_HUB_OFFLINE forbids downloads, and the cache {} does not contain it at {:?}; go online once, or give a local path",
            client.settings().cache_dir.display(),
            repo.revision()
        ),
    }
}

/// Returns whether the branch of Parquet files holds several configurations and none that is called `default`.
fn has_no_default(files: &BTreeSet<String>) -> bool {
    let configs: BTreeSet<&str> = files
        .iter()
        .filter(|path| path.ends_with(".parquet"))
        .filter_map(|path| path.split('/').next())
        .collect();
    configs.len() > 1 && !configs.contains("default")
}

/// Returns the splits of one configuration in the branch of Parquet files; `None` if that branch does not have all of
/// them.
fn converted_splits(
    files: &BTreeSet<String>,
    config: Option<&str>,
    name: &str,
) -> Result<Option<Splits>> {
    let mut configs: BTreeMap<&str, Splits> = BTreeMap::new();
    for path in files {
        let parts: Vec<&str> = path.split('/').collect();
        let [config, split, file] = parts[..] else {
            continue;
        };
        if !file.ends_with(".parquet") {
            continue;
        }
        let splits = configs.entry(config).or_default();
        match splits.iter_mut().find(|(name, _)| name == split) {
            Some((_, files)) => files.push(path.clone()),
            None => splits.push((split.to_owned(), vec![path.clone()])),
        }
    }
    if configs.is_empty() {
        return Ok(None);
    }
    let names: Vec<&str> = configs.keys().copied().collect();
    let chosen = match config {
        Some(config) => config,
        None if names.len() == 1 => names[0],
        None if names.contains(&"default") => "default",
        None => {
            return Err(Error::argument(
                "config",
                format!(
                    "{name} has several configurations, choose one: {}",
                    names.join(", ")
                ),
            ));
        }
    };
    let splits = configs.remove(chosen).ok_or_else(|| {
        Error::argument(
            "config",
            format!(
                "{name} has no configuration {chosen:?}; it has {}",
                names.join(", ")
            ),
        )
    })?;
    // The Hub converts only the beginning of what is very large, and says so in the split's name.
    let whole = !splits
        .iter()
        .any(|(split, _)| split.starts_with("partial-"));
    Ok(whole.then_some(splits).map(in_usual_order))
}

/// Train first and test last, as usual.
fn in_usual_order(mut splits: Splits) -> Splits {
    let rank = |name: &str| {
        ["train", "val", "test"]
            .iter()
            .position(|word| name.starts_with(word))
    };
    splits.sort_by_key(|(name, _)| rank(name).unwrap_or(1));
    splits
}

/// Returns where the dataset called `name` is.
pub(crate) fn open(name: &str, request: &Selection) -> Result<HubDataset> {
    Hub {
        client: Client::new(Arc::new(Settings::from_env()?)),
    }
    .dataset(name, request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(paths: &[&str]) -> BTreeSet<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn only_the_files_with_the_rows_are_selected() {
        let counts = [100, 50, 0, 200];
        let chosen = |range: Range<usize>| overlapping(&counts, &range);
        assert_eq!(chosen(0..350), (0..4, 0));
        assert_eq!(chosen(0..100), (0..1, 0));
        assert_eq!(chosen(0..101), (0..2, 0));
        assert_eq!(chosen(100..150), (1..2, 100));
        assert_eq!(chosen(149..151), (1..4, 100));
        assert_eq!(chosen(340..350), (3..4, 150));
        assert_eq!(chosen(20..20), (0..1, 0));
        assert_eq!(chosen(400..500), (0..1, 0));
    }

    #[test]
    fn configurations_are_selected_or_requested() {
        let one = set(&[
            "default/train/0000.parquet",
            "default/train/0001.parquet",
            "default/test/0000.parquet",
            "README.md",
        ]);
        let splits = converted_splits(&one, None, "x").unwrap().unwrap();
        assert_eq!(splits[0].0, "train");
        assert_eq!(
            splits[0].1,
            ["default/train/0000.parquet", "default/train/0001.parquet"]
        );
        assert_eq!(splits[1].0, "test");
        let two = set(&["a/train/0000.parquet", "b/train/0000.parquet"]);
        let text = converted_splits(&two, None, "x").unwrap_err().to_string();
        assert!(text.contains("a, b"), "{text}");
        assert!(converted_splits(&two, Some("b"), "x").unwrap().is_some());
        assert!(converted_splits(&two, Some("c"), "x").is_err());
        assert_eq!(
            converted_splits(&set(&["a/partial-train/0000.parquet"]), None, "x").unwrap(),
            None
        );
        assert_eq!(
            converted_splits(&set(&["train.json"]), None, "x").unwrap(),
            None
        );
    }
}
