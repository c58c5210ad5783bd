//! `cloze launch` on notebooks that do not need the prelude. Without an `mpirun` the tests report that and pass.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

/// Executes a notebook with these cells on two ranks; returns `None` without mpirun.
fn launch(cells: &[&str]) -> Option<(TempDir, Output)> {
    let mpirun = Command::new("mpirun").arg("--version").output();
    if mpirun.is_err() {
        println!("SKIPPED: mpirun was not found (Debian: apt-get install openmpi-bin)");
        return None;
    }
    let cells: Vec<Value> = (cells.iter().enumerate())
        .map(|(number, source)| {
            json!({ "cell_type": "code", "id": format!("c{number}"), "execution_count": null, "metadata": {},
                    "outputs": [], "source": source })
        })
        .collect();
    let kernel = json!({ "name": "cloze", "display_name": "Cloze", "language": "rust" });
    let root = json!({ "cells": cells, "metadata": { "kernelspec": kernel }, "nbformat": 4, "nbformat_minor": 5 });
    let folder = tempfile::tempdir().expect("a folder");
    let notebook = folder.path().join("n.ipynb");
    std::fs::write(&notebook, root.to_string()).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_cloze"))
        .args(["launch", "-n", "2", "--"])
        .arg(notebook)
        .env(
            "CLOZE_KERNEL_CACHE",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-cache"),
        )
        .output()
        .expect("cloze was started");
    Some((folder, output))
}

const RANK: &str = "let rank: usize = std::env::var(\"OMPI_COMM_WORLD_RANK\")?.parse()?;";

#[test]
fn all_ranks_execute_the_notebook_and_the_first_one_shows_and_writes_it() {
    let note = "std::fs::write(format!(\"rank-{rank}\"), \"was here\")?;\nprintln!(\"rank {rank} speaks\");";
    let Some((folder, output)) = launch(&[RANK, note]) else {
        return;
    };
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{shown}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(shown.contains("rank 0 speaks"), "{shown}");
    assert!(!shown.contains("rank 1 speaks"), "{shown}");
    for rank in 0..2 {
        assert!(folder.path().join(format!("rank-{rank}")).is_file());
    }
    let written = std::fs::read_to_string(folder.path().join("n.executed.ipynb")).expect("written");
    assert!(written.contains("rank 0 speaks"));
    assert!(!written.contains("rank 1 speaks"));
}

#[test]
fn a_failing_cell_on_one_rank_ends_all_ranks_with_its_error() {
    let started = Instant::now();
    let fails = "if rank == 1 { panic!(\"this rank gives up\") }\nstd::thread::sleep(std::time::Duration::from_secs(100 * (1 - rank as u64)));";
    let Some((_folder, output)) = launch(&[RANK, fails]) else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("rank 1: ") && said.contains("this rank gives up"),
        "{said}"
    );
    assert!(started.elapsed().as_secs() < 90, "{said}");
}
