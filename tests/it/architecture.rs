//! The order of the rooms in `src/`: each imports only from those below it, the README's figure shows the same order, and
//! files do not import each other in circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

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

/// Files that may import each other, and why.
const PAIRS: [(&str, &str, &str); 4] = [
    (
        "dataset/builder",
        "dataset/table",
        "a table is built, and its builder begins with one",
    ),
    (
        "dataset/dict",
        "dataset/split",
        "a split is a part of a dictionary, and a dictionary is read by splits",
    ),
    (
        "model/families",
        "model/family",
        "the list of families, and what finds one in it",
    ),
    (
        "train/run",
        "train/step",
        "a run holds the steps whose numbers are still to be read",
    ),
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
        // What docs link to is no import.
        let code =
            (text.lines().enumerate()).filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (number, line) in code {
            for other in imported(line) {
                if rank(other).is_some_and(|other| other > own) {
                    found.push(format!("{}:{}: {other}", inside.display(), number + 1));
                }
            }
        }
    }
    found
}

/// What the files below `src` import, their tests aside, by their module paths (`ops/attention` for `ops/attention/mod.rs`).
fn modules(src: &Path) -> BTreeMap<String, Vec<String>> {
    let module = |file: &Path| {
        let inside = file
            .strip_prefix(src)
            .expect("below src")
            .with_extension("");
        let inside = inside.to_string_lossy().into_owned();
        inside.strip_suffix("/mod").unwrap_or(&inside).to_owned()
    };
    let imports = |file: &Path| {
        let text = fs::read_to_string(file).expect("a text");
        let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
        imports(&text[..end])
    };
    let files = rust_files(src);
    files
        .iter()
        .map(|file| (module(file), imports(file)))
        .collect()
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(tree: &str, before: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        let name = tree.split_whitespace().next().unwrap_or_default();
        found.push(format!("{before}{name}"));
        return;
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut start) = (0, 0);
    let before = format!("{before}{}", head.trim());
    for (at, letter) in inner.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                paths(&inner[start..at], &before, found);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        paths(&inner[start..], &before, found);
    }
}

/// What a file imports, as it says it.
fn imports(text: &str) -> Vec<String> {
    static STATEMENT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?m)^\s*(?:pub(?:\([^)]*\))? )?use ([^;]+);").expect("valid")
    });
    static PATH: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\b(?:crate|super)(?:::\w+)+").expect("valid"));
    static COMMENT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?m)^\s*//.*$").expect("valid"));
    let mut found = Vec::new();
    for tree in STATEMENT.captures_iter(text) {
        paths(&tree[1], "", &mut found);
    }
    let code = COMMENT.replace_all(text, "");
    found.extend(PATH.find_iter(&code).map(|found| found.as_str().to_owned()));
    found
}

/// The file that an imported `path` is about, seen from `module`: the one that it leads to, and for a name that a room hands
/// on, the one that the room has it from.
fn target(module: &str, path: &str, modules: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let mut names = path.split("::").filter(|name| *name != "self").peekable();
    let mut at: Vec<&str> = match names.next()? {
        "crate" => Vec::new(),
        "super" => {
            let mut at: Vec<&str> = module.split('/').collect();
            at.pop();
            while names.next_if(|name| *name == "super").is_some() {
                at.pop();
            }
            at
        }
        _ => return None,
    };
    while let Some(name) = names.peek() {
        at.push(name);
        if !modules.contains_key(&at.join("/")) {
            at.pop();
            break;
        }
        names.next();
    }
    let room = at.join("/");
    let handed_on = names.peek().and_then(|name| {
        let mut from = modules.get(&room)?.iter();
        let from = from.find(|path| path.rsplit("::").next() == Some(*name))?;
        let inside = format!(
            "{room}/{}",
            from.trim_start_matches("self::").split("::").next()?
        );
        modules.contains_key(&inside).then_some(inside)
    });
    Some(handed_on.unwrap_or(room))
        .filter(|target| modules.contains_key(target) && target != module)
}

/// Which files import which.
fn graph(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let modules = modules(src);
    let targets = |module: &str, imports: &[String]| {
        let targets = imports.iter();
        targets
            .filter_map(|path| target(module, path, &modules))
            .collect()
    };
    modules
        .iter()
        .map(|(module, imports)| (module.clone(), targets(module, imports)))
        .collect()
}

/// A circle of imports, apart from those between a file and the folder that it is in, the parts of one operation (its own
/// file, its kernels' launches, its naive form), and the pairs that may import each other.
fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let part = |module: &str| {
        let launches = module.starts_with("ops/cuda") || module.ends_with("/cuda");
        module.starts_with("ops/") && (launches || module.starts_with("ops/naive"))
    };
    let counts = |from: &str, to: &str| {
        let inside = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}/"));
        let named = PAIRS.iter().any(|(a, b, _)| (from, to) == (a, b));
        !(inside(from, to) || inside(to, from) || named || part(to))
    };
    // Files that lead to no circle are taken away until none is left, or only such as do.
    let mut left: BTreeSet<&str> = graph.keys().map(String::as_str).collect();
    loop {
        let leads_on = |module: &&str| {
            graph[*module]
                .iter()
                .any(|to| left.contains(to.as_str()) && counts(module, to))
        };
        let kept: BTreeSet<&str> = left.iter().copied().filter(leads_on).collect();
        if kept.len() == left.len() {
            break;
        }
        left = kept;
    }
    let mut walk: Vec<&str> = vec![left.first()?];
    loop {
        let last = walk[walk.len() - 1];
        let next = graph[last]
            .iter()
            .find(|to| left.contains(to.as_str()) && counts(last, to))?;
        if let Some(start) = walk.iter().position(|module| module == next) {
            return Some(
                walk[start..]
                    .iter()
                    .map(|module| (*module).to_owned())
                    .collect(),
            );
        }
        walk.push(next);
    }
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let graph = graph(&root().join("src"));
    assert!(
        graph.values().map(BTreeSet::len).sum::<usize>() > 300,
        "imports were not read"
    );
    if let Some(circle) = circle(&graph) {
        panic!("a circle of imports: {}", circle.join(" -> "));
    }
    for (a, b, _) in PAIRS {
        assert!(
            graph[a].contains(b) && graph[b].contains(a),
            "{a} and {b} are no pair any more"
        );
    }
}

#[test]
fn a_circle_of_imports_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |file: &str, text: &str| {
        let file = folder.path().join(file);
        fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        fs::write(file, text).expect("written");
    };
    write(
        "hub/mod.rs",
        "mod a;\nmod b;\npub use b::{B, Other as C};\n",
    );
    write("hub/a.rs", "use super::{\n    B,\n};\nstruct A;\n");
    write("hub/b.rs", "struct B;\n");
    assert_eq!(circle(&graph(folder.path())), None);
    write(
        "hub/b.rs",
        "struct B;\nfn f() -> crate::hub::a::A { todo!() }\n",
    );
    let found = circle(&graph(folder.path())).expect("a circle");
    assert_eq!(found, ["hub/a", "hub/b"]);
}

#[test]
fn rooms_import_only_from_rooms_below() {
    let up = arrows_up(&root().join("src"));
    assert!(up.is_empty(), "imports that run up:\n{}", up.join("\n"));
}

#[test]
fn an_upward_import_is_found() {
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
