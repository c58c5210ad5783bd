//! Finds the private names of library types.
//!
//! rust-analyzer takes all crates for one crate, in which everything is accessible, and offers private names, too.
//! Their sources say what is private: they are read once, and completions can then be filtered without queries,
//! however busy the machine is.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Public and private members of library types.
#[derive(Debug, Default)]
pub struct PrivateNames {
    /// By the name of the type.
    types: HashMap<String, Members>,
    /// The functions of traits: every type that implements the trait has them.
    of_traits: HashSet<String>,
    /// The names that are private in any type.
    private_somewhere: HashSet<String>,
}

/// The functions and fields of all types with the same name. Fields are written with a leading dot.
#[derive(Debug, Default)]
struct Members {
    public: HashSet<String>,
    private: HashSet<String>,
    derefs_to: Option<Target>,
}

/// The target of a type's `Deref`.
#[derive(Clone, Debug, PartialEq)]
enum Target {
    Type(String),
    /// The type argument with this index.
    Argument(usize),
}

/// The kind of a block in braces.
#[derive(Clone, Debug, PartialEq)]
enum Block {
    Struct(String),
    /// An inherent `impl` of a type.
    Type(String),
    /// An implementation of a trait for a type, with the type's parameters if the trait is `Deref`.
    TraitOfType(String, Option<Vec<String>>),
    Trait,
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

    /// Whether any type has a private member of this name.
    pub fn contains(&self, name: &str, is_field: bool) -> bool {
        self.private_somewhere.contains(&*member(name, is_field))
    }

    /// Whether a function or a field of a type is private, as far as the sources tell. The type is written as in a
    /// declaration; the types that it derefs to are searched as well.
    pub fn is_private(&self, type_: &str, name: &str, is_field: bool) -> Option<bool> {
        const DEEPEST: usize = 8;
        let member = member(name, is_field);
        let mut type_ = type_.to_owned();
        let mut private = false;
        for _ in 0..DEEPEST {
            let (name, arguments) = split_type(&type_)?;
            let members = self.types.get(&name)?;
            if members.public.contains(&*member) {
                return Some(false);
            }
            private |= members.private.contains(&*member);
            type_ = match &members.derefs_to {
                Some(Target::Type(target)) => target.clone(),
                Some(Target::Argument(number)) => match arguments.get(*number) {
                    Some(argument) => argument.clone(),
                    None => break,
                },
                None => break,
            };
        }
        // A trait may have a function of the same name, and this type may implement it.
        match private && self.of_traits.contains(&*member) {
            true => None,
            false => Some(private),
        }
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

    /// Adds the declarations of a file that is formatted by rustfmt.
    fn add(&mut self, text: &str) {
        // The blocks that contain the line, and the indentation of each.
        let mut blocks: Vec<(usize, Block)> = Vec::new();
        // A head that continues on the next line.
        let mut head = String::new();
        let mut head_indent = 0;
        for line in text.lines() {
            let code = line.trim_start();
            let indent = line.len() - code.len();
            if !head.is_empty() {
                head.push(' ');
                head.push_str(code);
            } else if code.is_empty() || code.starts_with("//") {
                continue;
            } else if is_head(code) {
                head = code.to_owned();
                head_indent = indent;
            } else {
                blocks.retain(|(outer, _)| *outer < indent);
                if let Some((_, block)) = blocks.last() {
                    self.add_line(&block.clone(), code);
                }
            }
            if head.contains(['{', ';']) {
                blocks.retain(|(outer, _)| *outer < head_indent);
                if let Some(block) = block(&head) {
                    if let Block::Struct(name) = &block {
                        self.add_struct(name, &head);
                    }
                    blocks.push((head_indent, block));
                }
                head.clear();
            }
        }
    }

    fn add_line(&mut self, block: &Block, code: &str) {
        let is_public = code.starts_with("pub ");
        match (block, function(code)) {
            (Block::Trait, Some(name)) => drop(self.of_traits.insert(name.to_owned())),
            (Block::TraitOfType(type_, _), Some(name)) => self.add_member(type_, name, true),
            (Block::Type(type_), Some(name)) => self.add_member(type_, name, is_public),
            (Block::Struct(type_), None) => {
                if let Some(name) = field(code) {
                    self.add_member(type_, &member(name, true), is_public);
                }
            }
            (Block::TraitOfType(type_, Some(parameters)), None) => {
                let target = code.strip_prefix("type Target =");
                if let Some(target) = target.and_then(|rest| rest.trim().strip_suffix(';')) {
                    let number = parameters.iter().position(|parameter| parameter == target);
                    let target = number.map_or(Target::Type(target.into()), Target::Argument);
                    self.types.entry(type_.clone()).or_default().derefs_to = Some(target);
                }
            }
            _ => {}
        }
    }

    /// Adds a struct, and the fields in its head: `struct Pair(pub u8, u8);`
    fn add_struct(&mut self, name: &str, head: &str) {
        self.types.entry(name.to_owned()).or_default();
        let until = head.find(['{', ';']).unwrap_or(head.len());
        let Some((_, fields)) = head[..until].split_once('(') else {
            return;
        };
        let fields = fields.rsplit_once(')').map_or(fields, |(inside, _)| inside);
        for (number, field) in split(fields).into_iter().enumerate() {
            let is_public = field.starts_with("pub ");
            self.add_member(name, &member(&number.to_string(), true), is_public);
        }
    }

    fn add_member(&mut self, type_: &str, member: &str, is_public: bool) {
        let members = self.types.entry(type_.to_owned()).or_default();
        match is_public {
            true => members.public.insert(member.to_owned()),
            false => {
                self.private_somewhere.insert(member.to_owned());
                members.private.insert(member.to_owned())
            }
        };
    }
}

fn member(name: &str, is_field: bool) -> std::borrow::Cow<'_, str> {
    match is_field {
        true => format!(".{name}").into(),
        false => name.into(),
    }
}

/// Whether a line begins an `impl` block, a trait or a struct.
fn is_head(code: &str) -> bool {
    matches!(first_word(code), "impl" | "trait" | "struct")
}

fn first_word(code: &str) -> &str {
    let mut code = without_visibility(code).unwrap_or(code);
    for word in ["unsafe ", "auto ", "const "] {
        code = code.strip_prefix(word).unwrap_or(code);
    }
    let end = code.find(|c: char| !c.is_alphabetic());
    &code[..end.unwrap_or(code.len())]
}

/// Returns the block that a head begins.
fn block(head: &str) -> Option<Block> {
    let word = first_word(head);
    let (_, rest) = head.split_once(word)?;
    let name = |text: &str| split_type(text).map(|(name, _)| name);
    match word {
        "trait" => return Some(Block::Trait),
        "struct" => {
            let rest = rest.trim_start();
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            return Some(Block::Struct(rest[..end.unwrap_or(rest.len())].to_owned()));
        }
        _ => {}
    }
    let rest = rest.trim_start();
    let rest = match rest.starts_with('<') {
        true => &rest[bracketed(rest)..],
        false => rest,
    };
    let rest = rest.split(['{', ';']).next().unwrap_or_default();
    let rest = rest.split(" where ").next().unwrap_or_default();
    let Some((of_trait, type_)) = rest.split_once(" for ") else {
        return Some(Block::Type(name(rest)?));
    };
    let (type_, arguments) = split_type(type_)?;
    let is_deref = name(of_trait).as_deref() == Some("Deref");
    Some(Block::TraitOfType(type_, is_deref.then_some(arguments)))
}

/// Returns the length of the `<...>` at the beginning of a text.
fn bracketed(text: &str) -> usize {
    let mut depth = 0;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        before = c;
        if depth == 0 {
            return at + c.len_utf8();
        }
    }
    text.len()
}

/// Splits a list at its commas, except those in brackets.
fn split(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut before) = (0, 0, ' ');
    let mut parts = Vec::new();
    for (at, c) in list.char_indices() {
        match c {
            '<' | '(' | '[' => depth += 1,
            '>' if before == '-' => {}
            '>' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        before = c;
    }
    parts.push(list[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// Returns the name of a type, without references and path, and its arguments: `&'a std::vec::Vec<u8>` → `Vec`, `u8`.
fn split_type(type_: &str) -> Option<(String, Vec<String>)> {
    let mut rest = type_.trim();
    loop {
        let before = rest;
        rest = rest.trim_start_matches(['&', '!']).trim_start();
        if rest.starts_with('\'') {
            rest = rest.split_once(' ')?.1;
        }
        rest = rest.strip_prefix("mut ").unwrap_or(rest);
        if rest == before {
            break;
        }
    }
    if let Some(element) = rest.strip_prefix('[') {
        let end = element.find([';', ']']).unwrap_or(element.len());
        return Some(("[]".into(), vec![element[..end].trim().to_owned()]));
    }
    let end = rest.find('<').unwrap_or(rest.len());
    let name = rest[..end].trim().rsplit("::").next()?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let arguments = rest[end..].trim();
    let arguments = arguments
        .strip_prefix('<')
        .map_or("", |inside| inside.strip_suffix('>').unwrap_or(inside));
    let arguments = split(arguments)
        .into_iter()
        .filter(|argument| !argument.starts_with('\''));
    is_name.then(|| (name.to_owned(), arguments.map(str::to_owned).collect()))
}

/// Returns the code after `pub` or `pub(crate)`, if it begins so.
fn without_visibility(code: &str) -> Option<&str> {
    let rest = code.strip_prefix("pub")?;
    match rest.strip_prefix('(') {
        Some(inside) => inside.split_once(')').map(|(_, rest)| rest.trim_start()),
        None => rest.strip_prefix(' '),
    }
}

/// Returns the name of the field that a line declares.
fn field(code: &str) -> Option<&str> {
    let code = without_visibility(code).unwrap_or(code);
    let (name, _) = code.split_once(": ")?;
    let is_name = name.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_name.then_some(name)
}

/// Returns the name of the function that a line declares.
fn function(code: &str) -> Option<&str> {
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
    Some(&name[..end.unwrap_or(name.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> PrivateNames {
        let mut names = PrivateNames::default();
        names.add(
            "pub struct Tokenizer {\n    core: Core,\n    /// The class: what it is.\n    pub class: Class,\n    pub(crate) made: bool,\n}\n\n\
             impl Tokenizer {\n    pub fn encode(&self) {}\n    pub(crate) fn made(core: Core) -> Self {\n        let a: u8 = 1;\n    }\n\
             \x20   const unsafe fn grow(&mut self) {}\n    fn len(&self) {}\n}\n\
             pub trait Examples {\n    fn len(&self) -> usize;\n}\n\
             impl<T> Clone\n    for Box<T>\n{\n    fn clone(&self) -> Self {}\n}\n\
             impl<T: ?Sized, A: Allocator> ops::Deref for Box<T, A> {\n    type Target = T;\n    fn deref(&self) {}\n}\n\
             fn free() {}\npub struct Pair(pub Vec<(u8, u8)>, u8);\n\
             pub struct Vec<T, #[unstable] A: Allocator = Global> {\n    buf: RawVec<T, A>,\n    len: usize,\n}\n\
             mod inner {\n    impl<T, A> Vec<T, A>\n    where\n        A: Allocator,\n    {\n        fn append_elements(&mut self) {}\n\
             \x20       pub fn push(&mut self) {}\n        pub const fn len(&self) {}\n    }\n}\n\
             impl<F: Fn() -> u8> Deref for Vec<F> {\n    type Target = [F];\n}\n\
             impl<T> [T] {\n    fn swap_unchecked(&mut self) {}\n    pub fn first(&self) {}\n    pub(crate) fn push(&self) {}\n}\n",
        );
        names
    }

    #[test]
    fn privacy_depends_on_the_type() {
        let names = names();
        for (type_, name, private) in [
            ("Tokenizer", "made", Some(true)),
            ("&'a mut cloze::Tokenizer", "grow", Some(true)),
            ("Tokenizer", "encode", Some(false)),
            // It may implement the trait.
            ("Tokenizer", "len", None),
            ("Vec<String>", "append_elements", Some(true)),
            ("Vec<String>", "len", Some(false)),
            ("Vec<String>", "clone_into", Some(false)),
            // Members of the type that it derefs to; public members on the way are found first.
            ("Vec<u8>", "swap_unchecked", Some(true)),
            ("Vec<u8>", "first", Some(false)),
            ("Vec<u8>", "push", Some(false)),
            ("[u8; 3]", "push", Some(true)),
            ("Box<Vec<u8>>", "append_elements", Some(true)),
            ("Box<Tokenizer, Global>", "made", Some(true)),
            ("Box<Tokenizer>", "clone", Some(false)),
            ("Walrus", "made", None),
            ("impl Fn() -> Tokenizer", "made", None),
        ] {
            assert_eq!(
                names.is_private(type_, name, false),
                private,
                "{type_} {name}"
            );
        }
        assert!(names.contains("made", false) && !names.contains("encode", false));
        assert!(!names.contains("free", false) && !names.contains("clone", false));
    }

    #[test]
    fn fields_and_functions_of_the_same_name_are_distinguished() {
        let names = names();
        for (type_, name, private) in [
            ("Tokenizer", "core", true),
            ("Tokenizer", "class", false),
            ("Tokenizer", "made", true),
            ("Vec<u8>", "len", true),
            ("Pair", "0", false),
            ("Pair", "1", true),
        ] {
            let told = names.is_private(type_, name, true);
            assert_eq!(told, Some(private), "{type_} {name}");
        }
        assert!(names.contains("buf", true) && !names.contains("a", true));
    }
}
