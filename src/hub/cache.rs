//! One repository's folder in the cache, laid out as the Python library lays it out, so that either finds what the
//! other downloaded:
//!
//! ```text
//! models--owner--name/refs/main                      the commit that the branch was at
//! models--owner--name/blobs/ETAG                     a file's content
//! models--owner--name/blobs/ETAG.incomplete          the part of it that has arrived
//! models--owner--name/snapshots/COMMIT/config.json   a link to a blob
//! .locks/models--owner--name/ETAG.lock               held by whoever downloads the blob
//! ```

use std::path::{Path, PathBuf};

use super::name::{Repo, is_commit_hash};

/// A repository's folder in the cache, which need not exist.
#[derive(Clone, Debug)]
pub(crate) struct RepoCache {
    cache_dir: PathBuf,
    folder: String,
}

impl RepoCache {
    pub(crate) fn new(cache_dir: &Path, repo: &Repo) -> Self {
        Self {
            cache_dir: cache_dir.to_path_buf(),
            folder: format!("{}--{}", repo.kind().plural(), repo.id().replace('/', "--")),
        }
    }

    fn folder(&self) -> PathBuf {
        self.cache_dir.join(&self.folder)
    }

    fn ref_path(&self, revision: &str) -> PathBuf {
        self.folder().join("refs").join(revision)
    }

    /// Returns the commit of `revision`, as far as the cache knows.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit_hash(revision) {
            return Some(revision.to_owned());
        }
        let text = std::fs::read_to_string(self.ref_path(revision)).ok()?;
        let commit = text.trim();
        let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
        plain.then(|| commit.to_owned())
    }

    /// Returns the folder in which the files of `commit` lie.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// Returns the folder with the files of `revision`, if the cache has any.
    pub(crate) fn find(&self, revision: &str) -> Option<PathBuf> {
        let snapshot = self.snapshot(&self.commit(revision)?);
        snapshot.is_dir().then_some(snapshot)
    }
}

#[cfg(feature = "hub")]
mod writing {
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::RepoCache;
    use crate::base::{files, interrupt};
    use crate::hub::name::is_commit_hash;
    use crate::{Error, Result};

    impl RepoCache {
        pub(crate) fn blob(&self, etag: &str) -> PathBuf {
            self.folder().join("blobs").join(etag)
        }

        /// For what the Python library has no place.
        pub(crate) fn own_folder(&self) -> PathBuf {
            self.folder().join(".cloze")
        }

        pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
            self.folder()
                .join("blobs")
                .join(format!("{etag}.incomplete"))
        }

        /// Notes that `revision` is at `commit` now.
        pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
            if is_commit_hash(revision) || self.commit(revision).as_deref() == Some(commit) {
                return Ok(());
            }
            let path = self.ref_path(revision);
            make_parent(&path)?;
            files::write_atomically(&path, commit.as_bytes())
        }

        /// Makes the file `path` of `commit` visible: a link to its blob, which must be complete.
        pub(crate) fn link(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
            let pointer = self.snapshot(commit).join(path);
            make_parent(&pointer)?;
            // From snapshots/COMMIT/a/b.json up to the repository's folder: one step per folder, and two.
            let up = "../".repeat(path.split('/').count() + 1);
            let target = format!("{up}blobs/{etag}");
            replace_with_link(&pointer, Path::new(&target), &self.blob(etag))
                .map_err(|e| Error::io("link", &pointer, e))
        }

        /// Waits until this process has exclusive access to the blob; the lock is also the Python library's.
        pub(crate) fn lock(&self, etag: &str, path: &str) -> Result<BlobLock> {
            let lock = self
                .cache_dir
                .join(".locks")
                .join(&self.folder)
                .join(format!("{etag}.lock"));
            make_parent(&lock)?;
            let io = |e| Error::io("lock", &lock, e);
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&lock)
                .map_err(io)?;
            let mut waited = 0;
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(BlobLock { _file: file }),
                    Err(std::fs::TryLockError::WouldBlock) => {}
                    // Some network file systems know no locks; a download without one is still complete or absent.
                    Err(std::fs::TryLockError::Error(e))
                        if e.kind() == std::io::ErrorKind::Unsupported =>
                    {
                        return Ok(BlobLock { _file: file });
                    }
                    Err(std::fs::TryLockError::Error(e)) => return Err(io(e)),
                }
                if interrupt::is_requested() {
                    return Err(Error::Interrupted(format!(
                        "waiting for another download of {path}"
                    )));
                }
                if waited == 20 {
                    eprintln!("note: another process is downloading {path}; waiting for it");
                }
                waited += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Held while a blob is written; released when dropped or when the process dies.
    pub(crate) struct BlobLock {
        _file: File,
    }

    pub(crate) fn make_parent(path: &Path) -> Result<()> {
        match path.parent() {
            Some(parent) => {
                std::fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))
            }
            None => Ok(()),
        }
    }

    /// Puts a link at `pointer`, atomically replacing an existing one.
    #[cfg(unix)]
    fn replace_with_link(pointer: &Path, target: &Path, _: &Path) -> std::io::Result<()> {
        let folder = pointer.parent().unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new()
            .prefix(".link")
            .make_in(folder, |path| std::os::unix::fs::symlink(target, path))?;
        temporary.persist(pointer).map(drop).map_err(|e| e.error)
    }

    /// Links need rights that people seldom have here, so the content itself is linked or copied.
    #[cfg(not(unix))]
    fn replace_with_link(pointer: &Path, _: &Path, blob: &Path) -> std::io::Result<()> {
        let _ = std::fs::remove_file(pointer);
        std::fs::hard_link(blob, pointer).or_else(|_| std::fs::copy(blob, pointer).map(drop))
    }
}

#[cfg(feature = "hub")]
pub(crate) use writing::make_parent;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::RepoKind;

    #[test]
    fn a_snapshot_is_found_by_branch_tag_and_commit() {
        let folder = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let at = folder.path().join("models--a--b");
        std::fs::create_dir_all(at.join("snapshots").join(commit)).unwrap();
        std::fs::create_dir_all(at.join("refs/refs/pr")).unwrap();
        std::fs::write(at.join("refs/main"), commit).unwrap();
        std::fs::write(at.join("refs/refs/pr/1"), format!("{commit}\n")).unwrap();
        std::fs::write(at.join("refs/evil"), "../../../etc").unwrap();
        let find = |name: &str| {
            let repo = Repo::parse(RepoKind::Model, name).unwrap();
            RepoCache::new(folder.path(), &repo).find(repo.revision())
        };
        let snapshot = Some(at.join("snapshots").join(commit));
        assert_eq!(find("a/b"), snapshot);
        assert_eq!(find("a/b@refs/pr/1"), snapshot);
        assert_eq!(find(&format!("a/b@{commit}")), snapshot);
        assert_eq!(find("a/b@v2"), None);
        assert_eq!(find("a/b@evil"), None);
        assert_eq!(find("a/c"), None);
    }

    #[cfg(all(unix, feature = "hub"))]
    #[test]
    fn links_are_relative_and_replace_broken_ones() {
        let folder = tempfile::tempdir().unwrap();
        let repo = Repo::parse(RepoKind::Model, "a/b").unwrap();
        let cache = RepoCache::new(folder.path(), &repo);
        make_parent(&cache.blob("e1")).unwrap();
        std::fs::write(cache.blob("e1"), "one").unwrap();
        let pointer = cache.snapshot("c0").join("x/y.txt");
        make_parent(&pointer).unwrap();
        std::os::unix::fs::symlink("nowhere", &pointer).unwrap();
        cache.link("c0", "x/y.txt", "e1").unwrap();
        assert_eq!(
            std::fs::read_link(&pointer).unwrap(),
            Path::new("../../../blobs/e1")
        );
        assert_eq!(std::fs::read_to_string(&pointer).unwrap(), "one");
    }
}
