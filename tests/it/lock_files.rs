//! The lock files of the workspaces outside the main one agree with it, so that their programs build with `--locked` whenever
//! somebody gets to them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The folders of the workspaces that have lock files of their own.
const SEPARATE: [&str; 2] = ["fuzz", "tests/xet"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A package in a lock file.
#[derive(Clone, Debug, PartialEq)]
struct Locked {
    version: String,
    /// Whether it comes from a registry instead of this repository.
    is_foreign: bool,
    /// The names of what it depends on.
    needs: BTreeSet<String>,
}

/// The packages in the lock file of the workspace in `folder`, by their names.
fn locked(folder: &str) -> BTreeMap<String, Vec<Locked>> {
    let text = std::fs::read_to_string(root().join(folder).join("Cargo.lock")).unwrap();
    let mut packages = BTreeMap::<String, Vec<Locked>>::new();
    for block in text.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let start = format!("{key} = \"");
            let mut values = block.lines().filter_map(|line| line.strip_prefix(&start));
            values
                .next()
                .map(|value| value.trim_end_matches('"').to_owned())
        };
        // "name", or "name version" where there are several versions.
        let needs = block.lines().filter_map(|line| line.strip_prefix(" \""));
        let needs = needs.filter_map(|need| need.split([' ', '"']).next().map(str::to_owned));
        packages
            .entry(value("name").unwrap())
            .or_default()
            .push(Locked {
                version: value("version").unwrap(),
                is_foreign: value("source").is_some(),
                needs: needs.collect(),
            });
    }
    packages
}

/// The packages of the workspace in `folder`, as cargo tells of them.
fn described(folder: &str) -> BTreeMap<String, Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root().join(folder))
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{folder}: {complaints}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let named = |package: &Value| {
        (
            package["name"].as_str().unwrap().to_owned(),
            package.clone(),
        )
    };
    packages.iter().map(named).collect()
}

/// What `package` depends on in an ordinary build, by name.
fn requirements(package: &Value) -> BTreeMap<String, Value> {
    let all = package["dependencies"].as_array().unwrap().iter();
    let ordinary = all.filter(|it| it["kind"].as_str() != Some("dev"));
    ordinary
        .map(|it| (it["name"].as_str().unwrap().to_owned(), it.clone()))
        .collect()
}

#[test]
fn crates_that_two_workspaces_share_have_the_same_versions() {
    let main = locked(".");
    for folder in SEPARATE {
        let mut shared = 0;
        for (name, packages) in locked(folder) {
            let Some(known) = main.get(&name) else {
                continue;
            };
            for package in packages {
                let same = known.iter().any(|it| it.version == package.version);
                assert!(
                    same,
                    "{folder}/Cargo.lock has {name} {}, Cargo.lock has not: run `cargo update -p {name}` in {folder}",
                    package.version
                );
                shared += 1;
            }
        }
        assert!(shared > 200, "{folder}: {shared}");
    }
}

#[test]
fn lock_files_name_what_the_manifests_name() {
    for folder in SEPARATE {
        let mut manifests = described(".");
        manifests.extend(described(folder));
        let mut compared = 0;
        for (name, packages) in locked(folder) {
            for package in packages.iter().filter(|package| !package.is_foreign) {
                let manifest = &manifests[&name];
                assert_eq!(manifest["version"], package.version, "{folder}: {name}");
                let requirements = requirements(manifest);
                for (needed, requirement) in &requirements {
                    assert!(
                        requirement["optional"] == true || package.needs.contains(needed),
                        "{folder}/Cargo.lock does not know that {name} needs {needed}: run `cargo update -w` in {folder}"
                    );
                }
                for needed in &package.needs {
                    assert!(
                        requirements.contains_key(needed),
                        "{folder}/Cargo.lock says that {name} needs {needed}, which its manifest does not"
                    );
                }
                compared += 1;
            }
        }
        assert!(compared >= 2, "{folder}: {compared}");
    }
}

#[test]
fn the_fuzzers_of_the_kernel_are_built_with_what_the_kernel_is_built_with() {
    let kernel = requirements(&described(".")["cloze-kernel"]);
    let fuzzers = requirements(&described("fuzz")["cloze-kernel-fuzz"]);
    for (name, requirement) in kernel.iter().filter(|(name, _)| *name != "cloze") {
        for field in ["req", "features", "uses_default_features"] {
            let known = fuzzers.get(name).map(|it| &it[field]);
            assert_eq!(
                known,
                Some(&requirement[field]),
                "fuzz/kernel/Cargo.toml: {field} of {name}"
            );
        }
    }
}
