//! Signals while the kernel waits for a program: a build of the prelude or of a crate, or a shell command. The programs
//! must end, whatever the signal.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a program may take to begin or to end on a busy machine.
const LONG: Duration = Duration::from_secs(300);
/// How long an interrupt may take. Without other load it takes a fraction of a second.
const SOON: Duration = Duration::from_secs(5);

/// A toolchain whose cargo, where a shell condition about its arguments holds, starts a program that sleeps, and waits
/// for it.
struct SlowToolchain {
    folder: TempDir,
}

impl SlowToolchain {
    fn new(sleeps: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let printed = Command::new("rustc").args(["--print", "sysroot"]).output();
        let printed = String::from_utf8(printed.expect("rustc").stdout).expect("text");
        let (real, own) = (printed.trim(), folder.path().display());
        std::fs::create_dir(folder.path().join("bin")).expect("made");
        std::os::unix::fs::symlink(Path::new(real).join("lib"), folder.path().join("lib"))
            .expect("linked");
        let rustc = format!(
            "if [ \"$*\" = '--print sysroot' ]; then echo '{own}'; else exec '{real}/bin/rustc' \"$@\"; fi"
        );
        let cargo = format!(
            "if {sleeps}; then sleep 98765 & echo $! >> '{own}/sleepers'; wait; fi; exec '{real}/bin/cargo' \"$@\""
        );
        for (name, script) in [("rustc", rustc), ("cargo", cargo)] {
            let path = folder.path().join("bin").join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .expect("made a program");
        }
        Self { folder }
    }

    /// Starts a notebook with these cells, which goes on after errors.
    fn run(&self, cells: &[&str]) -> Child {
        self.start(cells, &["--allow-errors"])
    }

    fn start(&self, cells: &[&str], options: &[&str]) -> Child {
        let cells: Vec<Value> = cells
            .iter()
            .map(|source| json!({ "cell_type": "code", "execution_count": null, "metadata": {}, "outputs": [], "source": source }))
            .collect();
        let kernel = json!({ "name": "cloze", "display_name": "Cloze", "language": "rust" });
        let root = json!({ "cells": cells, "metadata": { "kernelspec": kernel }, "nbformat": 4, "nbformat_minor": 4 });
        std::fs::write(self.at("n.ipynb"), root.to_string()).expect("written");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.at("bin")).chain(std::env::split_paths(&path));
        Command::new(env!("CARGO_BIN_EXE_cloze"))
            .arg("run")
            .args(options)
            .arg(self.at("n.ipynb"))
            .env("PATH", std::env::join_paths(folders).expect("a path"))
            .env("CLOZE_KERNEL_CACHE", self.at("cache"))
            .env(
                "CLOZE_SOURCES",
                Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cloze was started")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the ids of the programs that sleep or have slept, once there is one.
    fn sleepers(&self) -> Vec<u32> {
        let start = Instant::now();
        loop {
            let ids = std::fs::read_to_string(self.at("sleepers")).unwrap_or_default();
            if ids.ends_with('\n') {
                return ids.lines().map(|id| id.parse().expect("an id")).collect();
            }
            assert!(start.elapsed() < LONG, "nothing was built");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Checks that all programs that slept are gone.
    fn assert_all_ended(&self) {
        for id in self.sleepers() {
            let start = Instant::now();
            while is_running(id) {
                assert!(start.elapsed() < SOON, "the program was left running");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Checks that the second of three cells was interrupted, and that the third found the first one's variable.
    fn assert_second_cell_was_interrupted(&self) {
        let cells = self.executed();
        let outputs = cells[1]["outputs"].as_array().expect("outputs");
        let failure = outputs.last().expect("an error");
        assert_eq!(failure["ename"], "Interrupted", "{failure}");
        assert_eq!(cells[2]["outputs"][0]["data"]["text/plain"][0], "6");
    }

    fn executed(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.at("n.executed.ipynb")).expect("written");
        let root: Value = serde_json::from_str(&text).expect("JSON");
        root["cells"].as_array().expect("cells").clone()
    }
}

fn is_running(id: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // A zombie has ended.
    state
        .rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(sent.expect("kill").success());
}

/// Waits for the end of a run that was told to end.
fn ends_soon(child: Child) -> Output {
    let start = Instant::now();
    let output = child.wait_with_output().expect("it ends");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    output
}

const PRELUDE: &str = "case \" $* \" in *' --release '*) ;; *) false;; esac";
const CRATE: &str = "case \" $* \" in *' cell/Cargo.toml '*) ;; *) false;; esac";
const DOWNLOAD: &str =
    "case \" $* \" in *--manifest-path*) false;; *' metadata '*) ;; *) false;; esac";

#[test]
fn a_signal_ends_the_build_of_the_prelude() {
    let toolchain = SlowToolchain::new(PRELUDE);
    for (name, told) in [
        ("INT", "interrupted while the prelude was being built"),
        ("TERM", "ended by SIGTERM"),
        ("HUP", "ended by SIGHUP"),
        ("KILL", ""),
    ] {
        let _ = std::fs::remove_file(toolchain.at("sleepers"));
        let child = toolchain.run(&["use cloze::prelude::*;"]);
        assert_eq!(toolchain.sleepers().len(), 1);
        signal(&child, name);
        let output = ends_soon(child);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(told),
            "{stderr}"
        );
        toolchain.assert_all_ended();
        assert!(!toolchain.at("n.executed.ipynb").exists());
    }
}

#[test]
fn an_interrupt_ends_the_build_of_a_crate_and_the_session_continues() {
    for phase in [CRATE, DOWNLOAD] {
        let toolchain = SlowToolchain::new(phase);
        let helper = toolchain.at("helper");
        std::fs::create_dir_all(helper.join("src")).expect("made");
        let manifest = "[package]\nname = \"helper\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        std::fs::write(helper.join("Cargo.toml"), manifest).expect("written");
        std::fs::write(helper.join("src/lib.rs"), "").expect("written");
        let cells = [
            "let kept = 5;",
            ":dep helper = { path = \"helper\" }",
            "kept + 1",
        ];
        let child = toolchain.run(&cells);
        toolchain.sleepers();
        signal(&child, "INT");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        toolchain.assert_all_ended();
        toolchain.assert_second_cell_was_interrupted();

        let _ = std::fs::remove_file(toolchain.at("sleepers"));
        let child = toolchain.run(&cells);
        toolchain.sleepers();
        signal(&child, "KILL");
        ends_soon(child);
        toolchain.assert_all_ended();
    }
}

#[test]
fn a_shell_command_shows_its_output_as_it_comes_and_hears_interrupts() {
    let toolchain = SlowToolchain::new("false");
    let command = format!(
        "!echo begun; sleep 98765 & echo $! >> '{}'; wait",
        toolchain.at("sleepers").display()
    );
    let mut child = toolchain.run(&["let kept = 5;", &command, "kept + 1"]);
    let stdout = child.stdout.take().expect("a pipe");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    assert!(
        lines.any(|line| line.expect("text") == "begun"),
        "it is shown while the command runs"
    );
    toolchain.sleepers();
    signal(&child, "INT");
    assert!(child.wait().expect("it ends").success());
    toolchain.assert_all_ended();
    toolchain.assert_second_cell_was_interrupted();
}

#[test]
fn an_interrupt_that_a_cell_does_not_hear_ends_the_run_behind_it() {
    let toolchain = SlowToolchain::new("false");
    let sleeps = format!(
        "std::fs::write({:?}, \"0\\n\").unwrap(); std::thread::sleep(std::time::Duration::from_secs(2)); println!(\"slept\");",
        toolchain.at("sleepers")
    );
    for (options, goes_on) in [(&[][..], false), (&["--allow-errors"][..], true)] {
        let _ = std::fs::remove_file(toolchain.at("sleepers"));
        let child = toolchain.start(&[&sleeps, "1 + 1"], options);
        toolchain.sleepers();
        signal(&child, "INT");
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), goes_on, "{stderr}");
        assert_eq!(
            stderr.contains("interrupted: the cells from 2 on were not run"),
            !goes_on,
            "{stderr}"
        );
        let cells = toolchain.executed();
        assert_eq!(cells[0]["outputs"][0]["text"][0], "slept\n");
        assert_eq!(
            cells[1]["outputs"].as_array().map(Vec::len),
            Some(usize::from(goes_on))
        );
    }
}
