//! What a front end offers to write: names, each once, with their signatures beside them.

use std::collections::HashSet;

use crate::evcxr::Offer;

/// What may be written, and the bytes of the code that it would replace.
#[derive(Debug)]
pub struct Completions {
    pub start: usize,
    pub end: usize,
    pub candidates: Vec<Candidate>,
}

/// One name.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub name: String,
    /// What the front end shows beside it: the signature of what can be called, or what kind of thing it is.
    pub kind: String,
    pub signature: String,
    pub is_field: bool,
}

/// Where the cursor is.
pub struct Context<'a> {
    /// Behind `Type::`.
    pub of_type: bool,
    /// Behind `value.`.
    pub of_value: bool,
    /// What is there of the name.
    pub written: &'a str,
}

/// Each name once: what came first.
pub fn once(candidates: &mut Vec<Candidate>) {
    let mut seen = HashSet::new();
    candidates.retain(|candidate| seen.insert(candidate.name.clone()));
}

/// The names among what rust-analyzer has found, those of fields beside those of functions. It would insert whole calls with names for their arguments, which a person
/// had to take out again.
pub fn candidates(found: &[Offer], context: &Context) -> Vec<Candidate> {
    let mut seen = HashSet::new();
    let mut candidates: Vec<(bool, Candidate)> = Vec::new();
    for one in found {
        let (code, kind, label) = (one.code.as_str(), one.kind, one.label.as_str());
        let name = name(code);
        // Part of how values show themselves, and nobody's word.
        let hidden = name.starts_with("evcxr") && !context.written.starts_with("evcxr")
            || name.starts_with("cloze_cell") && !context.written.starts_with("cloze_c");
        if name.is_empty() || hidden {
            continue;
        }
        let call = label
            .find('(')
            .or_else(|| code.find('(').map(|_| label.len()));
        let signature = match call {
            Some(at) if at < label.len() => label[at..].to_owned(),
            Some(_) => code.find('(').map_or(String::new(), |at| {
                code[at..].trim_end_matches(';').to_owned()
            }),
            None => String::new(),
        };
        let selves = ["(self", "(mut self", "(&self", "(&mut self"];
        let needs_value = selves
            .iter()
            .any(|with| signature.starts_with(with) || code.contains(with));
        let candidate = Candidate {
            name: name.to_owned(),
            kind: match signature.is_empty() {
                true => kind.to_owned(),
                false => format!("fn{signature}"),
            },
            is_field: context.of_value && kind == "instance" && signature.is_empty(),
            signature,
        };
        // A function may have the name of a field, which may be private.
        if seen.insert((candidate.name.clone(), candidate.is_field)) {
            candidates.push((context.of_type && needs_value, candidate));
        }
    }
    candidates.sort_by_key(|(later, _)| *later);
    candidates
        .into_iter()
        .map(|(_, candidate)| candidate)
        .collect()
}

/// What of a piece of code is a name: all that can be written before a bracket. What is more than that stays whole.
fn name(code: &str) -> &str {
    let code = code.trim();
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '#';
    let end = code.find(|c| !is_name(c)).unwrap_or(code.len());
    match &code[end..] {
        rest if rest.starts_with('!') => &code[..=end],
        // A path or a piece of code of several words is inserted as it is; a call is its name.
        rest if rest.starts_with('(')
            || end == code.len()
            || rest.starts_with("::<")
            || rest.starts_with(" {") =>
        {
            &code[..end]
        }
        _ => code,
    }
}

/// Whether what the documentation says of a name begins with a declaration that others can't see.
pub fn is_private(documentation: &str, name: &str) -> bool {
    // The crate that evcxr makes of the cells: what they define is theirs.
    if documentation.starts_with("ctx") {
        return false;
    }
    let name = name.trim_end_matches('!');
    documentation
        .lines()
        .map(str::trim)
        .find(|line| {
            let declares =
                line.contains(&format!("fn {name}")) || line.contains(&format!("{name}: "));
            declares && !line.starts_with("//")
        })
        .is_some_and(|line| {
            let of_trait = documentation.contains("trait ")
                || documentation.contains("impl<T> ") && documentation.contains(" for ");
            !line.starts_with("pub ") && !of_trait && !line.starts_with("let ")
        })
}

/// The whole path of the name that a code ends with, if that is in a `use` line: `use std::{fmt, io::Read` → `std::io::Read`.
pub fn used_path(code: &str) -> Option<String> {
    let statement = code.rsplit([';', '\n']).next()?.trim_start();
    let statement = statement.strip_prefix("pub ").unwrap_or(statement);
    let tree = statement.strip_prefix("use ")?;
    let mut outer: Vec<String> = Vec::new();
    let mut path = String::new();
    for c in tree.chars() {
        match c {
            '{' => outer.push(std::mem::take(&mut path)),
            '}' => path = outer.pop()?,
            ',' => path.clear(),
            c if c.is_whitespace() => {}
            c => path.push(c),
        }
    }
    Some(outer.concat() + &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(code: &str, kind: &'static str, label: &str) -> Offer {
        Offer {
            code: code.into(),
            kind,
            label: label.into(),
        }
    }

    #[test]
    fn names_are_offered_once_with_what_they_take_beside_them() {
        let found = [
            offer("push(value)", "function", "push(value: T)"),
            offer("clone_into(target);", "function", "clone_into(…)"),
            offer("len", "instance", "len"),
            offer("len()", "function", "len()"),
            offer("names", "instance", "names"),
            offer("names", "instance", "names"),
            offer("println!($0)", "function", "println!(…)"),
            offer("evcxr_display", "function", "evcxr_display"),
        ];
        let context = Context {
            of_type: false,
            of_value: true,
            written: "",
        };
        let mut candidates = candidates(&found, &context);
        assert_eq!(candidates.iter().filter(|one| one.name == "len").count(), 2);
        once(&mut candidates);
        let names: Vec<&str> = candidates.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["push", "clone_into", "len", "names", "println!"]);
        assert_eq!(candidates[0].kind, "fn(value: T)");
        assert!(candidates[2].is_field && !candidates[0].is_field);
    }

    #[test]
    fn what_makes_a_value_comes_before_what_needs_one() {
        let found = [
            offer("get(&self)", "function", "get(&self)"),
            offer("new()", "function", "new()"),
        ];
        let context = Context {
            of_type: true,
            of_value: false,
            written: "",
        };
        let names: Vec<String> = candidates(&found, &context)
            .into_iter()
            .map(|one| one.name)
            .collect();
        assert_eq!(names, ["new", "get"]);
    }

    #[test]
    fn a_name_in_a_use_line_has_a_path() {
        for (code, path) in [
            ("use std::collections::HashMap", "std::collections::HashMap"),
            (
                "let a = 1;\nuse std::{fmt, io::{Read, Write",
                "std::io::Write",
            ),
        ] {
            assert_eq!(used_path(code).as_deref(), Some(path));
        }
        assert_eq!(used_path("let used = a::b"), None);
    }

    #[test]
    fn private_declarations_are_told_from_public_ones() {
        assert!(is_private("alloc::vec::Vec\n\nbuf: RawVec<T, A>", "buf"));
        assert!(is_private(
            "cloze::Tokenizer\n\npub(crate) fn made(core: Core) -> Tokenizer",
            "made"
        ));
        assert!(!is_private(
            "alloc::vec::Vec\n\npub fn push(&mut self, value: T)",
            "push"
        ));
        assert!(!is_private(
            "core::clone::Clone\n\npub trait Clone\nfn clone(&self) -> Self",
            "clone"
        ));
        assert!(!is_private("No documentation found", "x"));
        assert!(!is_private("ctx::Walrus\n\ntusks: u8", "tusks"));
    }
}
