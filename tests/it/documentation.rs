//! What the documentation shows.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Returns the text of every file below `folder`.
fn texts(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(texts(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

/// Returns the documentation above each public item called `name`, or called as `name` stands for.
fn documentation(sources: &[(PathBuf, String)], name: &str) -> Vec<String> {
    let alias = Regex::new(&format!(r"::(\w+) as {name};")).unwrap();
    let named = sources.iter().find_map(|(_, text)| alias.captures(text));
    let name = named
        .as_ref()
        .map_or(name, |found| found.get(1).unwrap().as_str());
    let item = format!(r"(?m)^ *pub (struct|enum|trait|fn|type) {name}\b");
    let item = Regex::new(&item).unwrap();
    let mut found = Vec::new();
    for (_, text) in sources {
        for place in item.find_iter(text) {
            let above = &text[..place.start()];
            let from = above.rfind("\n\n").map_or(0, |end| end + 2);
            let lines = above[from..].lines().map(str::trim_start);
            let docs: Vec<&str> = lines.filter(|line| line.starts_with("///")).collect();
            found.push(docs.join("\n"));
        }
    }
    found
}

#[test]
fn every_word_of_the_prelude_has_an_example() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let prelude = fs::read_to_string(src.join("prelude.rs")).unwrap();
    let sources = texts(&src);
    let list = Regex::new(r"pub use crate::\w*(?:::)?\{([^}]*)\}").unwrap();
    let mut seen = 0;
    for names in list.captures_iter(&prelude) {
        for name in names[1].split(',').map(str::trim) {
            // A room, or a word between two commas.
            if name.is_empty() || name == "self" {
                continue;
            }
            let found = documentation(&sources, name);
            assert!(!found.is_empty(), "{name} is nowhere in the sources");
            assert!(
                found.iter().any(|text| text.contains("```")),
                "{name} has no example in its documentation:\n{}",
                found.join("\n\n")
            );
            seen += 1;
        }
    }
    assert!(seen > 100, "only {seen} words");
}
