//! The JSON side: who am I, repositories, trees, preupload, commits.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::{Method, Response};
use serde_json::{Value, json};

use super::answer::{Ask, error, json_answer, redirect};
use super::body::TestBody;
use super::store::{Content, git_oid, is_large};
use super::{Shared, State};

pub fn whoami(ask: &Ask) -> Response<TestBody> {
    if !ask.has_token() {
        return error(401, "", "Invalid username or password.");
    }
    json_answer(&json!({
        "type": "user", "name": "tester", "fullname": "Test Er", "orgs": [{"name": "testers"}],
        "auth": {"type": "access_token", "accessToken": {"displayName": "for tests", "role": "write"}},
    }))
}

pub fn create(shared: &Shared, ask: &Ask) -> Response<TestBody> {
    if !ask.has_token() {
        return error(401, "", "Invalid username or password.");
    }
    let json = ask.json();
    let owner = json["organization"].as_str().unwrap_or("tester");
    if owner != "tester" && owner != "testers" {
        return error(
            403,
            "",
            "You don't have the rights to create a model under this namespace",
        );
    }
    let id = format!("{owner}/{}", json["name"].as_str().unwrap());
    let kind = format!("{}s", json["type"].as_str().unwrap_or("model"));
    let mut state = shared.state();
    let url = format!("http://{}/{id}", shared.hub);
    if state.repos.contains_key(&(kind.clone(), id.clone())) {
        let mut response = error(409, "", "You already created this model repo");
        *response.body_mut() = TestBody::new(json!({"error": "exists", "url": url}).to_string());
        return response;
    }
    let attributes = ("*.safetensors filter=lfs\n").as_bytes().to_vec();
    state.commit(
        &kind,
        &id,
        "main",
        BTreeMap::from([(".gitattributes".to_owned(), attributes)]),
    );
    let private = json["private"].as_bool().unwrap_or(false);
    if private {
        state.private.insert(id.clone());
    }
    state.repos.get_mut(&(kind, id.clone())).unwrap().private = private;
    json_answer(&json!({"url": url, "name": id}))
}

/// Splits `owner/name/verb/...` or `name/verb/...` at the verb.
fn split<'a>(rest: &'a [&'a str]) -> (String, &'a [&'a str]) {
    const VERBS: [&str; 7] = [
        "revision",
        "tree",
        "paths-info",
        "preupload",
        "commit",
        "xet-read-token",
        "xet-write-token",
    ];
    let at = rest
        .iter()
        .position(|part| VERBS.contains(part))
        .unwrap_or(rest.len());
    (rest[..at].join("/"), &rest[at..])
}

pub fn repo(shared: &Shared, ask: &Ask, kind: &str, rest: &[&str]) -> Response<TestBody> {
    let (id, verb) = split(rest);
    let mut state = shared.state();
    if let Some(new) = state.renamed.get(&id) {
        let path = ask.path.replacen(&id, new, 1);
        return redirect(307, &path);
    }
    if state.private.contains(&id) && !ask.has_token() {
        return error(401, "RepoNotFound", "Repository not found");
    }
    if !state.repos.contains_key(&(kind.to_owned(), id.clone())) {
        return error(
            if ask.has_token() { 404 } else { 401 },
            "RepoNotFound",
            "Repository not found",
        );
    }
    let write = matches!(verb, ["preupload" | "commit" | "xet-write-token", ..]);
    if write && !ask.has_token() {
        return error(401, "", "Invalid username or password.");
    }
    match verb {
        [] => info(&state, kind, &id, "main"),
        ["revision", revision] => info(&state, kind, &id, revision),
        ["tree", revision, folder @ ..] => tree(&state, kind, &id, revision, &folder.join("/")),
        ["paths-info", revision] => paths_info(&state, ask, kind, &id, revision),
        ["preupload", revision] => preupload(&state, ask, kind, &id, revision),
        ["commit", revision] if ask.method == Method::POST => {
            commit(shared, &mut state, ask, kind, &id, revision)
        }
        ["xet-read-token" | "xet-write-token", _] => xet_token(&state),
        _ => error(404, "", "Not found"),
    }
}

/// Where the Xet storage is.
fn xet_token(state: &State) -> Response<TestBody> {
    match &state.xet_storage {
        None => error(404, "", "Not found"),
        Some(xet) => json_answer(&json!({
            "casUrl": xet.url, "accessToken": "xet_aSecretForTests", "exp": 4_000_000_000_u64,
        })),
    }
}

fn info(state: &State, kind: &str, id: &str, revision: &str) -> Response<TestBody> {
    let repo = &state.repos[&(kind.to_owned(), id.to_owned())];
    let Some(commit) = repo.commit(revision) else {
        return error(
            404,
            "RevisionNotFound",
            &format!("Invalid rev id: {revision}"),
        );
    };
    let files = repo.files(revision).unwrap();
    // What the card's metadata says, the Hub repeats as tags.
    let card = files.get("README.md").map(|content| state.bytes(content));
    let card = String::from_utf8(card.unwrap_or_default().to_vec()).unwrap();
    let licenses = card
        .lines()
        .filter_map(|line| line.strip_prefix("license: "));
    let tags: Vec<String> = licenses
        .map(|license| format!("license:{license}"))
        .collect();
    let siblings: Vec<Value> = files
        .keys()
        .map(|path| json!({"rfilename": path}))
        .collect();
    json_answer(&json!({
        "_id": "1", "id": id, "modelId": id, "private": repo.private, "sha": commit, "siblings": siblings,
        "tags": tags, "downloads": 0, "likes": 0, "gated": false, "disabled": false,
    }))
}

fn entry(state: &State, path: &str, content: &Content) -> Value {
    let size = state.bytes(content).len();
    match content {
        Content::Regular(bytes) => {
            json!({"type": "file", "path": path, "size": size, "oid": git_oid(bytes)})
        }
        Content::Large(oid) => json!({
            "type": "file", "path": path, "size": size, "oid": git_oid(oid.as_bytes()),
            "lfs": {"oid": oid, "size": size, "pointerSize": 134},
        }),
    }
}

fn tree(state: &State, kind: &str, id: &str, revision: &str, folder: &str) -> Response<TestBody> {
    let repo = &state.repos[&(kind.to_owned(), id.to_owned())];
    let Some(files) = repo.files(revision) else {
        return error(
            404,
            "RevisionNotFound",
            &format!("Invalid rev id: {revision}"),
        );
    };
    let entries: Vec<Value> = files
        .iter()
        .filter(|(path, _)| path.starts_with(folder))
        .map(|(path, content)| entry(state, path, content))
        .collect();
    json_answer(&json!(entries))
}

fn paths_info(
    state: &State,
    ask: &Ask,
    kind: &str,
    id: &str,
    revision: &str,
) -> Response<TestBody> {
    let repo = &state.repos[&(kind.to_owned(), id.to_owned())];
    let Some(files) = repo.files(revision) else {
        return error(
            404,
            "RevisionNotFound",
            &format!("Invalid rev id: {revision}"),
        );
    };
    let json = ask.json();
    let paths = json["paths"].as_array().cloned().unwrap_or_default();
    let found: Vec<Value> = paths
        .iter()
        .filter_map(|path| files.get_key_value(path.as_str()?))
        .map(|(path, content)| entry(state, path, content))
        .collect();
    json_answer(&json!(found))
}

fn preupload(state: &State, ask: &Ask, kind: &str, id: &str, revision: &str) -> Response<TestBody> {
    let repo = &state.repos[&(kind.to_owned(), id.to_owned())];
    let Some(existing) = repo.files(revision) else {
        return error(
            404,
            "RevisionNotFound",
            &format!("Invalid rev id: {revision}"),
        );
    };
    let json = ask.json();
    let files: Vec<Value> = json["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let path = file["path"].as_str().unwrap();
            assert!(
                file["sample"].is_string(),
                "a file without a sample: {file}"
            );
            let large = is_large(path, file["size"].as_u64().unwrap() as usize);
            let oid = existing.get(path).map(|content| match content {
                Content::Regular(bytes) => git_oid(bytes),
                Content::Large(oid) => oid.clone(),
            });
            json!({
                "path": path, "uploadMode": if large { "lfs" } else { "regular" },
                "shouldIgnore": path.ends_with(".ignored"), "oid": oid,
            })
        })
        .collect();
    json_answer(&json!({"files": files}))
}

fn commit(
    shared: &Shared,
    state: &mut State,
    ask: &Ask,
    kind: &str,
    id: &str,
    revision: &str,
) -> Response<TestBody> {
    let text = std::str::from_utf8(&ask.body).unwrap();
    let mut contents = BTreeMap::new();
    let mut message = String::new();
    let mut deleted = Vec::new();
    for line in text.lines() {
        let json: Value = serde_json::from_str(line).unwrap();
        let value = &json["value"];
        match json["key"].as_str().unwrap() {
            "header" => message = value["summary"].as_str().unwrap().to_owned(),
            "file" => {
                assert_eq!(value["encoding"], "base64");
                let bytes = STANDARD.decode(value["content"].as_str().unwrap()).unwrap();
                contents.insert(
                    value["path"].as_str().unwrap().to_owned(),
                    Content::Regular(bytes.into()),
                );
            }
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap().to_owned();
                let by_xet = state.xet_storage.as_ref().and_then(|xet| (xet.find)(&oid));
                if let Some((_, bytes)) = by_xet {
                    state.lfs.insert(oid.clone(), bytes);
                }
                if !state.lfs.contains_key(&oid) {
                    return error(400, "", "A large file of this commit was not uploaded");
                }
                contents.insert(
                    value["path"].as_str().unwrap().to_owned(),
                    Content::Large(oid),
                );
            }
            "deletedFile" => deleted.push(value["path"].as_str().unwrap().to_owned()),
            other => return error(400, "", &format!("unknown operation {other}")),
        }
    }
    let there = state.repos[&(kind.to_owned(), id.to_owned())]
        .files(revision)
        .unwrap();
    if let Some(path) = deleted.iter().find(|path| !there.contains_key(*path)) {
        return error(400, "", &format!("a deleted file does not exist: {path}"));
    }
    let commit = state.commit_contents(kind, id, revision, contents, &deleted, &message);
    json_answer(&json!({
        "success": true, "commitOid": commit, "commitUrl": format!("http://{}/{id}/commit/{commit}", shared.hub),
        "hookOutput": "",
    }))
}
