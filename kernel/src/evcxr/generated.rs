//! The code that evcxr 0.22 generates for a cell: how to recognise it, and how it is changed before it is compiled.

/// How the name of the function that runs a cell begins, before its number.
pub const CELL_FUNCTION: &str = "run_user_code_";

/// How the functions that hold a cell's statements begin: the one that runs them, and the one that rust-analyzer
/// analyses.
pub const HOLDS_STATEMENTS: [&str; 2] = [
    "pub extern \"C\" fn run_user_code_",
    "async fn evcxr_analysis_wrapper(",
];

/// Appears in the lines that evcxr writes to show a cell's value.
pub const SHOWS_VALUE: [&str; 2] = ["evcxr_display", "evcxr_send_text_plain"];

/// Lines that evcxr writes around a cell's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    Before,
    Behind,
}

/// Returns which of the lines around a cell's value this is, if any. `line` has no white space around it.
pub fn wrapping(line: &str) -> Option<Wrapping> {
    match line {
        "(" => Some(Wrapping::Before),
        ").evcxr_display();" | ")));" => Some(Wrapping::Behind),
        line if line.starts_with("evcxr_send_text_plain(") => Some(Wrapping::Before),
        _ => None,
    }
}

/// Returns the name and the type of the variable that a line stores for later cells, if it does:
/// `evcxr_variable_store.put_variable::<TYPE>(stringify!(NAME), NAME);`.
pub fn stored_variable(line: &str) -> Option<(&str, &str)> {
    let rest = line
        .trim()
        .strip_prefix("evcxr_variable_store.put_variable::<")?;
    let (kind, rest) = rest.rsplit_once(">(stringify!(")?;
    Some((rest.split(')').next()?, kind))
}

/// Returns the name and the type of the variable that a line checks before it is loaded, if it does:
/// `vars_ok &= evcxr_variable_store.check_variable::<TYPE>(stringify!(NAME));`.
pub fn checked_variable(line: &str) -> Option<(&str, &str)> {
    let rest = line
        .trim()
        .strip_prefix("vars_ok &= evcxr_variable_store.check_variable::<")?;
    let (kind, rest) = rest.rsplit_once(">(stringify!(")?;
    Some((rest.split(')').next()?, kind))
}

/// Returns the items of the cells, which come before the function that runs the cell.
pub fn definitions(code: &str) -> &str {
    let function = format!("pub extern \"C\" fn {CELL_FUNCTION}");
    &code[..code.rfind(&function).unwrap_or(0)]
}

/// Replaces names of the generated code in a message, and the name under which Cloze is compiled for cells.
pub fn without_generated_names(text: &str) -> String {
    text.replace("cloze_prelude::", "cloze::")
        .replace("`evcxr_variable_store`", "the end of the cell")
        .replace("`EvcxrUserCodeError`", "an error of the cell")
        .replace("EvcxrUserCodeError", "an error of the cell")
}

/// Whether a text mentions generated code, which the user did not write. `written` tells whether the user wrote a word.
pub fn mentions_generated(text: &str, written: impl Fn(&str) -> bool) -> bool {
    const WORDS: [&str; 16] = [
        "evcxr",
        "Evcxr",
        "EVCXR",
        "cloze_cell",
        "cloze_static_",
        "run_user_code",
        "no_mangle",
        "export_name",
        "link_name",
        "catch_unwind",
        "AssertUnwindSafe",
        "VariableStore",
        "put_variable",
        "take_variable",
        "cell/",
        "`ctx`",
    ];
    WORDS
        .iter()
        .any(|word| text.contains(word) && !written(word))
}

/// Whether the cell uses no variable and nothing outside its own text, like the first cells of a session. The same text
/// then gives the same library, which is compiled once for all sessions.
pub fn is_alone(source: &str) -> bool {
    let outside = [
        "put_variable",
        "take_variable",
        "check_variable",
        "lazy_arc",
        "include",
        "env!",
        "#[path",
    ];
    !outside.iter().any(|sign| source.contains(sign))
}

/// Returns the items of earlier cells and the function that runs the cell, without evcxr's own code between them.
pub fn definitions_and_cell(code: &str) -> (&str, &str) {
    let (definitions, cell) = code
        .split_once("#[unsafe(no_mangle)]")
        .unwrap_or(("", code));
    let own = ["mod evcxr_internal_runtime {", "struct EvcxrUserCodeError"];
    let end = own.iter().filter_map(|own| definitions.find(own)).min();
    (&definitions[..end.unwrap_or(definitions.len())], cell)
}

/// Returns the function that runs a cell, without the closures in which evcxr wraps its statements.
pub fn without_wrapping(cell: &str) -> String {
    let own = [
        "pub extern \"C\" fn",
        "AssertUnwindSafe(||{",
        "catch_unwind(||{",
        "(|| -> std::result::Result<(), EvcxrUserCodeError> {",
    ];
    own.iter()
        .fold(cell.to_owned(), |cell, own| cell.replace(own, ""))
}

/// Uses the cell library in place of what evcxr writes into every cell: the type through which `?` leaves the cell,
/// which here reports the error's causes; the store of variables; and the display of values, which here compiles at the
/// first attempt in the common cases. Compiled code need not be compiled again. Lines keep their numbers.
pub fn with_cell_library(code: &str) -> String {
    const ERROR: &str =
        "            struct EvcxrUserCodeError {}\n            impl<T: std::fmt::Display> From<T>";
    const RUNTIME: &str = "mod evcxr_internal_runtime {";
    const STORE: &str = "pub fn create_variable_store()";
    const PANICKED: &str = "println!(\"EVCXR_PANIC_NOTIFICATION\");";
    let mut out = code.trim_end().to_owned();
    let mut put = |from: &str, until: &str, ours: &str| {
        if let Some(start) = out.find(from)
            && let Some(length) = out[start..].find(until)
        {
            let lines = out[start..start + length].matches('\n').count();
            let ours = format!("{ours}{}", "\n".repeat(lines));
            out.replace_range(start..start + length, &ours);
        }
    };
    put(ERROR, RUNTIME, "use ::cloze_cell::EvcxrUserCodeError;");
    put(
        RUNTIME,
        STORE,
        "mod evcxr_internal_runtime { pub use ::cloze_cell::VariableStore;",
    );
    // Notices for evcxr do not go to stdout, where a cell may print anything. The last occurrence is evcxr's own, which
    // comes after all code of the cell.
    if let Some(at) = out.rfind(PANICKED) {
        let ours = "::cloze_cell::notice(\"EVCXR_PANIC_NOTIFICATION\");";
        out.replace_range(at..at + PANICKED.len(), ours);
    }
    out + "\n#[allow(unused_imports)] use ::cloze_cell::{eprint, eprintln, print, println, ShowValue as _};\n"
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Code as evcxr 0.22 generates it.
    pub fn generated(items: &str, cell: &str) -> String {
        format!(
            "#![allow(unused_imports, unused_mut, dead_code)]\n{items}\n\n            struct EvcxrUserCodeError {{}}\n            \
             impl<T: std::fmt::Display> From<T> for EvcxrUserCodeError {{\n                fn from(error: T) -> Self {{\n                    \
             eprintln!(\"{{}}\", error);\n                    println!(\"{{}}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);\n                    \
             EvcxrUserCodeError {{}}\n                }}\n            }}\n        \nmod evcxr_internal_runtime {{\n\
             fn take() {{ for x in y {{}} }}\npub fn create_variable_store() -> *mut VariableStore {{\n}}\n}}\n#[unsafe(no_mangle)]\npub extern \"C\" fn run_user_code_3(\n\
             match std::panic::catch_unwind(\n  std::panic::AssertUnwindSafe(||{{\n\
             let _ = (|| -> std::result::Result<(), EvcxrUserCodeError> {{\n{cell}\nOk(())}})();\n}})) {{ \n"
        )
    }

    #[test]
    fn the_cell_library_replaces_evcxrs_runtime_and_keeps_line_numbers() {
        let told = "println!(\"EVCXR_PANIC_NOTIFICATION\");\n";
        let code = generated("", &format!("{told}f()?;")) + told;
        let changed = with_cell_library(&code);
        assert!(changed.contains("use ::cloze_cell::EvcxrUserCodeError;"));
        assert!(!changed.contains("struct EvcxrUserCodeError"));
        assert!(changed.contains("pub use ::cloze_cell::VariableStore;"));
        assert!(
            !changed.contains("fn take()") && changed.contains("pub fn create_variable_store()")
        );
        // A cell may print such a line itself.
        assert!(changed.contains("\nprintln!(\"EVCXR_PANIC_NOTIFICATION\");\nf()?;"));
        assert!(changed.contains("\n::cloze_cell::notice(\"EVCXR_PANIC_NOTIFICATION\");"));
        assert_eq!(changed.matches(told.trim_end()).count(), 1);
        let line = |code: &str| code.lines().position(|line| line == "f()?;");
        assert_eq!(line(&code), line(&changed));
    }
}
