//! `cloze run` on small notebooks, as a person at a shell meets it. None of them uses Cloze itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a notebook `n.ipynb` of these cells.
fn notebook(cells: &[&str]) -> TempDir {
    tagged_notebook(&cells.iter().map(|source| (*source, "")).collect::<Vec<_>>())
}

fn tagged_notebook(cells: &[(&str, &str)]) -> TempDir {
    let cells: Vec<Value> = cells
        .iter()
        .enumerate()
        .map(|(number, (source, tag))| {
            let tags: Vec<&str> = [*tag].into_iter().filter(|tag| !tag.is_empty()).collect();
            json!({ "cell_type": "code", "id": format!("c{number}"), "execution_count": null,
                    "metadata": { "tags": tags }, "outputs": [], "source": source })
        })
        .collect();
    let kernel = json!({ "name": "cloze", "display_name": "Cloze", "language": "rust" });
    let root = json!({ "cells": cells, "metadata": { "kernelspec": kernel }, "nbformat": 4, "nbformat_minor": 5 });
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("n.ipynb"), root.to_string()).expect("written");
    folder
}

fn cloze() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloze"));
    // One cache for all tests: what the kernel builds for itself is built once.
    command.env(
        "CLOZE_KERNEL_CACHE",
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-cache"),
    );
    command
}

fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    let output = cloze()
        .arg("run")
        .arg(folder.path().join("n.ipynb"))
        .args(arguments)
        .output();
    output.expect("cloze was started")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn written(folder: &TempDir) -> Value {
    read(&folder.path().join("n.executed.ipynb"))
}

fn read(path: &PathBuf) -> Value {
    let text = std::fs::read_to_string(path).expect("the executed notebook is there");
    serde_json::from_str(&text).expect("it is JSON")
}

/// The text of a cell's output.
fn text(output: &Value) -> String {
    let lines = output["text"]
        .as_array()
        .or_else(|| output["data"]["text/plain"].as_array());
    lines
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

#[test]
fn a_notebook_is_executed_and_written_with_its_outputs() {
    let folder = notebook(&[
        "let a = 20;",
        "fn twice(x: i32) -> i32 {\n    x * 2\n}",
        "println!(\"to stdout\");\neprintln!(\"to stderr\");\ntwice(a) + 2",
        "print!(\"no newline\");",
        "println!(\"EVCXR_BEGIN_CONTENT text/html\\n<b>bold</b>\\nEVCXR_END_CONTENT\");\nlet done = true;",
        "let _ = a;",
    ]);
    let output = run(&folder, &[]);
    assert!(output.status.success(), "{}", stdout(&output));
    assert!(
        stdout(&output).contains("to stdout\n42\n"),
        "{}",
        stdout(&output)
    );
    let cells = &written(&folder)["cells"];
    assert_eq!(cells[0]["outputs"], json!([]));
    assert_eq!(cells[0]["execution_count"], 1);
    let outputs = cells[2]["outputs"].as_array().expect("outputs");
    let find =
        |wanted: &dyn Fn(&Value) -> bool| outputs.iter().find(|output| wanted(output)).map(text);
    assert_eq!(
        find(&|output| output["name"] == "stdout").as_deref(),
        Some("to stdout\n")
    );
    assert_eq!(
        find(&|output| output["name"] == "stderr").as_deref(),
        Some("to stderr\n")
    );
    assert_eq!(
        find(&|output| output["output_type"] == "execute_result").as_deref(),
        Some("42")
    );
    assert_eq!(text(&cells[3]["outputs"][0]), "no newline");
    assert_eq!(
        cells[4]["outputs"][0]["data"]["text/html"],
        json!(["<b>bold</b>"])
    );
    assert_eq!(cells[5]["outputs"], json!([]), "a statement has no result");
    let original = read(&folder.path().join("n.ipynb"));
    assert_eq!(
        original["cells"][2]["outputs"],
        json!([]),
        "the notebook itself is left as it was"
    );
}

#[test]
fn a_compile_error_points_into_the_cell() {
    let folder = notebook(&[
        "let a = 1;",
        "let b: u32 = \"é\";\nlet c = 3;",
        "println!(\"never\");",
    ]);
    let output = run(&folder, &[]);
    assert_eq!(output.status.code(), Some(1));
    let shown = stdout(&output);
    assert!(shown.contains("error[E0308]: mismatched types"), "{shown}");
    assert!(shown.contains("1 | let b: u32 = \"é\";"), "{shown}");
    assert!(
        shown.contains("  |              ^^^ expected `u32`, found `&str`"),
        "{shown}"
    );
    let cells = &written(&folder)["cells"];
    assert_eq!(cells[1]["outputs"][0]["output_type"], "error");
    assert_eq!(cells[1]["outputs"][0]["ename"], "error[E0308]");
    assert_eq!(cells[2]["outputs"], json!([]), "what follows is not run");
}

#[test]
fn a_panic_names_its_line_and_keeps_earlier_variables() {
    let folder = notebook(&[
        "let v = vec![1];",
        "let i = 5;\nprintln!(\"before\");\nlet x = v[i];",
        "v.len()",
    ]);
    let output = run(&folder, &["--allow-errors"]);
    assert!(output.status.success());
    let cells = &written(&folder)["cells"];
    assert_eq!(text(&cells[1]["outputs"][0]), "before\n");
    let error = &cells[1]["outputs"][1];
    assert_eq!(error["ename"], "panic");
    assert_eq!(
        error["evalue"],
        "index out of bounds: the len is 1 but the index is 5"
    );
    let traceback = error["traceback"].to_string();
    assert!(
        traceback.contains("let x = v[i];") && !traceback.contains(".rs"),
        "{traceback}"
    );
    assert_eq!(text(&cells[2]["outputs"][0]), "1");
}

#[test]
fn a_returned_error_fails_the_cell_with_its_causes() {
    let folder = notebook(&[
        r#"#[derive(Debug)]
           struct Outer(std::num::ParseIntError);
           impl std::fmt::Display for Outer {
               fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result { write!(f, "no number there") }
           }
           impl std::error::Error for Outer {
               fn source(&self) -> Option<&(dyn std::error::Error + 'static)> { Some(&self.0) }
           }"#,
        r#"fn parse(text: &str) -> Result<i32, Box<dyn std::error::Error>> {
               Ok(text.parse().map_err(Outer)?)
           }"#,
        "let fine = parse(\"3\")?;",
        "let broken = parse(\"x\")?;",
        "let text = std::fs::read_to_string(\"/nowhere\")?;",
        "fine",
    ]);
    let output = run(&folder, &["--allow-errors"]);
    assert!(output.status.success(), "{}", stdout(&output));
    let cells = &written(&folder)["cells"];
    let error = &cells[3]["outputs"][0];
    assert_eq!(error["ename"], "Box<dyn Error>");
    assert_eq!(error["evalue"], "no number there");
    assert!(
        error["traceback"].to_string().contains("invalid digit"),
        "{error}"
    );
    assert_eq!(cells[4]["outputs"][0]["ename"], "std::io::Error");
    assert_eq!(text(&cells[5]["outputs"][0]), "3");
}

#[test]
fn the_first_failing_cell_ends_the_run_with_status_1() {
    let folder = notebook(&["panic!(\"one\");", "panic!(\"two\");"]);
    let output = run(&folder, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("panic: one") && !stdout(&output).contains("two"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("failed at cell 1"));
}

#[test]
fn a_crash_leaves_a_usable_session() {
    let folder = notebook(&[
        "let a = 1;\nfn kept() -> i32 { 7 }",
        "println!(\"last words\");\nunsafe { std::ptr::null_mut::<u8>().write_volatile(1) };",
        "std::process::exit(3)",
        "kept()",
        "a",
    ]);
    let output = run(&folder, &["--allow-errors"]);
    assert!(output.status.success(), "{}", stdout(&output));
    let cells = &written(&folder)["cells"];
    let crash = cells[1]["outputs"]
        .as_array()
        .expect("outputs")
        .last()
        .expect("an error")
        .clone();
    assert_eq!(text(&cells[1]["outputs"][0]), "last words\n");
    assert_eq!(crash["ename"], "SegmentationFault");
    assert!(
        crash["evalue"]
            .as_str()
            .expect("text")
            .contains("Lost variables: a"),
        "{crash}"
    );
    assert_eq!(cells[2]["outputs"][0]["ename"], "ProcessExited");
    assert_eq!(text(&cells[3]["outputs"][0]), "7");
    assert_eq!(
        cells[4]["outputs"][0]["ename"], "error[E0425]",
        "the variable is gone and the compiler says so"
    );
}

#[test]
fn a_cell_that_runs_too_long_is_stopped() {
    let folder = notebook(&[
        "let a = 1;",
        "loop { std::thread::sleep(std::time::Duration::from_millis(5)) }",
        "2 + 2",
    ]);
    let start = Instant::now();
    let output = run(&folder, &["--timeout", "3", "--allow-errors"]);
    assert!(start.elapsed() < Duration::from_secs(90));
    assert!(output.status.success(), "{}", stdout(&output));
    let cells = &written(&folder)["cells"];
    assert_eq!(cells[1]["outputs"][0]["ename"], "Timeout");
    assert_eq!(text(&cells[2]["outputs"][0]), "4");
}

#[test]
fn the_second_ctrl_c_ends_a_cell_that_does_not_listen() {
    let folder = notebook(&["println!(\"running\");\nloop {}"]);
    let mut child = cloze()
        .arg("run")
        .arg(folder.path().join("n.ipynb"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("cloze was started");
    let mut seen = String::new();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        child.stdout.take().expect("a pipe"),
    ));
    while seen != "running" {
        seen = lines
            .next()
            .expect("the cell prints before it hangs")
            .expect("text");
    }
    for _ in 0..2 {
        let sent = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .expect("kill");
        assert!(sent.success());
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
    assert_eq!(
        written(&folder)["cells"][0]["outputs"][1]["ename"],
        "Interrupted"
    );
}

#[test]
fn parameters_override_the_tagged_cell_in_its_types() {
    let folder = tagged_notebook(&[
        (
            "let steps = 3;\nlet rate: f64 = 0.5;\nlet name = \"a\";",
            "parameters",
        ),
        ("println!(\"{steps} {rate} {name}\");", ""),
    ]);
    let output = run(
        &folder,
        &[
            "--param", "steps=8", "--param", "rate=1", "--param", "name=b c",
        ],
    );
    assert!(output.status.success(), "{}", stdout(&output));
    assert!(stdout(&output).contains("8 1 b c"), "{}", stdout(&output));
    let cells = &written(&folder)["cells"];
    assert_eq!(cells[1]["metadata"]["tags"][0], "injected-parameters");
    let refused = run(&folder, &["--param", "stepz=8"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("it has: steps, rate, name"));
}

#[test]
fn the_output_goes_where_it_is_asked_to() {
    let folder = notebook(&["1 + 1"]);
    let to = folder.path().join("elsewhere.ipynb");
    let output = run(&folder, &["--output", to.to_str().expect("text")]);
    assert!(output.status.success());
    assert_eq!(text(&read(&to)["cells"][0]["outputs"][0]), "2");
    let output = run(&folder, &["--in-place"]);
    assert!(output.status.success());
    assert_eq!(
        text(&read(&folder.path().join("n.ipynb"))["cells"][0]["outputs"][0]),
        "2"
    );
    assert!(!folder.path().join("n.executed.ipynb").exists());
}

#[test]
fn cells_run_in_the_notebooks_folder() {
    let folder = notebook(&["std::fs::read_to_string(\"beside.txt\")?"]);
    std::fs::write(folder.path().join("beside.txt"), "found").expect("written");
    let output = run(&folder, &[]);
    assert!(stdout(&output).contains("\"found\""), "{}", stdout(&output));
}

#[test]
fn what_is_no_rust_notebook_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("n.ipynb"), "{\"cells\": [").expect("written");
    let output = run(&folder, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("n.ipynb is not a notebook that can be run")
    );
    let output = cloze()
        .args(["run", "/nowhere/n.ipynb"])
        .output()
        .expect("started");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/n.ipynb: No such file"));
}
