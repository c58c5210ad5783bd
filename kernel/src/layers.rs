//! The order of the kernel's rooms: each imports only from rooms below it, and modules do not import each other in circles.

use std::path::Path;

use crate::imports::{Graph, circle, graph, upward};

/// The rooms, from the top floor down. Rooms on the same floor do not import each other.
const FLOORS: [&[&str]; 7] = [
    &["cli"],
    &["jupyter", "run"],
    &["session"],
    &["evcxr"],
    &["code"],
    &["toolchain"],
    &["error"],
];

/// Modules that may import each other: the thread that owns the session, and the handler of the one request that changes it.
const PAIR: (&str, &str) = ("jupyter/evaluator", "jupyter/execute");

fn modules() -> Graph {
    let mut modules = graph(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), false);
    modules.retain(|module, _| module != "main" && module != "layers");
    let imports: usize = modules.values().map(|imports| imports.len()).sum();
    assert!(imports > 100, "only {imports} imports were found");
    modules
}

#[test]
fn rooms_import_only_from_rooms_below() {
    let rank = |room: &str| {
        let floor = FLOORS.iter().rev().position(|floor| floor.contains(&room));
        floor.unwrap_or_else(|| panic!("{room} is not listed in FLOORS"))
    };
    let up = upward(&modules(), rank);
    assert!(up.is_empty(), "upward imports:\n{}", up.join("\n"));
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    if let Some(circle) = circle(&modules(), |from, to| (from, to) == PAIR) {
        panic!("a circle of imports: {}", circle.join(" -> "));
    }
}
