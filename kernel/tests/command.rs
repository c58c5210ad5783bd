//! The commands around the kernel, as a person at a shell meets them. None of them builds the prelude.

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
fn uninstall_removes_the_kernelspec_that_was_asked_for_and_nothing_else() {
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
fn a_users_kernels_are_where_jupyter_looks_for_them() {
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
fn who_has_no_jupyterlab_is_told_how_to_get_it() {
    let empty = tempfile::tempdir().expect("a folder");
    let refused = cloze(&["lab"], &[("PATH", empty.path())]);
    assert_eq!(refused.status.code(), Some(1));
    let said = said(&refused);
    assert!(said.contains("pipx install jupyterlab"), "{said}");
    assert!(said.contains("cloze run"), "{said}");
}

#[test]
fn the_doctor_looks_at_everything_and_says_what_to_do() {
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
    // As builds of other versions leave them.
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
