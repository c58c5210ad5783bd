//! Stand-ins for the tools that evcxr and rust-analyzer call, so that a cell costs one call of the compiler.
//!
//! For each cell evcxr asks cargo to build a crate whose dependencies have not changed; cargo finds that out anew every
//! time, and compiles the prelude if it is a dependency. Here `cargo build` of a cell is a call of rustc that links
//! against the prebuilt prelude. Cells with other crates (`:dep`) go through the real cargo, and so does everything else.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::toolchain::pin;
use crate::workshop::{Compilation, Recipe, outside};
use crate::{Error, Result};

/// What this program answers to in a workshop.
pub const NAMES: [&str; 2] = ["cargo", "rustup"];

/// Where evcxr wants to be told the path of the library that it asked for.
const LIBRARY_PATH_FILE: &str = "EVCXR_EXECUTION_SO_PATH";

/// evcxr's default.
const DEFAULT_OPT_LEVEL: &str = "2";

/// The crate that evcxr makes of each cell.
const CELL: &str = "ctx";

/// Does the work of the tool under whose name this program was called, if it was called so in a workshop.
pub fn run_as_tool() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    let name = Path::new(&name).file_name()?.to_str()?.to_owned();
    if !NAMES.contains(&name.as_str()) {
        return None;
    }
    let (folder, recipe) = Recipe::here()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match name.as_str() {
        "rustup" => rustup(&folder, &recipe, &arguments),
        _ => cargo(&folder, &recipe, &arguments),
    };
    Some(done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    }))
}

/// `rustup which TOOL`: the stand-in for cargo, and the real compiler.
fn rustup(folder: &Path, recipe: &Recipe, arguments: &[String]) -> Result<ExitCode> {
    match arguments {
        [which, tool] if which == "which" && tool == "cargo" => {
            println!("{}", folder.join("cargo-home/bin/cargo").display());
        }
        [which, tool] if which == "which" && tool == "rustc" => {
            println!("{}", recipe.rustc.display())
        }
        _ => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}

fn cargo(folder: &Path, recipe: &Recipe, arguments: &[String]) -> Result<ExitCode> {
    let verb = arguments
        .iter()
        .find(|argument| !argument.starts_with('-'))
        .map_or("", String::as_str);
    let in_workshop = std::env::current_dir().is_ok_and(|here| here == folder);
    match verb {
        "build" | "check" if in_workshop => compile_cell(folder, recipe, verb, arguments),
        "locate-project" if in_workshop => {
            let manifest = folder.join("Cargo.toml");
            println!("{}", serde_json::json!({ "root": manifest }));
            Ok(ExitCode::SUCCESS)
        }
        "metadata" => metadata(folder, recipe, arguments),
        _ => Err(real_cargo(recipe, arguments)),
    }
}

/// Becomes the real cargo.
fn real_cargo(recipe: &Recipe, arguments: &[String]) -> Error {
    let error = pin(
        outside(Command::new(&recipe.cargo).args(arguments)),
        &recipe.sysroot,
    )
    .exec();
    Error::file(&recipe.cargo)(error)
}

fn compile_cell(
    folder: &Path,
    recipe: &Recipe,
    verb: &str,
    arguments: &[String],
) -> Result<ExitCode> {
    if !Compilation::begin(folder) {
        return Ok(ExitCode::FAILURE);
    }
    let manifest = read(&folder.join("Cargo.toml"))?;
    let code = read(&folder.join("src/lib.rs"))?;
    let sources = folder.join("cell");
    // Beside evcxr's own file, with the same lines, so that messages still point where evcxr expects.
    write(&sources.join("lib.rs"), &with_cell_library(&code))?;
    let check = verb == "check";
    // Lines for panics; what is stripped otherwise is what tells them.
    let flags = [
        "-Awarnings",
        "-Cprefer-dynamic",
        "-Cdebuginfo=line-tables-only",
        "-Cstrip=none",
    ]
    .map(String::from)
    .into_iter()
    .chain(recipe.flags.iter().cloned());
    let dependencies = manifest
        .split_once("[dependencies]")
        .map_or("", |(_, rest)| rest)
        .trim();
    if !dependencies.is_empty() {
        write(
            &sources.join("Cargo.toml"),
            &manifest.replace("path = \"src/lib.rs\"", "path = \"lib.rs\""),
        )?;
        let mut rest = arguments
            .iter()
            .filter(|argument| *argument != verb)
            .cloned()
            .collect::<Vec<_>>();
        rest.insert(0, "rustc".into());
        rest.extend([
            "--lib".into(),
            "--manifest-path".into(),
            "cell/Cargo.toml".into(),
        ]);
        if check {
            rest.extend(["--profile".into(), "check".into()]);
        }
        rest.push("--".into());
        rest.extend(flags);
        return Err(real_cargo(recipe, &rest));
    }
    let asked = manifest
        .lines()
        .find_map(|line| line.strip_prefix("opt-level = "))
        .map_or(DEFAULT_OPT_LEVEL, |level| level.trim_matches('"'));
    let opt_level = if asked == DEFAULT_OPT_LEVEL && only_calls(&code) {
        "0"
    } else {
        asked
    };
    let output = folder.join("target").join(&recipe.host).join("debug");
    fs::create_dir_all(&output).map_err(Error::file(&output))?;
    let library = output.join(if check {
        format!("lib{CELL}.rmeta")
    } else {
        format!("lib{CELL}.so")
    });
    let mut rustc = Command::new(&recipe.rustc);
    rustc
        .args([
            "--crate-name",
            CELL,
            "--edition=2024",
            "--crate-type=cdylib",
        ])
        .args(["--error-format=json", "--json=diagnostic-rendered-ansi"])
        .arg(if check {
            "--emit=metadata"
        } else {
            "--emit=link"
        })
        .args([
            &format!("-Copt-level={opt_level}"),
            "-Ccodegen-units=2",
            "-Crpath",
        ])
        .args(["-Cdebug-assertions=on", "-Coverflow-checks=on"])
        .args(flags)
        .arg("-o")
        .arg(&library)
        .arg("cell/lib.rs");
    let status = outside(&mut rustc)
        .status()
        .map_err(Error::file(&recipe.rustc))?;
    if !status.success() {
        return Ok(ExitCode::from(101));
    }
    if let (false, Some(file)) = (check, std::env::var_os(LIBRARY_PATH_FILE)) {
        write(Path::new(&file), &library.to_string_lossy())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the code does nothing itself that takes time: it calls what is compiled already, in no loop of its own.
///
/// Most cells of a guide are like that, and optimizing them is most of what compiling them costs, because the code that
/// keeps a session's variables from cell to cell grows with their number.
fn only_calls(code: &str) -> bool {
    // evcxr's own part: everything up to the function that runs the cell, but for what earlier cells defined.
    let (definitions, cell) = code
        .split_once("#[unsafe(no_mangle)]")
        .unwrap_or(("", code));
    let definitions = definitions
        .split("mod evcxr_internal_runtime {")
        .next()
        .unwrap_or_default();
    let definitions = definitions
        .split("struct EvcxrUserCodeError")
        .next()
        .unwrap_or_default();
    let cell = [
        "AssertUnwindSafe(||{",
        "catch_unwind(||{",
        "(|| -> std::result::Result<(), EvcxrUserCodeError> {",
    ]
    .iter()
    .fold(cell.replace("pub extern \"C\" fn", ""), |cell, own| {
        cell.replace(own, "")
    });
    let works = |text: &str| {
        [
            "for ",
            "while ",
            "loop",
            "fn ",
            "|",
            "iter",
            "..",
            "macro_rules!",
        ]
        .iter()
        .any(|sign| text.contains(sign))
    };
    !works(definitions) && !works(&cell)
}

/// Puts the cell library in the place of what evcxr writes into every cell: the type by which `?` leaves the cell, which
/// here tells the error's causes; the store of variables; and how a value is shown, so that the common cases compile at
/// the first attempt. What is compiled already need not be compiled again, and lines keep their numbers.
fn with_cell_library(code: &str) -> String {
    const ERROR: &str =
        "            struct EvcxrUserCodeError {}\n            impl<T: std::fmt::Display> From<T>";
    const RUNTIME: &str = "mod evcxr_internal_runtime {";
    const STORE: &str = "pub fn create_variable_store()";
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
    out + "\nuse ::cloze_cell::ShowValue as _;\n"
}

/// What rust-analyzer asks to know the crates: those of the cell, and the prelude's sources, which evcxr does not know of.
fn metadata(folder: &Path, recipe: &Recipe, arguments: &[String]) -> Result<ExitCode> {
    let manifest = folder.join("Cargo.toml");
    let is_cell = arguments
        .windows(2)
        .any(|pair| pair[0] == "--manifest-path" && Path::new(&pair[1]) == manifest);
    if !is_cell {
        return Err(real_cargo(recipe, arguments));
    }
    let analysis = folder.join("analysis");
    let mut contents =
        read(&manifest)?.replace("path = \"src/lib.rs\"", "path = \"../src/lib.rs\"");
    if let Some(prelude) = &recipe.analysis {
        contents += &format!("cloze = {{ path = {:?} }}\n", prelude.to_string_lossy());
    }
    contents += "\n[workspace]\n";
    write(&analysis.join("Cargo.toml"), &contents)?;
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| {
            if Path::new(argument) == manifest {
                analysis.join("Cargo.toml").to_string_lossy().into_owned()
            } else {
                argument.clone()
            }
        })
        .collect();
    let key =
        blake3::hash(format!("{contents}\n{arguments:?}\n{}", recipe.cargo.display()).as_bytes())
            .to_hex();
    let answer = analysis.join(format!("metadata-{}.json", &key[..16]));
    if let Ok(known) = fs::read(&answer) {
        std::io::stdout()
            .write_all(&known)
            .map_err(Error::system("writing to stdout"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let output = pin(
        outside(Command::new(&recipe.cargo).args(&arguments)),
        &recipe.sysroot,
    )
    .output()
    .map_err(Error::file(&recipe.cargo))?;
    let mut stdout = std::io::stdout();
    let said = stdout
        .write_all(&output.stdout)
        .and_then(|()| std::io::stderr().write_all(&output.stderr));
    said.map_err(Error::system("writing to stdout"))?;
    if !output.status.success() {
        return Ok(ExitCode::FAILURE);
    }
    fs::write(&answer, &output.stdout).map_err(Error::file(&answer))?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::file(path))
}

fn write(path: &Path, contents: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
    }
    fs::write(path, contents).map_err(Error::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As evcxr 0.22 writes it.
    fn generated(items: &str, cell: &str) -> String {
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
    fn code_that_only_calls_is_not_optimized() {
        assert!(only_calls(&generated(
            "use cloze::prelude::*;",
            "let t = Tensor::zeros(3)?;\nprintln!(\"{t}\");"
        )));
    }

    #[test]
    fn code_with_loops_closures_or_functions_is() {
        for cell in [
            "for i in 0..9 {}",
            "let v = x.map(|y| y + 1);",
            "v.iter().sum::<f32>()",
            "while true {}",
        ] {
            assert!(!only_calls(&generated("", cell)), "{cell}");
        }
        assert!(!only_calls(&generated(
            "fn slow(n: u64) -> u64 { n }",
            "slow(3)"
        )));
    }

    #[test]
    fn the_cell_library_takes_the_place_of_what_evcxr_writes_and_lines_stay() {
        let code = generated("", "f()?;");
        let changed = with_cell_library(&code);
        assert!(changed.contains("use ::cloze_cell::EvcxrUserCodeError;"));
        assert!(!changed.contains("struct EvcxrUserCodeError"));
        assert!(changed.contains("pub use ::cloze_cell::VariableStore;"));
        assert!(
            !changed.contains("fn take()") && changed.contains("pub fn create_variable_store()")
        );
        let line = |code: &str| code.lines().position(|line| line == "f()?;");
        assert_eq!(line(&code), line(&changed));
    }
}
