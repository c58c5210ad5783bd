//! Reads which modules of a crate import which, for the tests that hold the order of its rooms.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that each module imports. A module is named by its path: `ops/attention` for `ops/attention/mod.rs`.
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// Reads the imports of all modules below `src`; those of their `mod tests` only if `with_tests`.
pub fn graph(src: &Path, with_tests: bool) -> Graph {
    let read = |file: &PathBuf| {
        let text = fs::read_to_string(file).expect("a text");
        let tests = text.find("#[cfg(test)]\nmod tests");
        let end = tests.filter(|_| !with_tests).unwrap_or(text.len());
        (module(src, file), imports(&text[..end]))
    };
    let modules: BTreeMap<String, Vec<String>> = rust_files(src).iter().map(read).collect();
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

/// Returns the room of a module: the first part of its path.
pub fn room(module: &str) -> &str {
    module.split('/').next().unwrap_or_default()
}

/// Returns the imports of a room that is not below the importing one, as "module -> module". `rank` grows from the ground up.
pub fn upward(graph: &Graph, rank: impl Fn(&str) -> usize) -> Vec<String> {
    let mut found = Vec::new();
    for (module, imports) in graph {
        for import in imports {
            let (from, to) = (room(module), room(import));
            if from != to && rank(from) <= rank(to) {
                found.push(format!("{module} -> {import}"));
            }
        }
    }
    found
}

/// Returns a circle of imports, leaving out those between a module and its parts, and those that are `allowed`.
pub fn circle(graph: &Graph, allowed: impl Fn(&str, &str) -> bool) -> Option<Vec<String>> {
    let counts = |from: &str, to: &str| {
        let inside = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}/"));
        !(inside(from, to) || inside(to, from) || allowed(from, to))
    };
    // Remove modules that lead to no circle until only those that do are left.
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
            let circle = walk[start..].iter();
            return Some(circle.map(|module| (*module).to_owned()).collect());
        }
        walk.push(next);
    }
}

/// Returns every Rust file below `folder`.
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
    files
}

/// Returns the name of the module in `file`.
fn module(src: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(src).expect("below src");
    let inside = inside.with_extension("").to_string_lossy().into_owned();
    inside.strip_suffix("/mod").unwrap_or(&inside).to_owned()
}

/// Returns the paths that the code imports: those in its `use` items, and those that begin with `crate` or `super` anywhere.
fn imports(text: &str) -> Vec<String> {
    let is_comment = |line: &&str| line.trim_start().starts_with("//");
    let lines = text.lines().filter(|line| !is_comment(line));
    let code: String = lines.map(|line| format!("{line}\n")).collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rsplit('\n').next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with("pub") && !line.contains(' ') {
            let tree = &code[at + "use ".len()..];
            paths(tree.split(';').next().unwrap_or_default(), "", &mut found);
        }
    }
    for word in ["crate::", "super::"] {
        for (at, _) in code.match_indices(word) {
            let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            if !code[..at].ends_with(is_part) {
                let rest = &code[at..];
                let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                found.push(rest[..end].trim_end_matches(':').to_owned());
            }
        }
    }
    found
}

/// Adds the paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
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

/// Returns the module that a path imported by `module` refers to. For a name that a module re-exports, that is the module
/// which the name comes from.
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
    let found = at.join("/");
    let re_exported = names.peek().and_then(|name| {
        let mut from = modules.get(&found)?.iter();
        let from = from.find(|path| path.rsplit("::").next() == Some(*name))?;
        let first = from.trim_start_matches("self::").split("::").next()?;
        let inside = format!("{found}/{first}");
        modules.contains_key(&inside).then_some(inside)
    });
    Some(re_exported.unwrap_or(found))
        .filter(|target| modules.contains_key(target) && target != module)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(src: &Path, file: &str, text: &str) {
        let file = src.join(file);
        fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        fs::write(file, text).expect("written");
    }

    #[test]
    fn a_circle_of_imports_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let src = folder.path();
        write(
            src,
            "hub/mod.rs",
            "mod a;\nmod b;\npub use b::{B, Other as C};\n",
        );
        write(src, "hub/a.rs", "use super::{\n    B,\n};\nstruct A;\n");
        write(src, "hub/b.rs", "struct B;\n// crate::hub::a\n");
        let found = || circle(&graph(src, false), |_, _| false);
        assert_eq!(found(), None);
        write(
            src,
            "hub/b.rs",
            "struct B;\nfn f() -> crate::hub::a::A { todo!() }\n",
        );
        assert_eq!(found().expect("a circle"), ["hub/a", "hub/b"]);
        let pair = |from: &str, to: &str| (from, to) == ("hub/a", "hub/b");
        assert_eq!(circle(&graph(src, false), pair), None);
    }

    #[test]
    fn an_upward_import_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let src = folder.path();
        for room in ["base", "hub", "dataset", "train"] {
            write(src, &format!("{room}.rs"), "");
        }
        let text = "use crate::{Error, base, train::Step};\nfn f() { super::dataset::g() }\n\n#[cfg(test)]\nmod tests {\n    \
                    use crate::dataset;\n}\n";
        write(src, "hub.rs", text);
        let rank = |room: &str| {
            ["base", "hub", "dataset", "train"]
                .iter()
                .position(|it| *it == room)
                .expect("a room")
        };
        let up = ["hub -> dataset", "hub -> train"];
        assert_eq!(upward(&graph(src, false), rank), up);
        write(
            src,
            "hub.rs",
            &text.replace("super::dataset", "super::base"),
        );
        assert_eq!(upward(&graph(src, false), rank), up[1..]);
        assert_eq!(upward(&graph(src, true), rank), up);
    }
}
