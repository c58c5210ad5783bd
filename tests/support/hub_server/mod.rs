//! A stand-in for the Hub on loopback: it speaks as much of the protocol as the Python client uses, keeps everything in
//! memory, writes down every request, and misbehaves on demand.

mod answer;
mod api;
mod body;
mod files;
mod lfs;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};

use answer::Ask;
use body::TestBody;
use store::RepoData;

/// The token that the stand-in accepts.
pub const TOKEN: &str = "hf_aVerySecretTokenForTests";

/// How the stand-in misbehaves.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status, and asks for a pause of so many seconds.
    Status(u16, Option<u64>),
    /// Breaks the connection after so many bytes of the body.
    CutAfter(usize),
    /// Breaks the connection before it answers; the request has no effect.
    Drop,
    /// Does what was asked, then breaks the connection instead of answering.
    DropAfterwards,
    /// Takes the request and never answers, with the connection open.
    Silence,
    /// Sends so many bytes of the body and then nothing, with the connection open.
    StallAfter(usize),
    /// Pauses before every 64 kB of the body.
    Slow(Duration),
    /// Flips one bit of the body.
    WrongBytes,
    /// Sends so many bytes less than it should, and says so in Content-Length.
    Shorter(usize),
    /// Sends more bytes than it should, without a Content-Length.
    Longer(usize),
    /// Answers with a web page.
    Html,
    /// Redirects to this address.
    Redirect(String),
    /// Sends the whole file where a part was asked for.
    NoRange,
}

struct Rule {
    method: Option<Method>,
    contains: String,
    times: usize,
    fault: Fault,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Logged {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Whether it came to the second host, which serves the large files.
    pub cdn: bool,
}

/// Finds the Xet hash and the content of the file with a SHA-256.
pub type Find = dyn Fn(&str) -> Option<(String, hyper::body::Bytes)> + Send;

/// A server of Xet storage.
pub struct XetStorage {
    pub url: String,
    pub find: Box<Find>,
}

#[derive(Default)]
pub struct State {
    pub repos: BTreeMap<(String, String), RepoData>,
    /// Large files by their SHA-256.
    pub lfs: BTreeMap<String, hyper::body::Bytes>,
    /// Old names and the names that replaced them.
    pub renamed: BTreeMap<String, String>,
    /// Repositories that need the token.
    pub private: BTreeSet<String>,
    /// Parts of large files that have arrived.
    parts: BTreeMap<(String, usize), hyper::body::Bytes>,
    /// Files from this size on are uploaded in parts of it.
    pub part_size: Option<usize>,
    /// The transfer that the server insists on.
    pub transfer: Option<String>,
    /// Whether the server has Xet storage as well, and says so wherever today's Hub says it.
    pub xet: bool,
    /// The Xet storage, where one runs beside the stand-in.
    pub xet_storage: Option<XetStorage>,
    /// Whether large files are given by Xet alone.
    pub only_xet: bool,
    pub log: Vec<Logged>,
    rules: Vec<Rule>,
    commits: u64,
}

struct Shared {
    state: Mutex<State>,
    hub: SocketAddr,
    cdn: SocketAddr,
}

/// A running stand-in; it stops when dropped.
pub struct HubServer {
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

impl HubServer {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
        let (hub, cdn) = runtime.block_on(async { (bind().await.unwrap(), bind().await.unwrap()) });
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            hub: hub.local_addr().unwrap(),
            cdn: cdn.local_addr().unwrap(),
        });
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            runtime.spawn(serve(listener, shared.clone(), is_cdn));
        }
        Self {
            shared,
            _runtime: runtime,
        }
    }

    /// The address of the Hub.
    pub fn url(&self) -> String {
        format!("http://{}", self.shared.hub)
    }

    /// The address of the other host, from which large files come.
    pub fn cdn_url(&self) -> String {
        format!("http://{}", self.shared.cdn)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// Puts files into a repository, which is made if needed, as one commit on `main`; returns the commit.
    pub fn commit(&self, kind: &str, id: &str, files: &[(&str, &[u8])]) -> String {
        let mut state = self.state();
        let files = files
            .iter()
            .map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec()));
        let files = files.collect();
        state.commit(kind, id, "main", files)
    }

    /// Misbehaves on the next `times` requests whose method and path fit.
    pub fn fail(&self, method: Option<Method>, contains: &str, times: usize, fault: Fault) {
        self.state().rules.push(Rule {
            method,
            contains: contains.to_owned(),
            times,
            fault,
        });
    }

    /// Behaves from now on.
    pub fn behave(&self) {
        self.state().rules.clear();
    }

    /// The requests so far; the list is emptied.
    pub fn take_log(&self) -> Vec<Logged> {
        std::mem::take(&mut self.state().log)
    }
}

async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>, cdn: bool) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| handle(shared.clone(), cdn, request));
            // A connection that breaks is what some tests are about.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn handle(
    shared: Arc<Shared>,
    cdn: bool,
    request: Request<Incoming>,
) -> Result<Response<TestBody>, std::io::Error> {
    let ask = match Ask::read(request, cdn).await {
        Ok(ask) => ask,
        Err(_) => return Err(std::io::Error::other("the request broke off")),
    };
    let fault = shared.note(&ask);
    let broken = || Err(std::io::Error::other("broken on purpose"));
    match fault {
        Some(Fault::Drop) => broken(),
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Status(status, pause)) => Ok(answer::fault_status(status, pause)),
        Some(Fault::Html) => Ok(answer::web_page()),
        Some(Fault::Redirect(to)) => Ok(answer::redirect(302, &to)),
        Some(Fault::DropAfterwards) => {
            let _ = answer::answer(&shared, &ask);
            broken()
        }
        Some(Fault::NoRange) => {
            let ask = Ask { range: None, ..ask };
            Ok(answer::answer(&shared, &ask))
        }
        fault => {
            let response = answer::answer(&shared, &ask);
            Ok(match fault {
                Some(fault) => body::spoil(response, &fault),
                None => response,
            })
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Writes the request down and says what goes wrong with it.
    fn note(&self, ask: &Ask) -> Option<Fault> {
        let mut state = self.state();
        state.log.push(Logged {
            method: ask.method.to_string(),
            path: ask.path.clone(),
            range: ask.range_header.clone(),
            authorization: ask.authorization.clone(),
            cdn: ask.cdn,
        });
        let rule = state.rules.iter_mut().find(|rule| {
            rule.times > 0
                && rule
                    .method
                    .as_ref()
                    .is_none_or(|method| *method == ask.method)
                && ask.path.contains(&rule.contains)
        })?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}
