//! Detects code that is written in another language than Rust.

/// Whether a line is Python and can't be Rust.
pub fn is_python(line: &str) -> bool {
    let code = line.trim_end();
    let word = |text: &str| {
        let rest = code.strip_prefix(text).map(str::trim_start);
        rest.filter(|rest| rest.starts_with(|c: char| c.is_alphabetic() || c == '_'))
            .map(str::to_owned)
    };
    let import = word("import ").is_some_and(|rest| !rest.ends_with(';'));
    let from = word("from ").is_some_and(|rest| rest.contains(" import "));
    let def = (word("def ").is_some() || word("class ").is_some()) && code.ends_with(':');
    let magic =
        code.starts_with("%matplotlib") || code.starts_with("%%") || code.starts_with("%load_ext");
    import || from || def || magic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_is_distinguished_from_rust() {
        for line in [
            "import numpy as np",
            "from torch.nn import Linear",
            "def f(x):",
            "class A(B):",
            "%matplotlib inline",
        ] {
            assert!(is_python(line), "{line}");
        }
        for line in [
            "use std::fmt;",
            "let from = 1;",
            "import!(x);",
            "fn def() {",
            "    from_import()",
            "class.x",
        ] {
            assert!(!is_python(line), "{line}");
        }
    }
}
