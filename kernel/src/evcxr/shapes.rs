//! Notices when a variable's type is not made of the same parts any more as when the variable was stored.
//!
//! The compiler's id of a type depends on its name and on the names of its fields, but not on their types, nor on the
//! methods of a trait. A variable of a type that a later cell, or a changed crate, defines under the same name would be
//! read as something else. So each variable is stored with a hash of the definitions that its type mentions: its shape.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use ra_ap_syntax::{
    AstNode, Edition, NodeOrToken, SourceFile, SyntaxKind, SyntaxNode, SyntaxToken, ast,
};

use super::generated::{checked_variable, definitions, stored_variable};
use crate::code::{tokens, too_deep_at};

/// Returns a cell's code in which variables are stored and checked with their shapes. Line numbers are kept.
pub fn with_shapes(folder: &Path, code: &str, dependencies: &str) -> String {
    let mut kinds = code
        .lines()
        .filter_map(|line| stored_variable(line).or_else(|| checked_variable(line)))
        .map(|(_, kind)| kind)
        .peekable();
    if kinds.peek().is_none() {
        return code.to_owned();
    }
    let definitions = Definitions::of(definitions(code), dependencies);
    let mut of_kinds: HashMap<&str, Option<String>> = HashMap::new();
    for kind in kinds {
        of_kinds
            .entry(kind)
            .or_insert_with(|| definitions.shape(kind, folder));
    }
    let marked = |line: &str| {
        let (stored, checked) = (stored_variable(line), checked_variable(line));
        let (_, kind) = stored.or(checked)?;
        let shape = of_kinds.get(kind)?.as_ref()?;
        let method = if stored.is_some() { "put" } else { "check" };
        let (before, rest) = line.split_once(&format!("{method}_variable::<"))?;
        let (rest, after) = rest.rsplit_once(')')?;
        Some(format!(
            "{before}{method}_variable_of::<{rest}, {shape:?}){after}"
        ))
    };
    let lines = code.split('\n');
    let lines = lines.map(|line| marked(line).unwrap_or_else(|| line.to_owned()));
    lines.collect::<Vec<_>>().join("\n")
}

/// Names of the standard library that need no import.
const PRELUDE: [&str; 21] = [
    "Box",
    "Clone",
    "Copy",
    "Default",
    "DoubleEndedIterator",
    "Drop",
    "Err",
    "Fn",
    "FnMut",
    "FnOnce",
    "Future",
    "Iterator",
    "None",
    "Ok",
    "Option",
    "Result",
    "Send",
    "Some",
    "String",
    "Sync",
    "Vec",
];

/// The definitions of the cells, and the local crates that the session adds.
struct Definitions {
    items: Vec<Item>,
    /// The folders of crates, by their names in code.
    crates: HashMap<String, PathBuf>,
}

/// A definition that types may be made of.
struct Item {
    /// The names under which types mention it.
    names: Vec<String>,
    /// Its text without what has no influence on the layout of values.
    text: String,
}

impl Definitions {
    fn of(code: &str, dependencies: &str) -> Self {
        let root = SourceFile::parse(code, Edition::Edition2024).syntax_node();
        Self {
            items: root.children().filter_map(|node| Item::of(&node)).collect(),
            crates: local_crates(&dependencies.parse().unwrap_or_default(), Path::new("")),
        }
    }

    /// Returns a hash of all definitions that a type mentions, directly or through others; `None` if there are none.
    fn shape(&self, kind: &str, folder: &Path) -> Option<String> {
        let mut parts: BTreeSet<String> = BTreeSet::new();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut next: Vec<String> = heads(kind);
        // Names that nothing here defines may be those of a module, through a glob import.
        let is_defined = |name: &String| {
            let is_item = self.items.iter().any(|item| item.names.contains(name));
            is_item || self.crates.contains_key(name) || !name.starts_with(char::is_uppercase)
        };
        if !next
            .iter()
            .all(|name| is_defined(name) || PRELUDE.contains(&name.as_str()))
        {
            let globs = self.items.iter().filter(|item| item.text.contains(": : *"));
            next.extend(globs.flat_map(|item| heads(&item.text)));
        }
        while let Some(name) = next.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            for item in self.items.iter().filter(|item| item.names.contains(&name)) {
                if parts.insert(item.text.clone()) {
                    next.extend(heads(&item.text));
                }
            }
            if let Some(sources) = self.crates.get(&name) {
                parts.insert(shape_of_crate(sources, folder));
            }
        }
        // An import alone is no definition.
        let defines = |part: &String| !part.starts_with("use ") && !part.starts_with("pub use ");
        if !parts.iter().any(defines) {
            return None;
        }
        let parts: Vec<String> = parts.into_iter().collect();
        Some(short_hash(parts.join("\n").as_bytes()))
    }
}

fn short_hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

impl Item {
    fn of(node: &SyntaxNode) -> Option<Self> {
        let text = shape_text(node)?;
        let mut names: Vec<String> = node
            .children()
            .filter_map(ast::Name::cast)
            .map(|name| name.text().to_string())
            .collect();
        if ast::Use::can_cast(node.kind()) {
            // The last name of each path, or what it is renamed to.
            names = node
                .descendants()
                .filter(|inner| {
                    ast::Name::can_cast(inner.kind()) || ast::NameRef::can_cast(inner.kind())
                })
                .map(|name| name.text().to_string())
                .collect();
        }
        Some(Self { names, text })
    }
}

/// Whether types may be made of what an item defines.
fn is_definition(node: &SyntaxNode) -> bool {
    match node.kind() {
        SyntaxKind::IMPL | SyntaxKind::MACRO_RULES => false,
        SyntaxKind::FN => ast::Fn::cast(node.clone()).is_some_and(|it| it.const_token().is_some()),
        kind => ast::Item::can_cast(kind),
    }
}

/// Returns the tokens of a definition, separated by spaces: without comments, bodies of functions, and implementations.
/// `None` if it has no influence on types.
fn shape_text(node: &SyntaxNode) -> Option<String> {
    if !is_definition(node) {
        return None;
    }
    let mut words: Vec<String> = Vec::new();
    let mut next: Vec<NodeOrToken<SyntaxNode, SyntaxToken>> = vec![NodeOrToken::Node(node.clone())];
    while let Some(element) = next.pop() {
        let node = match element {
            NodeOrToken::Token(token) => {
                if !token.kind().is_trivia() {
                    words.push(token.text().to_owned());
                }
                continue;
            }
            NodeOrToken::Node(node) => node,
        };
        let parent = node.parent().map(|parent| parent.kind());
        let is_left_out = match node.kind() {
            SyntaxKind::ATTR => node.text().to_string().starts_with("#[derive"),
            SyntaxKind::BLOCK_EXPR => {
                let function = node.parent().and_then(ast::Fn::cast);
                function.is_some_and(|function| function.const_token().is_none())
            }
            // Within a module.
            _ => parent == Some(SyntaxKind::ITEM_LIST) && !is_definition(&node),
        };
        if !is_left_out {
            let mut children: Vec<_> = node.children_with_tokens().collect();
            children.reverse();
            next.extend(children);
        }
    }
    Some(words.join(" ").replace("::", ": :"))
}

/// Returns the names in code that may be those of definitions: each path's first.
fn heads(text: &str) -> Vec<String> {
    const OWN: [&str; 3] = ["crate", "self", "super"];
    let all: Vec<&str> = tokens(text).map(|(_, token)| token).collect();
    let is_word = |word: &str| word.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let heads = all.iter().enumerate().filter(|(at, word)| {
        let before = |count: usize| at.checked_sub(count).map_or("", |at| all[at]);
        let follows = before(1) == ":" && before(2) == ":";
        let continues = follows && (is_word(before(3)) || before(3) == ">");
        is_word(word) && !OWN.contains(word) && (!continues || OWN.contains(&before(3)))
    });
    let heads: BTreeSet<String> = heads.map(|(_, word)| (*word).to_owned()).collect();
    heads.into_iter().collect()
}

/// Returns the folders of the crates that a manifest's dependencies name by their path.
fn local_crates(dependencies: &toml::Table, beside: &Path) -> HashMap<String, PathBuf> {
    let local = dependencies.iter().filter_map(|(name, dependency)| {
        let path = beside.join(dependency.get("path")?.as_str()?);
        Some((name.replace('-', "_"), path))
    });
    local.collect()
}

/// The number of files of a crate that are read.
const MOST_FILES: usize = 2000;

/// Returns what the types of a crate, and of the local crates that it uses, are made of. It is kept in the session's
/// folder for sources that do not change.
fn shape_of_crate(sources: &Path, folder: &Path) -> String {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut crates = vec![sources.to_owned()];
    let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
    while let Some(next) = crates.pop() {
        let next = next.canonicalize().unwrap_or(next);
        if !seen.insert(next.clone()) {
            continue;
        }
        let manifest = fs::read_to_string(next.join("Cargo.toml")).unwrap_or_default();
        let manifest: toml::Table = manifest.parse().unwrap_or_default();
        if let Some(used) = manifest.get("dependencies").and_then(toml::Value::as_table) {
            crates.extend(local_crates(used, &next).into_values());
        }
        collect_sources(&next, &mut files);
    }
    files.sort();
    let texts: Vec<String> = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap_or_default())
        .collect();
    let key = short_hash(texts.join("\0").as_bytes());
    let known = folder.join("analysis").join(format!("shape-{key}"));
    if let Ok(shape) = fs::read_to_string(&known) {
        return shape;
    }
    let shapes: Vec<String> = texts.iter().map(|text| shape_of_file(text)).collect();
    let shape = short_hash(shapes.join("\0").as_bytes());
    // If it can't be kept, it is computed again.
    let _ = fs::write(known, &shape);
    shape
}

fn collect_sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if files.len() > MOST_FILES || name.starts_with('.') || name == "target" {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_sources(&path, files),
            Ok(_) if name.ends_with(".rs") || name == "Cargo.toml" => files.push(path),
            _ => {}
        }
    }
}

fn shape_of_file(text: &str) -> String {
    if too_deep_at(text).is_some() {
        return text.to_owned();
    }
    let root = SourceFile::parse(text, Edition::Edition2024).syntax_node();
    let shapes: Vec<String> = root
        .children()
        .filter_map(|node| shape_text(&node))
        .collect();
    shapes.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(items: &str, kind: &str) -> Option<String> {
        Definitions::of(items, "").shape(kind, Path::new(""))
    }

    #[test]
    fn a_shape_changes_with_what_a_type_is_made_of() {
        for (before, after, kind) in [
            ("struct A { x: i32 }", "struct A { x: String }", "A"),
            (
                "struct A { x: i32 }",
                "struct A { x: String }",
                "Vec<Option<A>>",
            ),
            (
                "struct A { b: B } struct B { x: f32 }",
                "struct A { b: B } struct B { x: f64 }",
                "A",
            ),
            (
                "mod m { pub struct P(pub u8); }",
                "mod m { pub struct P(pub String); }",
                "m::P",
            ),
            (
                "mod m { pub struct P(pub u8); }",
                "mod m { pub struct P(pub String); }",
                "crate::m::P",
            ),
            (
                "use m::*; mod m { pub struct P(pub u8); }",
                "use m::*; mod m { pub struct P(pub String); }",
                "P",
            ),
            (
                "use m::P as Q; mod m { pub struct P(pub u8); }",
                "use m::P as Q; mod m { pub struct P(pub String); }",
                "Q",
            ),
            (
                "trait T { fn f(&self); }",
                "trait T { fn g(&self); fn f(&self); }",
                "Box<dyn T>",
            ),
            ("enum E { A(u8) }", "enum E { A(u16) }", "(E, i32)"),
            (
                "const N: usize = 3; struct A([u8; N]);",
                "const N: usize = 4; struct A([u8; N]);",
                "A",
            ),
            (
                "type B = u8; struct A { b: B }",
                "type B = u64; struct A { b: B }",
                "A",
            ),
            (
                "#[repr(C)] struct A { a: u8, b: u64 }",
                "struct A { a: u8, b: u64 }",
                "A",
            ),
        ] {
            let (old, new) = (shape(before, kind), shape(after, kind));
            assert!(old.is_some() && new.is_some() && old != new, "{after}");
        }
    }

    #[test]
    fn a_shape_stays_with_what_has_no_influence_on_it() {
        let before = "#[derive(Debug)] struct A { x: i32 } impl A { fn f(&self) {} }\n\
            trait T { fn f(&self) -> u8 { 1 } } mod m { pub struct P; fn f() {} }";
        let after = "// A comment.\nstruct Other; #[derive(Debug, Clone)] struct A {\n    x: i32, // a number\n}\n\
            impl A { fn g(&self) { 1; } } impl Drop for Other { fn drop(&mut self) {} }\n\
            trait T { fn f(&self) -> u8 { 2 } } mod m { pub struct P; fn g() { 3; } impl P {} }";
        let imports = "use m::*; ";
        let changed = "use m::*; mod m { pub struct P(u8); }";
        for kind in ["Vec<u8>", "std::io::Error"] {
            assert_eq!(
                shape(&(imports.to_owned() + after), kind),
                shape(changed, kind)
            );
        }
        for kind in ["A", "Box<dyn T>", "m::P"] {
            // The field's comma is a part of the text.
            let before = before.replace("x: i32 }", "x: i32, }");
            assert_eq!(shape(&before, kind), shape(after, kind), "{kind}");
        }
        for kind in [
            "i32",
            "std::collections::HashMap<String, A1>",
            "std::m::P",
            "()",
        ] {
            assert_eq!(shape(after, kind), None, "{kind}");
        }
    }

    #[test]
    fn variables_are_stored_and_checked_with_their_shapes() {
        let code = "struct A { x: i32 }\npub extern \"C\" fn run_user_code_1(\n\
            vars_ok &= evcxr_variable_store.check_variable::<Vec<A>>(stringify!(a));\n\
            evcxr_variable_store.put_variable::<i32>(stringify!(b), b);\n\
            evcxr_variable_store.put_variable::<A>(stringify!(c), c);\n}";
        let marked = with_shapes(Path::new(""), code, "");
        let lines: Vec<&str> = marked.split('\n').collect();
        assert!(lines[2].starts_with(
            "vars_ok &= evcxr_variable_store.check_variable_of::<Vec<A>>(stringify!(a), \""
        ));
        assert_eq!(
            lines[3],
            "evcxr_variable_store.put_variable::<i32>(stringify!(b), b);"
        );
        assert!(
            lines[4].starts_with("evcxr_variable_store.put_variable_of::<A>(stringify!(c), c, \"")
        );
        assert!(lines[4].ends_with("\");"), "{}", lines[4]);
    }

    #[test]
    fn the_types_of_a_local_crate_have_the_shape_of_its_sources() {
        let folder = tempfile::tempdir().expect("a folder");
        let helper = folder.path().join("helper");
        fs::create_dir_all(helper.join("src")).expect("made");
        fs::create_dir(folder.path().join("analysis")).expect("made");
        let dependencies = format!("helper = {{ path = {:?} }}", helper.display().to_string());
        let of = |source: &str, items: &str, kind: &str| {
            fs::write(helper.join("src/lib.rs"), source).expect("written");
            Definitions::of(items, &dependencies).shape(kind, folder.path())
        };
        let (old, new) = ("pub struct Thing(pub u8);", "pub struct Thing(pub u64);");
        for (items, kind) in [
            ("", "helper::Thing"),
            ("use helper::Thing;", "Thing"),
            ("struct A { t: helper::Thing }", "A"),
        ] {
            let first = of(old, items, kind);
            assert!(first.is_some() && first != of(new, items, kind), "{kind}");
            assert_eq!(
                first,
                of(&format!("{old} fn f() {{}}"), items, kind),
                "{kind}"
            );
        }
        assert_eq!(of(old, "", "Vec<u8>"), None);
    }
}
