//! Downloads that are interrupted, killed, or done by two processes at once.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::bench::{Bench, noise, read};
use crate::support::hub_server::store::sha256;
use crate::support::hub_server::{Fault, TOKEN};
use cloze::hub::{Hub, PushOptions};
use hyper::Method;

/// Set for the processes that a test starts; says what they do.
const TASK: &str = "CLOZE_TEST_TASK";

/// Runs this very test program with the settings of `bench` in its environment, to do `task`.
fn child(bench: &Bench, task: &str) -> Child {
    child_command(bench, task).spawn().unwrap()
}

fn child_command(bench: &Bench, task: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "hub_processes::child_process", "--nocapture"])
        .env(TASK, task)
        .env("HF_ENDPOINT", bench.server.url())
        .env("HF_HOME", bench.folder.path())
        .env("HF_TOKEN", TOKEN)
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a child process does; nothing when the tests run as usual.
#[test]
fn child_process() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let hub = Hub::from_env().unwrap();
    match task.split_once(' ') {
        Some(("resolve", name)) => {
            println!("resolved {}", hub.resolve("model", name).unwrap().display())
        }
        Some(("push", folder)) => println!(
            "{:?}",
            hub.push_folder("my-model", folder, &PushOptions::new())
                .unwrap()
        ),
        _ if task == "notebook_login" => println!("{:?}", cloze::hub::notebook_login()),
        _ => panic!("no such task: {task}"),
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what} did not happen"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a child prints that calls `notebook_login()` and is given `input`.
fn notebook_login(bench: &Bench, in_a_notebook: bool, input: &str) -> String {
    let mut command = child_command(bench, "notebook_login");
    command.env_remove("HF_TOKEN").stdin(Stdio::piped());
    if in_a_notebook {
        command.env("EVCXR_IS_RUNTIME", "1");
    } else {
        command.env_remove("EVCXR_IS_RUNTIME");
    }
    let mut child = command.spawn().unwrap();
    // A child that asks for nothing has no use for it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_notebook_asks_for_the_token_as_a_password() {
    let _alone = crate::alone();
    let bench = Bench::new();
    let text = notebook_login(&bench, true, &format!("{TOKEN}\n"));
    assert!(
        text.contains("EVCXR_INPUT_REQUEST_PASSWORD:Token"),
        "{text}"
    );
    assert!(
        text.contains("Account") && text.contains("tester") && !text.contains(TOKEN),
        "{text}"
    );
    let stored = std::fs::read_to_string(bench.folder.path().join("token")).unwrap();
    assert_eq!(stored, TOKEN);

    let bench = Bench::new();
    let text = notebook_login(&bench, true, "hf_notTheRightOne\n");
    assert!(
        text.contains("401") && !text.contains("hf_notTheRightOne"),
        "{text}"
    );
    assert!(!bench.folder.path().join("token").exists());
    let text = notebook_login(&bench, true, "\n");
    assert!(text.contains("it is empty"), "{text}");
    let text = notebook_login(&bench, false, &format!("{TOKEN}\n"));
    assert!(text.contains("needs a notebook or a terminal"), "{text}");
}

const NAME: &str = "tester/model";

#[test]
fn a_killed_download_is_resumed() {
    let _alone = crate::alone();
    let bench = Bench::new();
    let weights = noise(4_000_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    bench.server.fail(
        Some(Method::GET),
        "large",
        1,
        Fault::Slow(Duration::from_millis(40)),
    );
    let mut killed = child(&bench, &format!("resolve {NAME}"));
    let at = bench.folder.path().join("hub/models--tester--model");
    let incomplete = at
        .join("blobs")
        .join(format!("{}.incomplete", sha256(&weights)));
    wait_for("half a megabyte", || {
        incomplete
            .metadata()
            .is_ok_and(|found| found.len() > 500_000)
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    let kept = incomplete.metadata().unwrap().len();
    assert!(
        !at.join("refs/main").exists(),
        "the branch is not there before all of it is"
    );
    assert!(bench.offline().resolve("model", NAME).is_err());

    bench.server.take_log();
    let output = child(&bench, &format!("resolve {NAME}"))
        .wait_with_output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let range = bench
        .server
        .take_log()
        .into_iter()
        .find_map(|request| request.range);
    assert_eq!(range.unwrap(), format!("bytes={kept}-"));
    let folder = bench.offline().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
}

#[test]
fn concurrent_processes_download_a_file_once() {
    let _alone = crate::alone();
    let bench = Bench::new();
    let weights = noise(2_000_000);
    bench.server.commit(
        "models",
        NAME,
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    bench.server.fail(
        Some(Method::GET),
        "large",
        usize::MAX,
        Fault::Slow(Duration::from_millis(10)),
    );
    let children: Vec<Child> = (0..4)
        .map(|_| child(&bench, &format!("resolve {NAME}")))
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let large = bench
        .server
        .take_log()
        .into_iter()
        .filter(|request| request.cdn)
        .count();
    assert_eq!(large, 1);
    let folder = bench.offline().resolve("model", NAME).unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
}

#[test]
fn a_killed_push_is_completed_by_the_next() {
    let _alone = crate::alone();
    let bench = Bench::new();
    let folder = bench.folder.path().join("my-model");
    std::fs::create_dir(&folder).unwrap();
    let (one, two) = (noise(500_000), noise(600_000));
    std::fs::write(folder.join("model-1.safetensors"), &one).unwrap();
    std::fs::write(folder.join("model-2.safetensors"), &two).unwrap();
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    // The commit never gets an answer, so that the process hangs at the worst moment.
    bench
        .server
        .fail(Some(Method::POST), "/commit/", 1, Fault::StallAfter(0));
    bench
        .server
        .fail(Some(Method::PUT), &sha256(&two), 1, Fault::StallAfter(0));
    let task = format!("push {}", folder.display());
    for until in ["/put/", "/commit/"] {
        let mut killed = child(&bench, &task);
        wait_for(until, || {
            bench
                .server
                .state()
                .log
                .iter()
                .any(|request| request.path.contains(until))
        });
        std::thread::sleep(Duration::from_millis(200));
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    let output = child(&bench, &task).wait_with_output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{text}");
    assert!(!text.contains(TOKEN));
    let state = bench.server.state();
    for (file, content) in [("model-1.safetensors", &one), ("model-2.safetensors", &two)] {
        assert_eq!(
            &state.file("models", "tester/my-model", file).unwrap(),
            content,
            "{file}"
        );
    }
}

#[test]
fn an_interrupt_ends_a_download_and_keeps_the_partial_file() {
    let _alone = crate::alone();
    let bench = Bench::new();
    let weights = noise(3_000_000);
    bench.server.commit(
        "models",
        "tester/interrupted",
        &[("config.json", b"{}"), ("model.safetensors", &weights)],
    );
    bench.server.fail(
        Some(Method::GET),
        "large",
        1,
        Fault::Slow(Duration::from_millis(30)),
    );
    let hub = bench.hub();
    let interrupted = std::thread::scope(|scope| {
        let download = scope.spawn(|| hub.resolve("model", "tester/interrupted"));
        std::thread::sleep(Duration::from_millis(400));
        cloze::interrupt::request();
        let result = download.join().unwrap();
        cloze::interrupt::clear();
        result
    });
    let text = interrupted.unwrap_err().to_string();
    assert!(text.contains("interrupted while downloading"), "{text}");
    bench.server.take_log();
    let folder = hub.resolve("model", "tester/interrupted").unwrap();
    assert_eq!(read(&folder, "model.safetensors"), weights);
    assert!(
        bench
            .server
            .take_log()
            .iter()
            .any(|request| request.range.is_some()),
        "it resumed"
    );
}
