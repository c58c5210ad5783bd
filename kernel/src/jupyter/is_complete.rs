//! `is_complete_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#code-completeness>.

use jupyter_protocol::{IsCompleteReply, IsCompleteReplyStatus, IsCompleteRequest};

use crate::code::token;

/// Checks whether the code can be run as it is or needs another line.
pub fn handle(request: &IsCompleteRequest) -> IsCompleteReply {
    let (status, indent) = match judge(&request.code) {
        Judgement::Complete => (IsCompleteReplyStatus::Complete, String::new()),
        Judgement::Incomplete { depth } => {
            (IsCompleteReplyStatus::Incomplete, "    ".repeat(depth))
        }
        Judgement::Invalid => (IsCompleteReplyStatus::Invalid, String::new()),
    };
    IsCompleteReply { status, indent }
}

#[derive(Debug, PartialEq)]
enum Judgement {
    Complete,
    /// More code must follow, inside this many brackets.
    Incomplete {
        depth: usize,
    },
    Invalid,
}

/// Decides from what is certain without parsing: open brackets, strings and comments, and operators that need a right
/// operand.
/// something on their right.
fn judge(code: &str) -> Judgement {
    let mut open = Vec::new();
    let mut rest = code;
    // The last characters of code, without white space and comments.
    let mut last = String::new();
    while let Some(c) = rest.chars().next() {
        let token = match token(rest) {
            Some(length) => &rest[..length],
            None => return Judgement::Incomplete { depth: 0 },
        };
        rest = &rest[token.len()..];
        match c {
            _ if token.starts_with("//") || token.starts_with("/*") || token.trim().is_empty() => {
                continue;
            }
            '(' | '[' | '{' => open.push(c),
            ')' | ']' | '}' => {
                let matching = match c {
                    ')' => '(',
                    ']' => '[',
                    _ => '{',
                };
                if open.pop() != Some(matching) {
                    return Judgement::Invalid;
                }
            }
            _ => {}
        }
        last.push_str(token);
    }
    let unfinished = [
        "=", "+", "-", "*", "/", "%", "&", "|", "^", "<", ",", ".", "::", "->", "=>", "!",
    ];
    let continues = unfinished.iter().any(|end| last.ends_with(end))
        || last.ends_with(']') && is_attribute(code);
    match open.len() {
        0 if continues && !last.ends_with("..") => Judgement::Incomplete { depth: 0 },
        0 => Judgement::Complete,
        depth => Judgement::Incomplete { depth },
    }
}

/// Whether the last line is an attribute, which needs an item.
fn is_attribute(code: &str) -> bool {
    code.lines()
        .rfind(|line| !line.trim().is_empty())
        .is_some_and(|line| line.trim_start().starts_with("#["))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_statements_are_complete() {
        for code in [
            "",
            "1 + 1",
            "let x = 5;",
            "fn f<'a>(x: &'a str) -> char { '{' }",
            "println!(\"{\");",
            "let s = r#\"a \" { \"#;",
            "let c = '\\'';",
            "let b = b\"}\"; // {",
            "/* { /* ( */ */ x",
            "x?",
            "&v[1..]",
            "let r = 2..",
        ] {
            assert_eq!(judge(code), Judgement::Complete, "{code}");
        }
    }

    #[test]
    fn open_brackets_strings_and_operators_need_more() {
        assert_eq!(
            judge("fn f() {\n    if true {"),
            Judgement::Incomplete { depth: 2 }
        );
        for code in [
            "let x =",
            "let s = \"abc",
            "/* a",
            "r#\"a\"",
            "a +",
            "v.iter()\n    .map(",
            "x.",
            "#[derive(Debug)]\n",
        ] {
            assert!(
                matches!(judge(code), Judgement::Incomplete { .. }),
                "{code}"
            );
        }
    }

    #[test]
    fn an_unmatched_closing_bracket_is_invalid() {
        for code in [")", "(]", "fn f() }"] {
            assert_eq!(judge(code), Judgement::Invalid, "{code}");
        }
    }
}
