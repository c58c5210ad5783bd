//! The code that evcxr 0.22 makes of a cell: what it looks like, and what is changed in it before it is compiled.

/// How the function begins that runs a cell, before its number.
pub const CELL_FUNCTION: &str = "run_user_code_";

/// How the functions begin that hold a cell's statements: the one that runs them, and the one that rust-analyzer is shown.
pub const HOLDS_STATEMENTS: [&str; 2] = [
    "pub extern \"C\" fn run_user_code_",
    "async fn evcxr_analysis_wrapper(",
];

/// In lines that evcxr writes to show a cell's value.
pub const SHOWS_VALUE: [&str; 2] = ["evcxr_display", "evcxr_send_text_plain"];

/// The lines in which a cell's value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    Before,
    Behind,
}

/// Whether a line, without the blanks around it, is one that evcxr writes around a cell's value.
pub fn wrapping(line: &str) -> Option<Wrapping> {
    match line {
        "(" => Some(Wrapping::Before),
        ").evcxr_display();" | ")));" => Some(Wrapping::Behind),
        line if line.starts_with("evcxr_send_text_plain(") => Some(Wrapping::Before),
        _ => None,
    }
}

/// Returns the name and the type of the variable that a line keeps for later cells, if it is such a line:
/// `evcxr_variable_store.put_variable::<TYPE>(stringify!(NAME), NAME);`.
pub fn stored_variable(line: &str) -> Option<(&str, &str)> {
    let rest = line
        .trim()
        .strip_prefix("evcxr_variable_store.put_variable::<")?;
    let (kind, rest) = rest.rsplit_once(">(stringify!(")?;
    Some((rest.split(')').next()?, kind))
}

/// Names of the generated code, said otherwise.
pub fn in_words_of_the_cell(text: &str) -> String {
    text.replace("`evcxr_variable_store`", "the end of the cell")
        .replace("`EvcxrUserCodeError`", "an error of the cell")
        .replace("EvcxrUserCodeError", "an error of the cell")
}

/// Whether the cell has to do with no variable and with nothing outside of its text, as the first cells of a session: then
/// the same text has the same library, and is compiled once for all sessions.
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

/// The items that earlier cells have defined, and the function that runs the cell, without what evcxr writes between them.
pub fn definitions_and_cell(code: &str) -> (&str, &str) {
    let (definitions, cell) = code
        .split_once("#[unsafe(no_mangle)]")
        .unwrap_or(("", code));
    let own = ["mod evcxr_internal_runtime {", "struct EvcxrUserCodeError"];
    let end = own.iter().filter_map(|own| definitions.find(own)).min();
    (&definitions[..end.unwrap_or(definitions.len())], cell)
}

/// The function that runs a cell, without the closures that evcxr wraps its statements in.
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

/// Puts the cell library in the place of what evcxr writes into every cell: the type by which `?` leaves the cell, which
/// here tells the error's causes; the store of variables; and how a value is shown, so that the common cases compile at
/// the first attempt. What is compiled already need not be compiled again, and lines keep their numbers.
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
    // What evcxr is to hear does not go where a cell prints. Its own line comes behind all of the cell's.
    if let Some(at) = out.rfind(PANICKED) {
        let ours = "::cloze_cell::notice(\"EVCXR_PANIC_NOTIFICATION\");";
        out.replace_range(at..at + PANICKED.len(), ours);
    }
    out + "\n#[allow(unused_imports)] use ::cloze_cell::{eprint, eprintln, print, println, ShowValue as _};\n"
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// As evcxr 0.22 writes it.
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
    fn the_cell_library_takes_the_place_of_what_evcxr_writes_and_lines_stay() {
        let told = "println!(\"EVCXR_PANIC_NOTIFICATION\");\n";
        let code = generated("", &format!("{told}f()?;")) + told;
        let changed = with_cell_library(&code);
        assert!(changed.contains("use ::cloze_cell::EvcxrUserCodeError;"));
        assert!(!changed.contains("struct EvcxrUserCodeError"));
        assert!(changed.contains("pub use ::cloze_cell::VariableStore;"));
        assert!(
            !changed.contains("fn take()") && changed.contains("pub fn create_variable_store()")
        );
        // What a cell prints is its own affair.
        assert!(changed.contains("\nprintln!(\"EVCXR_PANIC_NOTIFICATION\");\nf()?;"));
        assert!(changed.contains("\n::cloze_cell::notice(\"EVCXR_PANIC_NOTIFICATION\");"));
        assert_eq!(changed.matches(told.trim_end()).count(), 1);
        let line = |code: &str| code.lines().position(|line| line == "f()?;");
        assert_eq!(line(&code), line(&changed));
    }
}
