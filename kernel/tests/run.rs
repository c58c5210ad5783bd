//! `cloze run` on small notebooks, run from a shell. None of the notebooks uses Cloze itself.

#[path = "../../tests/support/small_disk.rs"]
mod small_disk;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Creates a folder with a notebook `n.ipynb` that contains these cells.
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
    // All tests share a cache, so that the kernel builds its own parts only once.
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

/// Returns the text of a cell's output.
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
        "the notebook itself is unchanged"
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
    assert_eq!(cells[2]["outputs"], json!([]), "later cells are not run");
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
        "the compiler reports that the variable is gone"
    );
}

#[test]
fn a_cell_that_exceeds_the_time_limit_is_stopped() {
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
fn the_second_ctrl_c_ends_a_cell_that_ignores_the_first() {
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
fn parameters_override_the_tagged_cell_and_keep_its_types() {
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
    assert!(String::from_utf8_lossy(&refused.stderr).contains("there are: steps, rate, name"));
}

#[test]
fn the_output_is_written_to_the_requested_path() {
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
fn files_that_are_no_rust_notebooks_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("n.ipynb"), "{\"cells\": [").expect("written");
    let output = run(&folder, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("n.ipynb is not a notebook that Cloze can run")
    );
    let output = cloze()
        .args(["run", "/nowhere/n.ipynb"])
        .output()
        .expect("started");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/n.ipynb: No such file"));
}

/// Returns the traceback of a cell's error, without colours.
fn traceback(cell: &Value) -> String {
    let outputs = cell["outputs"].as_array().expect("outputs");
    let error = outputs
        .iter()
        .find(|output| output["output_type"] == "error");
    let lines = error.map_or(&Value::Null, |error| &error["traceback"]);
    let lines = lines
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let mut text = lines.collect::<Vec<_>>().join("\n");
    while let Some(start) = text.find("\u{1b}[") {
        let end = text[start..]
            .find('m')
            .map_or(text.len(), |at| start + at + 1);
        text.replace_range(start..end, "");
    }
    text
}

fn outputs_of(cell: &Value, stream: &str) -> String {
    let outputs = cell["outputs"].as_array().expect("outputs");
    outputs
        .iter()
        .filter(|output| output["name"] == stream)
        .map(text)
        .collect()
}

fn result(cell: &Value) -> String {
    let outputs = cell["outputs"].as_array().expect("outputs");
    outputs
        .iter()
        .filter(|output| output["output_type"] == "execute_result")
        .map(text)
        .collect()
}

/// Runs all cells, even after failures, and returns the executed ones.
fn executed(cells: &[&str]) -> Vec<Value> {
    let folder = notebook(cells);
    let output = run(&folder, &["--allow-errors"]);
    assert!(
        output.status.success(),
        "{}{}",
        stdout(&output),
        String::from_utf8_lossy(&output.stderr)
    );
    written(&folder)["cells"].as_array().expect("cells").clone()
}

#[test]
fn each_error_keeps_its_code_place_and_message() {
    let cells = executed(&[
        "fn area(w: f32, h: f32) -> f32 { w * h }\nenum Kind { A, B }\n#[derive(Debug)] struct Point { x: f32 }\n\
         impl Point { fn scale(&self, by: f32) -> f32 { self.x * by } }\ntrait Shape { fn name(&self) -> String; }\n\
         fn draw<T: Shape>(_: T) {}\nfn take(_: Vec<u8>) {}",
        "fn side(w: f32) -> f32 { w }\nside(2)",
        "area(2, 3.0)",
        "area(1.0)",
        "Point { x: 1.0 }.scale(\"a\")",
        "match Kind::A { Kind::A => 1 }",
        "draw(String::new())",
        "Point { x: 1.0 }.name()",
        "{ let v = vec![1u8];\ntake(v);\nv.len() }",
        "{ let v = vec![1u8];\nlet first = &v;\ntake(v);\nfirst.len() }",
        "Point { y: 1.0 }",
        "struct Bare;\nBare",
        "let m: HashMap<u8, u8> = HashMap::new();",
    ]);
    for (cell, code, line, words) in [
        (1, "E0308", "side(2)", "mismatched types"),
        (2, "E0308", "area(2, 3.0)", "in `area` of cell 1"),
        (3, "E0061", "area(1.0)", "argument"),
        (4, "E0308", "scale(\"a\")", "mismatched"),
        (5, "E0004", "match Kind::A", "non-exhaustive"),
        (6, "E0277", "draw(String::new())", "Shape"),
        (7, "E0599", "}.name()", "no method"),
        (8, "E0382", "v.len()", "moved"),
        (9, "E0505", "take(v);", "borrowed"),
        (10, "E0560", "Point { y: 1.0 }", "no field"),
        (11, "E", "Bare", "Debug"),
        (
            12,
            "E04",
            "let m: HashMap",
            "use std::collections::HashMap;",
        ),
    ] {
        let told = traceback(&cells[cell]);
        let first = told.lines().next().unwrap_or_default();
        assert!(
            first.starts_with(&format!("error[{code}")),
            "cell {}: {told}",
            cell + 1
        );
        assert!(
            told.contains(line) && told.contains(words) && told.contains('^'),
            "cell {}: {told}",
            cell + 1
        );
        assert!(!told.contains("evcxr"), "{told}");
    }
}

#[test]
fn an_error_that_a_redefinition_causes_in_an_earlier_cell_names_it() {
    let cells = executed(&[
        "fn base() -> i32 { 1 }",
        "fn twice() -> i32 {\n    base() * 2\n}",
        "fn base(x: i32) -> i32 { x }",
        "twice()",
    ]);
    let told = traceback(&cells[2]);
    assert!(
        told.contains("error[E0061]") && told.contains("in `twice` of cell 2"),
        "{told}"
    );
    assert!(told.contains("2 |     base() * 2"), "{told}");
    assert_eq!(result(&cells[3]), "2");
}

#[test]
fn control_words_printed_by_a_cell_are_text() {
    let cells = executed(&[
        "println!(\"see EVCXR_BEGIN_CONTENT text/html in the docs\");\nprintln!(\"after\");",
        "println!(\"EVCXR_BEGIN_CONTENT text/html\");\nprintln!(\"no end\");",
        "println!(\"EVCXR_PANIC_NOTIFICATION\\nEVCXR_ERROR_OCCURRED\");\nlet kept = 5;",
        "print!(\"half \");\nkept",
        "println!(\"EVCXR_PANIC_NOTIFICATION\");\nlet kept = 6;",
        "let doubled = dbg!(kept * 2) + 1;\nlet several = dbg!(kept, \"a\");\n(doubled, several)",
    ]);
    assert_eq!(text(&cells[4]["outputs"][0]), "EVCXR_PANIC_NOTIFICATION\n");
    assert_eq!(result(&cells[5]), "(13, (6, \"a\"))");
    assert_eq!(
        text(&cells[0]["outputs"][0]),
        "see EVCXR_BEGIN_CONTENT text/html in the docs\nafter\n"
    );
    assert_eq!(
        text(&cells[1]["outputs"][0]),
        "EVCXR_BEGIN_CONTENT text/html\nno end\n"
    );
    assert_eq!(
        text(&cells[2]["outputs"][0]),
        "EVCXR_PANIC_NOTIFICATION\nEVCXR_ERROR_OCCURRED\n"
    );
    assert_eq!(text(&cells[3]["outputs"][0]), "half ");
    assert_eq!(result(&cells[3]), "5");
}

#[test]
fn a_cell_that_returns_early_keeps_earlier_variables() {
    let cells = executed(&[
        "let model = vec![1, 2, 3];",
        "if model.len() > 2 { return Ok(()); }\nlet rest = 1;",
        "model.len()",
        "let other = 2;\nrest",
        "model.len() + 1",
        "return",
    ]);
    assert_eq!(result(&cells[2]), "3");
    assert!(
        traceback(&cells[3]).contains("E0425"),
        "{}",
        traceback(&cells[3])
    );
    assert_eq!(result(&cells[4]), "4");
    assert!(traceback(&cells[5]).contains('^'));
}

#[test]
fn variables_of_trait_object_types_are_kept() {
    let cells = executed(&[
        "let joined = std::thread::spawn(|| 1).join();",
        "let parsed = \"x\".parse::<i32>().map_err(|e| Box::new(e) as Box<dyn std::error::Error>);",
        "let mut out = Box::new(Vec::<u8>::new()) as Box<dyn std::io::Write>;\nlet caught = std::panic::catch_unwind(|| 2);",
        "out.write_all(b\"x\")?;\nlet again = joined;",
        "(parsed.is_err(), caught.is_ok(), again.is_ok())",
        "let never = panic!(\"on purpose\");",
        "caught.is_ok()",
    ]);
    for (number, cell) in cells[..4].iter().enumerate() {
        assert_eq!(traceback(cell), "", "cell {}", number + 1);
    }
    assert_eq!(result(&cells[4]), "(true, true, true)");
    assert!(
        traceback(&cells[5]).contains("on purpose"),
        "{}",
        traceback(&cells[5])
    );
    assert_eq!(result(&cells[6]), "true");
}

#[test]
fn syntax_errors_are_reported_where_they_are() {
    let cells = executed(&[
        "}",
        "let",
        "} let w = 1;",
        "println!(\"one\");\nlet = 5;",
        "let s = \"abc",
        "{",
        "w",
        "import numpy as np",
    ]);
    let told = traceback(&cells[7]);
    assert!(
        told.contains("found `numpy`") && !told.contains("keyword"),
        "{told}"
    );
    for (number, cell) in cells[..6].iter().enumerate() {
        let told = traceback(cell);
        assert!(
            told.starts_with("error") && told.contains('^'),
            "cell {}: {told}",
            number + 1
        );
        assert_eq!(outputs_of(cell, "stdout"), "");
    }
    assert!(traceback(&cells[6]).contains("E0425"));
}

#[test]
fn no_error_mentions_code_that_the_user_did_not_write() {
    let code = [
        "for x",
        "'a",
        "not kept",
        "impl",
        "pub",
        "fn f() ->",
        "extern crate",
        "mod zoo;",
        "let fn",
        "let if",
        "let match kept",
        "let x: Vec<",
        "static",
        "#[derive(Debug)]",
        "break",
        "return 5",
        "return Ok(5)",
        "print('a')",
        "++kept",
        "await",
        "a.",
        "let mut",
        "None::<i32>?;",
        "self.x",
        "macro_rules! add { ($a:expr) => { $a + 1 } }\nadd!(\"text\")",
        "let text = String::from(\"a\");\nlet part = &text[..];",
        "std::thread::spawn(|| panic!()).join()?;",
    ];
    let cells: Vec<&str> = ["let kept = 1;"]
        .into_iter()
        .chain(code)
        .chain(["kept"])
        .collect();
    let cells = executed(&cells);
    assert_eq!(result(&cells[cells.len() - 1]), "1");
    for (cell, code) in cells[1..].iter().zip(code) {
        let told = traceback(cell);
        assert!(told.starts_with("error"), "{code}: {told}");
        for internal in [
            "evcxr",
            "Evcxr",
            "no_mangle",
            "cloze_cell",
            "lib.rs",
            "inside of a closure",
            "Ok(())})",
            "persist",
        ] {
            assert!(!told.contains(internal), "{code}: {told}");
        }
    }
    let of = |code_of: &str| {
        let at = code.iter().position(|code| code.starts_with(code_of));
        traceback(&cells[1 + at.expect("it is there")])
    };
    assert!(of("print(").contains("expected function, found macro `print`"));
    assert!(of("break").contains("`break` outside of a loop"));
    assert!(of("return 5").contains("leaves the cell with `Ok(())`"));
    assert!(of("macro_rules!").contains("2 | add!(\"text\")"));
    assert!(of("let text").contains("`part` refers to another variable"));
}

#[test]
fn an_incomplete_expression_is_an_error_at_the_end_of_the_cell() {
    let cells = executed(&["let a = 1;\na +\n", "[1, 2][1..].len() *"]);
    for (cell, line) in cells.iter().zip(["2 | a +", "1 | [1, 2][1..].len() *"]) {
        let told = traceback(cell);
        assert!(told.contains("found the end of the cell"), "{told}");
        assert!(
            told.contains(line) && told.contains("^ the cell ends here"),
            "{told}"
        );
    }
}

#[test]
fn statics_keep_their_values_between_cells() {
    let cells = executed(&[
        "use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};\nuse std::sync::{LazyLock, Mutex};\n\
         static HITS: AtomicUsize = AtomicUsize::new(0);\nfn hit() -> usize { HITS.fetch_add(1, SeqCst) + 1 }\n\
         static NAMES: LazyLock<Mutex<Vec<String>>> = LazyLock::new(|| Mutex::new(vec![\"first\".to_owned()]));\n\
         fn calls() -> usize { static N: AtomicUsize = AtomicUsize::new(0); N.fetch_add(1, SeqCst) + 1 }\n\
         static mut LAST: u32 = 7;",
        "hit()",
        "NAMES.lock().unwrap().push(\"second\".into());\nunsafe { LAST += 1 };\ncalls();",
        "(hit(), calls(), NAMES.lock().unwrap().len(), unsafe { LAST })",
        "static HITS: AtomicUsize = AtomicUsize::new(10);",
        "hit()",
    ]);
    assert_eq!(result(&cells[1]), "1");
    assert_eq!(
        result(&cells[3]),
        "(2, 2, 2, 8)",
        "{}",
        traceback(&cells[3])
    );
    assert_eq!(result(&cells[5]), "11");
}

#[test]
fn panics_are_located_also_in_threads_and_earlier_cells() {
    let cells = executed(&[
        "fn pick(v: &[i32], i: usize) -> i32 {\n    v[i]\n}",
        "let a: u8 = 255; let b = a + std::env::args().count() as u8; b",
        "let q = vec![1]; q[7]",
        "let far = std::env::args().count() + 2;\npick(&vec![1; far - 2], far)",
        "let t = std::thread::spawn(|| panic!(\"in a worker\"));\nlet _ = t.join();",
        "let x = 4;\ndbg!(x + 1);\n(line!(), file!())",
    ]);
    for (cell, at) in [(1, 25), (2, 17)] {
        let mark = format!("  | {}^ panicked here", " ".repeat(at));
        let told = traceback(&cells[cell]);
        assert!(told.contains(&mark), "{told}");
    }
    let told = traceback(&cells[3]);
    assert!(
        told.contains("in `pick` of cell 1, line 2") && told.contains("2 |     v[i]"),
        "{told}"
    );
    assert!(
        told.contains("called from this cell") && told.contains("2 | pick(&vec![1; far - 2], far)"),
        "{told}"
    );
    let worker = outputs_of(&cells[4], "stderr");
    assert!(
        worker.contains("in a worker") && worker.contains("cell 5, line 1"),
        "{worker}"
    );
    assert!(
        !worker.contains("/rustc/") && worker.lines().count() < 8,
        "{worker}"
    );
    assert_eq!(
        outputs_of(&cells[5], "stderr"),
        "[cell 6, line 2] x + 1 = 5\n"
    );
    assert_eq!(result(&cells[5]), "(3, \"cell 6\")");
}

#[test]
fn stdout_and_stderr_keep_their_order() {
    let cells = executed(&[
        "println!(\"a\");\neprintln!(\"e\");\nprint!(\"b\");\neprint!(\"f\");\nprintln!(\"c\");",
    ]);
    let order: Vec<String> = cells[0]["outputs"]
        .as_array()
        .expect("outputs")
        .iter()
        .map(text)
        .collect();
    assert_eq!(order, ["a\n", "e\n", "b", "f", "c\n"]);
}

#[test]
fn stderr_of_libraries_threads_and_programs_keeps_its_place() {
    let rounds = 50;
    let cells = executed(&[&format!(
        "use std::io::Write;\n\
         // Like a library, which does not use the macros of cells.\n\
         fn library(i: usize) {{ let _ = std::io::stderr().write_all(format!(\"e{{i}}\\n\").as_bytes()); }}\n\
         for i in 0..{rounds} {{\n\
             println!(\"a{{i}}\");\n\
             library(i);\n\
             print!(\"b{{i}} \");\n\
             eprintln!(\"f{{i}}\");\n\
         }}\n\
         println!(\"thread\");\n\
         std::thread::spawn(|| library(100)).join().unwrap();\n\
         println!(\"program\");\n\
         std::process::Command::new(\"sh\").args([\"-c\", \"echo program >&2\"]).status()?;\n\
         println!(\"panic\");\n\
         let _ = std::thread::spawn(|| panic!(\"told\")).join();\n\
         println!(\"end\");"
    )]);
    let outputs = cells[0]["outputs"].as_array().expect("outputs");
    let order: Vec<(String, String)> = outputs
        .iter()
        .map(|output| {
            (
                output["name"].as_str().unwrap_or("").to_owned(),
                text(output),
            )
        })
        .collect();
    let mut expected: Vec<(String, String)> = Vec::new();
    let mut say = |stream: &str, text: String| match expected.last_mut() {
        Some(last) if last.0 == stream => last.1 += &text,
        _ => expected.push((stream.to_owned(), text)),
    };
    for i in 0..rounds {
        say("stdout", format!("a{i}\n"));
        say("stderr", format!("e{i}\n"));
        say("stdout", format!("b{i} "));
        say("stderr", format!("f{i}\n"));
    }
    say("stdout", "thread\n".into());
    say("stderr", "e100\n".into());
    say("stdout", "program\n".into());
    say("stderr", "program\n".into());
    say("stdout", "panic\n".into());
    assert_eq!(order[..order.len() - 2], expected);
    let [told, end] = &order[order.len() - 2..] else {
        panic!("{order:?}")
    };
    assert!(told.0 == "stderr" && told.1.contains("told"), "{told:?}");
    assert_eq!(end.1, "end\n");
}

#[test]
fn reading_input_without_a_terminal_returns_the_end_of_input() {
    let cells = executed(&[
        "let mut line = String::new();\nlet read = std::io::stdin().read_line(&mut line)?;\nread",
        "std::io::read_to_string(std::io::stdin())?",
    ]);
    assert_eq!(result(&cells[0]), "0");
    assert_eq!(result(&cells[1]), "\"\"");
}

/// Returns the seconds that each cell took, from the console output.
fn seconds(shown: &str) -> Vec<f64> {
    let times = shown.lines().filter_map(|line| {
        let (_, took) = line.split_once("ok, ")?;
        took.split(' ').next()?.parse().ok()
    });
    times.collect()
}

#[test]
fn a_hundred_thousand_lines_are_printed_quickly() {
    // On stdout, on stderr, and with each line flushed by itself.
    let folder = notebook(&[
        "for _ in 0..1 {}",
        "for i in 0..100_000 { println!(\"line {i}\"); }",
        "for i in 0..100_000 { eprintln!(\"line {i}\"); }",
        "use std::io::Write;\nfor i in 0..100_000 { print!(\"line {i}\\n\"); std::io::stdout().flush()?; }",
    ]);
    let output = run(&folder, &[]);
    assert!(output.status.success());
    let times = seconds(&stdout(&output));
    assert_eq!(times.len(), 4, "{times:?}");
    println!("seconds: {times:?}");
    // It takes about a fifth of a second on an idle machine, and would take a minute if it were quadratic.
    for time in &times[1..] {
        assert!(time - times[0] < 5.0, "{times:?}");
    }
    let written = written(&folder);
    for (cell, stream) in [(1, "stdout"), (2, "stderr"), (3, "stdout")] {
        let lines = outputs_of(&written["cells"][cell], stream);
        assert_eq!(lines.lines().count(), 100_000);
        assert!(lines.ends_with("line 99999\n"));
    }
}

#[test]
fn a_closed_pipe_does_not_end_the_run() {
    let folder = notebook(&[
        "for i in 0..20_000 { println!(\"line {i}\"); }",
        "std::fs::write(\"reached\", \"\")?;",
    ]);
    let mut child = cloze()
        .arg("run")
        .arg(folder.path().join("n.ipynb"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cloze was started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(folder.path().join("reached").exists());
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn nothing_is_written_before_the_first_cell_starts() {
    let folder = notebook(&["1 + 1"]);
    let path = folder.path().join("n.ipynb");
    let mut before: Value = read(&path);
    before["cells"][0]["outputs"] =
        json!([{ "output_type": "stream", "name": "stdout", "text": ["old\n"] }]);
    std::fs::write(&path, before.to_string()).expect("written");
    let output = cloze()
        .args(["run", "--in-place"])
        .arg(&path)
        .env("PATH", "/nowhere")
        .env("HOME", folder.path())
        .env_remove("CARGO_HOME")
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("rustc"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(read(&path), before);
}

#[test]
fn a_terminated_run_saves_its_results() {
    let folder = notebook(&[
        "println!(\"first\");",
        "println!(\"running\");\nstd::process::Command::new(\"sleep\").arg(\"7531\").spawn()?;\nloop { std::thread::sleep(std::time::Duration::from_millis(5)); }",
        "println!(\"never\");",
    ]);
    let path = folder.path().join("n.ipynb");
    let mut before: Value = read(&path);
    before["cells"][2]["outputs"] =
        json!([{ "output_type": "stream", "name": "stdout", "text": ["old\n"] }]);
    std::fs::write(&path, before.to_string()).expect("written");
    let mut child = cloze()
        .arg("run")
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("cloze was started");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        child.stdout.take().expect("a pipe"),
    ));
    while lines
        .next()
        .expect("the cell prints before it hangs")
        .expect("text")
        != "running"
    {}
    std::thread::sleep(Duration::from_millis(300));
    let sent = Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .expect("kill");
    assert!(sent.success());
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
    let cells = &written(&folder)["cells"];
    assert_eq!(outputs_of(&cells[0], "stdout"), "first\n");
    assert_eq!(outputs_of(&cells[1], "stdout"), "running\n");
    assert!(
        traceback(&cells[1]).contains("SIGTERM"),
        "{}",
        traceback(&cells[1])
    );
    assert_eq!(
        outputs_of(&cells[2], "stdout"),
        "old\n",
        "cells that were not reached are kept"
    );
    // Processes started by the cell have ended, too.
    let left = Command::new("pgrep")
        .args(["-f", "^sleep 7531$"])
        .output()
        .expect("pgrep");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

/// What else lies in a folder beside a notebook.
fn beside(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| !path.ends_with("n.ipynb")).collect()
}

#[test]
fn a_run_that_is_killed_while_it_writes_leaves_the_notebook_old_or_new_and_its_litter_goes() {
    let folder = notebook(&["println!(\"{}\", \"word \".repeat(4 << 20));"]);
    let path = folder.path().join("n.ipynb");
    let before = std::fs::read(&path).expect("read");
    // Killed when there is so much of the new file, in bytes.
    for moment in [1, 1 << 20, 16 << 20] {
        let mut child = cloze()
            .args(["run", "--in-place"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cloze was started");
        let unfinished = || {
            let hidden = beside(folder.path()).into_iter().next()?;
            std::fs::metadata(hidden.join("n.ipynb")).ok()
        };
        while unfinished().is_none_or(|file| file.len() < moment) {
            if child.try_wait().expect("waited").is_some() {
                break;
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        let after = std::fs::read(&path).expect("it is there");
        if after != before {
            let json: Value = serde_json::from_slice(&after).expect("it is whole");
            assert_eq!(
                outputs_of(&json["cells"][0], "stdout").len(),
                (20 << 20) + 1
            );
            std::fs::write(&path, &before).expect("written");
        }
    }
    assert!(run(&folder, &["--in-place"]).status.success());
    assert_eq!(beside(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn an_outcome_for_which_there_is_no_room_is_saved_elsewhere_and_named() {
    let Some(disk) = small_disk::SmallDisk::mount(64) else {
        return;
    };
    let folder = notebook(&["println!(\"{}\", \"word \".repeat(20_000));"]);
    let out = disk.path().join("out.ipynb");
    std::fs::write(&out, "old").expect("written");
    let output = run(&folder, &["-o", out.to_str().expect("text")]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(std::fs::read(&out).expect("read"), b"old");
    assert_eq!(std::fs::read_dir(disk.path()).expect("read").count(), 1);
    let saved = told.split("saved as ").nth(1);
    let saved = saved.and_then(|rest| rest.split(" instead").next());
    let saved = read(&PathBuf::from(saved.unwrap_or_else(|| panic!("{told}"))));
    assert_eq!(outputs_of(&saved["cells"][0], "stdout").len(), 100_001);
}

#[test]
fn the_output_may_be_a_pipe_standard_output_or_a_link() {
    let folder = notebook(&["1 + 1"]);
    let output = run(&folder, &["-o", "-"]);
    assert!(output.status.success());
    let shown: Value = serde_json::from_str(&stdout(&output)).expect("nothing but the notebook");
    assert_eq!(result(&shown["cells"][0]), "2");
    assert!(!folder.path().join("-").exists());
    std::fs::create_dir(folder.path().join("real")).expect("made");
    let real = folder.path().join("real/n.ipynb");
    std::fs::rename(folder.path().join("n.ipynb"), &real).expect("moved");
    std::os::unix::fs::symlink(&real, folder.path().join("n.ipynb")).expect("linked");
    assert!(run(&folder, &["--in-place"]).status.success());
    assert!(folder.path().join("n.ipynb").is_symlink());
    assert_eq!(result(&read(&real)["cells"][0]), "2");
    let below_a_file = real.join("out.ipynb");
    let refused = run(&folder, &["-o", below_a_file.to_str().expect("text")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(!stdout(&refused).contains("[1/1]"), "nothing is run");
}

#[test]
fn tags_of_other_runners_are_honoured() {
    let folder = tagged_notebook(&[
        ("panic!(\"expected\");", "raises-exception"),
        ("std::fs::write(\"ran\", \"\")?;", "skip-execution"),
        ("3 * 3", ""),
    ]);
    let output = run(&folder, &[]);
    assert!(output.status.success(), "{}", stdout(&output));
    assert!(!folder.path().join("ran").exists());
    assert_eq!(result(&written(&folder)["cells"][2]), "9");
}

#[test]
fn commands_that_would_end_the_program_are_errors() {
    let cells = executed(&[
        "let a = 1;",
        ":quit",
        ":fmt {:#?}",
        ":vars",
        "!echo hello",
        "a",
        ":opt 9",
        "a + 1",
    ]);
    assert!(traceback(&cells[1]).contains(":quit"));
    assert!(traceback(&cells[2]).contains("no effect"));
    assert!(cells[3]["outputs"].to_string().contains("i32"));
    assert_eq!(outputs_of(&cells[4], "stdout"), "hello\n");
    assert_eq!(result(&cells[5]), "1");
    // It would fail every later cell.
    assert!(traceback(&cells[6]).contains("not an optimization level"));
    assert_eq!(result(&cells[7]), "2");
}

#[test]
fn deeply_nested_brackets_are_an_error_and_the_session_continues() {
    let deep = format!("{}1{}", "(".repeat(3000), ")".repeat(3000));
    let wide = format!("let n: i64 = {};", vec!["1"; 200].join(" + "));
    let cells = executed(&["let a = 1;", &deep, &wide, "a + n as i32"]);
    assert!(
        traceback(&cells[1]).contains("deep"),
        "{}",
        traceback(&cells[1])
    );
    assert_eq!(result(&cells[3]), "201", "{}", traceback(&cells[2]));
}

#[test]
fn programs_started_by_cells_see_the_users_environment() {
    let code = "let names = [\"EVCXR_IS_RUNTIME\", \"CLOZE_CELL_LIBRARIES\", \"CLOZE_KERNEL\", \"LD_LIBRARY_PATH\", \"RUST_BACKTRACE\"];\n\
                names.iter().filter(|name| std::env::var_os(name).is_some()).collect::<Vec<_>>()";
    let started = format!(
        "std::process::Command::new({:?}).arg(\"--version\").status()?.success()",
        env!("CARGO_BIN_EXE_cloze")
    );
    let folder = notebook(&[code, &started]);
    let output = cloze()
        .arg("run")
        .arg(folder.path().join("n.ipynb"))
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUST_BACKTRACE")
        .output()
        .expect("started");
    assert!(output.status.success(), "{}", stdout(&output));
    let cells = &written(&folder)["cells"];
    assert_eq!(result(&cells[0]), "[]");
    assert_eq!(result(&cells[1]), "true");
}

#[test]
fn causes_are_reported_for_errors_and_for_other_displayable_types() {
    let cells = executed(&[
        "#[derive(Debug)] struct Outer(std::num::ParseIntError);\n\
         impl std::fmt::Display for Outer { fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result { write!(f, \"outer\") } }\n\
         impl std::error::Error for Outer { fn source(&self) -> Option<&(dyn std::error::Error + 'static)> { Some(&self.0) } }\n\
         #[derive(Debug)] struct Shown;\n\
         impl std::fmt::Display for Shown { fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result { write!(f, \"only shown\") } }",
        "\"x\".parse::<i32>().map_err(Outer)?;",
        "Err::<(), _>(Shown)?;",
        "Err::<(), _>(\"words\".to_owned())?;",
    ]);
    let told = traceback(&cells[1]);
    assert!(
        told.contains("outer") && told.contains("caused by: invalid digit"),
        "{told}"
    );
    assert!(
        traceback(&cells[2]).contains("Shown: only shown"),
        "{}",
        traceback(&cells[2])
    );
    assert!(
        traceback(&cells[3]).contains("words"),
        "{}",
        traceback(&cells[3])
    );
}

#[test]
fn a_variable_of_a_type_that_is_defined_again_is_lost_and_not_misread() {
    let cells = executed(&[
        "struct Inner { a: u32 }\nstruct Outer { i: Inner }\nlet o = Outer { i: Inner { a: 3 } };\nlet kept = vec![1];",
        "mod m { #[derive(Debug)] pub struct P(pub u8); }\nlet p = m::P(1);",
        "trait Speaks { fn f(&self) -> i32; }\nimpl Speaks for u8 { fn f(&self) -> i32 { 1 } }\nlet s: Box<dyn Speaks> = Box::new(5u8);",
        // The same fields with another type, and a trait with another method.
        "struct Inner { a: f32 }",
        "o.i.a",
        "mod m { #[derive(Debug)] pub struct P(pub String); }\np",
        "trait Speaks { fn g(&self) -> String; fn f(&self) -> i32; }\n\
         impl Speaks for u8 { fn f(&self) -> i32 { 2 } fn g(&self) -> String { \"g\".into() } }\ns.g()",
        "kept.len()",
        "#[derive(Clone)]\nstruct Inner { a: f32 } // as before\nlet o = Outer { i: Inner { a: 0.5 } };",
        "o.i.a",
    ]);
    for (number, name) in [(4, "o"), (5, "p"), (6, "s")] {
        let told = outputs_of(&cells[number], "stderr");
        assert!(told.contains(&format!("`{name}` is lost")), "{told}");
        let told = traceback(&cells[number]);
        assert!(told.contains("E0425"), "cell {}: {told}", number + 1);
    }
    assert_eq!(result(&cells[7]), "1");
    assert_eq!(result(&cells[9]), "0.5");
}

#[test]
fn thread_locals_are_kept_and_items_of_macros_are_reported_as_lost() {
    let cells = executed(&[
        "use std::cell::Cell;\nthread_local! { static TL: Cell<u32> = const { Cell::new(1) }; }",
        "TL.set(TL.get() + 4);",
        "TL.get()",
        "macro_rules! mk { ($i:ident) => { #[derive(Debug)] struct $i {} } }\nmk!(Foo);\nFoo {}",
        "Foo {}",
    ]);
    assert_eq!(
        result(&cells[2]),
        "5",
        "{}{}",
        traceback(&cells[0]),
        traceback(&cells[1])
    );
    assert_eq!(result(&cells[3]), "Foo");
    assert!(outputs_of(&cells[3], "stderr").contains("`mk!`"));
    assert!(traceback(&cells[4]).contains("Foo"));
}

#[test]
fn a_crate_that_does_not_compile_fails_each_time_it_is_added() {
    let folder = notebook(&[
        ":dep helper = { path = \"helper\" }",
        "let kept = helper::answer();",
        "!printf 'pub fn answer() -> i32 { \"text\" }' > helper/src/lib.rs",
        ":dep helper = { path = \"helper\" }",
        ":dep helper = { path = \"helper\" }\n// again",
        "!printf 'pub fn answer() -> i32 { 43 }' > helper/src/lib.rs",
        ":dep helper = { path = \"helper\" }",
        "(kept, helper::answer())",
    ]);
    let helper = folder.path().join("helper");
    std::fs::create_dir_all(helper.join("src")).expect("made");
    let manifest = "[package]\nname = \"helper\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    std::fs::write(helper.join("Cargo.toml"), manifest).expect("written");
    std::fs::write(helper.join("src/lib.rs"), "pub fn answer() -> i32 { 42 }").expect("written");
    let output = run(&folder, &["--allow-errors"]);
    assert!(output.status.success(), "{}", stdout(&output));
    let root = written(&folder);
    let cells = root["cells"].as_array().expect("cells");
    for (number, cell) in cells.iter().enumerate() {
        let told = traceback(cell);
        match number {
            3 | 4 => assert!(
                told.starts_with("error[E0308]: the crate `helper`") && told.contains("\"text\""),
                "cell {}: {told}",
                number + 1
            ),
            _ => assert_eq!(told, "", "cell {}", number + 1),
        }
    }
    assert_eq!(result(&cells[7]), "(42, 43)");
}
