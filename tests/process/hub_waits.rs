//! Waiting for a server that is slow, silent or never satisfied: an interrupt is heard, and every wait has an end.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cloze::hub::{Hub, RepoKind, Settings};

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

#[test]
fn an_interrupt_is_heard_within_a_second_wherever_the_wait_is() {
    let _alone = crate::alone();
    type Answer = fn(&str, &mut TcpStream);
    let answers: [(&str, Answer); 5] = [
        ("silence", |_, _| {
            std::thread::sleep(Duration::from_secs(20))
        }),
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
    ];
    for (name, answer) in answers {
        let (url, _) = serve(answer);
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&url, &folder);
        let work = std::thread::spawn(move || download(settings));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!work.is_finished(), "{name}");
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
}

#[test]
fn an_answer_that_trickles_has_an_end() {
    let _alone = crate::alone();
    type Answer = fn(&str, &mut TcpStream);
    let answers: [(&str, Answer); 2] = [
        ("headers", |_, stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n");
            send_slowly(stream, &"x: y\r\n".repeat(500), Duration::from_millis(100))
        }),
        ("json", |_, stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n");
            send_slowly(stream, &" ".repeat(5000), Duration::from_millis(100))
        }),
    ];
    for (name, answer) in answers {
        let (url, _) = serve(answer);
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(&url, &folder);
        settings.answer_timeout = Duration::from_millis(800);
        settings.attempts = 2;
        let started = Instant::now();
        let error = download(settings).unwrap_err().to_string();
        assert!(error.contains("own/model"), "{name}: {error}");
        assert!(started.elapsed() < Duration::from_secs(4), "{name}");
    }
}
