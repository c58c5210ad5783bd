//! Requests to the Hub: the token goes to the Hub's own host alone, redirects are followed by hand for that reason,
//! and what may pass is tried again with growing pauses.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use ureq::http::{self, HeaderMap, Method, StatusCode, Uri};
use ureq::tls::TlsConfig;

use super::failure::{Failure, FailureKind};
use super::proxy::{Exempt, own_certificates, proxy_for};
use super::settings::Settings;
use super::wire;
use crate::base::interrupt;
use crate::notebook::progress::Progress;

/// No honest answer about a repository is larger.
const LARGEST_JSON: u64 = 64 << 20;
/// As much of a refusal's text as is read.
const LARGEST_REFUSAL: u64 = 16 << 10;
const MOST_REDIRECTS: usize = 8;
/// Longer pauses that a server demands are an error.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The characters that are not escaped in one part of an address.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Returns one part of an address, with everything encoded that could end it.
pub(crate) fn encode(part: &str) -> String {
    utf8_percent_encode(part, UNRESERVED).to_string()
}

/// Returns a path of several parts, with its slashes.
pub(crate) fn encode_path(path: &str) -> String {
    let parts: Vec<String> = path.split('/').map(encode).collect();
    parts.join("/")
}

/// A connection to one Hub. Clones share the connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    direct: ureq::Agent,
    /// The way to addresses of either scheme that are not exempt from the proxy, or why there is none.
    http: Result<ureq::Agent, String>,
    https: Result<ureq::Agent, String>,
    exempt: Exempt,
    settings: Arc<Settings>,
}

pub(crate) type Response = http::Response<ureq::Body>;

/// The body of a request; it can be sent again.
pub(crate) enum Body<'a> {
    Bytes(&'a [u8]),
    /// `len` bytes of a file from `offset` on, reported to `progress`.
    Part {
        path: &'a Path,
        offset: u64,
        len: u64,
        progress: &'a Progress,
    },
}

impl Body<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Part { len, .. } => *len,
        }
    }

    fn reader(&self) -> std::io::Result<Box<dyn Read + '_>> {
        Ok(match *self {
            Self::Bytes(bytes) => Box::new(bytes),
            Self::Part {
                path,
                offset,
                len,
                progress,
            } => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                Box::new(Counted {
                    inner: file.take(len),
                    progress,
                    counted: 0,
                    len,
                })
            }
        })
    }
}

/// Tells a progress bar what is read, and takes it back when the request did not get through.
struct Counted<'a, R> {
    inner: R,
    progress: &'a Progress,
    counted: u64,
    /// Who reads knows the length and stops there, before an end is seen.
    len: u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if interrupt::is_requested() {
            return Err(std::io::Error::other("interrupted"));
        }
        let n = self.inner.read(buffer)?;
        self.counted += n as u64;
        self.progress.inc(n as u64);
        Ok(n)
    }
}

impl<R> Drop for Counted<'_, R> {
    fn drop(&mut self) {
        if self.counted < self.len {
            self.progress.take_back(self.counted);
        }
    }
}

/// A request that can be repeated.
pub(crate) struct Request<'a> {
    method: Method,
    url: String,
    headers: Vec<(String, String)>,
    body: Option<Body<'a>>,
    token: bool,
    /// Whether a redirect to another host is handed back instead of followed.
    stay: bool,
    /// What it is for, as in "could not {purpose}".
    purpose: String,
}

impl<'a> Request<'a> {
    pub(crate) fn new(method: Method, url: impl Into<String>, purpose: impl Into<String>) -> Self {
        Self {
            method,
            url: url.into(),
            headers: Vec::new(),
            body: None,
            token: true,
            stay: false,
            purpose: purpose.into(),
        }
    }

    pub(crate) fn get(url: impl Into<String>, purpose: impl Into<String>) -> Self {
        Self::new(Method::GET, url, purpose)
    }

    pub(crate) fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: Body<'a>) -> Self {
        self.body = Some(body);
        self
    }

    /// A POST of JSON text.
    pub(crate) fn post(url: impl Into<String>, json: &'a [u8], purpose: impl Into<String>) -> Self {
        let request =
            Self::new(Method::POST, url, purpose).header("content-type", "application/json");
        request.body(Body::Bytes(json))
    }

    /// Sends no token, whatever the host.
    pub(crate) fn without_token(mut self) -> Self {
        self.token = false;
        self
    }

    /// Takes back what a progress bar has heard of a body that was sent and not accepted.
    fn take_back(&self) {
        if let Some(Body::Part { len, progress, .. }) = self.body {
            progress.take_back(len);
        }
    }

    /// Hands a redirect to another host back to the caller.
    pub(crate) fn stay_on_host(mut self) -> Self {
        self.stay = true;
        self
    }
}

impl Client {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        let get = |name: &str| std::env::var(name).ok();
        let agent = |tls: TlsConfig, proxy: Option<ureq::Proxy>| {
            let config = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .tls_config(tls)
                .proxy(proxy)
                .user_agent(concat!("cloze/", env!("CARGO_PKG_VERSION")))
                // A compressed answer would have neither the length nor the ETag of the file.
                .accept_encoding("identity")
                .timeout_resolve(Some(settings.connect_timeout))
                .timeout_connect(Some(settings.connect_timeout))
                .timeout_per_read(Some(settings.read_timeout))
                .timeout_per_write(Some(settings.read_timeout))
                .timeout_recv_response(Some(settings.answer_timeout))
                .max_idle_connections_per_host(8)
                .build();
            wire::agent(config, settings.transfer_timeout)
        };
        let tls = own_certificates(&get).map(|certificates| match certificates {
            Some(certificates) => TlsConfig::builder().root_certs(certificates).build(),
            None => TlsConfig::default(),
        });
        let direct = agent(tls.clone().unwrap_or_default(), None);
        let through = |scheme: &str, tls: Result<TlsConfig, String>| match proxy_for(scheme, &get)?
        {
            Some(proxy) => Ok(agent(tls?, Some(proxy))),
            None => tls.map(|_| direct.clone()),
        };
        Self {
            http: through("http", Ok(tls.clone().unwrap_or_default())),
            https: through("https", tls),
            exempt: Exempt::from_variables(&get),
            direct: direct.clone(),
            settings,
        }
    }

    /// Returns the way to `url`.
    fn agent(&self, url: &str) -> Result<&ureq::Agent, &String> {
        match url.starts_with("https://") {
            _ if self.exempt.covers(url) => Ok(&self.direct),
            true => self.https.as_ref(),
            false => self.http.as_ref(),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the address of `path` on the Hub.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.settings.endpoint)
    }

    /// Sends `request` until it succeeds or is refused for good, and reads the answer as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Failure> {
        self.retry(|| self.json_once(request))
    }

    /// Sends `request` once and reads the answer as JSON.
    pub(crate) fn json_once<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Failure> {
        let mut response = self.send(request)?;
        let html = content_type(&response).contains("html");
        let body = self.read_body(request, &mut response, LARGEST_JSON)?;
        serde_json::from_slice(&body).map_err(|e| {
            let message = if html || body.trim_ascii_start().starts_with(b"<") {
                "with a web page instead of JSON: it is not a Hub, or a login page or proxy intercepts the connection".to_owned()
            } else {
                format!("with an unexpected answer ({e})")
            };
            self.failure(FailureKind::Refused, request, format!("{} answered {message}", place(&request.url)))
        })
    }

    /// Reads an answer of at most `limit` bytes, within the time that the settings give an answer.
    pub(crate) fn read_body(
        &self,
        request: &Request,
        response: &mut Response,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let mut body = response.body_mut().with_config().limit(limit).reader();
        let started = Instant::now();
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match body.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(e) => return Err(self.broken(request, &ureq::Error::from(e))),
            }
            if interrupt::is_requested() {
                return Err(self.interrupted(request));
            }
            if started.elapsed() > self.settings.answer_timeout {
                let message = format!(
                    "the answer of {} was not complete after {} s",
                    place(&request.url),
                    self.settings.answer_timeout.as_secs()
                );
                return Err(self.failure(FailureKind::Transient, request, message));
            }
        }
    }

    fn interrupted(&self, request: &Request) -> Failure {
        crate::Error::Interrupted(format!("trying to {}", request.purpose)).into()
    }

    /// Sends `request` until it succeeds or is refused for good, for its headers alone.
    pub(crate) fn headers(&self, request: &Request) -> Result<(StatusCode, HeaderMap), Failure> {
        self.retry(|| {
            let response = self.send(request)?;
            Ok((response.status(), response.headers().clone()))
        })
    }

    /// Calls `attempt` until it succeeds, fails for good, or has failed as often as the settings allow.
    pub(crate) fn retry<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut pause = Pauses::new(&self.settings);
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => pause.after(failure)?,
            }
        }
    }

    /// Sends `request` once. An answer that is no success is a failure.
    pub(crate) fn send(&self, request: &Request) -> Result<Response, Failure> {
        let mut url = request.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.send_to(&url, request)?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            request.take_back();
            let location = response
                .headers()
                .get("location")
                .and_then(|l| l.to_str().ok());
            let Some(location) = location.filter(|_| status.is_redirection()) else {
                return Err(self.refusal(request, response));
            };
            let next = join(&url, location).ok_or_else(|| {
                self.failure(
                    FailureKind::Refused,
                    request,
                    format!("{} redirects to no address", place(&url)),
                )
            })?;
            if url.starts_with("https://") && !next.starts_with("https://") {
                let message = format!(
                    "{} redirects from https to an unencrypted connection, which is refused",
                    place(&url)
                );
                return Err(self.failure(FailureKind::Refused, request, message));
            }
            if request.stay && !same_origin(&url, &next) {
                return Ok(response);
            }
            url = next;
        }
        Err(self.failure(
            FailureKind::Refused,
            request,
            format!("{} redirects endlessly", place(&request.url)),
        ))
    }

    fn send_to(&self, url: &str, request: &Request) -> Result<Response, Failure> {
        let mut builder = http::Request::builder()
            .method(request.method.clone())
            .uri(url);
        for (name, value) in &request.headers {
            builder = builder.header(name.as_str(), value);
        }
        // The one place where the secret enters a request: for the Hub's own host and no other.
        if let Some(token) = self.settings.token.as_ref().filter(|_| request.token)
            && same_origin(url, &self.settings.endpoint)
        {
            builder = builder.header("authorization", format!("Bearer {}", token.secret()));
        }
        let agent = self
            .agent(url)
            .map_err(|why| self.failure(FailureKind::Refused, request, why.clone()))?;
        let invalid = |e: http::Error| {
            self.failure(
                FailureKind::Refused,
                request,
                format!("{} can't be requested: {e}", place(url)),
            )
        };
        let sent = match &request.body {
            None => agent.run(builder.body(()).map_err(invalid)?),
            Some(body) => {
                let mut reader = body.reader().map_err(|e| {
                    self.failure(
                        FailureKind::Refused,
                        request,
                        format!("the data to send can't be read: {e}"),
                    )
                })?;
                let builder = builder.header("content-length", body.len());
                let body = ureq::SendBody::from_reader(&mut reader);
                agent.run(builder.body(body).map_err(invalid)?)
            }
        };
        sent.map_err(|e| self.broken(request, &e))
    }

    /// Returns a connection that could not be made or broke.
    pub(crate) fn broken(&self, request: &Request, error: &ureq::Error) -> Failure {
        if interrupt::is_requested() {
            return self.interrupted(request);
        }
        let host = place(&request.url);
        let (kind, message) = match error {
            ureq::Error::HostNotFound => (
                FailureKind::Unreachable,
                format!("the address of {host} was not found"),
            ),
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => (
                FailureKind::Unreachable,
                format!("{host} did not answer in time"),
            ),
            ureq::Error::Timeout(ureq::Timeout::RecvBody) => {
                (FailureKind::Refused, format!("{host} is too slow"))
            }
            ureq::Error::Timeout(_) => (FailureKind::Transient, format!("{host} fell silent")),
            ureq::Error::Io(e) if is_refusal(e) => (
                FailureKind::Unreachable,
                format!("{host} can't be reached: {e}"),
            ),
            // The word of the TLS library, handed on by the standard one.
            ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                (FailureKind::Unreachable, unsafe_connection(&host, e))
            }
            ureq::Error::Io(e) => (
                FailureKind::Transient,
                format!("the connection to {host} broke: {e}"),
            ),
            ureq::Error::Protocol(e) => (
                FailureKind::Transient,
                format!("the answer of {host} broke off: {e}"),
            ),
            ureq::Error::Rustls(e) => (FailureKind::Unreachable, unsafe_connection(&host, e)),
            ureq::Error::ConnectProxyFailed(e) => (
                FailureKind::Unreachable,
                format!("the proxy refuses the connection to {host}: {e}"),
            ),
            ureq::Error::BodyExceedsLimit(most) => (
                FailureKind::Refused,
                format!("the answer of {host} is longer than the limit of {most} bytes"),
            ),
            other => (
                FailureKind::Refused,
                format!("the request to {host} failed: {other}"),
            ),
        };
        self.failure(kind, request, message)
    }

    /// Returns what a status that is no success means.
    fn refusal(&self, request: &Request, mut response: Response) -> Failure {
        let status = response.status();
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let code = header("x-error-code").unwrap_or_default();
        let said = header("x-error-message");
        let retry_after = header("retry-after").and_then(|text| seconds(&text));
        let html = content_type(&response).contains("html");
        let said = said.or_else(|| {
            let body = self.read_body(request, &mut response, LARGEST_REFUSAL);
            body.ok()
                .filter(|_| !html)
                .and_then(|text| error_text(&String::from_utf8_lossy(&text)))
        });
        let kind = match (status.as_u16(), code.as_str()) {
            // The Hub hides what one may not see behind 401 or 404.
            (401, "RepoNotFound") | (404, _) => FailureKind::Missing,
            (401 | 403, _) => FailureKind::Denied,
            (409 | 412, _) => FailureKind::Conflict,
            (408 | 429 | 500 | 502 | 503 | 504, _) => FailureKind::Transient,
            _ => FailureKind::Refused,
        };
        let mut message = format!("{} answered {status}", place(&request.url));
        if let Some(said) = said {
            message = format!("{message}: {said}");
        }
        let mut failure = self.failure(kind, request, message);
        failure.retry_after = retry_after.map(Duration::from_secs);
        failure
    }

    pub(crate) fn failure(&self, kind: FailureKind, request: &Request, message: String) -> Failure {
        let message = format!("could not {}: {message}", request.purpose);
        let message = match &self.settings.token {
            Some(token) => token.hide_in(&message),
            None => message,
        };
        Failure::new(kind, message)
    }
}

/// The pauses between attempts.
pub(crate) struct Pauses<'a> {
    settings: &'a Settings,
    failed: u32,
}

impl<'a> Pauses<'a> {
    pub(crate) fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            failed: 0,
        }
    }

    /// Resets the count after progress.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// `failure` itself, when another attempt makes no sense, and an interrupt while waiting.
    pub(crate) fn after(&mut self, failure: Failure) -> Result<(), Failure> {
        self.failed += 1;
        let too_long = failure
            .retry_after
            .is_some_and(|pause| pause > LONGEST_PAUSE);
        if !failure.is_transient() || self.failed >= self.settings.attempts || too_long {
            return Err(failure);
        }
        let doubled = self
            .settings
            .first_delay
            .saturating_mul(1 << (self.failed - 1).min(6));
        // Up to a quarter more, so that many clients do not come back in step.
        let pause = doubled.mul_f64(1.0 + 0.25 * rand::random::<f64>());
        let pause = failure.retry_after.unwrap_or(pause).min(LONGEST_PAUSE);
        tracing::debug!(message = %failure.message, ?pause, "trying again");
        let until = Instant::now() + pause;
        loop {
            if interrupt::is_requested() {
                return Err(crate::Error::Interrupted(format!(
                    "waiting to try again ({})",
                    failure.message
                ))
                .into());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

/// Returns the seconds that a server asks to be left alone. A date, which it may name as well, counts as no wish.
fn seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn unsafe_connection(host: &str, error: &dyn std::fmt::Display) -> String {
    format!(
        "no secure connection to {host}: {error} (behind a company's proxy, set SSL_CERT_FILE to the file with its certificate)"
    )
}

/// Returns whether nobody listens: another attempt right away meets the same.
fn is_refusal(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable
    ) || is_failed_lookup(error)
}

/// Returns whether the resolver gave up on the name, as it does without a network. The standard library gives that no
/// kind of its own, only these words.
fn is_failed_lookup(error: &std::io::Error) -> bool {
    error.to_string().contains("failed to lookup address")
}

fn content_type(response: &Response) -> String {
    let value = response
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_lowercase()
}

/// Returns the server's own words in a refusal, on one line and not too long.
fn error_text(body: &str) -> Option<String> {
    let json: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let text = match &json {
        Some(json) => json
            .get("error")
            .or_else(|| json.get("message"))?
            .as_str()?,
        None => body,
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(300).collect();
    (!short.is_empty()).then_some(short)
}

/// Returns the host of an address and no more: the rest may hold a signature.
pub(crate) fn place(url: &str) -> String {
    match url.parse::<Uri>() {
        Ok(uri) => match uri.authority() {
            // What stands before an @ is a password.
            Some(authority) => authority
                .as_str()
                .rsplit('@')
                .next()
                .unwrap_or_default()
                .to_owned(),
            None => "the server".to_owned(),
        },
        Err(_) => "the server".to_owned(),
    }
}

/// Returns whether two addresses have the same scheme, host and port.
fn same_origin(a: &str, b: &str) -> bool {
    let origin = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_lowercase();
        let port = uri.port_u16().or(match scheme.as_str() {
            "https" => Some(443),
            "http" => Some(80),
            _ => None,
        })?;
        Some((scheme, uri.host()?.to_lowercase(), port))
    };
    origin(a).is_some() && origin(a) == origin(b)
}

/// Returns the address that `location` means, seen from `base`.
pub(crate) fn join(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next()?;
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let scheme = &base[..base.find("://")?];
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    let host_end = base[scheme.len() + 3..]
        .find('/')
        .map_or(base.len(), |i| i + scheme.len() + 3);
    if location.starts_with('/') {
        return Some(format!("{}{location}", &base[..host_end]));
    }
    // Another scheme, or a path beside the present one, which the Hub never sends.
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        assert!(same_origin(
            "https://hub.example/a",
            "https://HUB.example:443/b"
        ));
        for other in [
            "http://hub.example/a",
            "https://hub.example:444/a",
            "https://cdn.hub.example/a",
            "https://hub.example.evil/a",
            "https://evil/hub.example",
            "https://hub.example@evil/a",
            "nonsense",
        ] {
            assert!(!same_origin("https://hub.example/a", other), "{other}");
        }
    }

    #[test]
    fn a_pause_is_a_number_of_seconds() {
        let wishes = [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("-5", None),
            ("+5", None),
            ("1.5", None),
            ("1e9", None),
            ("", None),
            ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ];
        for (text, expected) in wishes {
            assert_eq!(seconds(text), expected, "{text:?}");
        }
    }

    #[test]
    fn redirects_may_be_relative_to_the_host() {
        let base = "https://hub.example:8080/a/b?c";
        let cases = [
            ("/x/y", Some("https://hub.example:8080/x/y")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("http://cdn.example/x#y", Some("http://cdn.example/x")),
            ("ftp://cdn.example/x", None),
            ("javascript:x", None),
        ];
        for (location, expected) in cases {
            assert_eq!(join(base, location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn a_body_is_accepted_only_in_full_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, [7; 100]).unwrap();
        let progress = Progress::bytes("uploading", 80);
        let body = || Body::Part {
            path: &path,
            offset: 10,
            len: 80,
            progress: &progress,
        };
        let read = |bytes: usize| body().reader().unwrap().read_exact(&mut vec![0; bytes]);
        read(50).unwrap();
        assert_eq!(progress.position(), 0, "it broke off");
        read(80).unwrap();
        assert_eq!(progress.position(), 80);
        let request = Request::new(Method::PUT, "http://hub.example", "upload").body(body());
        request.take_back();
        assert_eq!(progress.position(), 0, "it was refused");
    }

    #[test]
    fn urls_are_shown_without_signatures_and_passwords() {
        assert_eq!(
            place("https://me:secret@cdn.example/x?Signature=abc"),
            "cdn.example"
        );
        assert_eq!(place("not an address"), "the server");
    }

    #[test]
    fn path_segments_of_urls_are_fully_encoded() {
        assert_eq!(encode("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encode_path("a b/c?d#e.json"), "a%20b/c%3Fd%23e.json");
    }
}
