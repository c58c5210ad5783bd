//! Decides whether a cell is worth optimizing.

use std::collections::{HashMap, HashSet};

use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode, ast};

use super::generated::{definitions_and_cell, without_wrapping};
use crate::code::tokens;

/// Whether the code does no work of its own: it only calls compiled code, without loops or closures of its own and
/// without calling functions of the notebook that have them.
///
/// Most cells of a guide are like that. Optimizing them would take most of their compile time, because the code that
/// carries a session's variables from cell to cell grows with their number.
pub fn only_calls(code: &str) -> bool {
    let (definitions, cell) = definitions_and_cell(code);
    let cell = without_wrapping(cell);
    if works(&cell) {
        return false;
    }
    let definitions = Definitions::of(definitions);
    let working = definitions.working();
    !names(&cell).any(|name| working.contains(name))
}

/// Whether the code contains a loop, or a closure, which a loop elsewhere may call.
fn works(code: &str) -> bool {
    let mut before = "";
    tokens(code).any(|(_, token)| {
        // After an operand the bar is an operator, or separates patterns.
        let behind_operand = before.ends_with(|c: char| {
            c.is_alphanumeric() || matches!(c, '_' | ')' | ']' | '"' | '\'' | '?')
        }) && !matches!(before, "move" | "return");
        // The second bar of the operator `||` begins no closure either.
        let is_operator = behind_operand || before == "|";
        before = token;
        match token {
            "|" => !is_operator,
            token => matches!(token, "for" | "while" | "loop" | "macro_rules"),
        }
    })
}

/// Splits code into words.
fn names(code: &str) -> impl Iterator<Item = &str> {
    tokens(code)
        .map(|(_, token)| token)
        .filter(|token| token.starts_with(|c: char| c.is_alphabetic() || c == '_'))
}

/// The items that earlier cells defined.
struct Definitions {
    items: Vec<Item>,
    /// For each item: the items that it mentions, and the items whose functions it calls.
    mentions: Vec<HashSet<usize>>,
    calls: Vec<HashSet<usize>>,
}

/// An item of the notebook.
struct Item {
    /// The functions and macros that it defines.
    functions: HashSet<String>,
    /// The types through which its code is reached.
    types: HashSet<String>,
    /// Whether it contains a loop or a closure.
    works: bool,
    text: String,
}

impl Definitions {
    fn of(code: &str) -> Self {
        let root = SourceFile::parse(code, Edition::Edition2024).syntax_node();
        let items: Vec<Item> = root
            .children()
            .filter(|node| !matches!(node.kind(), SyntaxKind::USE | SyntaxKind::EXTERN_CRATE))
            .map(|node| Item::of(&node))
            .collect();
        let links = |names_of: fn(&Item) -> Vec<&String>| {
            let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
            for (at, item) in items.iter().enumerate() {
                for name in names_of(item) {
                    by_name.entry(name).or_default().push(at);
                }
            }
            let linked = items.iter().enumerate().map(|(at, item)| {
                let mut seen: HashMap<&str, usize> = HashMap::new();
                for name in names(&item.text) {
                    *seen.entry(name).or_default() += 1;
                }
                let found = seen.iter().flat_map(|(name, times)| {
                    let others = by_name.get(name).into_iter().flatten();
                    // An item contains its own name once, and again if it calls itself.
                    others.filter(move |&&other| other != at || *times > 1)
                });
                found.copied().collect()
            });
            linked.collect::<Vec<HashSet<usize>>>()
        };
        Self {
            mentions: links(|item| item.functions.iter().chain(&item.types).collect()),
            calls: links(|item| item.functions.iter().collect()),
            items,
        }
    }

    /// Returns the names through which a cell reaches items that loop, call themselves, or mention such items.
    fn working(&self) -> HashSet<&str> {
        let mut working: HashSet<usize> = (0..self.items.len())
            .filter(|&at| self.items[at].works || self.calls_itself(at))
            .collect();
        loop {
            let more: Vec<usize> = (0..self.items.len())
                .filter(|at| !working.contains(at) && !self.mentions[*at].is_disjoint(&working))
                .collect();
            if more.is_empty() {
                break;
            }
            working.extend(more);
        }
        let items = working.iter().map(|&at| &self.items[at]);
        items
            .flat_map(|item| item.functions.iter().chain(&item.types))
            .map(String::as_str)
            .collect()
    }

    /// Whether an item calls itself, directly or through the items that it calls.
    fn calls_itself(&self, item: usize) -> bool {
        let mut seen = HashSet::new();
        let mut next: Vec<usize> = self.calls[item].iter().copied().collect();
        while let Some(at) = next.pop() {
            if at == item {
                return true;
            }
            if seen.insert(at) {
                next.extend(&self.calls[at]);
            }
        }
        false
    }
}

impl Item {
    fn of(node: &SyntaxNode) -> Self {
        let text = node.text().to_string();
        let is_macro = matches!(node.kind(), SyntaxKind::MACRO_RULES | SyntaxKind::MACRO_DEF);
        let inside: Vec<ast::Fn> = node.descendants().filter_map(ast::Fn::cast).collect();
        let mut functions: HashSet<String> = inside
            .iter()
            .filter_map(|function| Some(ast::HasName::name(function)?.text().to_string()))
            .collect();
        let mut types = HashSet::new();
        if let Some(name) = node.children().find_map(ast::Name::cast) {
            let name = name.text().to_string();
            match is_macro {
                true => functions.insert(name),
                // Functions are recorded already.
                false => !functions.contains(&name) && types.insert(name),
            };
        }
        if let Some(block) = ast::Impl::cast(node.clone()) {
            let of = block.self_ty().map(|kind| kind.syntax().text().to_string());
            types.extend(names(&of.unwrap_or_default()).map(str::to_owned));
        }
        let mut bodies = inside.iter().filter_map(|function| function.body());
        Self {
            works: match is_macro {
                true => works(&text),
                false => bodies.any(|body| works(&body.syntax().text().to_string())),
            },
            functions,
            types,
            text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evcxr::generated::tests::generated;

    #[test]
    fn cells_that_only_call_compiled_code_are_not_optimized() {
        for (items, cell) in [
            (
                "use cloze::prelude::*;",
                "let t = Tensor::zeros(3)?;\nprintln!(\"{t} for | loop\"); // while",
            ),
            ("", "v.iter().sum::<f32>()"),
            ("fn twice(x: f64) -> f64 { 2.0 * x }", "twice(3.0)"),
            ("", "let ok = a || b.is_some() || matches!(c, A | B);"),
            // Items that do work are not mentioned.
            (
                "fn slow(n: u64) -> u64 { let mut s = 0; for i in 0..n { s += i } s }",
                "let a = 1;",
            ),
            (
                "struct Pair { left: i32 }\nimpl Pair { fn sum(&self) -> i32 { self.left } }",
                "let p = Pair { left: 1 };\np.sum()",
            ),
        ] {
            assert!(only_calls(&generated(items, cell)), "{items}\n{cell}");
        }
    }

    #[test]
    fn cells_with_loops_or_closures_or_calls_to_such_functions_are_optimized() {
        for (items, cell) in [
            ("", "for i in 0..9 {}"),
            ("", "let v = x.map(|y| y + 1);"),
            ("", "while true {}"),
            ("", "let f = || 3;"),
            ("", "let f = move |x| x;"),
            ("", "a || v.any(|x| x)"),
            (
                "fn slow(n: u64) -> u64 { let mut s = 0; for i in 0..n { s += i } s }",
                "slow(3)",
            ),
            (
                "fn slow(n: u64) -> u64 { (0..n).map(|i| i).sum() }\nfn more(n: u64) -> u64 { slow(n) + 1 }",
                "more(3)",
            ),
            (
                "fn fib(n: u64) -> u64 { if n < 2 { n } else { fib(n - 1) + fib(n - 2) } }",
                "fib(40)",
            ),
            (
                "fn even(n: u64) -> bool { n == 0 || odd(n - 1) }\nfn odd(n: u64) -> bool { n != 0 && even(n - 1) }",
                "odd(7)",
            ),
            // Reached through an operator: only the type is named.
            (
                "struct V(u64);\nimpl std::ops::Add for V { type Output = u64; fn add(self, o: V) -> u64 { (0..o.0).map(|x| x).sum() } }",
                "V(1) + V(2)",
            ),
            (
                "macro_rules! all { ($e:expr) => { loop { $e } } }",
                "all!(x)",
            ),
        ] {
            assert!(!only_calls(&generated(items, cell)), "{items}\n{cell}");
        }
    }
}
