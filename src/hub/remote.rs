//! The Hub's information about a repository and its files.

use std::collections::BTreeSet;

use serde::Deserialize;
use ureq::http::{HeaderMap, Method};

use super::failure::{Failure, FailureKind};
use super::http::{Client, Request, encode, encode_path};
use super::name::{Repo, RepoKind, is_commit_hash, is_safe_path};

/// A repository at a revision.
#[derive(Clone, Debug)]
pub(crate) struct RepoInfo {
    /// The commit that the revision is at.
    pub(crate) commit: String,
    /// The paths of all files.
    pub(crate) files: BTreeSet<String>,
    /// The licence in its card, by the Hub's short name.
    pub(crate) license: Option<String>,
}

/// A file at a commit.
#[derive(Clone, Debug)]
pub(crate) struct FileInfo {
    pub(crate) path: String,
    /// The content's name in the cache; for a file of the Hub its hash as well.
    pub(crate) etag: String,
    /// In bytes.
    pub(crate) size: u64,
    /// Whether the server names a Xet hash.
    #[cfg(feature = "xet")]
    pub(crate) xet: bool,
}

#[derive(Deserialize)]
struct Answer {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client {
    /// Returns the path of a repository in the Hub's API.
    pub(crate) fn api(&self, repo: &Repo) -> String {
        self.url(&format!(
            "api/{}/{}",
            repo.kind().plural(),
            encode_path(repo.id())
        ))
    }

    /// Returns the commit and the files of `repo` at its revision.
    pub(crate) fn info(&self, repo: &Repo) -> Result<RepoInfo, Failure> {
        let url = format!("{}/revision/{}", self.api(repo), encode(repo.revision()));
        let purpose = format!("look up the {} {:?}", repo.kind().singular(), repo.id());
        let request = self.read(Request::get(url, purpose));
        let answer: Answer = self.json(&request)?;
        let commit = answer
            .sha
            .filter(|sha| is_commit_hash(sha))
            .ok_or_else(|| {
                let message =
                    "the server returned no commit: it does not seem to be a Hub".to_owned();
                self.failure(FailureKind::Refused, &request, message)
            })?;
        let mut files = BTreeSet::new();
        for Sibling { rfilename } in answer.siblings {
            if !is_safe_path(&rfilename) {
                let message = format!(
                    "the repository lists the file {rfilename:?}, a name that would leave its folder; nothing was downloaded"
                );
                return Err(self.failure(FailureKind::Refused, &request, message));
            }
            files.insert(rfilename);
        }
        let license = answer
            .tags
            .iter()
            .find_map(|tag| tag.strip_prefix("license:"));
        Ok(RepoInfo {
            commit,
            files,
            license: license.map(str::to_owned),
        })
    }

    /// Returns the address of a file at a commit.
    pub(crate) fn file_url(&self, repo: &Repo, commit: &str, path: &str) -> String {
        let prefix = match repo.kind() {
            RepoKind::Model => "",
            RepoKind::Dataset => "datasets/",
        };
        let (id, path) = (encode_path(repo.id()), encode_path(path));
        self.url(&format!("{prefix}{id}/resolve/{}/{path}", encode(commit)))
    }

    /// Returns the name and size of a file's content, without the content.
    pub(crate) fn head(&self, repo: &Repo, commit: &str, path: &str) -> Result<FileInfo, Failure> {
        let url = self.file_url(repo, commit, path);
        let purpose = format!("look up {path} of {:?}", repo.id());
        let request = self
            .read(Request::new(Method::HEAD, url, purpose))
            .stay_on_host();
        let (_, headers) = self.headers(&request)?;
        let refused =
            |message: &str| self.failure(FailureKind::Refused, &request, message.to_owned());
        if let Some(actual) = text(&headers, "x-repo-commit")
            && actual != commit
        {
            return Err(refused(&format!(
                "commit {commit} was requested, but the server returned {actual}"
            )));
        }
        let etag = text(&headers, "x-linked-etag").or_else(|| text(&headers, "etag"));
        let etag = etag
            .map(plain_etag)
            .ok_or_else(|| refused("the server returned no ETag: it does not seem to be a Hub"))?;
        if !is_safe_etag(etag) {
            return Err(refused(&format!(
                "its ETag {etag:?} is not a valid file name"
            )));
        }
        let size = text(&headers, "x-linked-size").or_else(|| text(&headers, "content-length"));
        let size = size
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| refused("the server did not send its size"))?;
        Ok(FileInfo {
            path: path.to_owned(),
            etag: etag.to_owned(),
            size,
            #[cfg(feature = "xet")]
            xet: headers.contains_key("x-xet-hash"),
        })
    }

    /// Returns a request that reads: it goes without the token if the settings say so.
    pub(crate) fn read<'a>(&self, request: Request<'a>) -> Request<'a> {
        if self.settings().token_on_reads {
            request
        } else {
            request.without_token()
        }
    }
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Returns an ETag without its quotes and the sign that it is a weak one.
pub(crate) fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// Returns whether an ETag can be used as a file name.
fn is_safe_etag(etag: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=128).contains(&etag.len()) && !etag.starts_with('.') && etag.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_unquoted_and_never_name_another_folder() {
        assert_eq!(plain_etag("\"abc\""), "abc");
        assert_eq!(plain_etag("W/\"abc\""), "abc");
        assert!(is_safe_etag("d7edf6bd2a681fb0175f7735299831ee1b22b812"));
        for etag in [
            "",
            "..",
            "../x",
            "a/b",
            ".hidden",
            "a\\b",
            "a b",
            &"x".repeat(200),
        ] {
            assert!(!is_safe_etag(etag), "{etag:?}");
        }
    }
}
