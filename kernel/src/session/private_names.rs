//! Names that libraries have for private functions.
//!
//! rust-analyzer takes all crates for one, in which everything may be used, and offers what is private, too. Whether a
//! function is private is asked for by name, which takes a while for each; so it is asked for those only of which the
//! sources say that a private function is called so, on whatever type.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What functions are called that are private somewhere.
#[derive(Debug, Default)]
pub struct PrivateNames {
    private: HashSet<String>,
    /// Those of public functions, and of traits.
    public: HashSet<String>,
}

impl PrivateNames {
    /// Reads all sources in these folders.
    pub fn read(folders: &[PathBuf]) -> Self {
        let mut all = Self::default();
        for folder in folders {
            all.add_folder(folder);
        }
        all
    }

    /// Whether a private function is called so.
    pub fn contains(&self, name: &str) -> bool {
        self.private.contains(name)
    }

    /// Whether a public function is called so, too.
    pub fn is_public_elsewhere(&self, name: &str) -> bool {
        self.public.contains(name)
    }

    fn add_folder(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                self.add_folder(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && let Ok(text) = fs::read_to_string(&path)
            {
                self.add(&text);
            }
        }
    }

    /// Adds the private functions of a file that is formatted as usual.
    fn add(&mut self, text: &str) {
        // The blocks that a line is in: how far each is indented, and whether what is in it may be private.
        let mut blocks: Vec<(usize, bool)> = Vec::new();
        // A head that goes on in the next line.
        let mut head = String::new();
        let mut head_indent = 0;
        for line in text.lines() {
            let code = line.trim_start();
            let indent = line.len() - code.len();
            if !head.is_empty() {
                head.push(' ');
                head.push_str(code);
            } else if is_head(code) {
                blocks.retain(|(outer, _)| *outer < indent);
                head = code.to_owned();
                head_indent = indent;
            } else if let Some((name, is_public)) = function(code) {
                blocks.retain(|(outer, _)| *outer < indent);
                if let Some((_, may_be_private)) = blocks.last() {
                    match is_public || !may_be_private {
                        true => self.public.insert(name.to_owned()),
                        false => self.private.insert(name.to_owned()),
                    };
                }
            }
            if head.contains(['{', ';']) {
                // What a trait has is as public as the trait.
                let of_type = head_kind(&head) == "impl" && !head.contains(" for ");
                blocks.push((head_indent, of_type));
                head.clear();
            }
        }
    }
}

/// Whether a line begins an `impl` block or a trait.
fn is_head(code: &str) -> bool {
    matches!(head_kind(code), "impl" | "trait")
}

fn head_kind(code: &str) -> &str {
    let code = without_visibility(code).unwrap_or(code);
    let code = code.trim_start_matches("unsafe ");
    let end = code.find(|c: char| !c.is_alphabetic());
    &code[..end.unwrap_or(code.len())]
}

/// The code behind `pub` or `pub(crate)`, if it begins so.
fn without_visibility(code: &str) -> Option<&str> {
    let rest = code.strip_prefix("pub")?;
    match rest.strip_prefix('(') {
        Some(inside) => inside.split_once(')').map(|(_, rest)| rest.trim_start()),
        None => rest.strip_prefix(' '),
    }
}

/// The name of the function that a line declares, and whether it says that it is public.
fn function(code: &str) -> Option<(&str, bool)> {
    let is_public = code.starts_with("pub ");
    let mut code = without_visibility(code).unwrap_or(code);
    for word in ["default ", "const ", "async ", "unsafe "] {
        code = code.strip_prefix(word).unwrap_or(code);
    }
    if let Some((_, rest)) = code
        .strip_prefix("extern \"")
        .and_then(|rest| rest.split_once("\" "))
    {
        code = rest;
    }
    let name = code.strip_prefix("fn ")?;
    let end = name.find(|c: char| !(c.is_alphanumeric() || c == '_'));
    Some((&name[..end.unwrap_or(name.len())], is_public))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_functions_of_types_are_found_and_those_of_traits_are_not() {
        let mut names = PrivateNames::default();
        names.add(
            "impl Tokenizer {\n    pub fn encode(&self) {}\n    pub(crate) fn made(core: Core) -> Self {\n        fn inside() {}\n    }\n\
             \x20   const unsafe fn grow(&mut self) {}\n}\n\
             pub trait Examples {\n    fn len(&self) -> usize;\n}\n\
             impl<T> Clone\n    for Box<T>\n{\n    fn clone(&self) -> Self {}\n}\n\
             fn free() {}\nmod inner {\n    impl<T, A> Vec<T, A>\n    where\n        A: Allocator,\n    {\n        fn append_elements(&mut self) {}\n    }\n}\n",
        );
        let mut found: Vec<&str> = names.private.iter().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(found, ["append_elements", "grow", "inside", "made"]);
        for name in ["encode", "len", "clone"] {
            assert!(names.is_public_elsewhere(name), "{name}");
        }
        assert!(!names.is_public_elsewhere("made"));
    }
}
