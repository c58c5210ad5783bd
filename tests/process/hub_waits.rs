//! Waiting for a server that is slow, silent or never satisfied: an interrupt is heard, and every wait has an end.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[cfg(feature = "hub")]
use cloze::hub::{BackgroundPush, PushOptions, Token};
use cloze::hub::{Hub, RepoKind, Settings};

#[cfg(feature = "hub")]
use crate::support::hub_server::{Fault, HubServer, TOKEN};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server that hands the head of every request to `answer`; returns its address and the number of requests so far.
fn serve(
    answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let (answer, counted) = (Arc::new(answer), requests.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer, counted) = (stream.unwrap(), answer.clone(), counted.clone());
            std::thread::spawn(move || {
                let mut head = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
                counted.fetch_add(1, Ordering::SeqCst);
                answer(&head, &mut stream);
            });
        }
    });
    (url, requests)
}

fn settings(url: &str, folder: &tempfile::TempDir) -> Settings {
    let mut settings = Settings::from_env()
        .unwrap()
        .with_token(None)
        .with_endpoint(url)
        .unwrap();
    settings.cache_dir = folder.path().join("hub");
    settings.offline = false;
    settings.first_delay = Duration::from_millis(1);
    settings
}

fn download(settings: Settings) -> cloze::Result<std::path::PathBuf> {
    Hub::new(settings).download(RepoKind::Model, "own/model", &["config.json"])
}

fn send_slowly(stream: &mut TcpStream, text: &str, pause: Duration) {
    for byte in text.as_bytes() {
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(pause);
    }
}

fn info() -> String {
    format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}]}}"#)
}

fn send(stream: &mut TcpStream, head: &str, body: &str) {
    let _ = write!(stream, "HTTP/1.1 {head}\r\nconnection: close\r\n\r\n{body}");
}

/// Answers what comes before the download of a file of `size` bytes.
fn lead_up(head: &str, stream: &mut TcpStream, size: usize) -> bool {
    if head.contains("/api/models/") {
        let info = info();
        send(
            stream,
            &format!("200 OK\r\ncontent-length: {}", info.len()),
            &info,
        );
        return true;
    }
    if head.starts_with("HEAD") {
        let head =
            format!("200 OK\r\netag: \"abc\"\r\nx-repo-commit: {COMMIT}\r\ncontent-length: {size}");
        send(stream, &head, "");
        return true;
    }
    false
}

#[test]
fn a_part_that_comes_again_and_again_is_no_progress() {
    let _alone = crate::alone();
    for range in ["bytes 2-9/100", "bytes 0-99/100"] {
        let (url, requests) = serve(move |head, stream| {
            if lead_up(head, stream, 100) {
                return;
            }
            match head.to_lowercase().contains("range:") {
                true => send(
                    stream,
                    &format!("206 Partial Content\r\ncontent-range: {range}\r\ncontent-length: 8"),
                    "12345678",
                ),
                false => send(stream, "200 OK\r\ncontent-length: 100", "1234567"),
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let error = download(settings(&url, &folder)).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
        let requests = requests.load(Ordering::SeqCst);
        assert!(requests <= 14, "{requests} requests");
    }
}

#[test]
fn a_file_that_comes_piece_by_piece_is_completed_however_many_attempts_it_takes() {
    let _alone = crate::alone();
    let (url, requests) = serve(|head, stream| {
        if lead_up(head, stream, 60) {
            return;
        }
        let from = head
            .to_lowercase()
            .split_once("bytes=")
            .and_then(|(_, rest)| rest.split('-').next()?.parse().ok())
            .unwrap_or(0usize);
        let rest = 60 - from;
        let head = format!(
            "206 Partial Content\r\ncontent-range: bytes {from}-59/60\r\ncontent-length: {rest}"
        );
        let head = if from == 0 {
            "200 OK\r\ncontent-length: 60".to_owned()
        } else {
            head
        };
        send(stream, &head, &"x".repeat(rest.min(4)));
    });
    let folder = tempfile::tempdir().unwrap();
    let found = download(settings(&url, &folder)).unwrap();
    assert_eq!(
        std::fs::read(found.join("config.json")).unwrap(),
        [b'x'; 60]
    );
    assert!(requests.load(Ordering::SeqCst) >= 15);
}

/// How a server behaves.
type Answer = fn(&str, &mut TcpStream);

fn silence(_: &str, _: &mut TcpStream) {
    std::thread::sleep(Duration::from_secs(20));
}

/// Sends the first bytes of a safe connection's handshake one by one: a record of 16 kB, which holds one message.
fn handshake(_: &str, stream: &mut TcpStream) {
    let mut bytes = vec![0; 16 << 10];
    bytes[..9].copy_from_slice(&[22, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc]);
    for byte in bytes {
        if stream.write_all(&[byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Answers without end that an answer will come.
fn promises(_: &str, stream: &mut TcpStream) {
    while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sends the length of a piece of the body, and what else may stand in that line, byte by byte.
fn endless_line(stream: &mut TcpStream) {
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    send_slowly(
        stream,
        &format!("5;{}", "x".repeat(5000)),
        Duration::from_millis(100),
    );
}

/// A server that says nothing until the client has: what it sends to a safe connection is its handshake.
fn serve_safely() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || handshake("", &mut stream.unwrap()));
        }
    });
    url
}

/// Asks for a stop while `work` waits for a server; it must have ended within a second.
fn is_interrupted<T: std::fmt::Debug + Send + 'static>(
    name: &str,
    work: impl FnOnce() -> cloze::Result<T> + Send + 'static,
) {
    let work = std::thread::spawn(work);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!work.is_finished(), "{name}: {:?}", work.join());
    let asked = Instant::now();
    cloze::interrupt::request();
    let result = work.join().unwrap();
    let waited = asked.elapsed();
    cloze::interrupt::clear();
    assert!(
        matches!(result, Err(cloze::Error::Interrupted(_))),
        "{name}: {result:?}"
    );
    assert!(waited < Duration::from_secs(1), "{name}: {waited:?}");
}

#[test]
fn an_interrupt_is_heard_within_a_second_wherever_the_wait_is() {
    let _alone = crate::alone();
    let answers: [(&str, Answer); 9] = [
        ("silence", silence),
        ("promises", promises),
        ("slow headers", |_, stream| {
            send_slowly(
                stream,
                &"HTTP/1.1 200 OK\r\nx: y\r\n".repeat(20),
                Duration::from_millis(400),
            )
        }),
        ("slow json", |_, stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n");
            send_slowly(stream, &" ".repeat(5000), Duration::from_millis(400))
        }),
        ("a piece of unknown length", |_, stream| {
            endless_line(stream)
        }),
        ("slow refusal", |_, stream| {
            let _ = write!(stream, "HTTP/1.1 500 No\r\ncontent-length: 5000\r\n\r\n");
            send_slowly(stream, &" ".repeat(5000), Duration::from_millis(400))
        }),
        ("silent file", |head, stream| {
            if !lead_up(head, stream, 100) {
                let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc");
                std::thread::sleep(Duration::from_secs(20));
            }
        }),
        ("a slow circle of redirects", |_, stream| {
            std::thread::sleep(Duration::from_millis(300));
            send(
                stream,
                "302 Found\r\nlocation: /round\r\ncontent-length: 0",
                "",
            );
        }),
        ("a pause that is asked for", |_, stream| {
            send(
                stream,
                "503 Busy\r\nretry-after: 50\r\ncontent-length: 0",
                "",
            );
        }),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, answer) in answers {
        let (url, _) = serve(answer);
        let settings = settings(&url, &folder);
        is_interrupted(name, move || download(settings));
    }
    let safely = settings(&serve_safely(), &folder);
    is_interrupted("handshake", move || download(safely));
}

#[test]
fn an_interrupt_is_heard_while_connecting() {
    let _alone = crate::alone();
    // Takes two connections and no more; whoever comes then is left waiting.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket.listen(0).unwrap()
    });
    let address = listener.local_addr().unwrap();
    let mut connected = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        connected.push(stream);
        assert!(connected.len() < 100);
    }
    let folder = tempfile::tempdir().unwrap();
    let waiting = settings(&format!("http://{address}"), &folder);
    is_interrupted("connecting", move || download(waiting));
    let mut hasty = settings(&format!("http://{address}"), &folder);
    hasty.connect_timeout = Duration::from_millis(300);
    let started = Instant::now();
    let error = download(hasty).unwrap_err().to_string();
    assert!(error.contains("did not answer in time"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn an_answer_that_trickles_has_an_end() {
    let _alone = crate::alone();
    let answers: [(&str, Answer); 5] = [
        ("headers", |_, stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n");
            send_slowly(stream, &"x: y\r\n".repeat(500), Duration::from_millis(100))
        }),
        ("promises", promises),
        ("json", |_, stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n");
            send_slowly(stream, &" ".repeat(5000), Duration::from_millis(100))
        }),
        ("a piece of unknown length", |_, stream| {
            endless_line(stream)
        }),
        ("file", |head, stream| {
            // What it announces is no measure.
            if !lead_up(head, stream, 1 << 40) {
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                    1u64 << 40
                );
                send_slowly(stream, &" ".repeat(5000), Duration::from_millis(100))
            }
        }),
    ];
    let hasty = |url: &str, folder: &tempfile::TempDir| {
        let mut settings = settings(url, folder);
        settings.connect_timeout = Duration::from_millis(800);
        settings.answer_timeout = Duration::from_millis(800);
        settings.transfer_timeout = Duration::from_millis(800);
        settings.attempts = 2;
        settings
    };
    let has_an_end = |name: &str, url: &str| {
        let folder = tempfile::tempdir().unwrap();
        let settings = hasty(url, &folder);
        let started = Instant::now();
        let error = download(settings).unwrap_err().to_string();
        assert!(error.contains("own/model"), "{name}: {error}");
        assert!(
            started.elapsed() < Duration::from_secs(4),
            "{name}: {error}"
        );
    };
    for (name, answer) in answers {
        let (url, _) = serve(answer);
        has_an_end(name, &url);
    }
    has_an_end("handshake", &serve_safely());
    // Where the address of a file is all that is known of it.
    let (url, _) = serve(|_, stream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        send_slowly(stream, &" ".repeat(5000), Duration::from_millis(100))
    });
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let hub = Hub::new(hasty(&url, &folder));
    let error = hub.fetch(&format!("{url}/a.csv")).unwrap_err().to_string();
    assert!(error.contains("too slow"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(4));
}

/// Set for the processes whose requests go through a proxy.
const PROXIED: &str = "CLOZE_TEST_PROXIED";

/// Downloads and pushes through the proxy of this process, which behaves as `proxy` says.
fn use_proxy(proxy: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    for endpoint in ["https://hub.example", "http://hub.example"] {
        if proxy.contains("handshake") && endpoint.starts_with("http:") {
            continue;
        }
        let waiting = settings(endpoint, &folder);
        let mut hasty = waiting.clone();
        hasty.connect_timeout = Duration::from_millis(800);
        hasty.answer_timeout = Duration::from_millis(800);
        hasty.read_timeout = Duration::from_millis(800);
        hasty.transfer_timeout = Duration::from_millis(800);
        hasty.attempts = 2;
        let mut works: Vec<(&str, Work)> =
            vec![("download", |settings, _| download(settings).map(drop))];
        #[cfg(feature = "hub")]
        works.push(("push", |settings, folder| {
            let settings = settings.with_token(Some(Token::new(TOKEN).unwrap()));
            let pushed = Hub::new(settings).push_folder("own/model", folder, &PushOptions::new());
            pushed.map(drop)
        }));
        for (kind, work) in works {
            let name = format!("{kind} by {proxy}, {endpoint}");
            let (settings, path) = (waiting.clone(), folder.path().to_owned());
            is_interrupted(&name, move || work(settings, &path));
            let started = Instant::now();
            let error = work(hasty.clone(), folder.path()).unwrap_err().to_string();
            assert!(error.contains("own/model"), "{name}: {error}");
            assert!(started.elapsed() < Duration::from_secs(4), "{name}");
        }
    }
}

/// What waits for the Hub, and may need a folder.
type Work = fn(Settings, &std::path::Path) -> cloze::Result<()>;

#[test]
fn waits_behind_a_proxy_hear_an_interrupt_and_have_an_end() {
    let _alone = crate::alone();
    if let Ok(proxy) = std::env::var(PROXIED) {
        return use_proxy(&proxy);
    }
    let proxies: [(&str, Answer); 4] = [
        ("silence", silence),
        ("an answer that trickles", |_, stream| {
            send_slowly(
                stream,
                &format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(500)),
                Duration::from_millis(100),
            )
        }),
        ("a way into silence", |head, stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n\r\n");
            silence(head, stream);
        }),
        ("a handshake that trickles", |head, stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n\r\n");
            handshake(head, stream);
        }),
    ];
    // All at once: they wait most of the time. The proxy is read from the environment, one for each process.
    let children: Vec<_> = proxies
        .into_iter()
        .map(|(name, answer)| {
            let (proxy, _) = serve(answer);
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture"])
                .arg("hub_waits::waits_behind_a_proxy_hear_an_interrupt_and_have_an_end")
                .env(PROXIED, name)
                .envs(
                    ["HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"]
                        .map(|it| (it, &proxy)),
                )
                .envs(["NO_PROXY", "no_proxy"].map(|it| (it, "")))
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            (name, child)
        })
        .collect();
    for (name, child) in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{name}: {text}");
    }
}

#[test]
fn a_server_is_left_alone_as_long_as_it_asks_within_reason() {
    let _alone = crate::alone();
    for (wish, most_requests) in [
        ("61", 1),
        ("99999999999999999999999", 1),
        ("0", 5),
        ("-5", 5),
        ("1e9", 5),
        ("Wed, 21 Oct 2065 07:28:00 GMT", 5),
        ("soon", 5),
    ] {
        for status in ["429 Too Many Requests", "503 Busy"] {
            let (url, requests) = serve(move |_, stream| {
                let head = format!("{status}\r\nretry-after: {wish}\r\ncontent-length: 0");
                send(stream, &head, "");
            });
            let folder = tempfile::tempdir().unwrap();
            let started = Instant::now();
            let error = download(settings(&url, &folder)).unwrap_err().to_string();
            assert!(error.contains(&status[..3]), "{wish}: {error}");
            assert!(started.elapsed() < Duration::from_secs(3), "{wish}");
            assert_eq!(requests.load(Ordering::SeqCst), most_requests, "{wish}");
        }
    }
}

#[test]
fn redirects_in_a_circle_have_an_end() {
    let _alone = crate::alone();
    let (url, requests) = serve(|head, stream| {
        let to = if head.contains("/there") {
            "/back"
        } else {
            "/there"
        };
        let answer = format!("307 Round\r\nlocation: {to}\r\ncontent-length: 0");
        send(stream, &answer, "");
    });
    let folder = tempfile::tempdir().unwrap();
    let error = download(settings(&url, &folder)).unwrap_err().to_string();
    assert!(error.contains("redirects endlessly"), "{error}");
    assert!(requests.load(Ordering::SeqCst) < 15);
}

/// The requests of a push.
#[cfg(feature = "hub")]
const STAGES: [(&str, &str); 5] = [
    ("POST", "/api/repos/create"),
    ("POST", "/preupload/"),
    ("POST", "/info/lfs/objects/batch"),
    ("PUT", "/put/"),
    ("POST", "/commit/"),
];

/// A folder that is pushed in all of these stages, and who pushes it.
#[cfg(feature = "hub")]
fn pusher(server: &HubServer, home: &tempfile::TempDir) -> (Settings, std::path::PathBuf) {
    let model = home.path().join("model");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    // More than the system takes from a sender whom nobody listens to.
    std::fs::write(model.join("model.safetensors"), vec![7; 24 << 20]).unwrap();
    let token = Token::new(TOKEN).unwrap();
    (settings(&server.url(), home).with_token(Some(token)), model)
}

#[cfg(feature = "hub")]
#[test]
fn a_push_that_is_never_answered_hears_an_interrupt_and_has_an_end() {
    let _alone = crate::alone();
    let (silent, _) = serve(silence);
    let unread = (
        "an upload that nobody reads",
        Fault::Redirect(format!("{silent}/x")),
    );
    let unanswered = STAGES.map(|(_, path)| (path, Fault::Silence));
    for (stage, fault) in unanswered.into_iter().chain([unread]) {
        let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
        let (settings, model) = pusher(&server, &home);
        let (method, path) = STAGES
            .into_iter()
            .find(|(_, path)| *path == stage)
            .unwrap_or(STAGES[3]);
        server.fail(Some(method.parse().unwrap()), path, 99, fault);
        let push = |settings: Settings| {
            let model = model.clone();
            move || Hub::new(settings).push_folder("tester/m", model, &PushOptions::new())
        };
        is_interrupted(stage, push(settings.clone()));
        let mut hasty = settings;
        hasty.answer_timeout = Duration::from_millis(300);
        hasty.read_timeout = Duration::from_millis(300);
        hasty.attempts = 2;
        let started = Instant::now();
        let error = push(hasty)().unwrap_err().to_string();
        assert!(error.contains("fell silent"), "{stage}: {error}");
        assert!(started.elapsed() < Duration::from_secs(6), "{stage}");
    }
}

#[cfg(feature = "hub")]
#[test]
fn a_push_that_is_heard_or_answered_byte_by_byte_hears_an_interrupt_and_has_an_end() {
    use std::io::Read;

    let _alone = crate::alone();
    let servers: [(&str, Answer); 3] = [
        ("reads a few bytes at a time", |_, stream| {
            while stream.read(&mut [0; 64]).is_ok_and(|n| n > 0) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }),
        ("answers with promises", promises),
        ("answers with endless headers", |_, stream| {
            send_slowly(
                stream,
                &format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(500)),
                Duration::from_millis(50),
            )
        }),
    ];
    for (name, answer) in servers {
        let (slow, _) = serve(answer);
        for (method, path) in [STAGES[3], STAGES[4]] {
            let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
            let (settings, model) = pusher(&server, &home);
            let name = format!("{path}: {name}");
            let method = Some(method.parse().unwrap());
            server.fail(method, path, 99, Fault::Redirect(format!("{slow}/x")));
            let push = |settings: Settings| {
                let model = model.clone();
                move || Hub::new(settings).push_folder("tester/m", model, &PushOptions::new())
            };
            is_interrupted(&name, push(settings.clone()));
            let mut hasty = settings;
            hasty.answer_timeout = Duration::from_millis(300);
            hasty.read_timeout = Duration::from_millis(300);
            hasty.transfer_timeout = Duration::from_millis(300);
            hasty.attempts = 2;
            let started = Instant::now();
            push(hasty)().unwrap_err();
            assert!(started.elapsed() < Duration::from_secs(6), "{name}");
        }
    }
}

#[cfg(feature = "hub")]
#[test]
fn an_interrupt_reaches_a_push_in_the_background_and_the_work_beside_it() {
    let _alone = crate::alone();
    for takes_at_once in [true, false] {
        let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
        let (settings, model) = pusher(&server, &home);
        server.fail(None, "/put/", 99, Fault::Silence);
        let mut push = BackgroundPush::new(Hub::new(settings), "tester/m");
        assert!(push.start(&model, &PushOptions::new()).unwrap());
        let sent = || server.state().log.iter().any(|one| one.method == "PUT");
        while !sent() {
            std::thread::sleep(Duration::from_millis(10));
        }
        cloze::interrupt::request();
        if takes_at_once {
            assert!(cloze::interrupt::take());
        }
        let asked = Instant::now();
        let result = push.wait().expect("a push");
        assert!(
            matches!(result, Err(cloze::Error::Interrupted(_))),
            "{result:?}"
        );
        assert!(asked.elapsed() < Duration::from_secs(1));
        assert_eq!(cloze::interrupt::take(), !takes_at_once);
        // What begins later is not stopped by it.
        server.behave();
        assert!(push.start(&model, &PushOptions::new()).unwrap());
        push.wait().expect("a push").unwrap();
    }
}
