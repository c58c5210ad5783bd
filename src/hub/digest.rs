//! The hashes by which the Hub names content: SHA-256 for large files, git's blob hash for the others.

use std::io::Read;
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use crate::{Error, Result};

/// Takes a file's content piece by piece and checks it against its ETag.
pub(crate) struct ContentHash {
    expected: String,
    /// Absent when the ETag is no hash: some mirrors invent their own.
    context: Option<Context>,
}

impl ContentHash {
    /// For content of `size` bytes whose ETag is `etag`.
    pub(crate) fn of_etag(etag: &str, size: u64) -> Self {
        let is_hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
        let context = match etag.len() {
            64 if is_hex => Some(Context::new(&SHA256)),
            40 if is_hex => Some(git_context(size)),
            _ => None,
        };
        Self {
            expected: etag.to_lowercase(),
            context,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if let Some(context) = &mut self.context {
            context.update(bytes);
        }
    }

    pub(crate) fn matches(self) -> bool {
        self.context
            .is_none_or(|context| hex(context) == self.expected)
    }
}

/// git hashes a header before the content.
fn git_context(size: u64) -> Context {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {size}\0").as_bytes());
    context
}

fn hex(context: Context) -> String {
    context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What is known of a local file's content.
#[derive(Clone, Debug)]
pub(crate) struct FileDigest {
    /// In bytes.
    pub(crate) size: u64,
    /// In hexadecimal.
    pub(crate) sha256: String,
    /// The first bytes, by which the Hub distinguishes text from binary files.
    pub(crate) sample: Vec<u8>,
}

const SAMPLE: usize = 512;

impl FileDigest {
    /// Reads the file at `path` once.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let io = |e| Error::io("read", path, e);
        let mut file = std::fs::File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut sha256 = Context::new(&SHA256);
        let mut sample = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        let mut read = 0;
        loop {
            let n = file.read(&mut buffer).map_err(io)?;
            if n == 0 {
                break;
            }
            let bytes = &buffer[..n];
            sha256.update(bytes);
            sample.extend_from_slice(&bytes[..n.min(SAMPLE - sample.len().min(SAMPLE))]);
            read += n as u64;
        }
        if read != size {
            return Err(Error::format(
                path,
                "the file changed while it was read; push again when it is complete",
            ));
        }
        Ok(Self {
            size,
            sha256: hex(sha256),
            sample,
        })
    }
}

/// git's name for the content of the file at `path`, in hexadecimal. For files that travel inside of a commit, which are
/// small: SHA-1 has no fast form here.
pub(crate) fn git_hash(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut context = git_context(bytes.len() as u64);
    context.update(&bytes);
    Ok(hex(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_verified_by_either_hash() {
        // `printf hello | sha256sum` and `printf hello | git hash-object --stdin`.
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let git = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
        for etag in [sha256, git] {
            let mut right = ContentHash::of_etag(etag, 5);
            right.update(b"hel");
            right.update(b"lo");
            assert!(right.matches());
            let mut wrong = ContentHash::of_etag(etag, 5);
            wrong.update(b"hellO");
            assert!(!wrong.matches());
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "hello").unwrap();
        let digest = FileDigest::of(&path).unwrap();
        assert_eq!((digest.sha256.as_str(), digest.size), (sha256, 5));
        assert_eq!(git_hash(&path).unwrap(), git);
        assert_eq!(digest.sample, b"hello");
    }

    #[test]
    fn a_sample_is_the_first_512_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(FileDigest::of(&path).unwrap().sample, &bytes[..512]);
    }
}
