//! The files themselves, as `resolve` serves them, and the door to the large ones.

use hyper::{Method, Response};

use super::answer::{Ask, error, redirect};
use super::body::TestBody;
use super::store::{Content, git_oid};
use super::{Shared, lfs};

pub fn repo(shared: &Shared, ask: &Ask, kind: &str, parts: &[&str]) -> Response<TestBody> {
    if let [owner @ .., name, "info", "lfs", "objects", "batch"] = parts {
        let name = name.strip_suffix(".git").unwrap();
        let id = [owner, &[name]].concat().join("/");
        return lfs::batch(shared, ask, kind, &id);
    }
    let Some(at) = parts.iter().position(|part| *part == "resolve") else {
        return error(404, "", "Not found");
    };
    let id = parts[..at].join("/");
    match &parts[at + 1..] {
        [revision, path @ ..] if !path.is_empty() => {
            resolve(shared, ask, kind, &id, revision, &path.join("/"))
        }
        _ => error(404, "", "Not found"),
    }
}

fn resolve(
    shared: &Shared,
    ask: &Ask,
    kind: &str,
    id: &str,
    revision: &str,
    path: &str,
) -> Response<TestBody> {
    let state = shared.state();
    if let Some(new) = state.renamed.get(id) {
        return redirect(307, &ask.path.replacen(id, new, 1));
    }
    if state.private.contains(id) && !ask.has_token() {
        return error(401, "RepoNotFound", "Repository not found");
    }
    let Some(repo) = state.repos.get(&(kind.to_owned(), id.to_owned())) else {
        return error(404, "RepoNotFound", "Repository not found");
    };
    let Some(commit) = repo.commit(revision) else {
        return error(
            404,
            "RevisionNotFound",
            &format!("Invalid rev id: {revision}"),
        );
    };
    let Some(content) = repo.files(revision).unwrap().get(path) else {
        let mut response = error(404, "EntryNotFound", "Entry not found");
        response
            .headers_mut()
            .insert("x-repo-commit", commit.parse().unwrap());
        return response;
    };
    match content {
        Content::Regular(bytes) => {
            let mut response = content_answer(ask, bytes.clone());
            let headers = response.headers_mut();
            headers.insert("etag", format!("\"{}\"", git_oid(bytes)).parse().unwrap());
            headers.insert("x-repo-commit", commit.parse().unwrap());
            response
        }
        Content::Large(oid) => {
            let to = format!(
                "http://{}/large/{oid}?X-Signature=verysecretsignature",
                shared.cdn
            );
            let mut response = match state.only_xet {
                false => redirect(302, &to),
                true if ask.method == Method::HEAD => content_answer(ask, state.bytes(content)),
                true => error(403, "", "by Xet alone"),
            };
            let size = state.bytes(content).len();
            let headers = response.headers_mut();
            headers.insert("x-linked-etag", format!("\"{oid}\"").parse().unwrap());
            headers.insert("x-linked-size", size.into());
            headers.insert("etag", "\"of-the-pointer\"".parse().unwrap());
            if state.xet {
                let route = format!(
                    "http://{}/api/{kind}/{id}/xet-read-token/{commit}",
                    shared.hub
                );
                let found = state.xet_storage.as_ref().map(|xet| (xet.find)(oid));
                let hash = found.flatten().map_or(oid.clone(), |(hash, _)| hash);
                headers.insert("x-xet-hash", hash.parse().unwrap());
                headers.insert("x-xet-refresh-route", route.parse().unwrap());
                let link = format!("<{route}>; rel=\"xet-auth\"");
                headers.insert("link", link.parse().unwrap());
            }
            headers.insert("x-repo-commit", commit.parse().unwrap());
            response
        }
    }
}

/// The bytes, or the part of them that was asked for.
pub fn content_answer(ask: &Ask, bytes: hyper::body::Bytes) -> Response<TestBody> {
    let total = bytes.len();
    let response = Response::builder().header("accept-ranges", "bytes");
    if ask.method == Method::HEAD {
        return response
            .header("content-length", total)
            .body(TestBody::new(""))
            .unwrap();
    }
    match ask.range {
        None => response
            .header("content-length", total)
            .body(TestBody::new(bytes))
            .unwrap(),
        Some((start, _)) if start >= total => {
            let mut response = error(416, "", "Range not satisfiable");
            *response.body_mut() = TestBody::new("");
            response
        }
        Some((start, end)) => {
            let end = end.map_or(total, |end| end + 1).min(total);
            response
                .status(206)
                .header(
                    "content-range",
                    format!("bytes {start}-{}/{total}", end - 1),
                )
                .header("content-length", end - start)
                .body(TestBody::new(bytes.slice(start..end)))
                .unwrap()
        }
    }
}
