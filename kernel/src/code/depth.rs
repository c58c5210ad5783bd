//! Measures how deeply code is nested. Parsers, and the visitors of what they produce, recurse once for each level, and
//! the stack is finite; so the depth is checked before anything is parsed.

use super::tokens;

/// The stack size of a thread that parses code.
pub const STACK: usize = 512 << 20;

/// The limit on nested brackets.
pub const BRACKETS: usize = 500;

/// The limit on operators and keywords in a row between two brackets, commas or semicolons: each may nest what follows
/// it, or what precedes it, one level deeper (`!!!x`, `1 + 1 + 1`, `if a {} else if b {}`, `A<B<C>>`).
pub const PARTS: usize = 2000;

/// Runs `work`, which parses code, on a thread with a large stack.
pub fn on_deep_stack<T: Send>(parse: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, parse)
            .expect("a thread can be started");
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Returns the byte at which code becomes too deeply nested for a parser.
pub fn too_deep_at(code: &str) -> Option<usize> {
    // The number of operators so far in each open bracket.
    let mut open = vec![0];
    let mut tokens = tokens(code).peekable();
    while let Some((at, token)) = tokens.next() {
        let closes = matches!(token, ")" | "]" | "}");
        if closes && open.len() > 1 {
            open.pop();
        }
        let next = tokens.peek().map_or("", |(_, token)| *token);
        let nests = closes || is_operator(token) || KEYWORDS.contains(&token);
        let ends = matches!(token, ";" | ",") || token == "}" && !goes_on(next);
        let depth = open.len();
        let parts = open.last_mut()?;
        *parts = if ends { 0 } else { *parts + usize::from(nests) };
        if *parts > PARTS || depth > BRACKETS {
            return Some(at);
        }
        if matches!(token, "(" | "[" | "{") {
            open.push(0);
        }
    }
    None
}

/// Keywords that nest what follows without brackets around it.
const KEYWORDS: [&str; 19] = [
    "as", "break", "const", "dyn", "else", "fn", "for", "if", "impl", "in", "let", "match", "move",
    "mut", "ref", "return", "unsafe", "while", "yield",
];

fn is_operator(token: &str) -> bool {
    let is_one = |c: char| c.is_ascii_punctuation() && !"([{}]),;_'\"".contains(c);
    token.starts_with(is_one)
}

/// Whether the code that begins with this token continues the block before it.
fn goes_on(token: &str) -> bool {
    matches!(token, "else" | "as") || is_operator(token) && token != "#"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::prepare;

    #[test]
    fn code_that_is_nested_too_deep_is_refused_where_it_exceeds_the_limit() {
        for (before, again, after) in [
            ("", "(", "1"),
            ("", "f(1)", "(2)"),
            ("let x = ", "{ 1 } + ", "1"),
            ("x = [", "a[0] = ", "1];"),
            ("let a = ", "!", "true;"),
            ("", "- ", "1"),
            ("", "1 + ", "1"),
            ("", "a.b().", "c"),
            ("", "|| ", "1"),
            ("", "return ", "1"),
            ("if a {} ", "else if a {} ", ""),
            ("let x: ", "A<", "u8"),
            ("let x: ", "*const ", "u8 = 1;"),
            ("fn f(x: ", "&", "u8) {}"),
            ("let ", "&", "x = 1;"),
        ] {
            let code = format!("let é = 1;\n{before}{}{after}", again.repeat(20_000));
            assert!(too_deep_at(&code).is_some(), "{again}");
            let complaint = prepare(1, &code).expect_err(again);
            assert!(code.is_char_boundary(complaint.at.start), "{again}");
            let code = format!("let é = 1;\n{before}{}{after}", again.repeat(200));
            assert_eq!(too_deep_at(&code), None, "{again}");
        }
    }

    #[test]
    fn long_code_is_not_refused_as_deep() {
        for again in [
            "let a = f(1, 2)?;\nif a { b } else { c }\n",
            "fn f<T: A + B>(a: &'a T) -> Vec<T> { a.b().c()? }\n",
            "pub struct A { a: u8 }\nimpl A { fn f(&self) -> u8 { 1 } }\n",
            "#[derive(Debug)]\nenum E { A, B(u8) }\nm! { a }\n",
            "match a { A => 1, _ => 2 }\n{ *a += 1; }\nloop { break }\n",
            "// a + b\n/* ((( */\n\"{{{ + + +\";\n",
        ] {
            assert_eq!(too_deep_at(&again.repeat(5000)), None, "{again}");
        }
        for list in ["1, ", "[-1, 2], ", "(\"a\", b - 1), "] {
            let code = format!("vec![{}]", list.repeat(20_000));
            assert_eq!(too_deep_at(&code), None, "{list}");
        }
    }
}
