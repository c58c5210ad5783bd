//! Notebook parameters as in papermill: `let` statements in the cell tagged `parameters`, overridden by a cell that is
//! inserted after it.

use ra_ap_syntax::{AstNode, Edition, SyntaxKind, SyntaxNode, ast};

use super::notebook::Notebook;
use crate::code::{chunks, too_deep_at};
use crate::{Error, Result};

/// The tag of the cell that holds the defaults.
const DECLARED: &str = "parameters";
/// The tag of the cell that overrides them.
const INJECTED: &str = "injected-parameters";

/// `name=value` from the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub value: String,
}

impl std::str::FromStr for Parameter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("a parameter has the form name=value")?;
        let is_name = name.chars().all(|c| c.is_alphanumeric() || c == '_')
            && name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let is_keyword = SyntaxKind::from_keyword(name, Edition::Edition2024).is_some();
        if !is_name || is_keyword || name == "_" {
            return Err(format!("`{name}` is not a valid variable name"));
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// Injects the parameters into the notebook; without any, it is left unchanged. Returns warnings.
pub fn inject(notebook: &mut Notebook, parameters: &[Parameter]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    if parameters.is_empty() {
        return Ok(warnings);
    }
    let declaring = notebook.tagged(DECLARED);
    let declared = declaring
        .map(|cell| declarations(&notebook.source(cell)))
        .unwrap_or_default();
    if declaring.is_none() {
        warnings.push(format!(
            "no cell is tagged `{DECLARED}`: the values are inserted before the first cell, and a `let` of the same name in the notebook overrides them"
        ));
    }
    let path = notebook.path().to_owned();
    let refuse = |problem: String| Error::Message(format!("{}: {problem}", path.display()));
    let mut code = String::from("// Parameters\n");
    for parameter in parameters {
        let declaration = declared
            .iter()
            .rfind(|declaration| declaration.name == parameter.name);
        if declaring.is_some() && declaration.is_none() {
            let names: Vec<&str> = declared
                .iter()
                .map(|declaration| declaration.name.as_str())
                .collect();
            return Err(refuse(format!(
                "there is no parameter `{}`; there are: {}",
                parameter.name,
                names.join(", ")
            )));
        }
        code += &statement(parameter, declaration).map_err(refuse)?;
    }
    if let Some(cell) = notebook.tagged(INJECTED) {
        notebook.set_source(cell, code.trim_end());
    } else {
        notebook.insert(
            declaring.map_or(0, |cell| cell + 1),
            code.trim_end(),
            INJECTED,
        );
    }
    Ok(warnings)
}

/// A `let` or a `const` among the defaults.
#[derive(Debug, PartialEq)]
struct Declaration {
    /// `let`, `let mut`, `const` or `static`.
    word: &'static str,
    name: String,
    /// The type, if it is written.
    kind: Option<String>,
    default: String,
    type_: Type,
}

/// The type of values that a parameter takes, as far as its declaration shows.
#[derive(Clone, Debug, PartialEq)]
enum Type {
    Text,
    OwnedText,
    Bool,
    Character,
    /// A number with the suffix that its literal needs where no type is written.
    Integer(Option<String>),
    Fraction(Option<String>),
    Optional(Box<Type>),
    List(Box<Type>),
    Array(Box<Type>),
    /// Made of a text: the code before and behind its literal, as in `PathBuf::from("a")` and `"a".into()`.
    OfText(String, String),
    Other,
}

const INTEGERS: [&str; 12] = [
    "i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128", "usize",
];

fn declarations(code: &str) -> Vec<Declaration> {
    let mut found = Vec::new();
    if too_deep_at(code).is_some() {
        return found;
    }
    for chunk in chunks(code) {
        let (word, name, kind, value) =
            if let Some(statement) = ast::LetStmt::cast(chunk.node.clone()) {
                let Some(ast::Pat::IdentPat(pattern)) = statement.pat() else {
                    continue;
                };
                let word = match pattern.mut_token() {
                    Some(_) => "let mut",
                    None => "let",
                };
                (
                    word,
                    ast::HasName::name(&pattern),
                    statement.ty(),
                    statement.initializer(),
                )
            } else if let Some(item) = ast::Const::cast(chunk.node.clone()) {
                ("const", ast::HasName::name(&item), item.ty(), item.body())
            } else if let Some(item) = ast::Static::cast(chunk.node.clone()) {
                ("static", ast::HasName::name(&item), item.ty(), item.body())
            } else {
                continue;
            };
        let (Some(name), Some(value)) = (name, value) else {
            continue;
        };
        let by_value = type_of_value(value.syntax());
        let type_ = match &kind {
            Some(kind) => type_of_name(kind.syntax(), by_value),
            None => by_value,
        };
        found.push(Declaration {
            word,
            name: name.text().to_string(),
            kind: kind.map(|kind| kind.syntax().text().to_string()),
            default: value.syntax().text().to_string(),
            type_,
        });
    }
    found
}

/// Returns the written type, or the value's where it is written as `_`.
fn type_of_name(kind: &SyntaxNode, by_value: Type) -> Type {
    let text: String = kind
        .text()
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    let inner = |node: &SyntaxNode| {
        let inner = node
            .descendants()
            .skip(1)
            .find(|node| ast::Type::can_cast(node.kind()));
        Box::new(inner.map_or(Type::Other, |inner| type_of_name(&inner, Type::Other)))
    };
    let name = text
        .split('<')
        .next()
        .unwrap_or_default()
        .rsplit("::")
        .next()
        .unwrap_or_default();
    match name.trim() {
        _ if kind.kind() == SyntaxKind::REF_TYPE && text.ends_with("str") => Type::Text,
        _ if kind.kind() == SyntaxKind::ARRAY_TYPE => Type::Array(inner(kind)),
        "String" => Type::OwnedText,
        "bool" => Type::Bool,
        "char" => Type::Character,
        "f32" | "f64" => Type::Fraction(None),
        name if INTEGERS.contains(&name) => Type::Integer(None),
        "Option" => Type::Optional(inner(kind)),
        "Vec" => Type::List(inner(kind)),
        "_" => by_value,
        _ if matches!(by_value, Type::OfText(..)) => by_value,
        _ => Type::Other,
    }
}

fn type_of_value(value: &SyntaxNode) -> Type {
    let text = value.text().to_string();
    if let Some(literal) = ast::Literal::cast(value.clone()) {
        return match literal.kind() {
            ast::LiteralKind::String(_) => Type::Text,
            ast::LiteralKind::Bool(_) => Type::Bool,
            ast::LiteralKind::Char(_) => Type::Character,
            ast::LiteralKind::IntNumber(number) => match number.suffix() {
                // `1f32` is a float because of its suffix.
                Some(suffix @ ("f32" | "f64")) => Type::Fraction(Some(suffix.to_owned())),
                suffix => Type::Integer(suffix.map(str::to_owned)),
            },
            ast::LiteralKind::FloatNumber(number) => {
                Type::Fraction(number.suffix().map(str::to_owned))
            }
            _ => Type::Other,
        };
    }
    let first = value
        .children()
        .find(|child| ast::Expr::can_cast(child.kind()));
    let of_first = || first.as_ref().map_or(Type::Other, type_of_value);
    match value.kind() {
        SyntaxKind::PREFIX_EXPR | SyntaxKind::PAREN_EXPR => of_first(),
        SyntaxKind::METHOD_CALL_EXPR
            if [".to_string()", ".to_owned()"]
                .iter()
                .any(|end| text.ends_with(end)) =>
        {
            Type::OwnedText
        }
        SyntaxKind::CALL_EXPR if text.starts_with("String::") => Type::OwnedText,
        SyntaxKind::METHOD_CALL_EXPR if text.ends_with(".into()") => of_text(value),
        SyntaxKind::CALL_EXPR if ["::from(", "::new("].iter().any(|it| text.contains(it)) => {
            of_text(value)
        }
        SyntaxKind::CALL_EXPR if text.starts_with("Some(") => {
            let inner = value
                .descendants()
                .find_map(ast::ArgList::cast)
                .and_then(|list| list.args().next());
            Type::Optional(Box::new(
                inner.map_or(Type::Other, |inner| type_of_value(inner.syntax())),
            ))
        }
        SyntaxKind::ARRAY_EXPR => Type::Array(Box::new(of_first())),
        SyntaxKind::MACRO_EXPR if text.starts_with("format!") => Type::OwnedText,
        SyntaxKind::MACRO_EXPR if text.starts_with("vec!") => {
            let inner = text
                .trim_start_matches("vec!")
                .trim_matches(['[', ']', '(', ')', '{', '}']);
            // The first element tells the type; each list that it is in is read once more.
            let inner = &inner[..inner.floor_char_boundary(4096)];
            let inner = declarations(&format!("let x = [{inner}];")).pop();
            match inner.map(|inner| inner.type_) {
                Some(Type::Array(inner)) => Type::List(inner),
                _ => Type::List(Box::new(Type::Other)),
            }
        }
        _ => Type::Other,
    }
}

/// Returns the type of an expression that makes something of one text.
fn of_text(value: &SyntaxNode) -> Type {
    let mut literals = value.descendants().filter_map(ast::Literal::cast);
    let (Some(literal), None) = (literals.next(), literals.next()) else {
        return Type::Other;
    };
    let whole = value.text_range();
    let inner = literal.syntax().text_range();
    let text = value.text().to_string();
    let (start, end) = (inner.start() - whole.start(), inner.end() - whole.start());
    match literal.kind() {
        ast::LiteralKind::String(_) => Type::OfText(
            text[..usize::from(start)].to_owned(),
            text[usize::from(end)..].to_owned(),
        ),
        _ => Type::Other,
    }
}

/// Returns how the type of values is written, for a `None` that does not tell it.
fn name_of(type_: &Type) -> Option<String> {
    let name = match type_ {
        Type::Text => "&str",
        Type::OwnedText => "String",
        Type::Bool => "bool",
        Type::Character => "char",
        Type::Integer(suffix) => suffix.as_deref().unwrap_or("i32"),
        Type::Fraction(suffix) => suffix.as_deref().unwrap_or("f64"),
        Type::Optional(inner) => return Some(format!("Option<{}>", name_of(inner)?)),
        Type::List(inner) => return Some(format!("Vec<{}>", name_of(inner)?)),
        Type::Array(_) | Type::OfText(..) | Type::Other => return None,
    };
    Some(name.to_owned())
}

/// Returns the statement that assigns a value to a parameter, in its declared type.
fn statement(parameter: &Parameter, declaration: Option<&Declaration>) -> Result<String, String> {
    let Parameter { name, value } = parameter;
    let Some(declaration) = declaration else {
        let literal = [Type::Integer(None), Type::Fraction(None), Type::Bool]
            .iter()
            .find_map(|type_| rendered(value, type_, None));
        let literal = literal.unwrap_or_else(|| format!("{value:?}"));
        return Ok(format!("let {name} = {literal};\n"));
    };
    let kind = declaration.kind.as_deref();
    let rendered = rendered(value, &declaration.type_, kind).ok_or_else(|| {
        format!(
            "`{value}` does not fit the parameter `{name}`, which is declared as `{} {name}{} = {}`",
            declaration.word,
            kind.map(|kind| format!(": {kind}")).unwrap_or_default(),
            declaration.default
        )
    })?;
    // Where no type is written, the value alone tells it.
    let told = match rendered.as_str() {
        "None" => name_of(&declaration.type_),
        _ => None,
    };
    let kind = kind.map(str::to_owned).or(told);
    let kind = kind.map(|kind| format!(": {kind}")).unwrap_or_default();
    Ok(format!("{} {name}{kind} = {rendered};\n", declaration.word))
}

/// Formats a value as a Rust expression of this type; `None` if it has none.
fn rendered(value: &str, type_: &Type, kind: Option<&str>) -> Option<String> {
    let text = value;
    let value = value.trim();
    match type_ {
        Type::Text => Some(format!("{text:?}")),
        Type::OwnedText => Some(format!("String::from({text:?})")),
        Type::OfText(before, behind) => Some(format!("{before}{text:?}{behind}")),
        Type::Bool => match value {
            "true" | "True" => Some("true".into()),
            "false" | "False" => Some("false".into()),
            _ => None,
        },
        Type::Character => {
            let mut characters = text.chars();
            let only = characters.next()?;
            characters.next().is_none().then(|| format!("{only:?}"))
        }
        Type::Integer(suffix) => {
            let suffix = suffix.as_deref();
            let digits = value
                .strip_suffix(suffix.or(kind).unwrap_or("\0"))
                .unwrap_or(value)
                .replace('_', "");
            let fits = match suffix.or(kind).unwrap_or("i32") {
                "u8" => digits.parse::<u8>().is_ok(),
                "u16" => digits.parse::<u16>().is_ok(),
                "u32" => digits.parse::<u32>().is_ok(),
                "u64" | "usize" => digits.parse::<u64>().is_ok(),
                "u128" => digits.parse::<u128>().is_ok(),
                "i8" => digits.parse::<i8>().is_ok(),
                "i16" => digits.parse::<i16>().is_ok(),
                "i32" => digits.parse::<i32>().is_ok(),
                "i64" | "isize" => digits.parse::<i64>().is_ok(),
                _ => digits.parse::<i128>().is_ok(),
            };
            let digits = digits.trim_start_matches('+');
            fits.then(|| format!("{digits}{}", suffix.unwrap_or_default()))
        }
        Type::Fraction(suffix) => {
            let suffix = suffix.as_deref();
            let digits = value
                .strip_suffix(suffix.or(kind).unwrap_or("\0"))
                .unwrap_or(value)
                .replace('_', "");
            let number: f64 = digits.parse().ok()?;
            let begins = digits
                .trim_start_matches(['-', '+'])
                .starts_with(|c: char| c.is_ascii_digit() || c == '.');
            if !number.is_finite() || !begins {
                return None;
            }
            let mut digits = digits.trim_start_matches('+').to_owned();
            // Rust requires a digit on both sides of the point, and a point or an exponent.
            if digits.trim_start_matches('-').starts_with('.') {
                digits = digits.replacen('.', "0.", 1);
            }
            if digits.ends_with('.') {
                digits.push('0');
            }
            if !digits.contains(['.', 'e', 'E']) {
                digits += ".0";
            }
            Some(digits + suffix.unwrap_or_default())
        }
        Type::Optional(inner) => match value {
            "None" | "none" | "null" => Some("None".into()),
            value => {
                let inside = value
                    .strip_prefix("Some(")
                    .and_then(|rest| rest.strip_suffix(')'));
                let kind = kind.and_then(within);
                rendered(inside.unwrap_or(text), inner, kind).map(|inner| format!("Some({inner})"))
            }
        },
        Type::List(inner) | Type::Array(inner) => {
            let kind = kind.and_then(within);
            let items = elements(value)?;
            let items: Option<Vec<String>> = items
                .iter()
                .map(|item| rendered(item, inner, kind))
                .collect();
            let items = items?.join(", ");
            Some(match type_ {
                Type::List(_) => format!("vec![{items}]"),
                _ => format!("[{items}]"),
            })
        }
        Type::Other => None,
    }
}

/// `Option<f32>` → `f32`, `[u8; 2]` → `u8`.
fn within(kind: &str) -> Option<&str> {
    if let Some(array) = kind.trim().strip_prefix('[') {
        return array.split([';', ']']).next().map(str::trim);
    }
    let (_, rest) = kind.split_once('<')?;
    rest.trim_end().strip_suffix('>').map(str::trim)
}

/// Returns the elements of `[1, 2]` or `["a", "b"]`, written as in JSON, or of `1, 2`.
fn elements(value: &str) -> Option<Vec<String>> {
    let inside = value.trim_start_matches("vec!");
    if inside.starts_with('[') {
        let values: Vec<serde_json::Value> = serde_json::from_str(inside).ok()?;
        let text = |value: &serde_json::Value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        };
        return Some(values.iter().map(text).collect());
    }
    Some(
        inside
            .split(',')
            .map(|item| item.trim().to_owned())
            .filter(|item| !item.is_empty())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(declaration: &str, value: &str) -> Result<String, String> {
        let declared = declarations(declaration);
        let parameter = Parameter {
            name: declared[0].name.clone(),
            value: value.to_owned(),
        };
        statement(&parameter, declared.first())
    }

    #[test]
    fn what_is_made_of_a_text_is_made_of_the_new_one() {
        for (declaration, value, expected) in [
            (
                "let p = std::path::PathBuf::from(\"a\");",
                "b/c",
                "let p = std::path::PathBuf::from(\"b/c\");\n",
            ),
            (
                "let p = Path::new(\"a\");",
                "\"",
                "let p = Path::new(\"\\\"\");\n",
            ),
            (
                "let p: PathBuf = \"a\".into();",
                "b",
                "let p: PathBuf = \"b\".into();\n",
            ),
            ("let r = Some(5);", "None", "let r: Option<i32> = None;\n"),
            (
                "let r = Some(0.5f32);",
                "None",
                "let r: Option<f32> = None;\n",
            ),
            (
                "let r: Option<u8> = Some(5);",
                "None",
                "let r: Option<u8> = None;\n",
            ),
        ] {
            assert_eq!(given(declaration, value).as_deref(), Ok(expected));
        }
        assert!(given("let p = Pair::new(\"a\", \"b\");", "c").is_err());
    }

    #[test]
    fn a_value_takes_the_type_of_its_default() {
        assert_eq!(given("let epochs = 3;", "5").unwrap(), "let epochs = 5;\n");
        assert_eq!(
            given("let rate: f64 = 2e-5; // small", "1").unwrap(),
            "let rate: f64 = 1.0;\n"
        );
        assert_eq!(
            given("let rate = 0.5;", "1e-3").unwrap(),
            "let rate = 1e-3;\n"
        );
        assert_eq!(
            given("let model = \"a\";", "b\"c").unwrap(),
            "let model = \"b\\\"c\";\n"
        );
        assert_eq!(
            given("let mut out = String::from(\"a\");", "5").unwrap(),
            "let mut out = String::from(\"5\");\n"
        );
        assert_eq!(
            given("let full = false;", "true").unwrap(),
            "let full = true;\n"
        );
    }

    #[test]
    fn suffixes_and_types_are_kept() {
        for (declaration, value, wanted) in [
            ("let n = 3usize;", "5", "let n = 5usize;"),
            ("let r = 0.1f32;", "1", "let r = 1.0f32;"),
            ("let r = 1f32;", ".5", "let r = 0.5f32;"),
            ("let r = 1_000.0;", "5", "let r = 5.0;"),
            ("let n = -3;", "-70", "let n = -70;"),
            (
                "let url = \"http://a\".to_string();",
                "b // c",
                "let url = String::from(\"b // c\");",
            ),
            ("let s =\n    \"long\"\n;", "x", "let s = \"x\";"),
            ("let c = 'a';", "'", "let c = '\\'';"),
            ("let o = Some(0.5f32);", "2", "let o = Some(2.0f32);"),
            (
                "let o: Option<usize> = None;",
                "7",
                "let o: Option<usize> = Some(7);",
            ),
            (
                "let o: Option<String> = None;",
                "None",
                "let o: Option<String> = None;",
            ),
            ("let v = vec![1u8, 2];", "[3, 4]", "let v = vec![3u8, 4u8];"),
            (
                "let v: Vec<f64> = vec![];",
                "1,2.5",
                "let v: Vec<f64> = vec![1.0, 2.5];",
            ),
            ("let v = [\"a\"];", "[\"b,c\"]", "let v = [\"b,c\"];"),
            ("const SEED: u64 = 1;", "42", "const SEED: u64 = 42;"),
        ] {
            assert_eq!(
                given(declaration, value).unwrap().trim_end(),
                wanted,
                "{declaration}"
            );
        }
        assert_eq!(
            declarations("let a = 1; let mut b = \"x\"; fn f() {} let (c, d) = (1, 2);").len(),
            2
        );
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for (declaration, value) in [
            ("let n = 3u8;", "300"),
            ("let n: u32 = 3;", "-1"),
            ("let n = 3;", "0.5"),
            ("let full = true;", "1"),
            ("let c = 'a';", "ab"),
            ("let v = vec![1];", "[\"a\"]"),
            ("let m = model();", "x"),
        ] {
            assert!(given(declaration, value).is_err(), "{declaration} {value}");
        }
    }

    #[test]
    fn code_is_refused_as_a_value() {
        assert!(given("let epochs = 3;", "std::process::exit(1)").is_err());
        assert!(given("let epochs = 3;", "inf").is_err());
    }

    #[test]
    fn long_and_deep_declarations_and_values_take_no_time() {
        let start = std::time::Instant::now();
        let (long, deep) = ("1, ".repeat(1 << 17), 200);
        let lists = format!(
            "let v = {}{long}{};",
            "vec![".repeat(deep),
            "]".repeat(deep)
        );
        let numbers = format!("let v = [{long}];");
        let text = format!("let v = \"{}\";", "(".repeat(1 << 17));
        let type_ = format!("let v: {}u8{} = x;", "Vec<".repeat(deep), ">".repeat(deep));
        for declaration in [&lists, &numbers, &text, &type_] {
            let declared = declarations(declaration);
            for value in [
                "[".repeat(100_000),
                "1".repeat(100_000),
                "[1, 2]".to_owned(),
            ] {
                let name = "v".to_owned();
                let _ = statement(&Parameter { name, value }, declared.first());
            }
        }
        let too_deep = format!("let v = {}1{};", "(".repeat(5000), ")".repeat(5000));
        assert!(declarations(&too_deep).is_empty());
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }

    #[test]
    fn a_parameter_is_a_name_and_a_value() {
        assert_eq!(
            "a=b=c".parse(),
            Ok(Parameter {
                name: "a".into(),
                value: "b=c".into()
            })
        );
        assert!("1a=2".parse::<Parameter>().is_err());
        for name in [
            "a", "", "=1", "fn=1", "self=1", "_=1", "a b=1", "a-b=1", "async=1",
        ] {
            assert!(name.parse::<Parameter>().is_err(), "{name}");
        }
    }
}
