//! Logging in and pushing to a Hub on loopback.

use std::path::Path;
use std::time::Duration;

use crate::support::hub_server::{Fault, HubServer, TOKEN};
use cloze::hub::{Hub, PushOptions, Settings, Token};
use hyper::Method;

fn settings(server: &HubServer, home: &Path) -> Settings {
    let mut settings = Settings::from_env().unwrap().with_token(None);
    settings = settings.with_endpoint(server.url()).unwrap();
    settings.cache_dir = home.join("hub");
    settings.token_path = home.join("token");
    settings.offline = false;
    settings.first_delay = Duration::from_millis(5);
    settings.read_timeout = Duration::from_millis(500);
    settings
}

fn logged_in(server: &HubServer, home: &Path) -> Hub {
    Hub::new(settings(server, home).with_token(Some(Token::new(TOKEN).unwrap())))
}

/// A model folder: small text, large weights, a picture.
fn model_folder(home: &Path) -> std::path::PathBuf {
    let folder = home.join("my-model");
    std::fs::create_dir_all(folder.join("figures")).unwrap();
    let weights: Vec<u8> = (0..1_500_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    std::fs::write(folder.join("config.json"), "{\"model_type\": \"roberta\"}").unwrap();
    std::fs::write(folder.join("README.md"), "---\ntags: []\n---\n").unwrap();
    std::fs::write(folder.join("figures/loss.svg"), "<svg/>").unwrap();
    std::fs::write(folder.join(".env"), "secret").unwrap();
    folder
}

fn pushed_file(server: &HubServer, path: &str) -> Option<Vec<u8>> {
    server
        .state()
        .file("models", "tester/my-model", path)
        .map(|bytes| bytes.to_vec())
}

#[test]
fn login_verifies_and_stores_and_logout_removes() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let hub = Hub::new(settings(&server, home.path()));
    let text = hub.whoami().unwrap_err().to_string();
    assert!(
        text.contains("not logged in") && text.contains("notebook_login"),
        "{text}"
    );

    let error = hub.login("hf_wrongButSecretToken").unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("401") && !text.contains("hf_wrong"), "{text}");
    let token_file = home.path().join("token");
    assert!(
        !token_file.exists(),
        "a token that does not work is not stored"
    );

    let account = hub.login(&format!("  {TOKEN}\n")).unwrap();
    assert_eq!(
        (account.name.as_str(), account.role.as_deref()),
        ("tester", Some("write"))
    );
    assert_eq!(account.organizations, ["testers"]);
    assert_eq!(std::fs::read_to_string(&token_file).unwrap(), TOKEN);
    let stored = std::fs::read_to_string(home.path().join("stored_tokens")).unwrap();
    assert_eq!(stored, format!("[for tests]\nhf_token = {TOKEN}\n\n"));
    #[cfg(unix)]
    for file in ["token", "stored_tokens"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = home
            .path()
            .join(file)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert!(!format!("{account:?}").contains(TOKEN));

    hub.logout().unwrap();
    assert!(!token_file.exists() && !home.path().join("stored_tokens").exists());
    hub.logout().unwrap();
}

#[cfg(unix)]
#[test]
fn a_token_is_written_and_removed_where_a_link_leads_and_never_over_a_device() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let at = |name: &str| home.path().join(name);
    std::fs::create_dir(at("secrets")).unwrap();
    std::fs::write(at("secrets/mine"), "old").unwrap();
    std::os::unix::fs::symlink("secrets/mine", at("token")).unwrap();
    let hub = Hub::new(settings(&server, home.path()));
    hub.login(TOKEN).unwrap();
    assert!(at("token").is_symlink());
    assert_eq!(std::fs::read_to_string(at("secrets/mine")).unwrap(), TOKEN);
    let mode = at("secrets/mine").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    hub.logout().unwrap();
    assert!(!at("secrets/mine").exists());
    // A pipe stands for whatever keeps nothing.
    let made = std::process::Command::new("mkfifo")
        .arg(at("pipe"))
        .status();
    assert!(made.is_ok_and(|made| made.success()));
    let mut piped = settings(&server, home.path());
    piped.token_path = at("pipe");
    let reader = std::thread::spawn({
        let pipe = at("pipe");
        move || std::fs::read_to_string(pipe)
    });
    let hub = Hub::new(piped);
    hub.login(TOKEN).unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), TOKEN);
    hub.logout().unwrap();
    assert!(at("pipe").metadata().unwrap().file_type().is_fifo());
}

#[test]
fn a_folder_becomes_one_commit_and_a_second_push_sends_only_changes() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let hub = logged_in(&server, home.path());
    let folder = model_folder(home.path());
    let options = PushOptions::new()
        .private(true)
        .message("First")
        .ignore("*.tmp");
    let pushed = hub.push_folder("my-model", &folder, &options).unwrap();
    assert_eq!(pushed.repo, "tester/my-model");
    assert_eq!((pushed.changed, pushed.unchanged), (4, 0));
    {
        let state = server.state();
        let repo = &state.repos[&("models".to_owned(), "tester/my-model".to_owned())];
        assert!(repo.private);
        assert_eq!(
            repo.messages,
            ["by hand", "First"],
            "the repository's own first commit, and one"
        );
        assert_eq!(repo.commit("main").unwrap(), pushed.commit);
    }
    for file in [
        "model.safetensors",
        "config.json",
        "README.md",
        "figures/loss.svg",
    ] {
        assert_eq!(
            pushed_file(&server, file).unwrap(),
            std::fs::read(folder.join(file)).unwrap(),
            "{file}"
        );
    }
    assert_eq!(pushed_file(&server, ".env"), None);
    for request in server.take_log() {
        assert_eq!(request.authorization.is_none(), request.cdn, "{request:?}");
    }

    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let again = hub
        .push_folder("tester/my-model", &folder, &PushOptions::new())
        .unwrap();
    assert_eq!((again.changed, again.unchanged), (1, 3));
    assert!(
        !server.take_log().iter().any(|request| request.cdn),
        "the weights were there"
    );
    let nothing = hub
        .push_folder("tester/my-model", &folder, &PushOptions::new())
        .unwrap();
    assert_eq!(
        (nothing.changed, nothing.unchanged, &nothing.commit),
        (0, 4, &again.commit)
    );

    // What was pushed opens again.
    std::fs::write(folder.join("config.json"), "{\"model_type\": \"roberta\"}").unwrap();
    hub.push_folder("tester/my-model", &folder, &PushOptions::new())
        .unwrap();
    let local = hub.resolve("model", "tester/my-model").unwrap();
    let weights = std::fs::read(local.join("model.safetensors")).unwrap();
    assert_eq!(
        weights,
        std::fs::read(folder.join("model.safetensors")).unwrap()
    );
}

#[test]
fn large_files_are_uploaded_in_parts_on_request() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.state().part_size = Some(400_000);
    let folder = model_folder(home.path());
    server.fail(
        Some(Method::PUT),
        "partNumber=2",
        2,
        Fault::Status(500, None),
    );
    server.fail(Some(Method::PUT), "partNumber=3", 1, Fault::Drop);
    logged_in(&server, home.path())
        .push_folder("my-model", &folder, &PushOptions::new())
        .unwrap();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(pushed_file(&server, "model.safetensors").unwrap(), weights);
    let puts = server
        .take_log()
        .into_iter()
        .filter(|request| request.method == "PUT")
        .count();
    assert_eq!(puts, 4 + 3, "four parts, three of them again");
}

#[test]
fn failures_during_a_push_are_retried_or_leave_the_repository_unchanged() {
    let passing = [
        ("preupload", Fault::Status(503, None)),
        ("objects/batch", Fault::Status(429, Some(0))),
        ("put", Fault::Status(500, None)),
        ("put", Fault::Drop),
        ("put", Fault::DropAfterwards),
        ("verify", Fault::Drop),
        ("commit", Fault::Status(502, None)),
        ("commit", Fault::Drop),
        ("commit", Fault::DropAfterwards),
        // Somebody else's commit came in between.
        ("commit", Fault::Status(412, None)),
        ("commit", Fault::Status(409, None)),
        // The answer breaks off, does not come, or comes slowly.
        ("preupload", Fault::CutAfter(20)),
        ("preupload", Fault::StallAfter(20)),
        ("preupload", Fault::Slow(Duration::from_millis(200))),
        ("objects/batch", Fault::CutAfter(20)),
        ("commit", Fault::CutAfter(5)),
        ("commit", Fault::StallAfter(5)),
        ("put", Fault::StallAfter(0)),
        ("put", Fault::Status(429, Some(0))),
        ("repos/create", Fault::Status(500, None)),
        ("repos/create", Fault::DropAfterwards),
    ];
    for (path, fault) in passing {
        let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
        let folder = model_folder(home.path());
        server.fail(None, path, 1, fault.clone());
        let pushed = logged_in(&server, home.path())
            .push_folder("my-model", &folder, &PushOptions::new().message("Mine"))
            .unwrap_or_else(|e| panic!("{path} {fault:?}: {e}"));
        let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(
            pushed_file(&server, "model.safetensors").unwrap(),
            weights,
            "{path} {fault:?}"
        );
        let state = server.state();
        let repo = &state.repos[&("models".to_owned(), "tester/my-model".to_owned())];
        let commits = repo
            .messages
            .iter()
            .filter(|message| *message == "Mine")
            .count();
        assert_eq!(
            commits, 1,
            "{path} {fault:?}: one commit, however often it was tried"
        );
        assert_eq!(repo.commit("main").unwrap(), pushed.commit);
    }
    let lasting = [
        ("preupload", Fault::Status(500, None), "500"),
        ("put", Fault::Status(500, None), "500"),
        ("put", Fault::Status(403, None), "403"),
        ("commit", Fault::Status(500, None), "500"),
        // The server got other bytes than it was told of, or says so.
        ("put", Fault::Status(400, None), "400"),
        ("preupload", Fault::Html, "web page"),
        ("objects/batch", Fault::Html, "web page"),
        ("commit", Fault::Html, "web page"),
        ("preupload", Fault::Shorter(5), "an unexpected answer"),
        ("preupload", Fault::Longer(100_000_000), "longer than"),
        (
            "preupload",
            Fault::Redirect("http://127.0.0.1:1/".to_owned()),
            "can't be reached",
        ),
        ("commit", Fault::Status(401, None), "log in"),
    ];
    for (path, fault, said) in lasting {
        let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
        let folder = model_folder(home.path());
        let hub = logged_in(&server, home.path());
        server.fail(None, path, usize::MAX, fault.clone());
        let error = hub
            .push_folder("my-model", &folder, &PushOptions::new())
            .unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(
            text.contains(said) && text.contains("Nothing is lost") && text.contains("push_folder"),
            "{text}"
        );
        assert!(
            !text.contains(TOKEN) && !text.contains("verysecretsignature"),
            "{text}"
        );
        assert_eq!(
            pushed_file(&server, "config.json"),
            None,
            "nothing half-done is visible"
        );
        server.behave();
        hub.push_folder("my-model", &folder, &PushOptions::new())
            .unwrap();
        assert!(
            pushed_file(&server, "config.json").is_some(),
            "the next try completes"
        );
    }
}

#[test]
fn a_server_with_xet_is_served_by_lfs() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.state().xet = true;
    let folder = model_folder(home.path());
    let hub = logged_in(&server, home.path());
    hub.push_folder("my-model", &folder, &PushOptions::new())
        .unwrap();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(pushed_file(&server, "model.safetensors").unwrap(), weights);
    let local = hub.resolve("model", "tester/my-model").unwrap();
    assert_eq!(
        std::fs::read(local.join("model.safetensors")).unwrap(),
        weights
    );
    let log = server.take_log();
    assert!(
        !log.iter().any(|request| request.path.contains("xet")),
        "{log:?}"
    );
}

#[test]
fn an_empty_file_is_pushed_under_any_name() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path());
    std::fs::write(folder.join("empty.safetensors"), "").unwrap();
    let hub = logged_in(&server, home.path());
    hub.push_folder("my-model", &folder, &PushOptions::new())
        .unwrap();
    assert_eq!(pushed_file(&server, "empty.safetensors").unwrap(), b"");
    let again = hub
        .push_folder("my-model", &folder, &PushOptions::new())
        .unwrap();
    assert_eq!((again.changed, again.unchanged), (0, 5));
}

#[test]
fn the_token_does_not_follow_a_push_to_another_host() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path());
    let hub = logged_in(&server, home.path());
    let evil = format!("{}/steal", server.cdn_url());
    for path in [
        "repos/create",
        "preupload",
        "objects/batch",
        "put",
        "commit",
    ] {
        server.fail(None, path, usize::MAX, Fault::Redirect(evil.clone()));
        let error = hub
            .push_folder("my-model", &folder, &PushOptions::new())
            .unwrap_err();
        assert!(!format!("{error} {error:?}").contains(TOKEN));
        server.behave();
    }
    let stolen: Vec<_> = server
        .take_log()
        .into_iter()
        .filter(|request| request.path.contains("steal"))
        .collect();
    assert_eq!(stolen.len(), 5, "{stolen:?}");
    assert!(stolen.iter().all(|request| request.authorization.is_none()));
}

#[test]
fn links_in_a_folder_do_not_upload_outside_files() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path());
    let outside = home.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret.txt"), "secret").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, folder.join("linked")).unwrap();
    logged_in(&server, home.path())
        .push_folder("my-model", &folder, &PushOptions::new())
        .unwrap();
    assert_eq!(pushed_file(&server, "linked/secret.txt"), None);
}

#[test]
fn invalid_pushes_are_reported() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let folder = model_folder(home.path());
    let nobody = Hub::new(settings(&server, home.path()));
    let push = |hub: &Hub, repo: &str| {
        hub.push_folder(repo, &folder, &PushOptions::new())
            .unwrap_err()
            .to_string()
    };
    assert!(push(&nobody, "my-model").contains("not logged in"));
    assert!(push(&nobody, "tester/my-model").contains("log in"));
    let hub = logged_in(&server, home.path());
    let text = push(&hub, "stranger/model");
    assert!(
        text.contains("403") && text.contains("rights to create"),
        "{text}"
    );
    assert!(push(&hub, "a/b/c").contains("owner/name"));
    let empty = home.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let text = hub
        .push_folder("my-model", &empty, &PushOptions::new())
        .unwrap_err()
        .to_string();
    assert!(text.contains("contains no files"), "{text}");
    server.state().transfer = Some("xet".to_owned());
    let text = push(&hub, "my-model");
    assert!(
        text.contains("only by the transfer \"xet\"") && text.contains("hf upload tester/my-model"),
        "{text}"
    );
    let mut offline = settings(&server, home.path());
    offline.offline = true;
    server.take_log();
    assert!(push(&Hub::new(offline), "my-model").contains("HF_HUB_OFFLINE"));
    assert!(server.take_log().is_empty());
}
