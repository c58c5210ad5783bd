//! Finds brackets, strings and comments that are not closed, or not opened, and so change the meaning of everything
//! after them.
//!
//! evcxr wraps each cell in generated code, so the compiler would report the fault there, or not at all.

use super::depth::BRACKETS;
use super::{Complaint, token};

/// Returns the first fault in a cell's brackets, strings and comments.
pub fn check(code: &str) -> Result<(), Complaint> {
    let complain = |at: usize, length: usize, message: &str, label: &str| {
        Err(Complaint {
            at: at..at + length,
            message: message.into(),
            label: label.into(),
            help: None,
        })
    };
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut at = 0;
    while let Some(first) = code[at..].chars().next() {
        let rest = &code[at..];
        let Some(length) = token(rest) else {
            let (what, length) = match first {
                '/' => ("comment", 2),
                _ => ("string", 1),
            };
            let message = format!("unterminated {what}");
            return complain(at, length, &message, "it starts here");
        };
        match first {
            _ if rest.starts_with("//") || rest.starts_with("/*") => {}
            '(' | '[' | '{' => {
                open.push((first, at));
                if open.len() > BRACKETS {
                    let message = format!("brackets are nested more than {BRACKETS} levels deep");
                    return complain(
                        at,
                        1,
                        &message,
                        "move the innermost expression into a variable",
                    );
                }
            }
            ')' | ']' | '}' => match open.pop() {
                None => {
                    let message = format!("unexpected closing delimiter: `{first}`");
                    return complain(at, 1, &message, "no bracket is open here");
                }
                Some((opened, from)) if closing(opened) != first => {
                    let message = format!("mismatched closing delimiter: `{first}`");
                    let (line, column) = super::line_and_column(code, from);
                    let label = format!("it does not match the `{opened}` at {line}:{column}");
                    return complain(at, 1, &message, &label);
                }
                Some(_) => {}
            },
            _ => {}
        }
        at += length.max(1);
    }
    match open.pop() {
        Some((opened, from)) => {
            let message = format!("this `{opened}` is never closed");
            complain(from, 1, &message, "opened here")
        }
        None => Ok(()),
    }
}

fn closing(opened: char) -> char {
    match opened {
        '(' => ')',
        '[' => ']',
        _ => '}',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_code_is_accepted() {
        for code in [
            "",
            "let a = [1, (2), { 3 }];",
            "// }\n/* ) /* } */ */ 'x'; '}'; \"}\"; r#\"}\"#; b\"]\"",
            "fn f<'a>(x: &'a str) -> &'a str { x }",
            ":dep x = { version = \"1\" }",
        ] {
            assert_eq!(check(code), Ok(()), "{code}");
        }
    }

    #[test]
    fn an_unbalanced_delimiter_is_reported_where_it_is() {
        for (code, at, told) in [
            ("}", 0, "unexpected"),
            ("} let w = 1;", 0, "unexpected"),
            ("let a = 1;\n}}", 11, "unexpected"),
            ("f(]", 2, "mismatched"),
            ("if x {\n  y(", 10, "never closed"),
            ("let s = \"abc", 8, "unterminated string"),
            ("/* no end", 0, "unterminated comment"),
        ] {
            let complaint = check(code).expect_err(code);
            assert_eq!(complaint.at.start, at, "{code}");
            assert!(complaint.message.contains(told), "{}", complaint.message);
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth: usize| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(check(&nested(BRACKETS)), Ok(()));
        assert!(
            check(&nested(100_000))
                .expect_err("too deep")
                .message
                .contains("deep")
        );
    }
}
