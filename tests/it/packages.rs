//! What a registry gets: the packages are small enough, say what they are, and hold what the programs need.

use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

/// What a package may have, compressed.
const MOST_BYTES: usize = 10 << 20;

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {complaints}");
    String::from_utf8(output.stdout).unwrap()
}

/// The packages of the workspace, as cargo tells of them.
fn packages() -> Vec<Value> {
    let metadata = cargo(&["metadata", "--no-deps", "--offline", "--format-version=1"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The files that are packed, by their names; what cargo itself adds is not among them.
fn files(name: &str, folder: &Path) -> Vec<PathBuf> {
    let list = cargo(&[
        "package",
        "--list",
        "--offline",
        "--allow-dirty",
        "-p",
        name,
    ]);
    let own = [".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml.orig"];
    let names = list.lines().filter(|name| !own.contains(name));
    names.map(|name| folder.join(name)).collect()
}

#[test]
fn each_package_is_small_enough_and_has_its_metadata() {
    let packages = packages();
    assert_eq!(packages.len(), 4);
    let mut repositories = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        for field in [
            "description",
            "license",
            "repository",
            "homepage",
            "documentation",
            "readme",
            "rust_version",
        ] {
            let text = package[field].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{name} has no {field}");
        }
        for field in ["keywords", "categories"] {
            let words = package[field].as_array().unwrap();
            assert!((1..=5).contains(&words.len()), "{name}: {field} {words:?}");
        }
        repositories.push(package["repository"].clone());

        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let files = files(name, manifest.parent().unwrap());
        for wanted in ["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(
                files.iter().any(|file| file.ends_with(wanted)),
                "{name} has no {wanted}"
            );
        }
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        for file in &files {
            let bytes =
                std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            std::io::Write::write_all(&mut packed, &bytes).unwrap();
        }
        let packed = packed.finish().unwrap().len();
        println!("{name}: {} files, {packed} bytes", files.len());
        assert!(packed < MOST_BYTES, "{name} has {packed} bytes");
    }
    // It is agreed in one place.
    repositories.dedup();
    assert_eq!(repositories.len(), 1);
}

#[test]
fn the_bundled_files_equal_those_in_the_folder() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut count = 0;
    for (name, bytes) in cloze_data::files() {
        assert!(std::fs::read(data.join(name)).unwrap() == bytes, "{name}");
        count += 1;
    }
    assert!(count > 150);
    // What a name may stand for.
    for name in ["tiny_roberta", "spoken_digits"] {
        assert!(load(name).is_dir(), "{name}");
    }
    for name in [
        "eli5_sample.jsonl",
        "pretraining_sample.txt",
        "pretraining_heldout.txt",
    ] {
        assert!(load(name).is_file(), "{name}");
    }
}

fn load(name: &str) -> PathBuf {
    cloze::hub::resolve("dataset", &format!("bundled:{name}")).unwrap()
}
