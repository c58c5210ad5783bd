//! Large files: the server tells where to send each one, in one piece or in parts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::digest::FileDigest;
use super::failure::{Failure, FailureKind};
use super::http::{Body, Client, Request, encode_path};
use super::in_parallel::in_parallel;
use super::name::{Repo, RepoKind};
use super::remote::text;
use crate::notebook::progress::Progress;

/// A file that is to be pushed.
#[derive(Debug)]
pub(crate) struct Upload {
    /// On this machine.
    pub(crate) local: PathBuf,
    /// In the repository.
    pub(crate) path: String,
    pub(crate) digest: FileDigest,
}

const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

#[derive(Deserialize)]
struct Batch {
    transfer: Option<String>,
    #[serde(default)]
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, Value>>,
}

impl Action {
    fn header(&self) -> impl Iterator<Item = (&str, String)> {
        let entries = self.header.iter().flatten();
        entries.map(|(name, value)| {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            (name.as_str(), text)
        })
    }
}

/// The ways to send a large file that a server can choose from.
const TRANSFERS: &[&str] = if cfg!(feature = "xet") {
    &["basic", "multipart", XET]
} else {
    &["basic", "multipart"]
};
const XET: &str = "xet";

/// The outcome of uploading the large files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The server has them.
    Whole,
    /// The server requests Xet.
    #[cfg_attr(not(feature = "xet"), allow(dead_code))]
    NotYet,
}

/// Sends the files that the server does not have.
pub(crate) fn upload(client: &Client, repo: &Repo, files: &[&Upload]) -> Result<Sent, Failure> {
    let total = files.iter().map(|file| file.digest.size).sum();
    let progress = Progress::bytes(&format!("uploading to {}", repo.id()), total);
    for chunk in files.chunks(256) {
        let mut tasks = Vec::new();
        let Some(objects) = batch(client, repo, chunk)? else {
            progress.finish();
            return Ok(Sent::NotYet);
        };
        for object in objects {
            let file = chunk.iter().find(|file| file.digest.sha256 == object.oid);
            match (file, object.actions) {
                (Some(file), Some(actions)) => tasks.push((*file, actions)),
                // No actions: the server has the content.
                (Some(file), None) => progress.inc(file.digest.size),
                (None, _) => {}
            }
        }
        let references: Vec<&(&Upload, Actions)> = tasks.iter().collect();
        in_parallel(&references, |(file, actions)| {
            send(client, file, actions, &progress)
        })?;
    }
    progress.finish();
    Ok(Sent::Whole)
}

/// Asks where each file goes; `None` where the server chose Xet.
fn batch(client: &Client, repo: &Repo, files: &[&Upload]) -> Result<Option<Vec<Object>>, Failure> {
    let objects: Vec<Value> = files
        .iter()
        .map(|file| json!({"oid": file.digest.sha256, "size": file.digest.size}))
        .collect();
    let body = json!({
        "operation": "upload",
        "transfers": TRANSFERS,
        "objects": objects,
        "hash_algo": "sha256",
        "ref": {"name": repo.revision()},
    })
    .to_string();
    let folder = match repo.kind() {
        RepoKind::Model => "",
        RepoKind::Dataset => "datasets/",
    };
    let url = client.url(&format!(
        "{folder}{}.git/info/lfs/objects/batch",
        encode_path(repo.id())
    ));
    let request = Request::new(
        Method::POST,
        url,
        format!("push large files to {:?}", repo.id()),
    )
    .header("accept", MEDIA_TYPE)
    .header("content-type", MEDIA_TYPE)
    .body(Body::Bytes(body.as_bytes()));
    let answer: Batch = client.json(&request)?;
    if cfg!(feature = "xet") && answer.transfer.as_deref() == Some(XET) {
        return Ok(None);
    }
    if let Some(transfer) = answer
        .transfer
        .filter(|name| name != "basic" && name != "multipart")
    {
        let message = format!(
            "the server accepts large files only by the transfer {transfer:?}, but Cloze supports LFS (\"basic\" and \
             \"multipart\"); build Cloze with the feature \"xet\" for a Xet server, or upload the folder with Python's \
             `hf upload {} FOLDER`",
            repo.id()
        );
        return Err(client.failure(FailureKind::Refused, &request, message));
    }
    for object in &answer.objects {
        if let Some(error) = &object.error {
            let said = error["message"].as_str().unwrap_or("without a reason");
            let message = format!("the server refused a large file: {said}");
            return Err(client.failure(FailureKind::Refused, &request, message));
        }
    }
    Ok(Some(answer.objects))
}

fn send(
    client: &Client,
    file: &Upload,
    actions: &Actions,
    progress: &Progress,
) -> Result<(), Failure> {
    let Some(upload) = &actions.upload else {
        progress.inc(file.digest.size);
        return Ok(());
    };
    match upload.header().find(|(name, _)| *name == "chunk_size") {
        Some((_, size)) => send_parts(client, file, upload, &size, progress)?,
        None => send_whole(client, file, upload, progress)?,
    }
    if let Some(verify) = &actions.verify {
        let body = json!({"oid": file.digest.sha256, "size": file.digest.size}).to_string();
        let request = Request::post(
            verify.href.as_str(),
            body.as_bytes(),
            format!("verify {}", file.path),
        );
        client.headers(&request)?;
    }
    Ok(())
}

fn send_whole(
    client: &Client,
    file: &Upload,
    upload: &Action,
    progress: &Progress,
) -> Result<(), Failure> {
    let body = Body::Part {
        path: &file.local,
        offset: 0,
        len: file.digest.size,
        progress,
    };
    // The address carries its own permission; the token stays here.
    let mut request = Request::new(
        Method::PUT,
        upload.href.as_str(),
        format!("upload {}", file.path),
    )
    .without_token()
    .body(body);
    for (name, value) in upload.header() {
        request = request.header(name, value);
    }
    client.headers(&request).map(drop)
}

fn send_parts(
    client: &Client,
    file: &Upload,
    upload: &Action,
    part_size: &str,
    progress: &Progress,
) -> Result<(), Failure> {
    let purpose = format!("upload {}", file.path);
    let complete = Request::new(Method::POST, upload.href.as_str(), purpose.as_str());
    let nonsense = |message: String| client.failure(FailureKind::Refused, &complete, message);
    let part_size: u64 = part_size
        .parse()
        .ok()
        .filter(|&size| size > 0)
        .ok_or_else(|| nonsense(format!("the server requests parts of {part_size:?} bytes")))?;
    let addresses: BTreeMap<u64, String> = upload
        .header()
        .filter_map(|(name, address)| Some((name.parse().ok()?, address)))
        .collect();
    let count = file.digest.size.div_ceil(part_size);
    if !addresses.keys().copied().eq(1..=count) {
        return Err(nonsense(format!(
            "the server gave {} URLs for {count} parts",
            addresses.len()
        )));
    }
    let parts: Vec<(u64, String)> = addresses.into_iter().collect();
    let references: Vec<&(u64, String)> = parts.iter().collect();
    let etags = in_parallel(&references, |(number, address)| {
        let offset = (number - 1) * part_size;
        let body = Body::Part {
            path: &file.local,
            offset,
            len: part_size.min(file.digest.size - offset),
            progress,
        };
        let request = Request::new(Method::PUT, address.as_str(), purpose.as_str())
            .without_token()
            .body(body);
        let (_, headers) = client.headers(&request)?;
        match text(&headers, "etag") {
            Some(etag) => Ok(json!({"partNumber": number, "etag": etag})),
            None => Err(nonsense(format!("the server gave part {number} no ETag"))),
        }
    })?;
    let body = json!({"oid": file.digest.sha256, "parts": etags}).to_string();
    let request = Request::new(Method::POST, upload.href.as_str(), purpose.as_str())
        .header("accept", MEDIA_TYPE)
        .header("content-type", MEDIA_TYPE)
        .body(Body::Bytes(body.as_bytes()));
    client.headers(&request).map(drop)
}
