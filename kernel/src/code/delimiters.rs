//! Brackets, texts and comments that have no end or no beginning: what makes all that follows mean something else.
//!
//! evcxr puts a cell into code of its own, so the compiler would find the fault there, or none at all.

use super::depth::BRACKETS;
use super::{Complaint, token};

/// The first thing that is wrong with a cell's brackets, texts and comments.
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
                _ => ("text", 1),
            };
            let message = format!("a {what} has no end");
            return complain(at, length, &message, "it begins here");
        };
        match first {
            _ if rest.starts_with("//") || rest.starts_with("/*") => {}
            '(' | '[' | '{' => {
                open.push((first, at));
                if open.len() > BRACKETS {
                    let message = format!("brackets are in each other more than {BRACKETS} deep");
                    return complain(at, 1, &message, "take the innermost out into a variable");
                }
            }
            ')' | ']' | '}' => match open.pop() {
                None => {
                    let message = format!("unexpected closing delimiter: `{first}`");
                    return complain(at, 1, &message, "nothing was opened that it could close");
                }
                Some((opened, from)) if closing(opened) != first => {
                    let message = format!("mismatched closing delimiter: `{first}`");
                    let (line, column) = super::line_and_column(code, from);
                    let label = format!("it should close the `{opened}` at {line}:{column}");
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
    fn whole_code_is_left_alone() {
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
    fn what_has_no_beginning_or_no_end_is_told_at_its_place() {
        for (code, at, told) in [
            ("}", 0, "unexpected"),
            ("} let w = 1;", 0, "unexpected"),
            ("let a = 1;\n}}", 11, "unexpected"),
            ("f(]", 2, "mismatched"),
            ("if x {\n  y(", 10, "never closed"),
            ("let s = \"abc", 8, "a text"),
            ("/* no end", 0, "a comment"),
        ] {
            let complaint = check(code).expect_err(code);
            assert_eq!(complaint.at.start, at, "{code}");
            assert!(complaint.message.contains(told), "{}", complaint.message);
        }
    }

    #[test]
    fn depth_has_a_limit() {
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
