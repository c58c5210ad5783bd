//! Finds the expression or the type whose member is being completed.

use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, ast};

use crate::code::too_deep_at;

/// The variable that the expression is assigned to, so that its type can be looked up.
const VARIABLE: &str = "cloze_receiver";

/// Returns code that ends with a variable holding the value of the expression before the dot at the end: `f(a, b.` →
/// `f(a, { let cloze_receiver = b; cloze_receiver`.
pub fn as_variable(code: &str) -> Option<String> {
    let code = code.strip_suffix('.')?.trim_end();
    let start = start_of_expression(code)?;
    let (before, expression) = code.split_at(start);
    Some(format!(
        "{before}{{ let {VARIABLE} = {expression}; {VARIABLE}"
    ))
}

/// Returns the type in the documentation of that variable: `let cloze_receiver: Vec<u8>`.
pub fn type_in(documentation: &str) -> Option<&str> {
    let at = documentation.find(&format!("{VARIABLE}: "))?;
    let type_ = documentation[at + VARIABLE.len() + 2..].lines().next()?;
    Some(type_.split(" //").next().unwrap_or(type_).trim())
}

/// Returns the name of the type before the colons at the end of the code: `Vec::<u8>::` → `Vec`.
pub fn named_type(code: &str) -> Option<&str> {
    let code = code.strip_suffix("::")?;
    let path = match code.strip_suffix('>') {
        Some(_) => code.rsplit_once("::<")?.0,
        None => code,
    };
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let start = path.trim_end_matches(is_name).len();
    path[start..]
        .starts_with(char::is_uppercase)
        .then_some(&path[start..])
}

/// Returns where the expression at the end of the code begins, as the receiver of a method call.
fn start_of_expression(code: &str) -> Option<usize> {
    const BEFORE: &str = "fn f(){";
    if too_deep_at(code).is_some() {
        return None;
    }
    let parsed = SourceFile::parse(&format!("{BEFORE}{code}"), Edition::Edition2024);
    let last = parsed.syntax_node().last_token()?;
    let end = last.text_range().end();
    let mut found = None;
    for node in last.parent_ancestors() {
        if node.text_range().end() != end {
            break;
        }
        let closed = |kind| last.kind() == kind;
        let is_whole = match node.kind() {
            SyntaxKind::PATH_EXPR
            | SyntaxKind::LITERAL
            | SyntaxKind::FIELD_EXPR
            | SyntaxKind::AWAIT_EXPR => true,
            SyntaxKind::TRY_EXPR => closed(SyntaxKind::QUESTION),
            SyntaxKind::CALL_EXPR
            | SyntaxKind::METHOD_CALL_EXPR
            | SyntaxKind::PAREN_EXPR
            | SyntaxKind::TUPLE_EXPR => closed(SyntaxKind::R_PAREN),
            SyntaxKind::INDEX_EXPR | SyntaxKind::ARRAY_EXPR => closed(SyntaxKind::R_BRACK),
            SyntaxKind::MACRO_EXPR | SyntaxKind::RECORD_EXPR => true,
            // Inside a macro call.
            SyntaxKind::MACRO_CALL => true,
            // Parts of the enclosing expressions; anything else around the receiver does not belong to it.
            _ if ast::Expr::can_cast(node.kind()) || ast::Stmt::can_cast(node.kind()) => break,
            _ => continue,
        };
        if !is_whole {
            break;
        }
        found = Some(node);
    }
    let start = usize::from(found?.text_range().start());
    start.checked_sub(BEFORE.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_includes_the_calls_that_produce_it() {
        for (code, before, expression) in [
            ("names.", "", "names"),
            ("let y = f(a, b.", "let y = f(a, ", "b"),
            ("1 + v[0].x.", "1 + ", "v[0].x"),
            (
                "let t = Tokenizer::from(\"a)\")?.",
                "let t = ",
                "Tokenizer::from(\"a)\")?",
            ),
            ("v.iter().map(|t| t.", "v.iter().map(|t| ", "t"),
            (
                "let é = 1;\n&mut -(é + 1).",
                "let é = 1;\n&mut -",
                "(é + 1)",
            ),
            ("if a { vec![1].", "if a { ", "vec![1]"),
            ("a.b(c).", "", "a.b(c)"),
            ("\"text\".", "", "\"text\""),
        ] {
            let wanted = format!("{before}{{ let {VARIABLE} = {expression}; {VARIABLE}");
            assert_eq!(as_variable(code).as_deref(), Some(&*wanted), "{code}");
        }
        for code in ["names", ".", "let x = .", "f(."] {
            assert_eq!(as_variable(code), None, "{code}");
        }
    }

    #[test]
    fn the_type_is_read_from_the_variables_documentation() {
        let told = "\nlet cloze_receiver: Vec<Option<u8>>\n\nsize = 24";
        assert_eq!(type_in(told), Some("Vec<Option<u8>>"));
        assert_eq!(type_in("No documentation found"), None);
    }

    #[test]
    fn the_type_before_the_colons_is_found() {
        assert_eq!(named_type("let t = Tokenizer::"), Some("Tokenizer"));
        assert_eq!(named_type("std::vec::Vec::<u8>::"), Some("Vec"));
        assert_eq!(named_type("std::vec::"), None);
        assert_eq!(named_type("names."), None);
    }
}
