//! Safe connections and proxies: the stand-in behind TLS, with certificates that are trusted and others.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::bench::Bench;
use crate::support::fixture;
use crate::support::tunnel::{Proxy, tls_in_front_of};
use cloze::hub::{Hub, RepoKind};

/// Set for the processes that a test starts: the file to download.
const FILE: &str = "CLOZE_TEST_FILE";
const NAME: &str = "tester/model";

/// Every variable that decides over the way to the Hub, so that those of the person at the keyboard play no part.
const WAYS: [&str; 11] = [
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "https_proxy",
    "http_proxy",
    "no_proxy",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
];

/// What a process prints that downloads `file` from `endpoint`; these settings belong to the whole process.
fn download(bench: &Bench, endpoint: &str, file: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    for name in WAYS {
        command.env_remove(name);
    }
    let output = command
        .args(["--exact", "hub_https::child_process", "--nocapture"])
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_TOKEN")
        .env(FILE, file)
        .env("HF_ENDPOINT", endpoint)
        .env(
            "HF_HOME",
            tempfile::tempdir_in(bench.folder.path()).unwrap().keep(),
        )
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn child_process() {
    let Ok(file) = std::env::var(FILE) else {
        return;
    };
    let began = Instant::now();
    let hub = Hub::from_env().unwrap();
    match hub.download(RepoKind::Model, NAME, &[&file]) {
        Ok(folder) => println!(
            "downloaded {} bytes",
            std::fs::read(folder.join(&file)).unwrap().len()
        ),
        Err(error) => println!("refused: {error}"),
    }
    assert!(began.elapsed() < Duration::from_secs(20));
}

fn bench() -> Bench {
    let bench = Bench::new();
    let files: [(&str, &[u8]); 2] = [("config.json", b"{\"a\": 1}"), ("model.safetensors", b"w")];
    bench.server.commit("models", NAME, &files);
    bench
}

fn hub_of(bench: &Bench) -> SocketAddr {
    bench
        .server
        .url()
        .trim_start_matches("http://")
        .parse()
        .unwrap()
}

fn trusted() -> String {
    fixture("tls/ca.pem").to_str().unwrap().to_owned()
}

#[test]
fn a_trusted_certificate_opens_a_connection() {
    let bench = bench();
    let endpoint = format!(
        "https://localhost:{}",
        tls_in_front_of(hub_of(&bench)).port()
    );
    for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"] {
        let text = download(&bench, &endpoint, "config.json", &[(name, &trusted())]);
        assert!(text.contains("downloaded 8 bytes"), "{text}");
    }
}

#[test]
fn invalid_certificates_are_refused_at_once() {
    let bench = bench();
    let port = tls_in_front_of(hub_of(&bench)).port();
    let (right, wrong) = (
        format!("https://localhost:{port}"),
        format!("https://127.0.0.1:{port}"),
    );
    let ca = trusted();
    let none = fixture("tls/nothing.pem");
    let none = none.to_str().unwrap();
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, Variables, &str); 3] = [
        // Nobody whom the world trusts signed it.
        (&right, &[], "UnknownIssuer"),
        // It is for another name.
        (&wrong, &[("SSL_CERT_FILE", &ca)], "not valid for name"),
        (&right, &[("SSL_CERT_FILE", none)], "can't be read"),
    ];
    for (endpoint, variables, said) in cases {
        let text = download(&bench, endpoint, "config.json", variables);
        assert!(
            text.contains("refused:") && text.contains(said) && text.contains("SSL_CERT_FILE"),
            "{text}"
        );
    }
    assert!(
        bench.server.take_log().is_empty(),
        "nothing was asked over a connection that is not safe"
    );
}

#[test]
fn a_redirect_from_https_to_http_is_not_followed() {
    let bench = bench();
    let endpoint = format!(
        "https://localhost:{}",
        tls_in_front_of(hub_of(&bench)).port()
    );
    let text = download(
        &bench,
        &endpoint,
        "model.safetensors",
        &[("SSL_CERT_FILE", &trusted())],
    );
    assert!(
        text.contains("from https to an unencrypted connection"),
        "{text}"
    );
    assert!(!bench.server.take_log().iter().any(|request| request.cdn));
}

#[test]
fn a_server_without_tls_is_reported() {
    let bench = bench();
    let endpoint = format!("https://localhost:{}", hub_of(&bench).port());
    let text = download(&bench, &endpoint, "config.json", &[]);
    assert!(text.contains("no secure connection to localhost"), "{text}");
}

#[test]
fn requests_go_through_the_proxy_of_their_scheme() {
    let bench = bench();
    let (proxy, hub) = (Proxy::start(false), hub_of(&bench));
    let address = format!("http://me:verysecret@{}", proxy.address);
    let tls = tls_in_front_of(hub).port();
    let (safe, open) = (
        format!("https://localhost:{tls}"),
        format!("http://localhost:{}", hub.port()),
    );
    let ca = trusted();
    let ask = |endpoint: &str, variables: &[(&str, &str)]| {
        let variables = [&[("SSL_CERT_FILE", ca.as_str())][..], variables].concat();
        let text = download(&bench, endpoint, "config.json", &variables);
        assert!(text.contains("downloaded 8 bytes"), "{variables:?}: {text}");
        proxy.take_log()
    };
    let log = ask(&safe, &[("HTTPS_PROXY", &address)]);
    assert!(
        log[0].starts_with(&format!("CONNECT localhost:{tls} ")),
        "{log:?}"
    );
    assert!(log[0].contains("Proxy-Authorization: Basic "), "{log:?}");
    assert!(!ask(&open, &[("http_proxy", &address)]).is_empty());
    assert!(!ask(&safe, &[("ALL_PROXY", &address)]).is_empty());
    // The other scheme's proxy, and hosts that are exempt.
    assert!(ask(&open, &[("HTTPS_PROXY", &address)]).is_empty());
    assert!(
        ask(
            &safe,
            &[
                ("HTTPS_PROXY", &address),
                ("NO_PROXY", "example.org, localhost")
            ]
        )
        .is_empty()
    );
    assert!(ask(&safe, &[("HTTPS_PROXY", &address), ("no_proxy", "*")]).is_empty());
}

#[test]
fn a_refusing_proxy_is_reported() {
    let bench = bench();
    let proxy = Proxy::start(true);
    let address = format!("http://me:verysecret@{}", proxy.address);
    let text = download(
        &bench,
        "https://hub.example",
        "config.json",
        &[("HTTPS_PROXY", &address)],
    );
    assert!(
        text.contains("proxy") && text.contains("hub.example"),
        "{text}"
    );
    assert!(!text.contains("verysecret"), "{text}");
    let text = download(
        &bench,
        "https://hub.example",
        "config.json",
        &[("HTTPS_PROXY", "socks5://a:1")],
    );
    assert!(
        text.contains("HTTPS_PROXY is set to a SOCKS proxy"),
        "{text}"
    );
}
