//! The code of cells: checks and changes before compilation, and the mapping from the changed code back to the cell.

mod delimiters;
mod depth;
mod incomplete;
mod prepare;
mod tokens;

use std::sync::Arc;

use ra_ap_syntax::{AstNode, Edition, Parse, SourceFile, SyntaxKind, SyntaxNode, ast};

pub use depth::{STACK, on_deep_stack, too_deep_at};
pub use prepare::prepare;
pub use tokens::{token, tokens};

/// A fault in a cell that was found before compilation.
#[derive(Clone, Debug, PartialEq)]
pub struct Complaint {
    /// The bytes of the cell that it concerns.
    pub at: std::ops::Range<usize>,
    pub message: String,
    /// The label shown under the place.
    pub label: String,
    pub help: Option<String>,
}

/// A cell as it was written, and as it is passed to evcxr.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its number in the notebook; 0 for code of the kernel's own.
    pub number: usize,
    pub original: String,
    pub prepared: String,
    edits: Vec<Edit>,
}

/// `removed` bytes at `at` of the original are replaced by `inserted`.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    pub at: usize,
    pub removed: usize,
    pub inserted: String,
}

/// A statement or item of a cell, as evcxr splits them. Together they cover the whole text; each begins with the text
/// since the one before.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Its range in the prepared code.
    pub start: usize,
    pub end: usize,
    pub node: SyntaxNode,
    /// The text from its beginning to the end of the cell was parsed behind this many bytes.
    shift: usize,
}

impl Cell {
    /// Returns the cell with changes applied, which must not overlap.
    pub fn new(number: usize, original: &str, mut edits: Vec<Edit>) -> Arc<Self> {
        // An insertion at a place comes before a replacement at the same place.
        edits.sort_by_key(|edit| (edit.at, edit.removed > 0));
        let mut prepared = String::new();
        let mut at = 0;
        for edit in &edits {
            prepared += &original[at..edit.at];
            prepared += &edit.inserted;
            at = edit.at + edit.removed;
        }
        prepared += &original[at..];
        Arc::new(Self {
            number,
            original: original.to_owned(),
            prepared,
            edits,
        })
    }

    /// Returns the cell with further changes, given in bytes of the prepared code.
    pub fn changed(&self, more: Vec<Edit>) -> Arc<Self> {
        let more = more.into_iter().map(|edit| Edit {
            at: self.original_offset(edit.at),
            ..edit
        });
        let edits = self.edits.iter().cloned().chain(more).collect();
        Self::new(self.number, &self.original, edits)
    }

    /// Returns the byte of the original that a byte of the prepared code comes from.
    pub fn original_offset(&self, prepared: usize) -> usize {
        let mut shift = 0isize;
        for edit in &self.edits {
            let start = edit.at.saturating_add_signed(shift);
            if prepared < start {
                break;
            }
            if prepared < start + edit.inserted.len() {
                return edit.at;
            }
            shift += edit.inserted.len() as isize - edit.removed as isize;
        }
        prepared
            .saturating_add_signed(-shift)
            .min(self.original.len())
    }

    /// Returns the names of the cell's macros whose rules produce items.
    pub fn macros_that_define(&self) -> Vec<String> {
        const ITEMS: [&str; 9] = [
            "struct", "enum", "union", "fn", "trait", "impl", "mod", "const", "static",
        ];
        let rules = self
            .chunks()
            .into_iter()
            .filter_map(|chunk| ast::MacroRules::cast(chunk.node));
        let defining = rules.filter(|rules| {
            let text = rules.syntax().text().to_string();
            let mut words = tokens(&text).map(|(_, token)| token);
            words.any(|word| ITEMS.contains(&word))
        });
        defining
            .filter_map(|rules| Some(ast::HasName::name(&rules)?.text().to_string()))
            .collect()
    }

    /// Returns the names of the macros that the cell calls as statements.
    pub fn called_macros(&self) -> Vec<String> {
        let statements = self.chunks().into_iter().filter(|chunk| {
            matches!(
                chunk.node.kind(),
                SyntaxKind::MACRO_EXPR | SyntaxKind::EXPR_STMT | SyntaxKind::MACRO_CALL
            )
        });
        let calls = statements.filter_map(|chunk| {
            let call = chunk.node.descendants().find_map(ast::MacroCall::cast)?;
            let first = call.syntax().text_range().start() == chunk.node.text_range().start();
            first.then(|| call.path().map(|path| path.syntax().text().to_string()))?
        });
        calls.collect()
    }

    /// Returns the statements and items, in order.
    pub fn chunks(&self) -> Vec<Chunk> {
        chunks(&self.prepared)
    }
}

/// What statements are parsed behind.
const BEFORE: &str = "fn f(){";

/// Parses the Rust code of a cell as the body of a function. Returns it with the byte at which that code begins.
fn parsed(code: &str) -> (Parse<SourceFile>, usize) {
    let first = first_rust(code);
    let function = format!("{BEFORE}{}\n}}", &code[first..]);
    (SourceFile::parse(&function, Edition::Edition2024), first)
}

/// Returns the parser's errors, each with its byte of the code.
pub fn syntax_errors(code: &str) -> Vec<(usize, String)> {
    let (parsed, first) = parsed(code);
    let errors = parsed.errors().into_iter().map(|error| {
        let at = usize::from(error.range().start()).saturating_sub(BEFORE.len());
        ((first + at).min(code.len()), error.to_string())
    });
    errors.collect()
}

/// Splits code into statements and items, leaving out leading commands.
pub fn chunks(code: &str) -> Vec<Chunk> {
    let (parsed, first) = parsed(code);
    let list = parsed
        .syntax_node()
        .children()
        .next()
        .and_then(ast::Fn::cast)
        .and_then(|function| function.body())
        .and_then(|body| body.stmt_list());
    let nodes: Vec<SyntaxNode> = list
        .iter()
        .flat_map(|list| list.syntax().children())
        .collect();
    let place = |node: &SyntaxNode| {
        let start = usize::from(node.text_range().start());
        (first + start.saturating_sub(BEFORE.len())).min(code.len())
    };
    let mut start = first;
    let mut chunks = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let end = nodes.get(number + 1).map_or(code.len(), &place);
        if start < end {
            chunks.push(Chunk {
                start,
                end,
                node: node.clone(),
                shift: BEFORE.len(),
            });
        }
        start = end;
    }
    for chunk in &mut chunks {
        chunk.shift = BEFORE.len().wrapping_sub(first);
    }
    chunks
}

/// Returns the byte at which the Rust code of a cell begins: after commands (`:dep`, `!ls`), comments and empty lines,
/// as in evcxr.
fn first_rust(code: &str) -> usize {
    let mut at = 0;
    for line in code.split_inclusive('\n') {
        let is_command = line.trim_start_matches(' ').starts_with(':') || line.starts_with('!');
        if !is_command && !line.starts_with("//") && !line.trim().is_empty() {
            break;
        }
        at += line.len();
    }
    at
}

impl Chunk {
    /// Returns the range of an inner node in the prepared code.
    pub fn range(&self, node: &SyntaxNode) -> std::ops::Range<usize> {
        let range = node.text_range();
        let at = |size: ra_ap_syntax::TextSize| usize::from(size).wrapping_sub(self.shift);
        at(range.start())..at(range.end())
    }

    /// Whether it is a function, a type or another item, which later cells can use.
    pub fn is_item(&self) -> bool {
        ast::Item::can_cast(self.node.kind())
    }

    /// Returns the name of the type that it defines, if any.
    pub fn type_name(&self) -> Option<String> {
        let item = ast::Item::cast(self.node.clone())?;
        let name = match item {
            ast::Item::Struct(item) => ast::HasName::name(&item),
            ast::Item::Enum(item) => ast::HasName::name(&item),
            ast::Item::Union(item) => ast::HasName::name(&item),
            ast::Item::TypeAlias(item) => ast::HasName::name(&item),
            _ => None,
        };
        name.map(|name| name.text().to_string())
    }

    /// Returns the name of the innermost function that contains a byte of the prepared code.
    pub fn function_at(&self, offset: usize) -> Option<String> {
        let mut found = None;
        for function in self.node.descendants().filter_map(ast::Fn::cast) {
            if self.range(function.syntax()).contains(&offset) {
                found = ast::HasName::name(&function).map(|name| name.text().to_string());
            }
        }
        found.or_else(|| {
            let name = self.node.children().find_map(ast::Name::cast)?;
            Some(name.text().to_string())
        })
    }
}

/// Returns the line and the column of a byte. Both count from 1; columns count characters.
pub fn line_and_column(code: &str, offset: usize) -> (usize, usize) {
    let before = &code[..code.floor_char_boundary(offset.min(code.len()))];
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_map_back_through_any_changes() {
        let original = "dbg!(a);\nlet b = line!();\nb";
        let edit = |at, removed, inserted: &str| Edit {
            at,
            removed,
            inserted: inserted.into(),
        };
        let cell = Cell::new(
            3,
            original,
            vec![edit(17, 7, "2u32"), edit(0, 5, "my_macro!(1, ")],
        );
        assert_eq!(cell.prepared, "my_macro!(1, a);\nlet b = 2u32;\nb");
        for (word, wanted) in [("a);", 5), ("let", 9), (";\nb", 24)] {
            let at = cell.prepared.find(word).expect("there");
            assert_eq!(cell.original_offset(at), wanted, "{word}");
        }
        assert_eq!(cell.original_offset(cell.prepared.len()), original.len());
    }

    #[test]
    fn chunks_cover_a_cell_after_its_commands() {
        let code = ":dep a = \"1\"\n\n// comment\nfn f() -> i32 { 1 } let x = f();\n  x\n";
        let chunks = chunks(code);
        let texts: Vec<&str> = chunks
            .iter()
            .map(|chunk| &code[chunk.start..chunk.end])
            .collect();
        assert_eq!(texts, ["fn f() -> i32 { 1 } ", "let x = f();\n  ", "x\n"]);
        assert!(chunks[0].is_item() && !chunks[1].is_item());
        assert_eq!(chunks[0].type_name(), None);
        let own = super::chunks("1;\nenum Own<T> { A(T) }");
        assert_eq!(own[1].type_name().as_deref(), Some("Own"));
        let inside = code.find("1 }").expect("there");
        assert_eq!(chunks[0].function_at(inside).as_deref(), Some("f"));
    }

    #[test]
    fn preparing_a_cell_takes_linear_time() {
        for again in [
            "let a = line!(); ",
            "dbg!(1);\n",
            "column!()+",
            "'",
            "\"",
            "\\",
            "r#",
            "r##\"",
            "b'",
            "'a ",
            "'\\",
            "/*",
            "//",
            "/",
            "{}",
            "()[]",
            "a.b",
            "é",
            "!",
            ":",
            "#![a]",
            "\n",
            "\r",
            "\u{feff}",
            "1e",
            "0x",
            "'{",
            "c\"",
            "\"\\",
            "fn f() {}\n",
            "return;",
            "let x",
            "let",
            "macro_rules! a { () => {} }\n",
            "thread_local! { static A: u8 = 1; }\n",
            "|",
            "<",
            ">",
            "&",
            ";",
            ",",
            "_",
            "@",
            "$",
            "`",
            "=> ",
            "?",
            "..",
            ":dep a\n",
            "!ls\n",
            "// a\n",
            "#",
            "r\"",
            "'r",
            "br##",
        ] {
            let code = again.repeat(100_000 / again.len());
            let start = std::time::Instant::now();
            on_deep_stack(|| {
                if let Ok(cell) = prepare(1, &code) {
                    cell.macros_that_define();
                    cell.called_macros();
                }
            });
            let taken = start.elapsed().as_secs_f64();
            println!("{again:?}: {taken:.2} s");
            assert!(taken < 5.0, "{again:?} takes {taken} s");
        }
    }
}
