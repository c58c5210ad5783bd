//! A folder becomes one commit on the Hub: large files through LFS, the others inside of the commit itself.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::digest::{FileDigest, git_hash};
use super::failure::{Failure, FailureKind};
use super::http::{Body, Client, Pauses, Request, encode};
use super::in_parallel::in_parallel;
use super::lfs::{self, Upload};
use super::login::{offline, whoami};
use super::name::{Repo, RepoKind};
use crate::{Error, Result};

/// How a folder is pushed.
///
/// ```no_run
/// use cloze::hub::{PushOptions, push_folder};
///
/// let options = PushOptions::new().private(true).message("First model").ignore("checkpoint-*");
/// let pushed = push_folder("me/eli5_mlm_model", "eli5_mlm_model", &options)?;
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    private: Option<bool>,
    message: Option<String>,
    description: String,
    ignore: Vec<String>,
}

impl PushOptions {
    /// Returns the defaults: a public repository (or the organisation's rule), a plain message, and only hidden files,
    /// checkpoints and temporary files ignored.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether a repository created by this push is private. An existing one is unchanged.
    pub fn private(mut self, private: bool) -> Self {
        self.private = Some(private);
        self
    }

    /// Sets the first line of the commit's message. Default: `Upload NAME with Cloze`.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// Sets the rest of the commit's message.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Leaves out files whose path in the folder matches `pattern` (`*` within a name, `**` across folders).
    pub fn ignore(mut self, pattern: impl Into<String>) -> Self {
        self.ignore.push(pattern.into());
        self
    }

    /// Returns the first line of the commit's message.
    fn summary(&self, repo: &Repo) -> String {
        let name = repo.id().rsplit('/').next().unwrap_or_default();
        let default = || format!("Upload {name} with Cloze");
        self.message.clone().unwrap_or_else(default)
    }
}

/// The result of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// `owner/name`.
    pub repo: String,
    /// The page of the repository.
    pub url: String,
    /// The commit that the branch is at now.
    pub commit: String,
    /// The number of files that were new or had changed.
    pub changed: usize,
    /// The number of files that the repository had already.
    pub unchanged: usize,
}

/// Pushes `folder`; an error mentions `kept`, where the files remain.
pub(crate) fn push_folder(
    client: &Client,
    name: &str,
    folder: &Path,
    kept: &Path,
    options: &PushOptions,
) -> Result<Pushed> {
    push(client, name, folder, options).map_err(|error| match error {
        Error::Hub(message) => Error::Hub(format!(
            "{message}. Nothing is lost: all files are still in {0}; to try again: hub::push_folder({name:?}, {0:?}, \
             &PushOptions::new())",
            kept.display()
        )),
        other => other,
    })
}

fn push(client: &Client, name: &str, folder: &Path, options: &PushOptions) -> Result<Pushed> {
    if client.settings().offline {
        return Err(offline("push"));
    }
    let repo = make_repo(client, RepoKind::Model, name, options)?;
    push_files(client, &repo, folder, &[], options)
}

/// The repository `name` of that kind, one's own if it names no owner; it is made unless it exists.
pub(super) fn make_repo(
    client: &Client,
    kind: RepoKind,
    name: &str,
    options: &PushOptions,
) -> Result<Repo> {
    let id = if name.contains('/') {
        name.to_owned()
    } else {
        format!("{}/{name}", whoami(client)?.name)
    };
    let repo = Repo::parse(kind, &id)
        .map_err(|reason| Error::argument("repo", format!("{id:?} {reason}")))?;
    create_repo(client, &repo, options.private)?;
    Ok(repo)
}

/// Pushes the files of `folder` and removes `deleted` in one commit.
pub(super) fn push_files(
    client: &Client,
    repo: &Repo,
    folder: &Path,
    deleted: &[String],
    options: &PushOptions,
) -> Result<Pushed> {
    let files = files_of(folder, &options.ignore)?;
    if files.is_empty() {
        return Err(Error::argument(
            "folder",
            format!("{} contains no files to push", folder.display()),
        ));
    }
    let references: Vec<&(PathBuf, String)> = files.iter().collect();
    let uploads = in_parallel(&references, |(local, path)| {
        Ok(Upload {
            digest: FileDigest::of(local)?,
            local: local.clone(),
            path: path.clone(),
        })
    })
    .map_err(Error::from)?;
    let mut pauses = Pauses::new(client.settings());
    loop {
        // Anew from the question what has changed: a commit whose answer was lost is found done, large files that
        // arrived are not sent again, and addresses that expired are replaced.
        match push_once(client, repo, &uploads, deleted, options) {
            Ok(pushed) => return Ok(pushed),
            Err(failure) => pauses.after(failure)?,
        }
    }
}

/// Returns the files under `folder` and their paths in the repository, in the order of the paths.
fn files_of(folder: &Path, ignore: &[String]) -> Result<Vec<(PathBuf, String)>> {
    let patterns = ignore
        .iter()
        .map(|pattern| {
            glob::Pattern::new(pattern)
                .map_err(|e| Error::argument("ignore", format!("{pattern:?}: {e}")))
        })
        .collect::<Result<Vec<_>>>()?;
    let options = glob::MatchOptions {
        require_literal_separator: true,
        ..glob::MatchOptions::default()
    };
    let mut files = Vec::new();
    let mut open = vec![(folder.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        let io = |e| Error::io("read", &folder, e);
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(Error::argument(
                    "folder",
                    format!("{} has a name that is not UTF-8", entry.path().display()),
                ));
            };
            if is_left_out(name) {
                continue;
            }
            let path = format!("{prefix}{name}");
            if patterns
                .iter()
                .any(|pattern| pattern.matches_with(&path, options))
            {
                continue;
            }
            // Links to files are followed (the cache is made of them), links to folders are not: they may go anywhere.
            if entry.file_type().map_err(io)?.is_dir() {
                open.push((entry.path(), format!("{path}/")));
            } else if entry.path().is_file() {
                files.push((entry.path(), path));
            }
        }
    }
    files.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(files)
}

/// What never belongs on the Hub: hidden files (`.git`, `.env`), checkpoints to resume from, unfinished files.
fn is_left_out(name: &str) -> bool {
    (name.starts_with('.') && name != ".gitattributes")
        || name.starts_with("checkpoint-")
        || name == "__pycache__"
        || name.ends_with(".tmp")
        || name.ends_with(".incomplete")
}

/// Makes the repository unless it exists.
fn create_repo(client: &Client, repo: &Repo, private: Option<bool>) -> Result<()> {
    let (owner, name) = repo.id().split_once('/').unwrap_or(("", repo.id()));
    let mut json = json!({"name": name, "organization": owner, "type": repo.kind().singular()});
    if let Some(private) = private {
        json["private"] = private.into();
    }
    let text = json.to_string();
    let purpose = format!("create the repository {:?}", repo.id());
    let request = Request::post(client.url("api/repos/create"), text.as_bytes(), purpose);
    match client.json::<Value>(&request) {
        Ok(_) => Ok(()),
        Err(failure) => match failure.kind {
            FailureKind::Conflict => Ok(()),
            // A token may have the right to write here and not the right to make repositories.
            FailureKind::Denied if client.info(repo).is_ok() => Ok(()),
            _ => Err(failure.into()),
        },
    }
}

#[derive(Deserialize)]
struct Preupload {
    files: Vec<Mode>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
    oid: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Committed {
    commit_oid: String,
}

fn push_once(
    client: &Client,
    repo: &Repo,
    uploads: &[Upload],
    deleted: &[String],
    options: &PushOptions,
) -> Result<Pushed, Failure> {
    // An attempt whose answer was lost may have removed them.
    let deleted: Vec<&String> = match deleted {
        [] => Vec::new(),
        deleted => {
            let there = client.info(repo)?.files;
            deleted
                .iter()
                .filter(|path| there.contains(*path))
                .collect()
        }
    };
    let (mut large, mut regular, mut unchanged) = (Vec::new(), Vec::new(), 0);
    for chunk in uploads.chunks(256) {
        for (mode, upload) in modes(client, repo, chunk)?.into_iter().zip(chunk) {
            if mode.should_ignore {
                continue;
            }
            // Nothing has no place among the large files, whatever its name.
            let is_large = mode.upload_mode == "lfs" && upload.digest.size > 0;
            let same = match &mode.oid {
                None => false,
                Some(oid) if is_large => *oid == upload.digest.sha256,
                Some(oid) => *oid == git_hash(&upload.local)?,
            };
            if same {
                unchanged += 1;
            } else if is_large {
                large.push(upload);
            } else {
                regular.push(upload);
            }
        }
    }
    let changed = large.len() + regular.len();
    let commit = if changed + deleted.len() == 0 {
        client.info(repo)?.commit
    } else {
        match lfs::upload(client, repo, &large)? {
            #[cfg(feature = "xet")]
            lfs::Sent::NotYet => {
                let changed = [large, regular].concat();
                let summary = options.summary(repo);
                super::xet::commit(
                    client,
                    repo,
                    &changed,
                    &deleted,
                    &summary,
                    &options.description,
                )?
            }
            _ => commit(client, repo, &large, &regular, &deleted, options)?,
        }
    };
    Ok(Pushed {
        repo: repo.id().to_owned(),
        url: client.url(&match repo.kind() {
            RepoKind::Model => repo.id().to_owned(),
            RepoKind::Dataset => format!("datasets/{}", repo.id()),
        }),
        commit,
        changed,
        unchanged,
    })
}

/// Asks how each file is to be uploaded; the answers come in the order of the files.
fn modes(client: &Client, repo: &Repo, uploads: &[Upload]) -> Result<Vec<Mode>, Failure> {
    let files: Vec<Value> = uploads
        .iter()
        .map(|upload| {
            json!({
                "path": upload.path,
                "size": upload.digest.size,
                "sample": STANDARD.encode(&upload.digest.sample),
            })
        })
        .collect();
    let text = json!({"files": files}).to_string();
    let url = format!("{}/preupload/{}", client.api(repo), encode(repo.revision()));
    let request = Request::post(url, text.as_bytes(), format!("push to {:?}", repo.id()));
    let mut answers = client.json::<Preupload>(&request)?.files;
    uploads
        .iter()
        .map(|upload| {
            let index = answers
                .iter()
                .position(|mode| mode.path == upload.path)
                .ok_or_else(|| {
                    let message = format!("the server did not answer how to send {}", upload.path);
                    client.failure(FailureKind::Refused, &request, message)
                })?;
            Ok(answers.swap_remove(index))
        })
        .collect()
}

fn commit(
    client: &Client,
    repo: &Repo,
    large: &[&Upload],
    regular: &[&Upload],
    deleted: &[&String],
    options: &PushOptions,
) -> Result<String, Failure> {
    let summary = options.summary(repo);
    let mut lines = vec![
        json!({"key": "header", "value": {"summary": summary, "description": options.description}}),
    ];
    for upload in regular {
        let content =
            std::fs::read(&upload.local).map_err(|e| Error::io("read", &upload.local, e))?;
        let value =
            json!({"content": STANDARD.encode(content), "path": upload.path, "encoding": "base64"});
        lines.push(json!({"key": "file", "value": value}));
    }
    for upload in large {
        let FileDigest { sha256, size, .. } = &upload.digest;
        let value = json!({"path": upload.path, "algo": "sha256", "oid": sha256, "size": size});
        lines.push(json!({"key": "lfsFile", "value": value}));
    }
    for path in deleted {
        lines.push(json!({"key": "deletedFile", "value": {"path": path}}));
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let url = format!("{}/commit/{}", client.api(repo), encode(repo.revision()));
    let request = Request::new(Method::POST, url, format!("commit to {:?}", repo.id()))
        .header("content-type", "application/x-ndjson")
        .body(Body::Bytes(text.as_bytes()));
    // Once: whether a commit without an answer was made is asked before the next attempt, and so is what to do about
    // somebody else's commit that came in between.
    match client.json_once::<Committed>(&request) {
        Ok(committed) => Ok(committed.commit_oid),
        Err(Failure {
            kind: FailureKind::Conflict,
            message,
            retry_after,
        }) => Err(Failure {
            kind: FailureKind::Transient,
            message,
            retry_after,
        }),
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_files_checkpoints_and_ignored_files_are_not_uploaded() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        for path in [
            "config.json",
            "figures/loss.svg",
            "figures/raw/loss.csv",
            "notes.txt",
            ".env",
            ".git/config",
            "checkpoint-500/model.safetensors",
            "model.safetensors.tmp",
        ] {
            write(path);
        }
        let paths = |ignore: &[&str]| {
            let ignore: Vec<String> = ignore.iter().map(|pattern| (*pattern).to_owned()).collect();
            let files = files_of(folder.path(), &ignore).unwrap();
            files.into_iter().map(|(_, path)| path).collect::<Vec<_>>()
        };
        assert_eq!(
            paths(&[]),
            [
                "config.json",
                "figures/loss.svg",
                "figures/raw/loss.csv",
                "notes.txt"
            ]
        );
        assert_eq!(
            paths(&["*.txt", "figures/*.svg"]),
            ["config.json", "figures/raw/loss.csv"]
        );
        assert_eq!(paths(&["figures/**"]), ["config.json", "notes.txt"]);
        assert!(files_of(folder.path(), &["[".to_owned()]).is_err());
    }
}
