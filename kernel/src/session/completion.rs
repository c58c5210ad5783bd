//! Completions for front ends: each name once, with its signature.

use std::collections::HashSet;

use crate::evcxr::Offer;

/// The completions, and the bytes of the code that they replace.
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
    /// The text shown beside it: the signature of a function, or the kind of any other item.
    pub kind: String,
    pub signature: String,
    pub is_field: bool,
}

/// The position of the cursor.
pub struct Context<'a> {
    /// After `Type::`.
    pub of_type: bool,
    /// After `value.`.
    pub of_value: bool,
    /// The part of the name that is already written.
    pub written: &'a str,
}

/// Removes duplicate names, keeping the first of each.
pub fn once(candidates: &mut Vec<Candidate>) {
    let mut seen = HashSet::new();
    candidates.retain(|candidate| seen.insert(candidate.name.clone()));
}

/// Converts rust-analyzer's completions to names, keeping fields apart from functions. rust-analyzer would insert whole
/// calls with placeholder arguments, which the user would have to delete.
pub fn candidates(found: &[Offer], context: &Context) -> Vec<Candidate> {
    let mut seen = HashSet::new();
    let mut candidates: Vec<(bool, Candidate)> = Vec::new();
    for one in found {
        let (code, kind, label) = (one.code.as_str(), one.kind, one.label.as_str());
        let name = name(code);
        // Internal methods of evcxr and the cell library, for displaying values.
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
        // A function may have the same name as a field, which may be private.
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

/// Returns the name at the beginning of a piece of code, up to a bracket. Anything more complex is returned whole.
fn name(code: &str) -> &str {
    let code = code.trim();
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '#';
    let end = code.find(|c| !is_name(c)).unwrap_or(code.len());
    match &code[end..] {
        rest if rest.starts_with('!') => &code[..=end],
        // A path or several words are inserted unchanged; of a call, only the name.
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

/// Whether the declaration at the beginning of a name's documentation is private.
pub fn is_private(documentation: &str, name: &str) -> bool {
    // The crate that evcxr generates for the cells: all of its items are the user's own.
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

/// Returns the full path of the name that the code ends with, if it is in a `use` line: `use std::{fmt, io::Read` →
/// `std::io::Read`.
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
    fn names_are_offered_once_with_their_signatures() {
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
    fn constructors_come_before_methods() {
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
    fn names_in_use_lines_are_resolved_to_paths() {
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
    fn private_declarations_are_recognised() {
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
