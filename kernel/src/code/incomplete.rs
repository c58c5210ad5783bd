//! Finds statements and items that are cut short. evcxr moves items out of the cell, in front of code of its own, so the
//! compiler would complain about code that the user did not write, or not at all.

use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode, ast};

use super::{Chunk, Complaint, chunks, syntax_errors, tokens};

/// Returns the first statement or item that is cut short.
pub fn check(code: &str) -> Result<(), Complaint> {
    let chunks = chunks(code);
    let errors = syntax_errors(code);
    for chunk in &chunks {
        let complain = |message: &str, label: &str| {
            Err(Complaint {
                at: chunk.range(&chunk.node),
                message: message.into(),
                label: label.into(),
                help: None,
            })
        };
        if let Some(complaint) = let_without_name(chunk, code) {
            return Err(complaint);
        }
        if let Some(problem) = problem_of_use(&chunk.node) {
            return complain("this `use` is not complete", &problem);
        }
        if is_attributes_alone(&chunk.node) {
            return complain("expected an item after the attribute", "no item follows");
        }
        if let Some(complaint) = module_in_file(chunk).or_else(|| cut_short(chunk, code, &errors)) {
            return Err(complaint);
        }
    }
    Ok(())
}

/// Returns the fault of a `let` that is followed by no pattern, or by one without a name.
fn let_without_name(chunk: &Chunk, code: &str) -> Option<Complaint> {
    let statement = ast::LetStmt::cast(chunk.node.clone())?;
    let is_nameless = |pattern: ast::Pat| {
        let mut names = pattern
            .syntax()
            .descendants()
            .filter_map(ast::IdentPat::cast);
        names.any(|name| ast::HasName::name(&name).is_none())
    };
    if statement.pat().is_some_and(|pattern| !is_nameless(pattern)) {
        return None;
    }
    let start = chunk.range(&chunk.node).start;
    let (written, rest) = after(code, start, &["let", "ref", "mut"]);
    let written = written.join(" ");
    Some(expected(
        &format!("expected a name or a pattern after `{written}`"),
        code,
        rest,
    ))
}

/// Skips the words at the beginning of the code from byte `start` on. Returns those that are there, and the byte after
/// them.
fn after<'a>(code: &'a str, start: usize, words: &[&str]) -> (Vec<&'a str>, usize) {
    let mut found = Vec::new();
    let mut end = start;
    for (at, word) in tokens(&code[start..]) {
        if !words.contains(&word) {
            break;
        }
        found.push(word);
        end = start + at + word.len();
    }
    (found, end)
}

/// Returns the fault of an item or a `let` whose text ends before it is complete.
fn cut_short(chunk: &Chunk, code: &str, errors: &[(usize, String)]) -> Option<Complaint> {
    let node = &chunk.node;
    let is_let = ast::LetStmt::can_cast(node.kind());
    let text = &code[chunk.start..chunk.end];
    // The parser takes `static` without a name for the beginning of a closure.
    let is_item = chunk.is_item()
        || tokens(text)
            .next()
            .is_some_and(|(_, word)| word == "static");
    let (at, last) = tokens(text).last()?;
    let end = chunk.start + at + last.len();
    let is_rest = node.kind() == SyntaxKind::ERROR && tokens(&code[end..]).next().is_none();
    if !is_item && !is_let && !is_rest {
        return None;
    }
    let line = code[end..].lines().next().unwrap_or_default();
    // The last statement of a cell needs no semicolon, and an import never does if it ends its line.
    let ends_line = tokens(line).next().is_none();
    let may_end = is_let || ast::Use::can_cast(node.kind()) && ends_line;
    let (_, problem) = errors.iter().find(|(at, problem)| {
        (end..=chunk.end).contains(at) && !(may_end && problem.contains("SEMICOLON"))
    })?;
    let message = match problem.contains("SEMICOLON") || problem.contains("missing type") {
        true => missing_body(node),
        false => None,
    };
    let message = message.map_or_else(|| in_words(problem), str::to_owned);
    Some(expected(&message, code, end))
}

/// Returns what an item lacks that has neither a value nor a semicolon.
fn missing_body(node: &SyntaxNode) -> Option<&'static str> {
    const VALUE: &str = "expected a type and a value (`NAME: TYPE = VALUE;`)";
    if let Some(item) = ast::Const::cast(node.clone()) {
        return item.body().is_none().then_some(VALUE);
    }
    if let Some(item) = ast::Static::cast(node.clone()) {
        return item.body().is_none().then_some(VALUE);
    }
    let alias = ast::TypeAlias::cast(node.clone())?;
    let is_missing = alias.ty().is_none();
    is_missing.then_some("expected a type (`type NAME = TYPE;`)")
}

/// Returns the fault of a module whose items are in a file: a session has no files for modules.
fn module_in_file(chunk: &Chunk) -> Option<Complaint> {
    let module = ast::Module::cast(chunk.node.clone())?;
    let is_in_file = module.item_list().is_none() && module.semicolon_token().is_some();
    let has_path = ast::HasAttrs::attrs(&module)
        .any(|attribute| attribute.syntax().text().to_string().contains("path"));
    let name = ast::HasName::name(&module)?;
    (is_in_file && !has_path).then(|| Complaint {
        at: chunk.range(&chunk.node),
        message: format!("a cell can't read the module `{name}` from a file"),
        label: "its items are missing".into(),
        help: Some(format!(
            "write them in braces, `mod {name} {{ ... }}`, or add a crate with `:dep`"
        )),
    })
}

/// Builds the fault of something that is missing at a byte of the code.
fn expected(message: &str, code: &str, at: usize) -> Complaint {
    let Some((next, token)) = tokens(&code[at..]).next() else {
        return Complaint {
            at: at..at + 1,
            message: format!("{message}, found the end of the cell"),
            label: "the cell ends here".into(),
            help: None,
        };
    };
    let next = at + next;
    let is_keyword = SyntaxKind::from_keyword(token, Edition::Edition2024).is_some();
    let is_name = message.contains("name") && !["self", "Self", "super", "crate"].contains(&token);
    let what = if is_keyword { "the keyword " } else { "" };
    let is_no_name = is_keyword && is_name;
    let label = match is_no_name {
        true => "a keyword can't be a name",
        false => "it is missing before this",
    };
    let help = is_no_name.then(|| format!("choose another name, or write `r#{token}`"));
    Complaint {
        at: next..next + token.len(),
        message: format!("{message}, found {what}`{token}`"),
        label: label.into(),
        help,
    }
}

/// Returns a message of the parser with tokens as they are written: `expected L_CURLY`.
fn in_words(message: &str) -> String {
    const NAMES: [(&str, &str); 13] = [
        ("SEMICOLON", ";"),
        ("COMMA", ","),
        ("COLON", ":"),
        ("EQ", "="),
        ("BANG", "!"),
        ("L_PAREN", "("),
        ("R_PAREN", ")"),
        ("L_CURLY", "{"),
        ("R_CURLY", "}"),
        ("L_BRACK", "["),
        ("R_BRACK", "]"),
        ("L_ANGLE", "<"),
        ("R_ANGLE", ">"),
    ];
    let words = message.trim_start_matches("Syntax Error: ").split(' ');
    let words = words.map(|word| {
        let name = NAMES.iter().find(|(name, _)| *name == word);
        match (name, word.strip_suffix("_KW")) {
            (Some((_, sign)), _) => format!("`{sign}`"),
            (None, Some(keyword)) => format!("`{}`", keyword.to_lowercase()),
            (None, None) => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns what is wrong with a `use` that the parser does not understand: evcxr takes the names that it finds in it.
fn problem_of_use(node: &SyntaxNode) -> Option<String> {
    let text = ast::Use::cast(node.clone())?.syntax().text().to_string();
    // On a line of its own: a comment may come before it.
    let text = format!("{}\n;", text.trim_end().trim_end_matches(';'));
    let parsed = SourceFile::parse(&text, Edition::Edition2024);
    parsed.errors().first().map(ToString::to_string)
}

/// Returns whether a node is attributes without an item; they would apply to the generated code.
fn is_attributes_alone(node: &SyntaxNode) -> bool {
    if let Some(attribute) = ast::Attr::cast(node.clone()) {
        return attribute.excl_token().is_none();
    }
    let parts = || {
        node.children_with_tokens()
            .filter(|part| !part.kind().is_trivia())
    };
    parts().count() > 0 && parts().all(|part| part.kind() == SyntaxKind::ATTR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_needs_an_item() {
        for alone in [
            "#[derive(Debug)]",
            "let a = 1;\n#[inline]\n#[cold]",
            "#[derive(Debug)] // of nothing",
        ] {
            let complaint = check(alone).expect_err(alone);
            assert!(complaint.message.contains("attribute"), "{alone}");
        }
        for code in [
            "#![allow(unused)]",
            "#![allow(unused)]\nlet a = 1;",
            "#[derive(Debug)]\nstruct A;",
            "#[allow(unused)]\nlet a = 1;",
            "// #[inline]",
        ] {
            assert_eq!(check(code), Ok(()), "{code}");
        }
    }

    #[test]
    fn an_item_that_is_cut_short_is_reported_at_its_end() {
        for (code, at, told) in [
            ("impl", 4, "expected"),
            ("impl Shape for", 14, "expected"),
            ("impl Shape", 10, "expected"),
            ("struct", 6, "expected a name"),
            ("struct A<T", 10, "expected"),
            ("struct A // of nothing", 8, "expected"),
            ("enum", 4, "expected a name"),
            ("enum A", 6, "expected"),
            ("union", 5, ""),
            ("trait", 5, "expected a name"),
            ("trait A: Send", 13, "expected"),
            ("fn", 2, "expected a name"),
            ("fn f", 4, "expected"),
            ("fn f()", 6, "expected"),
            ("fn f() ->", 9, "expected"),
            ("let a = 1;\nfn f() -> i32\n", 24, "expected"),
            ("pub", 3, "expected"),
            ("pub(crate)", 10, "expected"),
            ("pub fn", 6, "expected a name"),
            ("mod", 3, "expected a name"),
            ("mod a", 5, "expected"),
            ("type", 4, "expected a name"),
            ("type A =", 8, "expected"),
            ("const", 5, "expected"),
            ("const A: u8 =", 13, "expected"),
            ("static A", 8, "expected"),
            ("static", 6, "expected"),
            ("static mut", 10, "expected"),
            ("extern crate", 12, "expected"),
            ("#[derive(Debug)]\nstruct", 23, "expected a name"),
            ("#[derive(Debug)] pub", 20, "expected"),
            ("let a:", 6, "expected"),
            ("let a: Vec<", 11, "expected"),
            ("let a =", 7, "expected"),
        ] {
            let outcome = check(code);
            if told.is_empty() {
                // The word is a name, too.
                assert_eq!(outcome, Ok(()), "{code}");
                continue;
            }
            let complaint = outcome.expect_err(code);
            assert_eq!(complaint.at.start, at, "{code}: {complaint:?}");
            assert!(
                complaint.message.contains(told)
                    && complaint.message.ends_with(", found the end of the cell"),
                "{code}: {}",
                complaint.message
            );
            for name in ["SEMICOLON", "CURLY", "PAREN", "ANGLE", "_KW"] {
                assert!(!complaint.message.contains(name), "{}", complaint.message);
            }
        }
        for (code, at, told) in [
            ("struct\nlet a = 1;", 7, "found the keyword `let`"),
            ("use a b;", 6, "expected `;`, found `b`"),
        ] {
            let complaint = check(code).expect_err(code);
            assert_eq!(complaint.at.start, at, "{code}: {complaint:?}");
            assert!(complaint.message.ends_with(told), "{}", complaint.message);
        }
        for code in [
            "",
            "struct A;",
            "pub(crate) struct A<T>(T);",
            "impl A {}",
            "unsafe impl<T> Send for A<T> {} // all",
            "fn f() {}\nfn g() -> i32 { 1 }",
            "trait A { fn f(&self); const B: u8; }",
            "macro_rules! m { ($a:expr) => { $a } }",
            "unsafe extern \"C\" { safe fn abs(a: i32) -> i32; }",
            "extern crate std as other;",
            "const A: u8 = 1;\nstatic B: u8 = { 2 };",
            "async fn f() {}\nunsafe fn g() {}\nconst fn h() {}",
            "type A = u8;\nenum E { A }\nunion U { a: u8 }",
            "#[derive(Debug)]\npub enum E<T = u8> where T: Copy { A(T), B { b: T } }",
            "let a = 1",
            "use std::fs",
            "use std::fs // of files\nlet a = 1;",
            "mod a { fn f() {} }",
            "#[path = \"/a.rs\"]\nmod a;",
            "a +",
            ":dep a = \"1\"\n!ls\nfn f() {}",
        ] {
            assert_eq!(check(code), Ok(()), "{code}");
        }
    }

    #[test]
    fn a_module_has_no_file() {
        let complaint = check("mod zoo;").expect_err("no file");
        assert!(complaint.message.contains("`zoo`"), "{complaint:?}");
    }

    #[test]
    fn a_let_needs_a_name() {
        for (code, at, told) in [
            ("let", 3, "after `let`, found the end of the cell"),
            ("let // a", 3, "after `let`, found the end of the cell"),
            ("println!();\nlet = 5;", 16, "after `let`, found `=`"),
            ("let fn = 5;", 4, "found the keyword `fn`"),
            ("let if a { b }", 4, "found the keyword `if`"),
            ("let match x", 4, "found the keyword `match`"),
            ("let struct = 1;", 4, "found the keyword `struct`"),
            (
                "let mut fn = 1;",
                8,
                "after `let mut`, found the keyword `fn`",
            ),
            ("let mut", 7, "after `let mut`, found the end of the cell"),
            ("let ref = 1;", 8, "after `let ref`, found `=`"),
        ] {
            let complaint = check(code).expect_err(code);
            assert_eq!(complaint.at.start, at, "{code}: {complaint:?}");
            assert!(complaint.message.ends_with(told), "{}", complaint.message);
        }
        for code in [
            "let x;",
            "let (a, mut b) = c;",
            "let r#fn = 1;",
            "let _ = 1;",
            "let A { a, .. } = b else { return Ok(()) };",
            "if let Some(a) = b {}",
            "let a @ 1..=2 = b;",
        ] {
            assert_eq!(check(code), Ok(()), "{code}");
        }
    }
}
