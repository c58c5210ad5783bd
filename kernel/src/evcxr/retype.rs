//! Corrects the types of variables where evcxr records a short name that does not resolve.
//!
//! rust-analyzer, from which evcxr gets the types, writes the traits of `dyn Trait` without their paths, and `!` for
//! the type of an expression that never returns. When the compiler does not find such a name, it suggests the traits
//! that have it; the variable is then bound again with the full path in its type, which evcxr keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ra_ap_syntax::{AstNode, ast};
use serde_json::Value;

use super::failed::Failed;
use super::generated::stored_variable;
use crate::code::{Cell, Edit};

/// The number of spellings of the types that are tried.
const ATTEMPTS: usize = 6;

/// Returns the cell with the unresolved variables bound again, one version for each spelling of their types, the
/// likeliest first.
pub fn attempts(failed: &Failed, cell: &Cell) -> Vec<Arc<Cell>> {
    let lines: Vec<&str> = failed.source.lines().collect();
    let mut variables: BTreeMap<&str, &str> = BTreeMap::new();
    let mut paths: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for message in &failed.messages {
        let code = message["code"]["code"].as_str().unwrap_or_default();
        if ![
            "E0405", "E0404", "E0412", "E0425", "E0433", "E0658", "E0782", "E0308",
        ]
        .contains(&code)
        {
            continue;
        }
        let spans = message["spans"].as_array().into_iter().flatten();
        let stored: Vec<(&str, &str)> = spans
            .filter_map(|span| {
                stored_variable(lines.get(span["line_start"].as_u64()?.checked_sub(1)? as usize)?)
            })
            .collect();
        if stored.is_empty() {
            continue;
        }
        if code == "E0308" {
            // The short name of a trait is that of another one here.
            for (name, path) in found_traits(message) {
                paths.entry(name).or_default().push(path);
            }
            variables.extend(stored);
            continue;
        }
        variables.extend(stored);
        let text = message["message"].as_str().unwrap_or_default();
        if let Some(name) = text.split('`').nth(1)
            && code != "E0658"
        {
            let found = paths.entry(name.to_owned()).or_default();
            found.extend(importable(message, name));
        }
    }
    if variables.is_empty() {
        return Vec::new();
    }
    let mut choices: Vec<BTreeMap<&str, &str>> = vec![BTreeMap::new()];
    for (name, paths) in &mut paths {
        sort_paths(paths);
        let longer = choices.iter().flat_map(|choice| {
            paths.iter().map(|path| {
                let mut choice = choice.clone();
                choice.insert(name, path);
                choice
            })
        });
        let longer: Vec<_> = longer.collect();
        if !longer.is_empty() {
            choices = longer;
        }
    }
    let attempts = choices.iter().take(ATTEMPTS).filter_map(|choice| {
        let types = variables.iter().filter_map(|(name, kind)| {
            let whole = match *kind {
                "!" => "()".to_owned(),
                kind => with_paths(kind, choice),
            };
            (whole != *kind).then_some((*name, whole))
        });
        let types: Vec<(&str, String)> = types.collect();
        (!types.is_empty()).then(|| with_types(cell, &types))
    });
    attempts.collect()
}

/// Returns the traits of trait objects in the type that the compiler found in place of another one, and their paths.
fn found_traits(message: &Value) -> Vec<(String, String)> {
    let children = message["children"].as_array().into_iter().flatten();
    let lines = children
        .filter_map(|child| child["message"].as_str())
        .flat_map(str::lines);
    let found = lines.filter(|line| line.trim_start().starts_with("found "));
    let paths = found
        .flat_map(|line| line.split("dyn ").skip(1))
        .map(|text| {
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            text.split(|c| !is_path(c)).next().unwrap_or_default()
        });
    let named = paths.filter_map(|path| Some((path.rsplit_once("::")?.1, path)));
    named
        .map(|(name, path)| (name.to_owned(), path.to_owned()))
        .collect()
}

/// Returns the paths from which the compiler suggests importing a name.
fn importable(message: &Value, name: &str) -> Vec<String> {
    let children = message["children"].as_array().into_iter().flatten();
    let spans = children.flat_map(|child| child["spans"].as_array().into_iter().flatten());
    spans
        .filter_map(|span| span["suggested_replacement"].as_str())
        .filter_map(|text| {
            text.trim()
                .strip_prefix("use ")?
                .strip_suffix(';')
                .map(str::to_owned)
        })
        .filter(|path| path.rsplit("::").next() == Some(name))
        .collect()
}

/// Sorts the standard library's paths first and removes duplicates; every path of `core` that is also in `std` counts
/// as one.
fn sort_paths(paths: &mut Vec<String>) {
    let all: BTreeSet<String> = paths.drain(..).collect();
    paths.extend(
        all.iter()
            .filter(|path| {
                let in_std = path
                    .strip_prefix("core::")
                    .map(|rest| format!("std::{rest}"));
                in_std.is_none_or(|path| !all.contains(&path))
            })
            .cloned(),
    );
    // Variables hold `std::io::Write` more often than `std::fmt::Write`.
    paths.sort_by_key(|path| (!path.starts_with("std::"), path.starts_with("std::fmt::")));
}

/// Replaces unqualified names in a type by their paths.
fn with_paths(kind: &str, paths: &BTreeMap<&str, &str>) -> String {
    let mut out = String::new();
    let mut rest = kind;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if !is_word(first) {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        match paths.get(word) {
            Some(path) if !out.ends_with("::") && !after.starts_with("::") => {
                if !path.starts_with("crate::") {
                    out += "::";
                }
                out += path;
            }
            _ => out += word,
        }
        rest = after;
    }
    out
}

fn is_mutable(code: &str, name: &str) -> bool {
    let words: Vec<&str> = crate::code::tokens(code).map(|(_, token)| token).collect();
    words.windows(2).rev().any(|pair| pair == ["mut", name])
}

/// Returns the cell in which variables have these types: written where they are defined or, where that is a larger
/// pattern, in a second binding after the statements.
fn with_types(cell: &Cell, types: &[(&str, String)]) -> Arc<Cell> {
    let mut edits = Vec::new();
    let mut bindings = String::new();
    for (name, kind) in types {
        match end_of_pattern(cell, name) {
            Some(at) => edits.push(Edit {
                at,
                removed: 0,
                inserted: format!(": {kind}"),
            }),
            None => {
                let mutable = if is_mutable(&cell.prepared, name) {
                    "mut "
                } else {
                    ""
                };
                bindings += &format!("let {mutable}{name}: {kind} = {name}; ");
            }
        }
    }
    if !bindings.is_empty() {
        edits.push(at_the_end(cell, bindings));
    }
    cell.changed(edits)
}

/// Returns where the type of a variable belongs, if its last definition is a `let` with its name alone and no type.
fn end_of_pattern(cell: &Cell, name: &str) -> Option<usize> {
    let chunks = cell.chunks();
    let definitions = chunks.iter().rev().filter_map(|chunk| {
        let statement = ast::LetStmt::cast(chunk.node.clone())?;
        let names = statement.pat()?.syntax().descendants();
        let mut names = names.filter_map(ast::IdentPat::cast);
        let defines = |pattern: ast::IdentPat| {
            ast::HasName::name(&pattern).is_some_and(|own| own.text() == name)
        };
        names.any(defines).then_some((chunk, statement))
    });
    let (chunk, statement) = definitions.into_iter().next()?;
    match statement.pat()? {
        ast::Pat::IdentPat(pattern) if pattern.pat().is_none() && statement.ty().is_none() => {
            Some(chunk.range(pattern.syntax()).end)
        }
        _ => None,
    }
}

/// Inserts bindings after a cell's statements, before the value that it ends with.
fn at_the_end(cell: &Cell, bindings: String) -> Edit {
    let chunks = cell.chunks();
    let value = chunks.last().filter(|last| {
        ast::Expr::can_cast(last.node.kind())
            && !cell.prepared[last.start..].trim_end().ends_with(';')
    });
    let (at, inserted) = match value {
        Some(value) => (value.range(&value.node).start, bindings),
        None => (cell.prepared.len(), format!("\n{}", bindings.trim_end())),
    };
    Edit {
        at,
        removed: 0,
        inserted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failed(line: &str, code: &str, message: &str, imports: &[&str]) -> Failed {
        let spans: Vec<Value> = imports
            .iter()
            .map(|path| json!({ "suggested_replacement": format!("use {path};\n") }))
            .collect();
        Failed {
            source: format!("fn x() {{}}\n{line}\n"),
            messages: vec![
                json!({ "code": { "code": code }, "message": message, "spans": [{ "line_start": 2 }],
                                   "children": [{ "spans": spans }] }),
            ],
        }
    }

    #[test]
    fn traits_get_their_full_paths() {
        let line = "evcxr_variable_store.put_variable::<Result<i32, Box<dyn Any + Send>>>(stringify!(r), r);";
        let failed = failed(
            line,
            "E0405",
            "cannot find trait `Any` in this scope",
            &["std::any::Any", "core::any::Any"],
        );
        let cell = Cell::new(1, "let mut r = f();\nr.is_ok()", vec![]);
        let attempts = attempts(&failed, &cell);
        assert_eq!(attempts.len(), 1);
        assert_eq!(
            attempts[0].prepared,
            "let mut r: Result<i32, Box<dyn ::std::any::Any + Send>> = f();\nr.is_ok()"
        );
    }

    #[test]
    fn traits_of_the_users_modules_get_their_paths() {
        let line = "evcxr_variable_store.put_variable::<Box<dyn Animal>>(stringify!(a), a);";
        let told = "cannot find trait `Animal` in this scope";
        let failed = failed(line, "E0405", told, &["crate::zoo::Animal"]);
        let cell = Cell::new(1, "let a = f();", vec![]);
        assert_eq!(
            attempts(&failed, &cell)[0].prepared,
            "let a: Box<dyn crate::zoo::Animal> = f();"
        );
    }

    #[test]
    fn a_type_whose_short_name_means_another_one_is_the_one_that_the_compiler_found() {
        let line = "evcxr_variable_store.put_variable::<Box<dyn Write>>(stringify!(w), w);";
        let mut failed = failed(line, "E0308", "mismatched types", &[]);
        failed.messages[0]["children"] = json!([{ "message":
            "expected struct `Box<dyn std::fmt::Write>`\n   found struct `Box<(dyn std::io::Write + 'static)>`" }]);
        let cell = Cell::new(1, "let w = f();", vec![]);
        assert_eq!(
            attempts(&failed, &cell)[0].prepared,
            "let w: Box<dyn ::std::io::Write> = f();"
        );
    }

    #[test]
    fn an_ambiguous_name_is_tried_with_each_trait() {
        let line = "evcxr_variable_store.put_variable::<Box<dyn Write>>(stringify!(w), w);";
        let failed = failed(
            line,
            "E0405",
            "cannot find trait `Write` in this scope",
            &["std::fmt::Write", "std::io::Write"],
        );
        let cell = Cell::new(1, "let w = f(); // note", vec![]);
        let attempts = attempts(&failed, &cell);
        assert_eq!(
            attempts[0].prepared,
            "let w: Box<dyn ::std::io::Write> = f(); // note"
        );
        assert!(attempts[1].prepared.contains("std::fmt::Write"));
    }

    #[test]
    fn a_variable_of_a_larger_pattern_is_bound_again() {
        let line = "evcxr_variable_store.put_variable::<Box<dyn Any>>(stringify!(b), b);";
        let told = "cannot find trait `Any` in this scope";
        let failed = failed(line, "E0405", told, &["std::any::Any"]);
        for (code, changed) in [
            (
                "let b = 1;\nlet (a, mut b) = f();\na",
                "let b = 1;\nlet (a, mut b) = f();\nlet mut b: Box<dyn ::std::any::Any> = b; a",
            ),
            (
                "let b: Box<dyn Any> = f();",
                "let b: Box<dyn Any> = f();\nlet b: Box<dyn ::std::any::Any> = b;",
            ),
        ] {
            let cell = Cell::new(1, code, vec![]);
            assert_eq!(attempts(&failed, &cell)[0].prepared, changed);
        }
    }

    #[test]
    fn the_never_type_becomes_the_unit_type() {
        let line = "evcxr_variable_store.put_variable::<!>(stringify!(n), n);";
        let failed = failed(line, "E0658", "the `!` type is experimental", &[]);
        let cell = Cell::new(1, "let n = panic!();", vec![]);
        assert_eq!(
            attempts(&failed, &cell)[0].prepared,
            "let n: () = panic!();"
        );
    }
}
