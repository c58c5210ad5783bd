//! The commands of `cloze`, run from a shell. None of the tests builds the prelude.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn cloze(arguments: &[&str], variables: &[(&str, &Path)]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_cloze"))
        .args(arguments)
        .envs(variables.iter().copied())
        .output();
    output.expect("cloze was started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn uninstall_removes_only_the_named_kernelspec() {
    let prefix = tempfile::tempdir().expect("a folder");
    let cache = tempfile::tempdir().expect("a folder");
    let variables = [("CLOZE_KERNEL_CACHE", cache.path())];
    let kernels = prefix.path().join("share/jupyter/kernels");
    for name in ["mine", "other"] {
        let folder = kernels.join(name);
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("kernel.json"), "{}").expect("written");
    }
    let at = prefix.path().to_str().expect("a path in UTF-8");
    let removed = cloze(&["uninstall", "--prefix", at, "--name", "mine"], &variables);
    assert!(removed.status.success(), "{}", said(&removed));
    assert!(!kernels.join("mine").exists());
    assert!(kernels.join("other/kernel.json").exists());
    for name in ["mine", "../kernels/other", ""] {
        let refused = cloze(&["uninstall", "--prefix", at, "--name", name], &variables);
        assert_eq!(refused.status.code(), Some(1), "{name}");
        assert!(said(&refused).contains("error: "), "{}", said(&refused));
    }
    assert!(kernels.join("other/kernel.json").exists());
}

#[test]
fn user_kernels_are_installed_where_jupyter_looks() {
    let data = tempfile::tempdir().expect("a folder");
    let folder = data.path().join("kernels/cloze");
    fs::create_dir_all(&folder).expect("made");
    fs::write(folder.join("kernel.json"), "{}").expect("written");
    let cache = tempfile::tempdir().expect("a folder");
    let variables = [
        ("JUPYTER_DATA_DIR", data.path()),
        ("CLOZE_KERNEL_CACHE", cache.path()),
    ];
    let removed = cloze(&["uninstall"], &variables);
    assert!(removed.status.success(), "{}", said(&removed));
    assert!(!folder.exists());
}

#[test]
fn lab_explains_how_to_install_a_missing_jupyterlab() {
    let empty = tempfile::tempdir().expect("a folder");
    let refused = cloze(&["lab"], &[("PATH", empty.path())]);
    assert_eq!(refused.status.code(), Some(1));
    let said = said(&refused);
    assert!(said.contains("pipx install jupyterlab"), "{said}");
    assert!(said.contains("cloze run"), "{said}");
}

#[test]
fn doctor_checks_everything_and_suggests_fixes() {
    let cache = tempfile::tempdir().expect("a folder");
    let data = tempfile::tempdir().expect("a folder");
    let variables = [
        ("JUPYTER_DATA_DIR", data.path()),
        ("CLOZE_KERNEL_CACHE", cache.path()),
    ];
    let said = said(&cloze(&["doctor"], &variables));
    for told in [
        "ok compiler: rustc ",
        "standard library's sources: ",
        "linker: ",
        "sources of Cloze: ",
        "Jupyter",
        "-- kernel: not installed for Jupyter: cloze install",
        "GPU: ",
        "GiB free",
        "no prelude is built: cloze install",
    ] {
        assert!(said.contains(told), "{told}\n{said}");
    }
    // Builds of other versions leave such folders.
    for name in ["prelude-0123", "prelude-4567"] {
        fs::create_dir(cache.path().join(name)).expect("made");
    }
    let again = Command::new(env!("CARGO_BIN_EXE_cloze"))
        .arg("doctor")
        .envs(variables)
        .output();
    let said = self::said(&again.expect("cloze was started"));
    assert!(said.contains("2 preludes, 0 in use"), "{said}");
}

/// Returns a command with an empty cache and home folder.
fn alone(arguments: &[&str], home: &Path) -> Output {
    cloze(
        arguments,
        &[
            ("HOME", home),
            ("XDG_CACHE_HOME", &home.join("cache")),
            ("HF_HUB_OFFLINE", Path::new("1")),
        ],
    )
}

#[test]
fn fill_works_with_the_bundled_model_and_any_mask_token() {
    let home = tempfile::tempdir().expect("a folder");
    let filled = |text: &str, top_k: &str| {
        let output = alone(
            &["fill", "bundled:tiny_roberta", text, "--top-k", top_k],
            home.path(),
        );
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let own = filled("Paris is the capital of <mask>.", "3");
    assert!(own.contains("Paris is the capital of"), "{own}");
    assert_eq!(own.matches("Paris is the capital of").count(), 4, "{own}");
    assert_eq!(filled("Paris is the capital of [MASK].", "3"), own);
    assert!(filled("Paris is the capital of <mask>.", "5").len() > own.len());
    // The bundled model has been unpacked into the user's cache.
    let unpacked = home.path().join("cache/cloze/bundled");
    let folder = fs::read_dir(unpacked).expect("it is there").next();
    let folder = folder.expect("a folder").expect("read").path();
    assert!(folder.join("tiny_roberta/config.json").exists());
}

#[test]
fn fill_reports_invalid_arguments() {
    let home = tempfile::tempdir().expect("a folder");
    for (arguments, words) in [
        (
            ["bundled:tiny_roberta", "There is no blank.", "5"],
            "<mask>",
        ),
        (["bundled:tiny", "A <mask>.", "5"], "bundled:tiny_roberta"),
        (["./nowhere", "A <mask>.", "5"], "nowhere"),
        (["bundled:tiny_roberta", "A <mask>.", "0"], "--top-k"),
        (["bundled:tiny_roberta", "A <mask>.", "99999"], "top_k"),
        (["bundled:tiny_roberta", "A <mask>.", "many"], "--top-k"),
    ] {
        let [model, text, top_k] = arguments;
        let output = alone(&["fill", model, text, "--top-k", top_k], home.path());
        assert!(!output.status.success(), "{arguments:?}");
        let said = said(&output);
        assert!(said.contains("error: ") && said.contains(words), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn train_learns_from_lines_and_saves_a_model_that_fill_opens() {
    let home = tempfile::tempdir().expect("a folder");
    let at = |name: &str| home.path().join(name).display().to_string();
    let lines: String = (0..48)
        .map(|i| format!("The planet number {i} turns around a star of its own.\n"))
        .collect();
    fs::write(home.path().join("lines.txt"), lines).expect("written");
    let settings = "model = \"bundled:tiny_roberta\"\nlearning_rate = 1e-3\nmax_steps = 50\nmax_seq_length = 24\n";
    fs::write(home.path().join("run.toml"), settings).expect("written");
    let (data, config, out) = (at("lines.txt"), at("run.toml"), at("out"));
    // The command line takes precedence over the file.
    let arguments = [
        "train",
        "--config",
        &config,
        "--dataset",
        &data,
        "--output",
        &out,
        "--line-by-line",
        "--max-steps=4",
        "--eval_strategy",
        "steps",
        "--eval-steps",
        "2",
        "--validation-split",
        "0.25",
    ];
    let output = alone(&arguments, home.path());
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains(&format!("saved {out}")),
        "{}",
        said(&output)
    );
    let records = fs::read_to_string(home.path().join("out/history.jsonl")).expect("a history");
    assert!(records.contains("eval_loss"), "{records}");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(home.path().join("out").join(name).exists(), "{name}");
    }
    let filled = alone(
        &["fill", &out, "The planet turns around a <mask>."],
        home.path(),
    );
    assert!(filled.status.success(), "{}", said(&filled));
    // A second run with the same settings resumes if asked to, and has nothing left to do.
    let again = [&arguments[..], &["--resume"]].concat();
    let again = alone(&again, home.path());
    assert!(again.status.success(), "{}", said(&again));
}

#[test]
fn train_reports_invalid_arguments_before_training() {
    let home = tempfile::tempdir().expect("a folder");
    let at = |name: &str| home.path().join(name).display().to_string();
    fs::write(home.path().join("lines.txt"), "one\ntwo\nthree\n").expect("written");
    fs::write(home.path().join("wrong.toml"), "learning_rat = 1e-3\n").expect("written");
    fs::write(home.path().join("broken.toml"), "learning_rate =\n").expect("written");
    let (data, out) = (at("lines.txt"), at("out"));
    let (wrong, broken, gone) = (at("wrong.toml"), at("broken.toml"), at("gone.toml"));
    let complete = [
        "--model",
        "bundled:tiny_roberta",
        "--dataset",
        &data,
        "--output",
        &out,
    ];
    for (arguments, words) in [
        (vec![], "--model"),
        (vec!["--model", "bundled:tiny_roberta"], "--dataset"),
        (complete[..4].to_vec(), "--output"),
        (
            [&complete[..], &["--learning-rat", "1e-3"]].concat(),
            "learning_rate",
        ),
        (
            [&complete[..], &["--learning-rate", "fast"]].concat(),
            "learning_rate",
        ),
        (
            [&complete[..], &["--max-steps", "-3.5"]].concat(),
            "max_steps",
        ),
        ([&complete[..], &["stray"]].concat(), "stray"),
        ([&complete[..], &["--config"]].concat(), "--config"),
        ([&complete[..], &["--config", &gone]].concat(), "gone.toml"),
        (
            [&complete[..], &["--config", &wrong]].concat(),
            "learning_rat",
        ),
        (
            [&complete[..], &["--config", &broken]].concat(),
            "broken.toml",
        ),
        ([&complete[..], &["--text-column", "txt"]].concat(), "txt"),
        (
            [
                &complete[..2],
                &["--dataset", "./nowhere.txt", "--output", &out],
            ]
            .concat(),
            "nowhere.txt",
        ),
    ] {
        let all = [&["train"][..], &arguments[..]].concat();
        let output = alone(&all, home.path());
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            said(&output)
        );
        let said = said(&output);
        assert!(
            said.contains("error: ") && said.contains(words),
            "{arguments:?}: {said}"
        );
        assert!(!said.contains("panicked"), "{said}");
    }
    assert!(!home.path().join("out/model.safetensors").exists());
}

#[test]
fn install_refuses_a_folder_without_sources() {
    let home = tempfile::tempdir().expect("a folder");
    let at = home.path().to_str().expect("a path in UTF-8");
    let output = alone(&["install", "--source", at, "--prefix", at], home.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("--source takes a clone"),
        "{}",
        said(&output)
    );
    assert!(!home.path().join("share").exists());
}
