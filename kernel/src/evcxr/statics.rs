//! Keeps the values of `static`s that can change, or may be able to, from cell to cell.
//!
//! evcxr compiles the items of earlier cells again into each cell's library, so each library would have its own, newly
//! initialized copy. Here the library of the cell that defines such a `static` exports it to the dynamic linker, and
//! the libraries of later cells declare it under that name instead of defining it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode, ast};
use serde::{Deserialize, Serialize};

use super::generated::CELL_FUNCTION;
use crate::code::Cell;

/// The known `static`s of the process, in the session's folder.
const KNOWN: &str = "statics.json";
/// The `static`s that the last compiled library defines.
const DEFINED: &str = "statics-defined.json";

/// Prefixes of types with interior mutability.
const CHANGEABLE: [&str; 9] = [
    "Atomic",
    "Mutex",
    "RwLock",
    "Once",
    "Lazy",
    "Cell",
    "RefCell",
    "LocalKey",
    "UnsafeCell",
];

/// Names that mean the same in every cell, whatever it defines.
const STANDARD: [&str; 46] = [
    "std",
    "core",
    "alloc",
    "sync",
    "atomic",
    "collections",
    "cell",
    "thread",
    "Mutex",
    "RwLock",
    "OnceLock",
    "OnceCell",
    "LazyLock",
    "LazyCell",
    "Cell",
    "RefCell",
    "UnsafeCell",
    "LocalKey",
    "Vec",
    "String",
    "HashMap",
    "HashSet",
    "BTreeMap",
    "BTreeSet",
    "VecDeque",
    "Option",
    "Result",
    "Box",
    "Arc",
    "Rc",
    "str",
    "bool",
    "char",
    "u8",
    "u16",
    "u32",
    "u64",
    "u128",
    "usize",
    "i8",
    "i16",
    "i32",
    "i64",
    "isize",
    "f32",
    "f64",
];

/// A `static` of a process: its name in code, and its symbol for the dynamic linker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Static {
    name: String,
    symbol: String,
}

/// Maps a key, a hash of everything that identifies a `static`, to the `static`.
type Statics = HashMap<String, Static>;

#[derive(Debug, Default, Deserialize, Serialize)]
struct Known {
    /// The number of the cell that is compiled; it makes a `static` that is defined again a new one.
    generation: usize,
    statics: Statics,
}

/// Called before a cell is compiled: the `static`s that it defines begin with their initial values.
pub fn begin(folder: &Path, cell: &Cell) {
    let mut known: Known = read(folder, KNOWN);
    known.generation += 1;
    let own: Vec<String> = cell
        .chunks()
        .iter()
        .flat_map(|chunk| {
            chunk
                .node
                .descendants()
                .filter_map(ast::Static::cast)
                .collect::<Vec<_>>()
        })
        .filter_map(|item| Some(ast::HasName::name(&item)?.text().to_string()))
        .collect();
    known.statics.retain(|_, known| !own.contains(&known.name));
    write(folder, KNOWN, &known);
    let _ = fs::remove_file(folder.join(DEFINED));
}

/// Called after a cell has run: its library is now available to later cells.
pub fn ran(folder: &Path) {
    let defined: Statics = read(folder, DEFINED);
    if !defined.is_empty() {
        let mut known: Known = read(folder, KNOWN);
        known.statics.extend(defined);
        write(folder, KNOWN, &known);
    }
}

/// Called when the process is gone, and the values of its `static`s with it.
pub fn forget(folder: &Path) {
    let mut known: Known = read(folder, KNOWN);
    known.statics.clear();
    write(folder, KNOWN, &known);
    let _ = fs::remove_file(folder.join(DEFINED));
}

/// Called in a stand-in tool: returns a cell's code in which the `static`s refer to those of the process. Line numbers
/// are kept.
pub fn shared(folder: &Path, code: &str, dependencies: &str) -> String {
    if !code.contains("static ") {
        return code.to_owned();
    }
    let known: Known = read(folder, KNOWN);
    let (code, defined) = rewrite(code, dependencies, &known);
    write(folder, DEFINED, &defined);
    code
}

fn rewrite(code: &str, dependencies: &str, known: &Known) -> (String, Statics) {
    let parsed = SourceFile::parse(code, Edition::Edition2024);
    let root = parsed.syntax_node();
    let types = types(&root);
    // A type that a cell or a crate defines may contain a changeable one under any name.
    let unknown_may_change =
        !dependencies.is_empty() || CHANGEABLE.iter().any(|begin| types.contains(begin));
    let mut defined = Statics::new();
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    // A function defined by the running cell comes last and is compiled only once.
    let items = root.children().filter(|item| {
        let function = format!("fn {CELL_FUNCTION}");
        !item.text().to_string().contains(&function)
    });
    for item in items {
        for (number, node) in item.descendants().filter_map(ast::Static::cast).enumerate() {
            let (Some(name), Some(kind)) = (ast::HasName::name(&node), node.ty()) else {
                continue;
            };
            let kind_text = kind.syntax().text().to_string();
            let words = words(kind.syntax());
            let standard = words
                .iter()
                .all(|word| STANDARD.contains(&word.as_str()) || word.starts_with("Atomic"));
            let is_changeable =
                |word: &String| CHANGEABLE.iter().any(|begin| word.starts_with(begin));
            let changes = node.mut_token().is_some()
                || words.iter().any(is_changeable)
                || !standard && unknown_may_change;
            if !changes {
                continue;
            }
            let name = name.text().to_string();
            let mut key = blake3::Hasher::new();
            key.update(item.text().to_string().trim().as_bytes());
            key.update(&number.to_le_bytes());
            if !standard {
                // Other types that it is made of may have changed under the same name.
                key.update(types.as_bytes());
                key.update(dependencies.as_bytes());
            }
            let key = key.finalize().to_hex()[..16].to_owned();
            let range = node.syntax().text_range();
            let (start, end) = (usize::from(range.start()), usize::from(range.end()));
            match known.statics.get(&key) {
                Some(Static { symbol, .. }) => {
                    let lines = code[start..end].matches('\n').count();
                    let visibility = ast::HasVisibility::visibility(&node)
                        .map_or(String::new(), |it| format!("{} ", it.syntax().text()));
                    let word = if node.mut_token().is_some() {
                        "static mut"
                    } else {
                        "safe static"
                    };
                    let kind = kind_text.replace('\n', " ");
                    let declared = format!(
                        "unsafe extern \"Rust\" {{ #[link_name = {symbol:?}] {visibility}{word} {name}: {kind}; }}{}",
                        "\n".repeat(lines)
                    );
                    edits.push((start, end, declared));
                }
                None => {
                    let symbol = format!("cloze_static_{key}_{}", known.generation);
                    let at = first_token(node.syntax()).unwrap_or(start);
                    edits.push((at, at, format!("#[unsafe(export_name = {symbol:?})] ")));
                    defined.insert(key, Static { name, symbol });
                }
            }
        }
    }
    let mut out = code.to_owned();
    edits.sort_by_key(|edit| std::cmp::Reverse(edit.0));
    for (start, end, text) in edits {
        out.replace_range(start..end, &text);
    }
    (out, defined)
}

/// Returns where an item begins after its documentation.
fn first_token(item: &SyntaxNode) -> Option<usize> {
    let first = item
        .children_with_tokens()
        .find(|part| !matches!(part.kind(), SyntaxKind::COMMENT | SyntaxKind::WHITESPACE))?;
    Some(first.text_range().start().into())
}

/// Returns the names in a type.
fn words(kind: &SyntaxNode) -> Vec<String> {
    kind.descendants_with_tokens()
        .filter_map(|part| part.into_token())
        .filter(|token| token.kind() == SyntaxKind::IDENT)
        .map(|token| token.text().to_owned())
        .collect()
}

/// Returns all definitions that types depend on, sorted: evcxr's order varies.
fn types(root: &SyntaxNode) -> String {
    let mut all: Vec<String> = root
        .children()
        .filter(|item| {
            matches!(
                item.kind(),
                SyntaxKind::STRUCT
                    | SyntaxKind::ENUM
                    | SyntaxKind::UNION
                    | SyntaxKind::TYPE_ALIAS
                    | SyntaxKind::USE
                    | SyntaxKind::TRAIT
            )
        })
        .map(|item| item.text().to_string().trim().to_owned())
        .filter(|item| !item.contains("cloze_cell"))
        .collect();
    all.sort();
    all.join("\n")
}

fn read<T: Default + serde::de::DeserializeOwned>(folder: &Path, name: &str) -> T {
    fs::read(folder.join(name))
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default()
}

/// Ignores errors: where this folder can't be written to, compiling fails too, and reports it.
fn write(folder: &Path, name: &str, value: &impl Serialize) {
    let _ = serde_json::to_vec(value).map(|json| fs::write(folder.join(name), json));
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: &str = "/// Counts.\npub static HITS: AtomicUsize =\n    AtomicUsize::new(0);\n";
    const RUN: &str = "pub extern \"C\" fn run_user_code_1() { static IN_CELL: AtomicUsize = AtomicUsize::new(0); }\n";

    #[test]
    fn a_static_is_defined_by_one_cell_and_declared_by_later_ones() {
        let mut known = Known {
            generation: 4,
            statics: Statics::new(),
        };
        let code = format!("{COUNTER}{RUN}");
        let (first, defined) = rewrite(&code, "", &known);
        assert!(
            first.contains("#[unsafe(export_name = \"cloze_static_"),
            "{first}"
        );
        assert_eq!(defined.len(), 1);
        known.statics = defined;
        known.generation = 5;
        let (second, defined) = rewrite(&format!("fn more() {{}}\n{code}"), "", &known);
        assert!(defined.is_empty());
        assert!(
            second.contains("pub safe static HITS: AtomicUsize; }"),
            "{second}"
        );
        assert!(!second.contains("AtomicUsize::new(0);\n"), "{second}");
        assert_eq!(second.lines().count(), code.lines().count() + 1);
    }

    #[test]
    fn a_changed_type_makes_a_new_static() {
        let statics = "static ALL: Mutex<Vec<Point>> = Mutex::new(Vec::new());\n";
        let known = Known::default();
        let key = |code: &str| rewrite(code, "", &known).1.into_keys().next();
        let one = key(&format!("struct Point {{ x: f32 }}\n{statics}"));
        let same = key(&format!(
            "fn other() {{}}\nstruct Point {{ x: f32 }}\n{statics}"
        ));
        let other = key(&format!("struct Point {{ x: f64 }}\n{statics}"));
        assert!(one.is_some() && one == same && one != other);
        // A standard type never changes.
        assert_eq!(key(COUNTER), key(&format!("struct Point;\n{COUNTER}")));
    }

    #[test]
    fn statics_in_functions_are_told_apart_and_immutable_ones_are_left_unchanged() {
        let code = "fn a() { static N: AtomicU8 = AtomicU8::new(0); }\nfn b() { static N: AtomicU8 = AtomicU8::new(0); }\n\
                    static NAMES: [&str; 1] = [\"static \"];\nstatic mut LAST: u8 = 0;\n";
        let (code, defined) = rewrite(code, "", &Known::default());
        assert_eq!(defined.len(), 3, "{code}");
        assert!(code.contains("\nstatic NAMES"), "{code}");
    }

    #[test]
    fn a_type_of_a_cell_may_hold_what_changes() {
        let defined =
            |code: &str, dependencies: &str| rewrite(code, dependencies, &Known::default()).1.len();
        let own = "struct Count(std::cell::UnsafeCell<u8>);\nunsafe impl Sync for Count {}\nstatic OWN: Count = Count::new();\n";
        assert_eq!(defined(own, ""), 1);
        let alias =
            "type Count = std::sync::atomic::AtomicU8;\nstatic OWN: Count = Count::new(0);\n";
        assert_eq!(defined(alias, ""), 1);
        let plain = "struct Point(u8);\nstatic PLACES: [Point; 1] = [Point(1)];\n";
        assert_eq!(defined(plain, ""), 0);
        let foreign = "static MAP: some_crate::Map<u8> = some_crate::Map::new();\n";
        assert_eq!(defined(foreign, "some_crate = \"1\""), 1);
    }
}
