//! Reads requests, finds who answers them, and dresses the answers.

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::body::TestBody;
use super::{Shared, TOKEN, api, files, lfs};

/// A request, read whole.
pub struct Ask {
    pub method: Method,
    /// Encoded, with the query.
    pub path: String,
    pub range: Option<(usize, Option<usize>)>,
    pub range_header: Option<String>,
    pub authorization: Option<String>,
    pub cdn: bool,
    pub body: Bytes,
}

impl Ask {
    pub async fn read(request: Request<Incoming>, cdn: bool) -> Result<Self, hyper::Error> {
        let header = |name: &str| {
            let value = request.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let (range_header, authorization) = (header("range"), header("authorization"));
        let range = range_header.as_deref().and_then(|range| {
            let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((start.parse().ok()?, end.parse().ok()))
        });
        let path = request.uri().path_and_query().unwrap().to_string();
        Ok(Self {
            method: request.method().clone(),
            path,
            range,
            range_header,
            authorization,
            cdn,
            body: request.into_body().collect().await?.to_bytes(),
        })
    }

    /// The parts of the path, decoded, without the query.
    pub fn parts(&self) -> Vec<String> {
        let path = self.path.split('?').next().unwrap();
        let decode = |part: &str| percent_decode_str(part).decode_utf8().unwrap().into_owned();
        path.trim_matches('/').split('/').map(decode).collect()
    }

    pub fn query(&self, name: &str) -> Option<String> {
        let query = self.path.split_once('?')?.1;
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut values = pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned());
        values.next()
    }

    pub fn has_token(&self) -> bool {
        self.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"))
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

pub fn answer(shared: &Shared, ask: &Ask) -> Response<TestBody> {
    let parts = ask.parts();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let wrong_token = ask.authorization.is_some() && !ask.has_token();
    if ask.cdn {
        return lfs::cdn(shared, ask, &parts);
    }
    if wrong_token {
        return error(401, "", "Invalid credentials in Authorization header");
    }
    match parts.as_slice() {
        ["api", "whoami-v2"] => api::whoami(ask),
        ["api", "repos", "create"] => api::create(shared, ask),
        ["api", "validate-yaml"] => json_answer(&json!({"errors": [], "warnings": []})),
        ["api", kind @ ("models" | "datasets"), rest @ ..] => api::repo(shared, ask, kind, rest),
        ["verify"] => json_answer(&json!({})),
        ["complete", oid] => lfs::complete(shared, ask, oid),
        ["datasets", rest @ ..] => files::repo(shared, ask, "datasets", rest),
        rest => files::repo(shared, ask, "models", rest),
    }
}

pub fn json_answer(json: &Value) -> Response<TestBody> {
    Response::builder()
        .header("content-type", "application/json; charset=utf-8")
        .body(TestBody::new(json.to_string()))
        .unwrap()
}

/// A refusal as the Hub words it.
pub fn error(status: u16, code: &str, message: &str) -> Response<TestBody> {
    let mut response = Response::builder()
        .status(status)
        .header("content-type", "application/json; charset=utf-8")
        .header("x-error-message", message);
    if !code.is_empty() {
        response = response.header("x-error-code", code);
    }
    response
        .body(TestBody::new(json!({"error": message}).to_string()))
        .unwrap()
}

pub fn fault_status(status: u16, pause: Option<u64>) -> Response<TestBody> {
    let mut response = Response::builder().status(status);
    if let Some(seconds) = pause {
        response = response.header("retry-after", seconds);
    }
    response.body(TestBody::new("on purpose")).unwrap()
}

pub fn web_page() -> Response<TestBody> {
    Response::builder()
        .header("content-type", "text/html")
        .body(TestBody::new(
            "<!doctype html><html><body>Please log in to this network</body></html>",
        ))
        .unwrap()
}

pub fn redirect(status: u16, to: &str) -> Response<TestBody> {
    Response::builder()
        .status(status)
        .header("location", to)
        .body(TestBody::new(""))
        .unwrap()
}
