//! `is_complete_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#code-completeness>.

use jupyter_protocol::{IsCompleteReply, IsCompleteReplyStatus, IsCompleteRequest};

/// Whether the code can be run as it is, or a line must follow.
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
    /// More must follow, inside of this many brackets.
    Incomplete {
        depth: usize,
    },
    Invalid,
}

/// Judges by what is certain without parsing: brackets, texts and comments that are still open, and operators that want
/// something on their right.
fn judge(code: &str) -> Judgement {
    let mut open = Vec::new();
    let mut rest = code;
    // The last characters that are code, without blanks and comments.
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

/// The length of the token that the code begins with; none if it has no end.
fn token(code: &str) -> Option<usize> {
    let first = code.chars().next()?;
    if code.starts_with("//") {
        return Some(code.find('\n').unwrap_or(code.len()));
    }
    if code.starts_with("/*") {
        return comment(code);
    }
    if let Some(length) = raw_text(code) {
        return length;
    }
    if first == '"' {
        return text(code, 1);
    }
    if code.starts_with("b\"") || code.starts_with("c\"") {
        return text(code, 2);
    }
    if first == '\'' {
        return Some(character(code));
    }
    if first.is_alphanumeric() || first == '_' {
        return Some(
            code.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(code.len()),
        );
    }
    Some(first.len_utf8())
}

/// `/* ... */`, which may hold others.
fn comment(code: &str) -> Option<usize> {
    let mut depth = 0;
    let mut at = 0;
    while at < code.len() {
        if code[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if code[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += code[at..].chars().next()?.len_utf8();
        }
    }
    None
}

/// A text whose opening quote ends before byte `start`.
fn text(code: &str, start: usize) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in code[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    None
}

/// `r"..."`, `r#"..."#` and their kin: `Some(None)` if it has no end, `None` if it is none.
fn raw_text(code: &str) -> Option<Option<usize>> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        code.strip_prefix(prefix)
            .is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = code[prefix.len()..]
        .chars()
        .take_while(|c| *c == '#')
        .count();
    let start = prefix.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(code[start..].find(&end).map(|at| start + at + end.len()))
}

/// `'x'` and `'\n'`, or the quote of a lifetime.
fn character(code: &str) -> usize {
    let mut characters = code.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => {
            let escaped = characters.next();
            characters
                .find(|(_, c)| *c == '\'')
                .filter(|_| escaped.is_some())
                .map_or(1, |(at, _)| at + 1)
        }
        Some(_) => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
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
    fn open_brackets_texts_and_operators_want_more() {
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
    fn a_bracket_that_closes_nothing_is_invalid() {
        for code in [")", "(]", "fn f() }"] {
            assert_eq!(judge(code), Judgement::Invalid, "{code}");
        }
    }
}
