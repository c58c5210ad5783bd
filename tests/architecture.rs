//! The order of the rooms in `src/`: each imports only from those below it, and the README's figure shows the same order.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of the library, from the ground up.
const ROOMS: [&str; 12] = [
    "base",
    "notebook",
    "ops",
    "hub",
    "dataset",
    "model",
    "tokenizer",
    "collate",
    "fill_mask",
    "train",
    "display",
    "prelude",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, sorted.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The rooms that a line names after `crate::`.
fn imported(line: &str) -> BTreeSet<&str> {
    let mut rooms = BTreeSet::new();
    for (start, _) in line.match_indices("crate::") {
        let rest = &line[start + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => list.split_once('}').map_or(list, |(list, _)| list),
            None => rest,
        };
        for name in names.split(',') {
            let end = name
                .trim_start()
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(name.trim_start().len());
            rooms.insert(&name.trim_start()[..end]);
        }
    }
    rooms
}

/// The arrows that run up: "file:line: room".
fn arrows_up(src: &Path) -> Vec<String> {
    let rank = |room: &str| ROOMS.iter().position(|name| *name == room);
    let mut found = Vec::new();
    for file in rust_files(src) {
        let inside = file.strip_prefix(src).expect("below src");
        let room = inside.iter().next().expect("a name").to_string_lossy();
        let room = room.trim_end_matches(".rs");
        if room == "lib" {
            continue;
        }
        let own =
            rank(room).unwrap_or_else(|| panic!("{} is in no room of ROOMS", inside.display()));
        let text = fs::read_to_string(&file).expect("a text");
        for (number, line) in text.lines().enumerate() {
            for other in imported(line) {
                if rank(other).is_some_and(|other| other > own) {
                    found.push(format!("{}:{}: {other}", inside.display(), number + 1));
                }
            }
        }
    }
    found
}

#[test]
fn rooms_import_only_from_the_rooms_below() {
    let up = arrows_up(&root().join("src"));
    assert!(up.is_empty(), "imports that run up:\n{}", up.join("\n"));
}

#[test]
fn an_import_that_runs_up_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let room = folder.path().join("hub");
    fs::create_dir(&room).expect("made");
    fs::write(
        room.join("mod.rs"),
        "use crate::{Error, base, train};\nuse crate::dataset::Dataset;\nfn f() { crate::ops::add() }\n",
    )
    .expect("written");
    assert_eq!(
        arrows_up(folder.path()),
        ["hub/mod.rs:1: train", "hub/mod.rs:2: dataset"]
    );
}

#[test]
fn the_figure_in_the_readme_shows_the_rooms_in_their_order() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    let shown: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("src/"))
        .filter_map(|line| line.split_whitespace().next())
        .map(|name| name.trim_end_matches('/').trim_end_matches(".rs"))
        .collect();
    let mut expected = ROOMS;
    expected.reverse();
    assert_eq!(shown, expected);
}
