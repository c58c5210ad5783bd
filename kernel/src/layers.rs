//! Holds the order of the rooms: each imports only from rooms below it, and no two files import each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// From the top floor down. Rooms of one floor know nothing of each other.
const FLOORS: [&[&str]; 7] = [
    &["cli"],
    &["jupyter", "run"],
    &["session"],
    &["evcxr"],
    &["code"],
    &["toolchain"],
    &["error"],
];

/// Pairs that may import each other, because they are two halves of one thing.
const PAIRS: [(&str, &str); 1] = [
    // The thread that owns the session, and what it does for the one request that changes it.
    ("jupyter::evaluator", "jupyter::execute"),
];

/// The module of each file under `src`, with its text.
fn modules(folder: &Path, above: &str, all: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.expect("a name in Unicode").to_owned();
        let inside = |name: &str| match above {
            "" => name.to_owned(),
            above => format!("{above}::{name}"),
        };
        if path.is_dir() {
            modules(&path, &inside(&name), all);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let module = match name.as_str() {
                "mod" => above.to_owned(),
                name => inside(name),
            };
            all.insert(module, std::fs::read_to_string(&path).expect("text"));
        }
    }
}

/// The paths that a module's code names, from the crate's root: what stands behind `crate::`, `super::` and `self::`.
fn named(module: &str, text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next();
    let code: String = code
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut paths = Vec::new();
    for (word, base) in [("crate::", ""), ("super::", parent), ("self::", module)] {
        for (at, _) in code.match_indices(word) {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at + word.len()..];
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            let (path, rest) = rest.split_at(end.unwrap_or(rest.len()));
            // A list stands for each of its items.
            let items = match rest.strip_prefix('{') {
                Some(list) if path.is_empty() || path.ends_with("::") => {
                    list.split('}').next().unwrap_or_default()
                }
                _ => "",
            };
            let prefix = match base {
                "" => path.to_owned(),
                base => format!("{base}::{path}"),
            };
            paths.extend(
                items
                    .split(',')
                    .map(|item| format!("{prefix}{}", item.trim())),
            );
        }
    }
    paths
}

/// Which modules a module imports: each path belongs to the innermost module that there is a file of.
fn imports(all: &BTreeMap<String, String>) -> BTreeMap<&str, BTreeSet<&str>> {
    let file_of = |path: &str| {
        let ends = path.match_indices("::").map(|(at, _)| at);
        let prefixes = ends.chain([path.len()]).map(|end| &path[..end]);
        prefixes
            .filter_map(|prefix| all.get_key_value(prefix))
            .last()
            .map(|(module, _)| module.as_str())
    };
    let of = |(module, text): (&String, &String)| {
        let found: BTreeSet<String> = named(module, text).into_iter().collect();
        found.iter().filter_map(|path| file_of(path)).collect()
    };
    all.iter()
        .map(|entry| (entry.0.as_str(), of(entry)))
        .collect()
}

fn all_modules() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    modules(&sources, "", &mut all);
    all.retain(|module, _| module != "main" && module != "layers");
    all
}

fn floor(module: &str) -> usize {
    let room = module.split("::").next().unwrap_or_default();
    FLOORS
        .iter()
        .position(|floor| floor.contains(&room))
        .unwrap_or_else(|| panic!("the room `{room}` is not listed"))
}

#[test]
fn rooms_import_only_from_rooms_below() {
    let all = all_modules();
    let mut arrows = 0;
    for (module, imports) in imports(&all) {
        for import in imports {
            let room = |module: &str| module.split("::").next().map(str::to_owned);
            let same = room(module) == room(import);
            assert!(
                same || floor(module) < floor(import),
                "`{module}` imports `{import}`, which is not below it"
            );
            arrows += usize::from(!same);
        }
    }
    // What is read must have been found: a test that sees no arrows holds none.
    assert!(arrows > 40, "{arrows}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let all = all_modules();
    // A module and what it is made of are one thing.
    let related = |one: &str, other: &str| {
        one == other
            || one.starts_with(&format!("{other}::"))
            || other.starts_with(&format!("{one}::"))
            || PAIRS.contains(&(one, other))
            || PAIRS.contains(&(other, one))
    };
    let imports = imports(&all);
    for start in imports.keys() {
        let mut seen = BTreeSet::new();
        let mut next = vec![*start];
        while let Some(module) = next.pop() {
            for import in imports.get(module).into_iter().flatten() {
                if related(module, import) {
                    continue;
                }
                assert!(
                    import != start,
                    "`{start}` is imported by `{module}`, which it leads to"
                );
                if seen.insert(*import) {
                    next.push(import);
                }
            }
        }
    }
}

#[test]
fn paths_are_found_wherever_they_stand() {
    let text = "use super::event::{A, B};\n// crate::no\nuse crate::{Error, code::Cell};\nfn f() { crate::run::g(); other_crate::h() }\n";
    let found = named("session::streams", text);
    assert_eq!(
        found,
        [
            "Error",
            "code::Cell",
            "run::g",
            "session::event::A",
            "session::event::B"
        ]
    );
}
