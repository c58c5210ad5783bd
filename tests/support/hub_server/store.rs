//! What the stand-in keeps: repositories, their commits, and the content of large files.

use std::collections::BTreeMap;

use hyper::body::Bytes;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use super::State;

/// A file at a commit.
#[derive(Clone)]
pub enum Content {
    Regular(Bytes),
    /// Its SHA-256.
    Large(String),
}

#[derive(Clone, Default)]
pub struct RepoData {
    /// Branches and tags, and the commits that they are at.
    pub refs: BTreeMap<String, String>,
    /// Every commit's files.
    pub commits: BTreeMap<String, BTreeMap<String, Content>>,
    /// The messages of the commits, in their order.
    pub messages: Vec<String>,
    pub private: bool,
}

impl RepoData {
    /// The commit that a branch, a tag or a hash stands for.
    pub fn commit(&self, revision: &str) -> Option<&str> {
        let known = self.refs.get(revision).map(String::as_str);
        known.or_else(|| {
            self.commits
                .get_key_value(revision)
                .map(|(commit, _)| commit.as_str())
        })
    }

    pub fn files(&self, revision: &str) -> Option<&BTreeMap<String, Content>> {
        self.commits.get(self.commit(revision)?)
    }
}

impl State {
    /// Adds files to a branch, large ones by the rule of [`is_large`].
    pub fn commit(
        &mut self,
        kind: &str,
        id: &str,
        branch: &str,
        files: BTreeMap<String, Vec<u8>>,
    ) -> String {
        let mut contents = BTreeMap::new();
        for (path, bytes) in files {
            let content = if is_large(&path, bytes.len()) {
                let oid = sha256(&bytes);
                self.lfs.insert(oid.clone(), bytes.into());
                Content::Large(oid)
            } else {
                Content::Regular(bytes.into())
            };
            contents.insert(path, content);
        }
        self.commit_contents(kind, id, branch, contents, &[], "by hand")
    }

    pub fn commit_contents(
        &mut self,
        kind: &str,
        id: &str,
        branch: &str,
        contents: BTreeMap<String, Content>,
        deleted: &[String],
        message: &str,
    ) -> String {
        self.commits += 1;
        let commit = hex(&digest(
            &SHA1_FOR_LEGACY_USE_ONLY,
            format!("{kind}/{id}/{branch}/{}", self.commits).as_bytes(),
        ));
        let repo = self
            .repos
            .entry((kind.to_owned(), id.to_owned()))
            .or_default();
        let mut files = repo.files(branch).cloned().unwrap_or_default();
        files.retain(|path, _| !deleted.contains(path));
        files.extend(contents);
        repo.commits.insert(commit.clone(), files);
        repo.refs.insert(branch.to_owned(), commit.clone());
        repo.messages.push(message.to_owned());
        commit
    }

    /// The bytes of a file.
    pub fn bytes(&self, content: &Content) -> Bytes {
        match content {
            Content::Regular(bytes) => bytes.clone(),
            Content::Large(oid) => self.lfs[oid].clone(),
        }
    }

    /// The bytes of a file on `main`, if it is there.
    pub fn file(&self, kind: &str, id: &str, path: &str) -> Option<Bytes> {
        let repo = self.repos.get(&(kind.to_owned(), id.to_owned()))?;
        Some(self.bytes(repo.files("main")?.get(path)?))
    }
}

/// Which files the Hub keeps outside of git.
pub fn is_large(path: &str, len: usize) -> bool {
    let binary = [".safetensors", ".bin", ".parquet", ".png", ".model", ".h5"];
    binary.iter().any(|ending| path.ends_with(ending)) || len > 1 << 20
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&digest(&SHA256, bytes))
}

/// git's name for a file's content.
pub fn git_oid(bytes: &[u8]) -> String {
    let mut blob = format!("blob {}\0", bytes.len()).into_bytes();
    blob.extend_from_slice(bytes);
    hex(&digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob))
}

fn hex(digest: &ring::digest::Digest) -> String {
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
