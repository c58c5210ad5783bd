//! Finds where Rust tokens end: as much of a lexer as brackets, strings and comments require.

/// Returns the length of the token that the code begins with, or `None` if it is not terminated.
pub fn token(code: &str) -> Option<usize> {
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

/// Scans `/* ... */`, which may be nested.
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

/// Scans a string whose opening quote ends before byte `start`.
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

/// Scans `r"..."`, `r#"..."#` and similar. Returns `Some(None)` if it is not terminated, and `None` if it is no raw
/// string.
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

/// Scans `'x'` and `'\n'`, or the quote of a lifetime.
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

/// Iterates over the tokens of a code and their positions, without white space and comments. An unterminated token
/// extends to the end.
pub fn tokens(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < code.len() {
            let length = token(&code[at..]).unwrap_or(code.len() - at).max(1);
            let start = at;
            at += length;
            let token = &code[start..at];
            let is_comment = token.starts_with("//") || token.starts_with("/*");
            if !is_comment && !token.trim().is_empty() {
                return Some((start, token));
            }
        }
        None
    })
}
