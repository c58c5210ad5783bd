//! Pushes and downloads by Xet: the stand-in for the Hub, and beside it the storage server of the Xet client.
#![cfg(test)]

#[path = "../support/hub_server/mod.rs"]
#[allow(dead_code)]
mod hub_server;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloze::hub::{Hub, PushOptions, Pushed, RepoKind, Settings, Token};
use hub_server::store::sha256;
use hub_server::{Fault, HubServer, TOKEN, XetStorage};
use tempfile::TempDir;
use xet_client::cas_client::{
    DeletionControlableClient, DirectAccessClient, LocalTestServer, LocalTestServerBuilder,
    MemoryClient,
};
use xet_runtime::core::XetContext;

const NAME: &str = "tester/my-model";
const WEIGHTS: &str = "model.safetensors";

/// An interrupt reaches the whole process: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A Hub that takes large files by Xet, its storage, and a folder to push.
struct Bench {
    hub: Hub,
    server: HubServer,
    stored: Arc<MemoryClient>,
    home: TempDir,
    runtime: tokio::runtime::Runtime,
    _storage: LocalTestServer,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (stored, storage) = runtime.block_on(async {
            let stored = MemoryClient::new(XetContext::default().unwrap());
            let builder = LocalTestServerBuilder::new().with_client(stored.clone());
            (stored, builder.start().await)
        });
        let server = HubServer::start();
        let (handle, client) = (runtime.handle().clone(), stored.clone());
        let find = move |oid: &str| {
            // The stand-in answers on a thread that must not block.
            let (handle, client, oid) = (handle.clone(), client.clone(), oid.to_owned());
            let found = std::thread::spawn(move || handle.block_on(find(&client, &oid)));
            found.join().unwrap()
        };
        {
            let mut state = server.state();
            state.xet = true;
            state.xet_storage = Some(XetStorage {
                url: storage.http_endpoint().to_owned(),
                find: Box::new(find),
            });
        }
        let home = tempfile::tempdir().unwrap();
        let settings = settings(&server, home.path());
        Self {
            hub: Hub::new(settings),
            server,
            stored,
            home,
            runtime,
            _storage: storage,
            _alone: alone,
        }
    }

    /// A folder with weights of so many bytes, and small files.
    fn folder(&self, weights: usize) -> PathBuf {
        let folder = self.home.path().join("my-model");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(WEIGHTS), noise(weights, 1)).unwrap();
        std::fs::write(folder.join("config.json"), "{\"model_type\": \"roberta\"}").unwrap();
        std::fs::write(folder.join("empty.safetensors"), "").unwrap();
        folder
    }

    fn push(&self, folder: &Path) -> cloze::Result<Pushed> {
        let options = PushOptions::new().message("Mine").description("By Xet");
        self.hub.push_folder(NAME, folder, &options)
    }

    fn pushed(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.server.state();
        state.file("models", NAME, path).map(|bytes| bytes.to_vec())
    }

    fn stored_bytes(&self) -> usize {
        self.runtime.block_on(async {
            let mut bytes = 0;
            for xorb in self.stored.list_xorbs().await.unwrap() {
                bytes += self.stored.xorb_length(&xorb).await.unwrap() as usize;
            }
            bytes
        })
    }

    fn messages(&self) -> Vec<String> {
        let state = self.server.state();
        let repo = &state.repos[&("models".to_owned(), NAME.to_owned())];
        repo.messages.clone()
    }
}

fn settings(server: &HubServer, home: &Path) -> Settings {
    let settings = Settings::from_env().unwrap();
    let mut settings = settings
        .with_token(Some(Token::new(TOKEN).unwrap()))
        .with_endpoint(server.url())
        .unwrap();
    settings.cache_dir = home.join("hub");
    settings.token_path = home.join("token");
    settings.first_delay = Duration::from_millis(5);
    settings.read_timeout = Duration::from_millis(500);
    settings
}

/// Looks for a file in the storage by the hash of its content.
async fn find(client: &MemoryClient, oid: &str) -> Option<(String, Bytes)> {
    for (file, _) in client.list_file_shard_entries().await.unwrap() {
        let bytes = client.get_file_data(&file, None).await.unwrap();
        if sha256(&bytes) == oid {
            return Some((file.hex(), bytes));
        }
    }
    None
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn a_folder_becomes_one_commit_with_weights_uploaded_by_xet() {
    let bench = Bench::new();
    let folder = bench.folder(3_000_000);
    let pushed = bench.push(&folder).unwrap();
    assert_eq!((pushed.changed, pushed.unchanged), (3, 0));
    for file in [WEIGHTS, "config.json", "empty.safetensors"] {
        let local = std::fs::read(folder.join(file)).unwrap();
        assert_eq!(bench.pushed(file).unwrap(), local, "{file}");
    }
    assert_eq!(bench.messages(), ["by hand", "Mine"]);
    assert_eq!(bench.stored_bytes(), 3_000_000);
    let log = bench.server.take_log();
    assert!(
        log.iter()
            .any(|request| request.path.contains("xet-write-token"))
    );
    assert!(!log.iter().any(|request| request.cdn), "{log:?}");
    let bearer = format!("Bearer {TOKEN}");
    for request in log {
        assert_eq!(request.authorization.as_ref(), Some(&bearer), "{request:?}");
    }

    // Nothing has changed: nothing is sent.
    let again = bench.push(&folder).unwrap();
    assert_eq!((again.changed, &again.commit), (0, &pushed.commit));

    // What has changed in the middle of a file is all that is sent of it.
    let mut weights = noise(3_000_000, 1);
    weights[1_500_000..1_500_100].fill(7);
    std::fs::write(folder.join(WEIGHTS), &weights).unwrap();
    std::fs::remove_file(folder.join("empty.safetensors")).unwrap();
    assert_eq!(bench.push(&folder).unwrap().changed, 1);
    assert_eq!(bench.pushed(WEIGHTS).unwrap(), weights);
    let sent = bench.stored_bytes() - 3_000_000;
    assert!(sent < 1_000_000, "{sent} bytes for a change of 100");
}

#[test]
fn a_commit_is_not_repeated_when_its_answer_is_lost() {
    for (path, fault) in [
        ("commit", Fault::DropAfterwards),
        ("commit", Fault::Status(503, None)),
        ("commit", Fault::Status(412, None)),
        ("commit", Fault::Status(409, None)),
        ("xet-write-token", Fault::Status(500, None)),
        ("objects/batch", Fault::Drop),
    ] {
        let bench = Bench::new();
        let folder = bench.folder(200_000);
        bench.server.fail(None, path, 1, fault.clone());
        let pushed = bench
            .push(&folder)
            .unwrap_or_else(|e| panic!("{path} {fault:?}: {e}"));
        let messages = bench.messages();
        assert_eq!(messages, ["by hand", "Mine"], "{path} {fault:?}");
        let state = bench.server.state();
        let repo = &state.repos[&("models".to_owned(), NAME.to_owned())];
        assert_eq!(repo.commit("main").unwrap(), pushed.commit);
    }
}

#[test]
fn a_refusal_is_reported_and_leaves_the_repository_unchanged() {
    let bench = Bench::new();
    let folder = bench.folder(200_000);
    for (path, fault, said) in [
        ("xet-write-token", Fault::Status(403, None), "log in"),
        ("commit", Fault::Status(400, None), "400"),
    ] {
        bench.server.fail(None, path, usize::MAX, fault);
        let error = bench.push(&folder).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(
            text.contains(said) && text.contains("Nothing is lost"),
            "{text}"
        );
        assert!(
            !text.contains(TOKEN) && !text.contains("aSecretForTests"),
            "{text}"
        );
        bench.server.behave();
        assert_eq!(bench.messages(), ["by hand"]);
    }
}

#[test]
fn xet_only_files_are_downloaded_and_verified() {
    let bench = Bench::new();
    let folder = bench.folder(3_000_000);
    bench.push(&folder).unwrap();
    bench.server.state().only_xet = true;
    let download = || bench.hub.download(RepoKind::Model, NAME, &[WEIGHTS]);
    let came = download().unwrap();
    assert_eq!(
        std::fs::read(came.join(WEIGHTS)).unwrap(),
        noise(3_000_000, 1)
    );

    // The storage gives another file than the Hub promised.
    std::fs::write(folder.join(WEIGHTS), noise(3_000_000, 2)).unwrap();
    bench.push(&folder).unwrap();
    let handle = bench.runtime.handle().clone();
    let client = bench.stored.clone();
    let other = sha256(&noise(3_000_000, 1));
    let wrong = handle.block_on(find(&client, &other)).unwrap();
    if let Some(storage) = &mut bench.server.state().xet_storage {
        storage.find = Box::new(move |_| Some(wrong.clone()));
    }
    let text = download().unwrap_err().to_string();
    assert!(text.contains("differs from what the server announced"), "{text}");
}

#[test]
fn an_interrupt_cancels_the_push() {
    let bench = Bench::new();
    let folder = bench.folder(200_000);
    bench
        .server
        .fail(None, "xet-write-token", usize::MAX, Fault::StallAfter(0));
    let began = Instant::now();
    let error = std::thread::scope(|scope| {
        let push = scope.spawn(|| bench.push(&folder).unwrap_err());
        let asked = |request: &hub_server::Logged| request.path.contains("xet-write-token");
        while !bench.server.state().log.iter().any(asked) {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
        cloze::interrupt::request();
        push.join().unwrap()
    });
    assert!(matches!(error, cloze::Error::Interrupted(_)), "{error}");
    assert!(!cloze::interrupt::is_requested(), "the request is answered");
    bench.server.behave();
    assert_eq!(bench.messages(), ["by hand"]);
    bench.push(&folder).unwrap();
}
