//! Downloads from a Hub on loopback: what is fetched, what is kept, and what happens when things go wrong.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::small_disk::SmallDisk;
use crate::support::bench::{Bench, files_under, noise, read};
use crate::support::hub_server::store::{git_oid, sha256};
use crate::support::hub_server::{Fault, TOKEN};
use cloze::hub::{Hub, RepoKind, Token};
use hyper::Method;

const NAME: &str = "tester/model";
const FOLDER: &str = "models--tester--model";

#[test]
fn a_model_is_downloaded_once_and_only_what_it_needs() {
    let bench = Bench::new();
    let weights = noise(3_000_000);
    let commit = bench.server.commit(
        "models",
        NAME,
        &[
            ("config.json", b"{}"),
            ("model.safetensors", &weights),
            ("pytorch_model.bin", b"pickle"),
            ("tf_model.h5", b"tf"),
            ("README.md", b"read me"),
            ("tokenizer.json", b"{\"tokenizer\": 1}"),
        ],
    );
    let folder = bench.hub().resolve("model", NAME).unwrap();
    assert_eq!(
        folder,
        bench
            .folder
            .path()
            .join("hub")
            .join(FOLDER)
            .join("snapshots")
            .join(&commit)
    );
    assert_eq!(read(&folder, "model.safetensors"), weights);
    assert_eq!(
        std::fs::read_dir(&folder).unwrap().count(),
        2,
        "config and weights alone"
    );
    // The layout of the Python library: content under its ETag, the branch's commit without a line end.
    let mut expected = [sha256(&weights), git_oid(b"{}")];
    expected.sort();
    assert_eq!(bench.blobs(FOLDER), expected);
    let at = bench.folder.path().join("hub").join(FOLDER);
    assert_eq!(
        std::fs::read_to_string(at.join("refs/main")).unwrap(),
        commit
    );
    assert_eq!(
        std::fs::read_link(folder.join("config.json")).unwrap(),
        Path::new("../../blobs").join(git_oid(b"{}"))
    );

    bench.server.take_log();
    assert_eq!(bench.hub().resolve("model", NAME).unwrap(), folder);
    let log = bench.server.take_log();
    assert_eq!(log.len(), 1, "a warm cache needs one question: {log:?}");
    assert_eq!(
        bench
            .hub()
            .resolve("model", &format!("{NAME}@{commit}"))
            .unwrap(),
        folder
    );
    assert_eq!(bench.offline().resolve("model", NAME).unwrap(), folder);
    assert!(
        bench.server.take_log().is_empty(),
        "a commit and an offline cache need none"
    );

    assert_eq!(bench.hub().resolve("tokenizer", NAME).unwrap(), folder);
    assert_eq!(read(&folder, "tokenizer.json"), b"{\"tokenizer\": 1}");
}

#[test]
fn a_new_commit_is_found_and_the_old_one_kept() {
    let bench = Bench::new();
    let first = bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", b"one")],
    );
    let old = bench.hub().resolve("model", NAME).unwrap();
    bench
        .server
        .commit("models", NAME, &[("model.safetensors", b"two")]);
    let new = bench.hub().resolve("model", NAME).unwrap();
    assert_ne!(old, new);
    assert_eq!(read(&new, "model.safetensors"), b"two");
    let again = bench
        .hub()
        .resolve("model", &format!("{NAME}@{first}"))
        .unwrap();
    assert_eq!(read(&again, "model.safetensors"), b"one");
}

#[test]
fn branches_renamed_repositories_and_bare_names_are_found() {
    let bench = Bench::new();
    bench.server.commit(
        "models",
        "distilbert/base",
        &[("config.json", b"{}"), ("model.safetensors", b"w")],
    );
    {
        let mut state = bench.server.state();
        state
            .renamed
            .insert("base".to_owned(), "distilbert/base".to_owned());
        state.commit(
            "models",
            "distilbert/base",
            "refs/pr/1",
            [("config.json".to_owned(), b"{ }".to_vec())].into(),
        );
        state.commit(
            "models",
            "distilbert/base",
            "refs/pr/1",
            [("model.safetensors".to_owned(), b"v".to_vec())].into(),
        );
    }
    let bare = bench.hub().resolve("model", "base").unwrap();
    assert_eq!(read(&bare, "model.safetensors"), b"w");
    assert!(
        bare.to_string_lossy().contains("models--base"),
        "the cache goes by the name as given"
    );
    let pr = bench
        .hub()
        .resolve("model", "distilbert/base@refs/pr/1")
        .unwrap();
    assert_eq!(read(&pr, "config.json"), b"{ }");
    assert_eq!(
        bench
            .offline()
            .resolve("model", "distilbert/base@refs/pr/1")
            .unwrap(),
        pr
    );
}

#[test]
fn shards_follow_their_index() {
    let bench = Bench::new();
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    bench.server.commit(
        "models",
        NAME,
        &[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index.as_bytes()),
            ("model-00001-of-00002.safetensors", b"one"),
            ("model-00002-of-00002.safetensors", b"two"),
            ("model-00001-of-00001.safetensors", b"another"),
        ],
    );
    let folder = bench.hub().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model-00002-of-00002.safetensors"), b"two");
    assert!(!folder.join("model-00001-of-00001.safetensors").exists());
    std::fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let text = bench
        .offline()
        .resolve("model", NAME)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("HF_HUB_OFFLINE") && text.contains("model.safetensors"),
        "{text}"
    );
}

#[test]
fn missing_repositories_and_files_are_reported() {
    let bench = Bench::new();
    bench
        .server
        .commit("models", NAME, &[("README.md", b"empty")]);
    let error = |name: &str| bench.hub().resolve("model", name).unwrap_err().to_string();
    let text = error("tester/nothing");
    assert!(
        text.contains("model \"tester/nothing\" was not found") && text.contains("private"),
        "{text}"
    );
    let text = error(&format!("{NAME}@v9"));
    assert!(
        text.contains("v9") && text.contains("was not found"),
        "{text}"
    );
    let text = error(NAME);
    assert!(text.contains("no config.json"), "{text}");
    let text = bench
        .hub()
        .download(RepoKind::Model, NAME, &["no.txt"])
        .unwrap_err()
        .to_string();
    assert!(text.contains("no.txt"), "{text}");
}

#[test]
fn private_repositories_open_with_a_token_that_stays_on_its_host() {
    let bench = Bench::new();
    let weights = noise(200_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    bench.server.state().private.insert(NAME.to_owned());
    let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
    assert!(
        text.contains("was not found") && text.contains("hub::login"),
        "{text}"
    );
    bench.server.take_log();

    let folder = bench.with_token().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
    let log = bench.server.take_log();
    assert!(
        log.iter().any(|request| request.cdn),
        "the weights come from the other host"
    );
    for request in log {
        assert_eq!(request.authorization.is_none(), request.cdn, "{request:?}");
    }
}

#[test]
fn an_expired_token_is_reported_without_showing_it() {
    let bench = Bench::new();
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", b"w")],
    );
    let expired = "hf_expiredSecretToken";
    let hub = Hub::new(
        bench
            .settings()
            .with_token(Some(Token::new(expired).unwrap())),
    );
    let error = hub.resolve("model", NAME).unwrap_err();
    let text = format!("{error} {error:?} {hub:?} {:?}", hub.settings());
    assert!(text.contains("401") && text.contains("log in"), "{text}");
    assert!(!text.contains(expired), "{text}");
}

#[test]
fn a_broken_connection_is_resumed() {
    let bench = Bench::new();
    let weights = noise(2_000_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    bench
        .server
        .fail(Some(Method::GET), "large", 3, Fault::CutAfter(500_000));
    let folder = bench.hub().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
    let ranges: Vec<_> = bench
        .server
        .take_log()
        .into_iter()
        .filter(|r| r.cdn)
        .map(|r| r.range)
        .collect();
    assert_eq!(ranges.len(), 4);
    assert_eq!(ranges[0], None);
    let start = |range: &Option<String>| -> usize {
        range
            .as_ref()
            .unwrap()
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap()
    };
    // What the broken connection still held may be lost; all else is kept.
    assert!(
        start(&ranges[1]) > 200_000 && start(&ranges[2]) > start(&ranges[1]),
        "{ranges:?}"
    );
    assert_eq!(bench.blobs(FOLDER).len(), 2, "no unfinished file is left");
}

#[test]
fn transient_errors_are_retried() {
    for fault in [
        Fault::Status(500, None),
        Fault::Status(503, None),
        Fault::Status(429, Some(0)),
        Fault::Drop,
        Fault::StallAfter(100_000),
        Fault::Slow(Duration::from_millis(40)),
    ] {
        let bench = Bench::new();
        let weights = noise(700_000);
        bench.server.commit(
            "models",
            NAME,
            &[("config.json", b"{}"), ("model.safetensors", &weights)],
        );
        if matches!(fault, Fault::Status(..) | Fault::Drop) {
            bench.server.fail(None, "/api/models", 2, fault.clone());
            bench.server.fail(None, "config.json", 2, fault.clone());
        }
        bench
            .server
            .fail(Some(Method::GET), "large", 2, fault.clone());
        let folder = bench
            .hub()
            .resolve("model", NAME)
            .unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert_eq!(read(&folder, "model.safetensors"), weights, "{fault:?}");
    }
}

#[test]
fn a_pause_requested_by_the_server_is_respected() {
    let bench = Bench::new();
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", b"w")],
    );
    bench
        .server
        .fail(None, "/api/models", 1, Fault::Status(429, Some(1)));
    let start = Instant::now();
    bench.hub().resolve("model", NAME).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    // An hour is too long for a person to wait: it is said instead.
    bench
        .server
        .fail(None, "/api/models", 1, Fault::Status(429, Some(3600)));
    let start = Instant::now();
    bench
        .server
        .commit("models", "tester/other", &[("config.json", b"{}")]);
    let text = bench
        .hub()
        .resolve("model", "tester/other")
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("429") && start.elapsed() < Duration::from_secs(5),
        "{text}"
    );
}

#[test]
fn after_permanent_server_errors_the_cache_is_used() {
    let bench = Bench::new();
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", b"w")],
    );
    let folder = bench.hub().resolve("model", NAME).unwrap();
    bench.server.take_log();
    bench
        .server
        .fail(None, "", usize::MAX, Fault::Status(502, None));
    assert_eq!(bench.hub().resolve("model", NAME).unwrap(), folder);
    assert_eq!(
        bench.server.take_log().len(),
        5,
        "as many attempts as the settings allow"
    );
    let text = bench
        .hub()
        .resolve("model", "tester/other")
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("502") && text.contains("try again later"),
        "{text}"
    );
}

#[test]
fn an_unreachable_hub_is_reported_at_once() {
    let bench = Bench::new();
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let settings = bench
        .settings()
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .unwrap();
    let start = Instant::now();
    let text = Hub::new(settings)
        .resolve("model", NAME)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("can't be reached") && text.contains("HF_ENDPOINT"),
        "{text}"
    );
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn tampered_content_is_refused_and_removed() {
    for (file, contains) in [
        ("config.json", "config.json"),
        ("model.safetensors", "large"),
    ] {
        let bench = Bench::new();
        bench.server.commit(
            "models",
            NAME,
            &[
                ("config.json", b"{\"a\": 1}"),
                ("model.safetensors", b"weights"),
            ],
        );
        bench
            .server
            .fail(Some(Method::GET), contains, usize::MAX, Fault::WrongBytes);
        let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
        assert!(
            text.contains(file) && text.contains("differs from what the server announced"),
            "{text}"
        );
        let folder = bench.folder.path().join("hub").join(FOLDER);
        assert!(
            !folder.join("refs/main").exists(),
            "nothing half-done is visible"
        );
        for path in files_under(&folder) {
            assert!(!path.to_string_lossy().contains("incomplete"), "{path:?}");
        }
        bench.server.behave();
        bench.hub().resolve("model", NAME).unwrap();
    }
}

#[test]
fn a_damaged_partial_download_is_discarded() {
    let bench = Bench::new();
    let weights = noise(400_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    let blobs = bench.folder.path().join("hub").join(FOLDER).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let incomplete = blobs.join(format!("{}.incomplete", sha256(&weights)));
    for part in [noise(1000).repeat(2), vec![7; 400_000], vec![7; 500_000]] {
        std::fs::write(&incomplete, part).unwrap();
        let folder = bench.hub().resolve("model", NAME).unwrap();
        assert_eq!(read(&folder, "model.safetensors"), weights);
        assert!(!incomplete.exists());
        std::fs::remove_dir_all(folder).unwrap();
        std::fs::remove_file(blobs.join(sha256(&weights))).unwrap();
    }
}

#[test]
fn a_truncated_blob_is_fetched_again() {
    let bench = Bench::new();
    let weights = noise(400_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    let folder = bench.hub().resolve("model", NAME).unwrap();
    let blob = std::fs::canonicalize(folder.join("model.safetensors")).unwrap();
    std::fs::write(&blob, &weights[..1000]).unwrap();
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    bench.hub().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
}

#[test]
fn wrong_lengths_are_refused() {
    let bench = Bench::new();
    let weights = noise(300_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    for (fault, said) in [
        (Fault::Longer(100_000_000), "more than"),
        (Fault::Shorter(10), "299990 bytes where 300000"),
    ] {
        bench
            .server
            .fail(Some(Method::GET), "large", usize::MAX, fault);
        let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
        assert!(text.contains(said), "{text}");
        let sizes = files_under(&bench.folder.path().join("hub"))
            .into_iter()
            .map(|path| path.metadata().unwrap().len());
        assert!(
            sizes.max().unwrap() <= 300_000,
            "no more is written than was announced"
        );
        bench.server.behave();
    }
    let folder = bench.hub().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
}

#[test]
fn a_server_without_range_requests_works() {
    let bench = Bench::new();
    let weights = noise(800_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    bench
        .server
        .fail(Some(Method::GET), "large", 1, Fault::CutAfter(300_000));
    bench
        .server
        .fail(Some(Method::GET), "large", usize::MAX, Fault::NoRange);
    let folder = bench.hub().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
}

#[test]
fn html_pages_in_place_of_answers_are_recognised() {
    let bench = Bench::new();
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", b"w")],
    );
    bench.server.fail(None, "/api/models", 1, Fault::Html);
    let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
    assert!(text.contains("web page instead of JSON"), "{text}");
    bench.server.fail(None, "config.json", 1, Fault::Html);
    let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
    assert!(
        text.contains("no ETag") && text.contains("config.json"),
        "{text}"
    );
    bench
        .server
        .fail(Some(Method::GET), "config.json", 1, Fault::Html);
    let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
    assert!(text.contains("bytes where 2 were announced"), "{text}");
}

#[test]
fn file_names_outside_the_folder_are_refused() {
    for name in [
        "../escape.json",
        "/tmp/escape.json",
        "a/../../escape.json",
        "a\\..\\escape.json",
        "./config.json",
    ] {
        let bench = Bench::new();
        bench.server.commit(
            "models",
            NAME,
            &[
                ("config.json", b"{}"),
                ("model.safetensors", b"w"),
                (name, b"evil"),
            ],
        );
        let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
        assert!(text.contains("would leave its folder"), "{text}");
        assert!(
            files_under(bench.folder.path()).is_empty(),
            "nothing was written for {name}"
        );
    }
    // A file that would have to be a folder at the same time.
    let bench = Bench::new();
    let files: [(&str, &[u8]); 2] = [("a", b"file"), ("a/b.json", b"inside")];
    bench.server.commit("models", NAME, &files);
    bench.hub().download(RepoKind::Model, NAME, &["a"]).unwrap();
    let text = bench
        .hub()
        .download(RepoKind::Model, NAME, &["a/b.json"])
        .unwrap_err()
        .to_string();
    assert!(text.contains("/a"), "{text}");
    let bench = Bench::new();
    let index = br#"{"weight_map": {"a": "../../../escape.safetensors"}}"#;
    bench.server.commit(
        "models",
        NAME,
        &[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index),
        ],
    );
    let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
    assert!(text.contains("not a plain file name"), "{text}");
    for path in ["../x", "/etc/passwd", "a/../../x"] {
        assert!(
            bench
                .hub()
                .download(RepoKind::Model, NAME, &[path])
                .is_err()
        );
    }
}

#[test]
fn the_token_does_not_follow_a_redirect_to_another_host() {
    let bench = Bench::new();
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", b"w")],
    );
    // The "other host" writes down whatever it is sent.
    let evil = format!(
        "{}/steal?X-Signature=verysecretsignature",
        bench.server.cdn_url()
    );
    for path in ["/api/models", "config.json"] {
        bench
            .server
            .fail(None, path, usize::MAX, Fault::Redirect(evil.clone()));
        let error = bench.with_token().resolve("model", NAME).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(
            !text.contains(TOKEN) && !text.contains("verysecretsignature"),
            "{text}"
        );
        bench.server.behave();
    }
    let log = bench.server.take_log();
    assert!(
        log.iter()
            .any(|request| request.cdn && request.path.contains("steal"))
    );
    for request in log.iter().filter(|request| request.cdn) {
        assert_eq!(request.authorization, None, "{request:?}");
    }
}

#[test]
fn a_server_with_xet_is_read_over_http() {
    let bench = Bench::new();
    let weights = noise(300_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    bench.server.state().xet = true;
    let folder = bench.with_token().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
    assert!(bench.blobs(FOLDER).contains(&sha256(&weights)));
    let log = bench.server.take_log();
    assert!(
        !log.iter().any(|request| request.path.contains("xet")),
        "{log:?}"
    );
}

#[test]
fn a_pickle_is_read_as_data_and_never_run() {
    // What `pickle` would take for a call of `os.system`: module, name, argument, call.
    let bench = Bench::new();
    let proof = bench.folder.path().join("executed");
    let pickle = format!("cos\nsystem\n(S'touch {}'\ntR.", proof.display());
    let mut archive = zip_of("archive/data.pkl", pickle.as_bytes());
    for weights in [pickle.clone().into_bytes(), std::mem::take(&mut archive)] {
        let name = format!("tester/evil-{}", weights.len());
        bench.server.commit(
            "models",
            &name,
            &[
                ("config.json", br#"{"model_type": "roberta"}"#),
                ("pytorch_model.bin", &weights),
            ],
        );
        let folder = bench.hub().resolve("model", &name).unwrap();
        let error = cloze::model::MaskedLm::from_pretrained(folder.to_str().unwrap());
        assert!(error.is_err());
        assert!(!proof.exists(), "the pickle was run");
    }
}

/// A ZIP archive of one file that is not compressed, as `torch.save` writes them.
fn zip_of(name: &str, content: &[u8]) -> Vec<u8> {
    let crc = crc32(content);
    let (len, name_len) = (content.len() as u32, name.len() as u16);
    let common = |out: &mut Vec<u8>| {
        // Version, flags, method, time, date.
        out.extend([20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend(crc.to_le_bytes());
        out.extend(len.to_le_bytes());
        out.extend(len.to_le_bytes());
        out.extend(name_len.to_le_bytes());
        out.extend([0, 0]);
    };
    let mut zip = b"PK\x03\x04".to_vec();
    common(&mut zip);
    zip.extend(name.as_bytes());
    zip.extend(content);
    let start = zip.len() as u32;
    zip.extend(b"PK\x01\x02\x14\x00");
    common(&mut zip);
    // Comment, disk, attributes, offset.
    zip.extend([0; 14]);
    zip.extend(name.as_bytes());
    let size = zip.len() as u32 - start;
    zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    zip.extend(size.to_le_bytes());
    zip.extend(start.to_le_bytes());
    zip.extend([0, 0]);
    zip
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[test]
fn endless_redirects_are_refused() {
    let bench = Bench::new();
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", b"w")],
    );
    bench.server.fail(
        None,
        "/api/models",
        usize::MAX,
        Fault::Redirect(format!("/api/models/{NAME}/revision/main")),
    );
    let text = bench.hub().resolve("model", NAME).unwrap_err().to_string();
    assert!(text.contains("redirects endlessly"), "{text}");
}

#[test]
fn a_full_disk_is_reported_and_the_partial_download_kept() {
    let bench = Bench::new();
    let weights = noise(3_000_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    let Some(disk) = SmallDisk::mount(1 << 10) else {
        return;
    };
    let mut settings = bench.settings();
    settings.cache_dir = disk.path().to_owned();
    let result = Hub::new(settings).resolve("model", NAME);
    let sizes: Vec<u64> = files_under(disk.path())
        .into_iter()
        .map(|path| path.metadata().unwrap().len())
        .collect();
    let text = result.unwrap_err().to_string();
    assert!(text.contains("the disk is full"), "{text}");
    assert!(
        sizes.into_iter().max().unwrap() > 500_000,
        "the next attempt resumes"
    );
}
