//! Prepares a cell for evcxr: refuses code that evcxr would drop silently, and replaces macros that report their
//! position by the position in the cell.

use std::sync::Arc;

use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode, ast};

use super::{
    Cell, Chunk, Complaint, Edit, chunks, delimiters, depth, incomplete, line_and_column, tokens,
};

/// Returns the cell as it is passed to evcxr.
pub fn prepare(number: usize, code: &str) -> Result<Arc<Cell>, Complaint> {
    delimiters::check(code)?;
    if let Some(at) = depth::too_deep_at(code) {
        return Err(Complaint {
            at: at..at + 1,
            message: "this may be nested too deeply for the compiler".into(),
            label: format!("after {} operators in a row", depth::PARTS),
            help: Some("move parts of it into variables".into()),
        });
    }
    incomplete::check(code)?;
    for chunk in chunks(code) {
        if let Some(returned) = empty_return(&chunk.node) {
            let help =
                "wrap the rest of the cell in an `if`, or leave the cell with `return Ok(())`";
            return Err(Complaint {
                at: chunk.range(&returned),
                message: "a bare `return` can't leave a cell".into(),
                label: "here".into(),
                help: Some(help.into()),
            });
        }
    }
    let mut edits = places(number, code);
    for (range, items) in chunks(code).iter().filter_map(thread_locals) {
        edits.retain(|edit| !range.contains(&edit.at));
        edits.push(Edit {
            at: range.start,
            removed: range.len(),
            inserted: items,
        });
    }
    Ok(Cell::new(number, code, edits))
}

/// Rewrites `thread_local! { static A: T = a; }` as items that later cells can use: evcxr takes a macro call for a
/// statement.
fn thread_locals(chunk: &Chunk) -> Option<(std::ops::Range<usize>, String)> {
    let call = chunk.node.descendants().find_map(ast::MacroCall::cast)?;
    if call.path()?.syntax().text().to_string().rsplit("::").next() != Some("thread_local") {
        return None;
    }
    let alone = matches!(
        chunk.node.kind(),
        SyntaxKind::MACRO_EXPR | SyntaxKind::MACRO_CALL | SyntaxKind::EXPR_STMT
    );
    let tree = call.token_tree().filter(|_| alone)?;
    let text = tree.syntax().text().to_string();
    let inside = text.get(1..text.len().checked_sub(1)?)?;
    let inside = format!("{};", inside.trim_end().trim_end_matches(';'));
    let parsed = SourceFile::parse(&inside, Edition::Edition2024);
    let items = parsed
        .syntax_node()
        .children()
        .filter_map(ast::Static::cast);
    let items: Option<Vec<String>> = items
        .map(|item| {
            let (name, kind, value) = (ast::HasName::name(&item)?, item.ty()?, item.body()?);
            let visibility = ast::HasVisibility::visibility(&item);
            let visibility =
                visibility.map_or(String::new(), |it| format!("{} ", it.syntax().text()));
            let (kind, value) = (kind.syntax().text(), value.syntax().text());
            Some(format!(
                "{visibility}static {name}: ::std::thread::LocalKey<{kind}> = \
                 {{ ::std::thread_local! {{ static OWN: {kind} = {value}; }} OWN }};"
            ))
        })
        .collect();
    let items = items.filter(|items| !items.is_empty())?;
    let range = chunk.range(&chunk.node);
    // An unclosed call extends beyond the cell, into the code that was appended for the parser.
    (range.end <= chunk.end).then(|| (range, items.join(" ")))
}

/// Finds a `return` without a value that would leave the cell rather than a function in it.
fn empty_return(node: &SyntaxNode) -> Option<SyntaxNode> {
    if ast::Fn::can_cast(node.kind())
        || ast::Item::can_cast(node.kind())
        || ast::ClosureExpr::can_cast(node.kind())
        || ast::BlockExpr::cast(node.clone()).is_some_and(|block| block.async_token().is_some())
    {
        return None;
    }
    if let Some(returned) = ast::ReturnExpr::cast(node.clone())
        && returned.expr().is_none()
    {
        return Some(node.clone());
    }
    node.children().find_map(|child| empty_return(&child))
}

/// Replaces `line!()`, `column!()`, `file!()` and `dbg!`, which would report positions in the generated code, by
/// positions in the cell.
fn places(number: usize, code: &str) -> Vec<Edit> {
    let all: Vec<(usize, &str)> = tokens(code).collect();
    let mut edits = Vec::new();
    // The position of the previous one, from which the next is counted.
    let (mut seen, mut line, mut column) = (0, 1, 1);
    for (index, &(at, word)) in all.iter().enumerate() {
        let next = |ahead: usize| all.get(index + ahead).map_or("", |(_, token)| *token);
        let preceded = index > 0 && matches!(all[index - 1].1, ":" | "." | "!" | "fn");
        if preceded || next(1) != "!" || !matches!(next(2), "(" | "[" | "{") {
            continue;
        }
        let (lines, columns) = line_and_column(&code[seen..at], at);
        column = if lines > 1 {
            columns
        } else {
            column + columns - 1
        };
        line += lines - 1;
        seen = at;
        let empty = matches!(next(3), ")" | "]" | "}");
        let end = |ahead: usize| {
            all.get(index + ahead)
                .map_or(code.len(), |(at, token)| at + token.len())
        };
        let value = match word {
            "line" if empty => format!("{line}u32"),
            "column" if empty => format!("{column}u32"),
            "file" if empty => format!("\"cell {number}\""),
            // Without leading colons: evcxr takes a line that begins with a colon for a command.
            "dbg" => {
                let separator = if empty { "" } else { ", " };
                edits.push(Edit {
                    at,
                    removed: end(2) - at,
                    inserted: format!(
                        "cloze_cell::dbg!{}\"cell {number}, line {line}\"{separator}",
                        next(2)
                    ),
                });
                continue;
            }
            _ => continue,
        };
        edits.push(Edit {
            at,
            removed: end(3) - at,
            inserted: value,
        });
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(code: &str) -> String {
        prepare(4, code).expect("nothing is wrong").prepared.clone()
    }

    #[test]
    fn an_unclosed_call_is_left_unchanged() {
        for code in [
            "thread_local! { static A: u9 = 1''''''Fo''''; }",
            "thread_local! { static A: u8 = 'a; }",
        ] {
            assert_eq!(prepared(code), code);
        }
    }

    #[test]
    fn position_macros_report_the_position_in_the_cell() {
        assert_eq!(
            prepared("let a = 1;\nlet b = line!();"),
            "let a = 1;\nlet b = 2u32;"
        );
        assert_eq!(prepared("(file!(), column!())"), "(\"cell 4\", 11u32)");
        assert_eq!(
            prepared("é + column!() + column!();\n\ncolumn!(); é + column!() + line!()"),
            "é + 5u32 + 17u32;\n\n1u32; é + 16u32 + 3u32"
        );
        assert_eq!(
            prepared("f(dbg!(x + 1), dbg!())"),
            "f(cloze_cell::dbg!(\"cell 4, line 1\", x + 1), cloze_cell::dbg!(\"cell 4, line 1\"))"
        );
        // Strings, comments, names and other macros are left unchanged.
        for same in [
            "\"line!()\" // dbg!(1)",
            "std::line!()",
            "let line = 1; line != 2",
            "macro_rules! dbg { () => {} }",
        ] {
            assert_eq!(prepared(same), same);
        }
    }

    #[test]
    fn thread_local_macros_become_items() {
        let code = "thread_local! {\n    static A: Cell<u32> = const { Cell::new(1) };\n    pub static B: u8 = 2\n}\nA.get()";
        let prepared = prepared(code);
        assert!(
            prepared.starts_with("static A: ::std::thread::LocalKey<Cell<u32>> = "),
            "{prepared}"
        );
        assert!(
            prepared.contains("static OWN: Cell<u32> = const { Cell::new(1) };"),
            "{prepared}"
        );
        assert!(
            prepared.contains(" pub static B: ") && prepared.ends_with("\nA.get()"),
            "{prepared}"
        );
        assert_eq!(
            super::chunks(&prepared)
                .iter()
                .filter(|chunk| chunk.is_item())
                .count(),
            2
        );
    }

    #[test]
    fn code_that_evcxr_would_drop_silently_is_refused() {
        for (code, at) in [
            ("let", 3),
            ("println!();\nlet = 5;", 16),
            ("impl", 4),
            ("}", 0),
            ("if true { return; }", 10),
            ("return", 0),
            ("use ::", 0),
            ("use std::;", 0),
            ("let a = 1;\nuse std::{fs, ::};", 11),
            ("use std::fs as;", 0),
        ] {
            assert_eq!(prepare(1, code).expect_err(code).at.start, at, "{code}");
        }
        for fine in [
            "let x;",
            "fn f() { return; }",
            "let f = || { return; };",
            "if a { return Ok(()); }",
            "use std::fs",
            "use ::std::{self, fs as files, io::{*}}; // ;",
            "pub use std::fs // of files",
            "use crate::a::b;\nuse std::fmt::Write as _;",
        ] {
            assert!(prepare(1, fine).is_ok(), "{fine}");
        }
    }
}
