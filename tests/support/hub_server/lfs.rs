//! Large files: the batch endpoint, the other host that takes and gives their bytes.

use hyper::{Method, Response};
use serde_json::{Map, Value, json};

use super::Shared;
use super::answer::{Ask, error, json_answer};
use super::body::TestBody;
use super::files::content_answer;
use super::store::sha256;

pub fn batch(shared: &Shared, ask: &Ask, kind: &str, id: &str) -> Response<TestBody> {
    if !ask.has_token() {
        return error(401, "", "Invalid username or password.");
    }
    let state = shared.state();
    if !state.repos.contains_key(&(kind.to_owned(), id.to_owned())) {
        return error(404, "RepoNotFound", "Repository not found");
    }
    let json = ask.json();
    assert_eq!(json["operation"], "upload");
    let objects: Vec<Value> = json["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let oid = object["oid"].as_str().unwrap();
            let size = object["size"].as_u64().unwrap() as usize;
            if state.lfs.contains_key(oid) {
                return json!({"oid": oid, "size": size});
            }
            let (hub, cdn) = (shared.hub, shared.cdn);
            let put = |part: usize| format!("http://{cdn}/put/{oid}?partNumber={part}&X-Signature=verysecretsignature");
            let verify = json!({"href": format!("http://{hub}/verify"), "header": {}});
            let upload = match state.part_size.filter(|part| size > *part) {
                None => json!({"href": put(0), "header": {}}),
                Some(part_size) => {
                    let mut header = Map::new();
                    header.insert("chunk_size".to_owned(), json!(part_size.to_string()));
                    for part in 1..=size.div_ceil(part_size) {
                        header.insert(format!("{part:05}"), json!(put(part)));
                    }
                    json!({"href": format!("http://{hub}/complete/{oid}"), "header": header})
                }
            };
            json!({"oid": oid, "size": size, "authenticated": true, "actions": {"upload": upload, "verify": verify}})
        })
        .collect();
    // Xet goes to those who offer it.
    let offers = |name: &str| {
        let transfers = json["transfers"].as_array();
        transfers.is_some_and(|transfers| transfers.iter().any(|transfer| transfer == name))
    };
    let usual = match state.part_size {
        _ if state.xet && offers("xet") => "xet",
        Some(_) => "multipart",
        None => "basic",
    };
    let transfer = state.transfer.clone().unwrap_or_else(|| usual.to_owned());
    json_answer(&json!({"transfer": transfer, "objects": objects}))
}

/// The other host. It refuses whoever brings a token along: the address's signature is all it needs.
pub fn cdn(shared: &Shared, ask: &Ask, parts: &[&str]) -> Response<TestBody> {
    let mut state = shared.state();
    if ask.query("X-Signature").as_deref() != Some("verysecretsignature") {
        return error(403, "", "no signature");
    }
    match parts {
        ["large", oid] => match state.lfs.get(*oid) {
            Some(bytes) => content_answer(ask, bytes.clone()),
            None => error(404, "", "no such object"),
        },
        ["put", oid] if ask.method == Method::PUT => {
            let part: usize = ask.query("partNumber").unwrap().parse().unwrap();
            if part == 0 {
                if sha256(&ask.body) != *oid {
                    return error(400, "", "the content has another hash");
                }
                state.lfs.insert((*oid).to_owned(), ask.body.clone());
            } else {
                state
                    .parts
                    .insert(((*oid).to_owned(), part), ask.body.clone());
            }
            Response::builder()
                .header("etag", format!("\"part-{part}\""))
                .body(TestBody::new(""))
                .unwrap()
        }
        _ => error(404, "", "Not found"),
    }
}

/// Puts the parts of a large file together.
pub fn complete(shared: &Shared, ask: &Ask, oid: &str) -> Response<TestBody> {
    let mut state = shared.state();
    let json = ask.json();
    let mut whole = Vec::new();
    for part in json["parts"].as_array().unwrap() {
        let number = part["partNumber"].as_u64().unwrap() as usize;
        if part["etag"] != format!("\"part-{number}\"") {
            return error(400, "", "a part has another ETag");
        }
        match state.parts.get(&(oid.to_owned(), number)) {
            Some(bytes) => whole.extend_from_slice(bytes),
            None => return error(400, "", "a part is missing"),
        }
    }
    if sha256(&whole) != oid {
        return error(400, "", "the content has another hash");
    }
    state.lfs.insert(oid.to_owned(), whole.into());
    json_answer(&json!({"success": true}))
}
