//! The order of the rooms in `src/`: each imports only from those below it, the README's figure shows the same order, and
//! modules do not import each other in circles.

use std::fs;
use std::path::Path;

use crate::imports::{circle, graph, upward};

/// The rooms of the library, from the ground up.
const ROOMS: [&str; 15] = [
    "base",
    "distributed",
    "notebook",
    "ops",
    "hub",
    "dataset",
    "model",
    "tokenizer",
    "audio",
    "collate",
    "fill_mask",
    "speech",
    "train",
    "display",
    "prelude",
];

/// Modules that may import each other, and why.
const PAIRS: [(&str, &str, &str); 4] = [
    (
        "dataset/builder",
        "dataset/table",
        "a table is built by its builder, which starts from one",
    ),
    (
        "dataset/dict",
        "dataset/split",
        "a split is a part of a dictionary, which is read by splits",
    ),
    (
        "model/families",
        "model/family",
        "the list of families, and the search in it",
    ),
    (
        "train/run",
        "train/step",
        "a run holds the steps whose losses are still to be read",
    ),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a module is part of an operation besides its own file: the launches of its kernels, or its naive form.
fn is_part_of_an_operation(module: &str) -> bool {
    let launches = module.starts_with("ops/cuda") || module.ends_with("/cuda");
    module.starts_with("ops/") && (launches || module.starts_with("ops/naive"))
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    let graph = graph(&root().join("src"), false);
    let imports: usize = graph.values().map(|imports| imports.len()).sum();
    assert!(imports > 300, "only {imports} imports were found");
    let allowed = |from: &str, to: &str| {
        let named = PAIRS.iter().any(|(a, b, _)| (from, to) == (*a, *b));
        named || is_part_of_an_operation(to)
    };
    if let Some(circle) = circle(&graph, allowed) {
        panic!("a circle of imports: {}", circle.join(" -> "));
    }
    for (a, b, _) in PAIRS {
        assert!(
            graph[a].contains(b) && graph[b].contains(a),
            "{a} and {b} no longer import each other"
        );
    }
}

#[test]
fn rooms_import_only_from_rooms_below() {
    let mut graph = graph(&root().join("src"), true);
    graph.remove("lib");
    let rank = |room: &str| {
        let rank = ROOMS.iter().position(|name| *name == room);
        rank.unwrap_or_else(|| panic!("{room} is not listed in ROOMS"))
    };
    let up = upward(&graph, rank);
    assert!(up.is_empty(), "upward imports:\n{}", up.join("\n"));
}

#[test]
fn the_readmes_figure_shows_the_rooms_in_order() {
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
