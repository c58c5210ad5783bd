//! From a repository's name to a local folder with the files that are needed, downloaded if they must be.

use std::path::{Path, PathBuf};

use super::cache::RepoCache;
use super::download::fetch;
use super::failure::{Failure, FailureKind};
use super::http::Client;
use super::in_parallel::in_parallel;
use super::name::{Repo, is_commit_hash};
use super::needs::Needs;
use super::remote::FileInfo;
use crate::notebook::progress::Progress;
use crate::{Error, Result};

/// Returns the folder with what `needs` asks of `repo`.
///
/// Online, the revision is looked up on the Hub, and only files missing from the cache are downloaded. If the Hub can't
/// be reached, the cached copy is used, with a note. Offline, and for a commit in the cache, no request is made.
pub(crate) fn snapshot(client: &Client, repo: &Repo, needs: Needs) -> Result<PathBuf> {
    let settings = client.settings();
    let cache = RepoCache::new(&settings.cache_dir, repo);
    let cached = cache
        .find(repo.revision())
        .filter(|folder| needs.are_met_by(folder));
    if settings.offline {
        return cached.ok_or_else(|| not_cached(repo, needs.in_words(), &settings.cache_dir));
    }
    if let Some(folder) = &cached
        && is_commit_hash(repo.revision())
    {
        return Ok(folder.clone());
    }
    or_cached(repo, download(client, repo, &cache, needs), cached)
}

fn not_cached(repo: &Repo, what: &str, cache_dir: &Path) -> Error {
    Error::NotFound {
        kind: repo.kind().singular(),
        name: repo.id().to_owned(),
        message: format!(
            "HF_HUB_OFFLINE forbids downloads, and the cache {} does not contain its {what} at {:?}; go online once, or give a local path",
            cache_dir.display(),
            repo.revision()
        ),
    }
}

/// Makes a missing repository read like any other name that was not found.
pub(crate) fn explain(repo: &Repo, failure: Failure) -> Error {
    match failure.kind {
        FailureKind::Missing => Error::NotFound {
            kind: repo.kind().singular(),
            name: repo.id().to_owned(),
            message: format!(
                "{} (at {:?}). Check the spelling; if the repository is \
                 private, log in first: hub::login(token)",
                failure.message,
                repo.revision()
            ),
        },
        _ => failure.into(),
    }
}

/// Returns the folder with the files called `paths` of `repo`; see [`snapshot`] for when the Hub is asked.
pub(crate) fn download_paths(client: &Client, repo: &Repo, paths: &[String]) -> Result<PathBuf> {
    let settings = client.settings();
    let cache = RepoCache::new(&settings.cache_dir, repo);
    let has_all = |folder: &PathBuf| paths.iter().all(|path| folder.join(path).is_file());
    let cached = cache.find(repo.revision()).filter(has_all);
    if let Some(folder) = &cached
        && (settings.offline || is_commit_hash(repo.revision()))
    {
        return Ok(folder.clone());
    }
    if settings.offline {
        return Err(not_cached(repo, &paths.join(", "), &settings.cache_dir));
    }
    let fetched = || -> Result<PathBuf, Failure> {
        let commit = client.info(repo)?.commit;
        fetch_files(client, repo, &cache, &commit, paths)?;
        cache.write_ref(repo.revision(), &commit)?;
        Ok(cache.snapshot(&commit))
    };
    or_cached(repo, fetched(), cached)
}

/// Returns what was fetched, or the cached copy when the Hub is out of reach.
fn or_cached(
    repo: &Repo,
    fetched: Result<PathBuf, Failure>,
    cached: Option<PathBuf>,
) -> Result<PathBuf> {
    match (fetched, cached) {
        (Ok(folder), _) => Ok(folder),
        (Err(failure), Some(folder)) if failure.is_outage() => {
            eprintln!(
                "note: {}; using the copy in the cache, which may be older",
                failure.message
            );
            Ok(folder)
        }
        (Err(failure), _) => Err(explain(repo, failure)),
    }
}

fn download(
    client: &Client,
    repo: &Repo,
    cache: &RepoCache,
    needs: Needs,
) -> Result<PathBuf, Failure> {
    let info = client.info(repo)?;
    let snapshot = cache.snapshot(&info.commit);
    let refused = |message: String| {
        Failure::new(
            FailureKind::Refused,
            format!("the {} {:?}: {message}", repo.kind().singular(), repo.id()),
        )
    };
    let first = needs.first(&info.files).map_err(refused)?;
    fetch_files(client, repo, cache, &info.commit, &first)?;
    let then = needs.then(&snapshot, &first).map_err(refused)?;
    fetch_files(client, repo, cache, &info.commit, &then)?;
    // Only now, so that the branch never stands for a folder that lacks something.
    cache.write_ref(repo.revision(), &info.commit)?;
    Ok(snapshot)
}

/// Brings the files called `paths` into the snapshot of `commit`, several at a time.
pub(crate) fn fetch_files(
    client: &Client,
    repo: &Repo,
    cache: &RepoCache,
    commit: &str,
    paths: &[String],
) -> Result<(), Failure> {
    let snapshot = cache.snapshot(commit);
    let missing: Vec<&String> = paths
        .iter()
        .filter(|path| !snapshot.join(path).is_file())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut files = Vec::with_capacity(missing.len());
    for info in in_parallel(&missing, |path| client.head(repo, commit, path))? {
        files.push(info);
    }
    // The largest first: it takes longest.
    files.sort_by_key(|file: &FileInfo| std::cmp::Reverse(file.size));
    let total = files.iter().map(|file| file.size).sum();
    let progress = Progress::bytes(&format!("downloading {}", repo.id()), total);
    let references: Vec<&FileInfo> = files.iter().collect();
    in_parallel(&references, |file| {
        fetch(client, repo, cache, commit, file, &progress)
    })?;
    progress.finish();
    Ok(())
}
