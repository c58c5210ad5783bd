//! Xet storage, by way of the crate `hf-hub`: for a server that takes large files by Xet, or gives them in no other way.
//!
//! What `hf-hub` is not left to do: it gets token, endpoint and cache from the settings instead of the environment, sends
//! each request to the Hub once (whoever pushes asks what has changed before trying again), and what it downloads is
//! compared with size and hash before it counts. What Xet itself keeps, the hashes of chunks that were sent, goes to
//! `HF_XET_CACHE`, else `HF_HOME/xet`, which no call can change.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::CommitOperation;
use hf_hub::{HFClient, HFError, HFRepository, HFResult, RepoTypeAny};

use super::digest::FileDigest;
use super::failure::{Failure, FailureKind};
use super::http::{Client, place};
use super::lfs::Upload;
use super::name::{Repo, RepoKind};
use super::remote::FileInfo;
use crate::base::interrupt::{self, Background};
use crate::notebook::progress::Progress;
use crate::{Error, Result};

/// How often an interrupt is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Commits `changed` and the removal of `deleted`; returns the commit.
pub(super) fn commit(
    client: &Client,
    repo: &Repo,
    changed: &[&Upload],
    deleted: &[&String],
    summary: &str,
    description: &str,
) -> Result<String, Failure> {
    let purpose = format!("push to {:?} by Xet", repo.id());
    let total = changed.iter().map(|upload| upload.digest.size).sum();
    let progress = Progress::bytes(&format!("uploading to {}", repo.id()), total);
    let adds = changed
        .iter()
        .map(|upload| CommitOperation::add_file(&upload.path, &upload.local));
    let removals = deleted.iter().map(|path| CommitOperation::delete(*path));
    let hub = connect(client, repo, &purpose)?;
    let commit = hub
        .create_commit()
        .operations(adds.chain(removals).collect())
        .commit_message(summary)
        .commit_description(description)
        .revision(repo.revision())
        .progress(Bar::new(progress.clone()))
        .send();
    let committed = wait_for(client, &purpose, total, commit)?;
    progress.finish();
    committed.commit_oid.ok_or_else(|| {
        let message = format!("could not {purpose}: the server named no commit");
        Failure::new(FailureKind::Refused, message)
    })
}

/// Downloads `file` to `target`, which is written anew, where the plain way ended in `failure` for good and the server
/// names a Xet hash.
pub(super) fn download_instead(
    client: &Client,
    repo: &Repo,
    commit: &str,
    file: &FileInfo,
    target: &Path,
    failure: Failure,
) -> Result<(), Failure> {
    let for_good = matches!(
        failure.kind,
        FailureKind::Refused | FailureKind::Missing | FailureKind::Denied
    );
    // Without a token of ours `hf-hub` would look for one itself.
    let may_read = client.settings().token_on_reads && client.settings().token.is_some();
    if !(for_good && file.xet && may_read) {
        return Err(failure);
    }
    let purpose = format!("download {} of {:?} by Xet", file.path, repo.id());
    let beside = target.parent().unwrap_or(Path::new("."));
    let folder = tempfile::tempdir_in(beside).map_err(|e| Error::io("write in", beside, e))?;
    let hub = connect(client, repo, &purpose)?;
    let download = hub
        .download_file()
        .filename(&file.path)
        .local_dir(folder.path())
        .revision(commit)
        .send();
    let came = wait_for(client, &purpose, file.size, download)?;
    let digest = FileDigest::of(&came)?;
    if (digest.size, &digest.sha256) != (file.size, &file.etag.to_lowercase()) {
        let message = format!(
            "could not {purpose}: the received content differs from what the server announced (hash {}, {} bytes)",
            file.etag, file.size
        );
        return Err(Failure::new(FailureKind::Damaged, message));
    }
    let io = |e| Error::io("write", target, e);
    std::fs::File::open(&came)
        .and_then(|file| file.sync_all())
        .map_err(io)?;
    std::fs::rename(&came, target).map_err(io)?;
    Ok(())
}

fn connect(
    client: &Client,
    repo: &Repo,
    purpose: &str,
) -> Result<HFRepository<RepoTypeAny>, Failure> {
    let settings = client.settings();
    let Some(token) = &settings.token else {
        let message = format!("could not {purpose}: you are not logged in");
        return Err(Failure::new(FailureKind::Denied, message));
    };
    let hub = HFClient::builder()
        .endpoint(settings.endpoint.as_str())
        .token(token.secret())
        .cache_dir(settings.cache_dir.as_path())
        .user_agent(concat!("cloze/", env!("CARGO_PKG_VERSION")))
        .retry_max_attempts(0)
        .build()
        .map_err(|error| failure(client, purpose, error))?;
    let kind = match repo.kind() {
        RepoKind::Model => RepoTypeAny::Model,
        RepoKind::Dataset => RepoTypeAny::Dataset,
    };
    let (owner, name) = hf_hub::split_id(repo.id());
    Ok(hub.repository(kind, owner, name))
}

/// Waits for `work`, which moves `bytes` bytes, on a thread of its own, since the caller may be one that must not block.
/// Drops it when an interrupt is asked for, and when it takes longer than such work may.
fn wait_for<T: Send>(
    client: &Client,
    purpose: &str,
    bytes: u64,
    work: impl Future<Output = HFResult<T>> + Send,
) -> Result<T, Failure> {
    let background = Background::current();
    let (started, longest) = (Instant::now(), client.settings().time_for(bytes));
    let run = || -> Result<T, Failure> {
        if let Some(background) = background {
            background.enter();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Error::io("start threads for", "the push", e))?;
        let done = runtime.block_on(async {
            let mut work = pin!(work);
            loop {
                match tokio::time::timeout(LOOK, work.as_mut()).await {
                    Ok(done) => return Some(done),
                    Err(_) if interrupt::is_requested() => return None,
                    Err(_) if started.elapsed() > longest => return None,
                    Err(_) => {}
                }
            }
        });
        // What Xet still does goes with the runtime.
        runtime.shutdown_background();
        match done {
            Some(done) => done.map_err(|error| failure(client, purpose, error)),
            None if !interrupt::is_requested() => {
                let message = format!(
                    "could not {purpose}: it was not done after {} s",
                    longest.as_secs()
                );
                Err(Failure::new(FailureKind::Refused, message))
            }
            None => Err(Error::Interrupted(format!("trying to {purpose}")).into()),
        }
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|_| {
        let message = format!("could not {purpose}: the Xet client failed unexpectedly");
        Err(Failure::new(FailureKind::Refused, message))
    })
}

/// Returns what an error of `hf-hub` means for whoever asked.
fn failure(client: &Client, purpose: &str, error: HFError) -> Failure {
    // The context of an answer has a type without a name.
    macro_rules! answer {
        ($context:expr) => {
            answer(
                &$context.url,
                $context.status.as_str(),
                $context.server_message.as_deref(),
            )
        };
    }
    let mut retry_after = None;
    let (kind, said) = match error {
        HFError::AuthRequired { context } | HFError::Forbidden { context } => {
            (FailureKind::Denied, answer!(context))
        }
        // Somebody else's commit came in between: what has changed is asked anew.
        HFError::Conflict { context } => (FailureKind::Transient, answer!(context)),
        HFError::RateLimited {
            retry_after: pause,
            context,
        } => {
            retry_after = pause;
            (FailureKind::Transient, answer!(context))
        }
        HFError::Http { context } => {
            let kind = match context.status.as_u16() {
                408 | 412 | 500 | 502 | 503 | 504 => FailureKind::Transient,
                _ => FailureKind::Refused,
            };
            (kind, answer!(context))
        }
        HFError::RepoNotFound { .. }
        | HFError::RevisionNotFound { .. }
        | HFError::EntryNotFound { .. } => (FailureKind::Missing, error.to_string()),
        HFError::Request { source, url } => {
            let host = url
                .as_deref()
                .map_or_else(|| "the server".to_owned(), place);
            match source.is_connect() {
                true => (FailureKind::Unreachable, format!("{host} can't be reached")),
                false => (
                    FailureKind::Transient,
                    format!("the connection to {host} broke"),
                ),
            }
        }
        HFError::Io(error) => (FailureKind::Refused, error.to_string()),
        // Xet has tried again itself what can be tried again.
        other => (FailureKind::Refused, without_signatures(&other.to_string())),
    };
    let message = format!("could not {purpose}: {said}");
    let message = match &client.settings().token {
        Some(token) => token.hide_in(&message),
        None => message,
    };
    Failure {
        retry_after,
        ..Failure::new(kind, message)
    }
}

fn answer(url: &str, status: &str, said: Option<&str>) -> String {
    let said = said.unwrap_or_default();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    match said.is_empty() {
        true => format!("{} answered {status}", place(url)),
        false => format!("{} answered {status}: {said}", place(url)),
    }
}

/// Cuts the queries off the addresses in `text`: they may hold permissions.
fn without_signatures(text: &str) -> String {
    let cut = |word: &str| match word.split_once('?') {
        Some((address, _)) if address.contains("://") => format!("{address}?..."),
        _ => word.to_owned(),
    };
    text.split_whitespace()
        .map(cut)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Moves our bar by what Xet reports.
struct Bar {
    progress: Progress,
    done: Mutex<u64>,
}

impl Bar {
    fn new(progress: Progress) -> Self {
        Self {
            progress,
            done: Mutex::new(0),
        }
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress {
            bytes_completed, ..
        }) = event
            && let Ok(mut done) = self.done.lock()
        {
            self.progress.inc(bytes_completed.saturating_sub(*done));
            *done = (*done).max(*bytes_completed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_signatures() {
        assert_eq!(
            without_signatures("error for http://cas.example/x?X-Signature=abc (why?)"),
            "error for http://cas.example/x?... (why?)"
        );
    }
}
