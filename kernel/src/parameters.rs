//! Parameters of a notebook, as papermill has them: `let` statements in the cell tagged `parameters`, overridden by a cell
//! that is put in after it.

use crate::notebook::Notebook;
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
            .ok_or("a parameter is written name=value")?;
        let is_name = name.chars().all(|c| c.is_alphanumeric() || c == '_')
            && name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if !is_name {
            return Err(format!("`{name}` can't be the name of a variable"));
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// Gives the notebook its parameters; a run with none leaves it as it is.
pub fn inject(notebook: &mut Notebook, parameters: &[Parameter]) -> Result<()> {
    if parameters.is_empty() {
        return Ok(());
    }
    let declaring = notebook.tagged(DECLARED);
    let declared = declaring
        .map(|cell| declarations(&notebook.source(cell)))
        .unwrap_or_default();
    let mut code = String::from("// Parameters\n");
    for parameter in parameters {
        let declaration = declared
            .iter()
            .find(|declaration| declaration.name == parameter.name);
        if declaring.is_some() && declaration.is_none() {
            let names: Vec<&str> = declared
                .iter()
                .map(|declaration| declaration.name.as_str())
                .collect();
            return Err(Error::Notebook {
                path: notebook.path().to_owned(),
                problem: format!(
                    "it has no parameter `{}`; it has: {}",
                    parameter.name,
                    names.join(", ")
                ),
            });
        }
        code += &statement(parameter, declaration).map_err(|problem| Error::Notebook {
            path: notebook.path().to_owned(),
            problem,
        })?;
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
    Ok(())
}

/// A `let` of the defaults.
#[derive(Debug, PartialEq)]
struct Declaration {
    name: String,
    mutable: bool,
    kind: Option<String>,
    value: String,
}

fn declarations(code: &str) -> Vec<Declaration> {
    let mut found = Vec::new();
    for statement in code
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("let "))
    {
        let statement = statement.trim_start();
        let (mutable, rest) = statement
            .strip_prefix("mut ")
            .map_or((false, statement), |rest| (true, rest));
        let Some((left, value)) = rest.split_once('=') else {
            continue;
        };
        let (name, kind) = left.split_once(':').map_or((left, None), |(name, kind)| {
            (name, Some(kind.trim().to_owned()))
        });
        let value = value
            .split("//")
            .next()
            .unwrap_or_default()
            .trim()
            .trim_end_matches(';');
        found.push(Declaration {
            name: name.trim().to_owned(),
            mutable,
            kind,
            value: value.trim().to_owned(),
        });
    }
    found
}

/// The `let` that gives a parameter its value, in the type that it was declared with.
fn statement(parameter: &Parameter, declaration: Option<&Declaration>) -> Result<String, String> {
    let Parameter { name, value } = parameter;
    let default = declaration.map_or("", |declaration| declaration.value.as_str());
    let kind = declaration.and_then(|declaration| declaration.kind.as_deref());
    let owned = kind == Some("String")
        || kind.is_none()
            && (default.starts_with("String::")
                || default.ends_with(".to_string()")
                || default.ends_with(".to_owned()"));
    let borrowed =
        matches!(kind, Some("&str" | "&'static str")) || kind.is_none() && default.starts_with('"');
    let rendered = if owned {
        format!("String::from({value:?})")
    } else if borrowed {
        format!("{value:?}")
    } else if is_plain(value) {
        // A whole number may stand for a fraction.
        let fraction = matches!(kind, Some("f32" | "f64"))
            || kind.is_none() && default.parse::<f64>().is_ok() && default.contains(['.', 'e']);
        if fraction && value.parse::<i64>().is_ok() {
            format!("{value}.0")
        } else {
            value.clone()
        }
    } else if declaration.is_none() {
        format!("{value:?}")
    } else {
        return Err(format!(
            "`{value}` is no value for the parameter `{name}`, whose default is `{default}`"
        ));
    };
    let mutable = if declaration.is_some_and(|declaration| declaration.mutable) {
        "mut "
    } else {
        ""
    };
    let kind = kind.map(|kind| format!(": {kind}")).unwrap_or_default();
    Ok(format!("let {mutable}{name}{kind} = {rendered};\n"))
}

/// A number, as Rust writes it, or `true` or `false`.
fn is_plain(value: &str) -> bool {
    let digits = value.trim_start_matches('-').replace('_', "");
    value == "true"
        || value == "false"
        || digits.starts_with(|c: char| c.is_ascii_digit()) && digits.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(declaration: &str, value: &str) -> Result<String, String> {
        let declared = declarations(declaration);
        let parameter = Parameter {
            name: declared[0].name.clone(),
            value: value.to_owned(),
        };
        statement(&parameter, declared.first())
    }

    #[test]
    fn a_value_takes_the_type_of_its_default() {
        assert_eq!(
            rendered("let epochs = 3;", "5").unwrap(),
            "let epochs = 5;\n"
        );
        assert_eq!(
            rendered("let rate: f64 = 2e-5; // small", "1").unwrap(),
            "let rate: f64 = 1.0;\n"
        );
        assert_eq!(
            rendered("let rate = 0.5;", "1e-3").unwrap(),
            "let rate = 1e-3;\n"
        );
        assert_eq!(
            rendered("let model = \"a\";", "b\"c").unwrap(),
            "let model = \"b\\\"c\";\n"
        );
        assert_eq!(
            rendered("let mut out = String::from(\"a\");", "5").unwrap(),
            "let mut out = String::from(\"5\");\n"
        );
        assert_eq!(
            rendered("let full = false;", "true").unwrap(),
            "let full = true;\n"
        );
    }

    #[test]
    fn code_is_no_value() {
        assert!(rendered("let epochs = 3;", "std::process::exit(1)").is_err());
        assert!(rendered("let epochs = 3;", "inf").is_err());
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
        assert!("a".parse::<Parameter>().is_err());
    }
}
