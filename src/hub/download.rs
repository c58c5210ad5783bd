//! Brings a file into the cache: resumed where it broke off, checked against size and hash, visible when complete.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use ureq::http::StatusCode;

use super::cache::{RepoCache, make_parent};
use super::digest::ContentHash;
use super::failure::{Failure, FailureKind};
use super::http::{Client, Pauses, Request, Response};
use super::name::Repo;
use super::remote::{FileInfo, text};
use crate::Error;
use crate::base::interrupt;
use crate::notebook::progress::Progress;

const BUFFER: usize = 256 << 10;

/// Downloads the content of `file` and links it into the snapshot of `commit`.
pub(crate) fn fetch(
    client: &Client,
    repo: &Repo,
    cache: &RepoCache,
    commit: &str,
    file: &FileInfo,
    progress: &Progress,
) -> Result<(), Failure> {
    let blob = cache.blob(&file.etag);
    if !is_complete(&blob, file.size) {
        let _lock = cache.lock(&file.etag, &file.path)?;
        // Whoever held the lock before may have finished it.
        if is_complete(&blob, file.size) {
            progress.inc(file.size);
        } else {
            let url = client.file_url(repo, commit, &file.path);
            let purpose = format!("download {} of {:?}", file.path, repo.id());
            let incomplete = cache.incomplete(&file.etag);
            let part = Part::open(&incomplete, file, progress)?;
            let arrived = part.complete(client, &|offset| {
                let request = client.read(Request::get(url.as_str(), purpose.as_str()));
                match offset {
                    0 => request,
                    _ => request.header("range", format!("bytes={offset}-")),
                }
            });
            #[cfg(feature = "xet")]
            let arrived = arrived.or_else(|failure| {
                super::xet::download_instead(client, repo, commit, file, &incomplete, failure)
            });
            arrived?;
            std::fs::rename(&incomplete, &blob).map_err(|e| Error::io("rename", &incomplete, e))?;
        }
    } else {
        progress.inc(file.size);
    }
    Ok(cache.link(commit, &file.path, &file.etag)?)
}

/// A blob of another size was damaged after it was complete, by a full disk or a crash: it is fetched again.
fn is_complete(blob: &Path, size: u64) -> bool {
    blob.metadata()
        .is_ok_and(|found| found.is_file() && found.len() == size)
}

/// The part of a file that has arrived.
struct Part<'a> {
    path: &'a Path,
    file: File,
    info: &'a FileInfo,
    hash: ContentHash,
    len: u64,
    progress: &'a Progress,
}

impl<'a> Part<'a> {
    /// Opens what an earlier attempt, of whatever process, has left at `path`.
    fn open(path: &'a Path, info: &'a FileInfo, progress: &'a Progress) -> Result<Self, Failure> {
        make_parent(path)?;
        let io = |e| Error::io("write", path, e);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(io)?;
        let mut part = Self {
            path,
            file,
            info,
            hash: ContentHash::of_etag(&info.etag, info.size),
            len: 0,
            progress,
        };
        part.resume_partial()?;
        Ok(part)
    }

    fn io(&self, error: std::io::Error) -> Error {
        Error::io("write", self.path, error)
    }

    fn resume_partial(&mut self) -> Result<(), Failure> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = self.file.read(&mut buffer).map_err(|e| self.io(e))?;
            if n == 0 {
                break;
            }
            self.hash.update(&buffer[..n]);
            self.len += n as u64;
            self.progress.inc(n as u64);
            if self.len > self.info.size {
                return Ok(self.restart()?);
            }
        }
        if self.len > 0 {
            tracing::debug!(path = %self.path.display(), len = self.len, "resuming");
        }
        Ok(())
    }

    /// Forgets everything that has arrived.
    fn restart(&mut self) -> crate::Result<()> {
        self.file.set_len(0).map_err(|e| self.io(e))?;
        self.file.seek(SeekFrom::Start(0)).map_err(|e| self.io(e))?;
        self.progress.take_back(self.len);
        self.len = 0;
        self.hash = ContentHash::of_etag(&self.info.etag, self.info.size);
        Ok(())
    }

    /// Fetches what is missing, in as many attempts as it takes while something moves.
    fn complete<'r>(
        mut self,
        client: &Client,
        request: &dyn Fn(u64) -> Request<'r>,
    ) -> Result<(), Failure> {
        let mut pauses = Pauses::new(client.settings());
        let mut resumed = self.len > 0;
        // Against the most that ever arrived: what comes again after a restart is no progress.
        let mut most = self.len;
        let started = Instant::now();
        loop {
            while self.len < self.info.size {
                let result = self.fetch_rest(client, &request(self.len), started);
                if self.len > most {
                    most = self.len;
                    pauses.progressed();
                }
                match result {
                    Ok(()) => break,
                    Err(failure) => pauses.after(failure)?,
                }
            }
            let hash = std::mem::replace(&mut self.hash, ContentHash::of_etag("", 0));
            if self.len == self.info.size && hash.matches() {
                // On the disk before it gets its final name: a crash must not leave a blob with holes.
                self.file.sync_all().map_err(|e| self.io(e))?;
                return Ok(());
            }
            self.restart()?;
            if !resumed {
                let _ = std::fs::remove_file(self.path);
                let message = format!(
                    "the received content differs from what the server announced (hash {}, {} bytes)",
                    self.info.etag, self.info.size
                );
                return Err(client.failure(FailureKind::Damaged, &request(0), message));
            }
            // What an earlier attempt left may be to blame; once more from the beginning tells.
            resumed = false;
        }
    }

    fn interrupted(&self) -> Failure {
        Error::Interrupted(format!("downloading {}", self.info.path)).into()
    }

    /// Makes one attempt at the rest of the file, whose download began at `started`.
    fn fetch_rest(
        &mut self,
        client: &Client,
        request: &Request,
        started: Instant,
    ) -> Result<(), Failure> {
        let offset = self.len;
        let mut response = client.send(request)?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            if range_start(&response) != Some(offset) {
                self.restart()?;
                let message =
                    "the server sent a different part of the file than requested".to_owned();
                return Err(client.failure(FailureKind::Transient, request, message));
            }
        } else if offset > 0 {
            // The server does not resume: it sends the whole again.
            self.restart()?;
        }
        let rest = self.info.size - self.len;
        if let Some(announced) = response.body().content_length()
            && announced != rest
        {
            let message = format!("the server sends {announced} bytes where {rest} were announced");
            return Err(client.failure(FailureKind::Refused, request, message));
        }
        // One byte more than expected tells a body without end from an honest one.
        let mut body = response.body_mut().with_config().limit(rest + 1).reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            if interrupt::is_requested() {
                return Err(self.interrupted());
            }
            // By what has come, and not by what was announced, which may be anything.
            if started.elapsed() > client.settings().time_for(self.len) {
                let message = format!(
                    "the server is too slow: only {} of {} bytes have arrived",
                    self.len, self.info.size
                );
                return Err(client.failure(FailureKind::Refused, request, message));
            }
            let n = match body.read(&mut buffer) {
                Ok(n) => n,
                Err(_) if interrupt::is_requested() => return Err(self.interrupted()),
                Err(e) => return Err(client.broken(request, &ureq::Error::from(e))),
            };
            if n == 0 {
                break;
            }
            if self.len + n as u64 > self.info.size {
                let _ = std::fs::remove_file(self.path);
                let message = format!(
                    "the server sends more than the {} bytes announced",
                    self.info.size
                );
                return Err(client.failure(FailureKind::Refused, request, message));
            }
            self.file.write_all(&buffer[..n]).map_err(|e| self.io(e))?;
            self.hash.update(&buffer[..n]);
            self.len += n as u64;
            self.progress.inc(n as u64);
        }
        if self.len < self.info.size {
            let message = format!(
                "the answer ended after {} of {} bytes",
                self.len, self.info.size
            );
            return Err(client.failure(FailureKind::Transient, request, message));
        }
        Ok(())
    }
}

/// Returns the first byte that a partial answer holds.
fn range_start(response: &Response) -> Option<u64> {
    let range = text(response.headers(), "content-range")?
        .trim()
        .strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}
