//! Stand-ins for the tools that evcxr and rust-analyzer call, so that a cell costs one call of the compiler.
//!
//! For each cell evcxr asks cargo to build a crate whose dependencies have not changed; cargo finds that out anew every
//! time, and compiles the prelude if it is a dependency. Here `cargo build` of a cell is a call of rustc that links
//! against the prebuilt prelude. Cells with other crates (`:dep`) go through the real cargo, and so does everything else.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::SystemTime;

use crate::building;
use crate::diagnostics::{Failed, for_evcxr};
use crate::library::without_hidden_crates;
use crate::toolchain::pin;
use crate::workshop::{Compilation, Recipe, outside, shows_library};
use crate::{Error, Result};

/// What this program answers to in a workshop.
pub const NAMES: [&str; 2] = ["cargo", "rustup"];

/// Where evcxr wants to be told the path of the library that it asked for.
const LIBRARY_PATH_FILE: &str = "EVCXR_EXECUTION_SO_PATH";

/// What a session says when nobody has asked for another level: evcxr's default, written so that it can be told from what
/// a person writes.
pub const OPT_LEVEL: &str = "+2";

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
    let verb = verb(arguments);
    let in_workshop = std::env::current_dir().is_ok_and(|here| here == folder);
    match verb {
        "build" | "check" if in_workshop => compile_cell(folder, recipe, verb, arguments),
        "locate-project" if in_workshop => {
            let manifest = folder.join("Cargo.toml");
            println!("{}", serde_json::json!({ "root": manifest }));
            Ok(ExitCode::SUCCESS)
        }
        "metadata" => metadata(folder, recipe, arguments),
        // What rust-analyzer asks of every workspace. Cells are compiled without what is configured for cargo.
        "config" if in_workshop => Ok(ExitCode::SUCCESS),
        "rustc" if in_workshop && arguments.iter().any(|argument| argument == "--print") => {
            let asked = answer(folder, recipe, &arguments.join(" "), || {
                let mut cargo = Command::new(&recipe.cargo);
                cargo.args(arguments);
                cargo
            });
            asked.and_then(|asked| asked.pass_on(|stdout| stdout))
        }
        _ => Err(real_cargo(recipe, arguments)),
    }
}

/// The first argument that is no option, nor the value of `-Z`.
fn verb(arguments: &[String]) -> &str {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "-Z" {
            rest.next();
        } else if !argument.starts_with('-') {
            return argument;
        }
    }
    ""
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
    let source = with_cell_library(&crate::statics::shared(
        folder,
        &code,
        dependencies(&manifest),
    ));
    write(&sources.join("lib.rs"), &source)?;
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
    .chain(recipe.flags.iter().cloned())
    .collect::<Vec<_>>();
    if !dependencies(&manifest).is_empty() {
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
        let mut build = || {
            let mut cargo = Command::new(&recipe.cargo);
            let cargo = pin(outside(cargo.args(&rest)), &recipe.sysroot)
                .envs(building::TELLING)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut cargo = cargo.spawn().map_err(Error::file(&recipe.cargo))?;
            let said = cargo.stderr.take();
            let output = std::thread::scope(|scope| {
                scope.spawn(|| {
                    if let Some(said) = said {
                        building::listen(folder, said, std::io::stderr());
                    }
                });
                cargo.wait_with_output()
            });
            let output = output.map_err(Error::file(&recipe.cargo))?;
            Ok((output.status.success(), output.stdout))
        };
        let (built, said) = with_plain_errors(&sources.join("lib.rs"), &source, &mut build)?;
        if !built {
            Failed::write(folder, &code, &said);
        }
        std::io::stdout()
            .write_all(&for_evcxr(&said))
            .map_err(Error::system("writing to stdout"))?;
        return Ok(if built {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let asked = manifest
        .lines()
        .find_map(|line| line.strip_prefix("opt-level = "))
        .map_or(OPT_LEVEL, |level| level.trim_matches('"'));
    let opt_level = match asked {
        OPT_LEVEL if only_calls(&code) => "0",
        asked => asked.trim_start_matches('+'),
    };
    let output = folder.join("target").join(&recipe.host).join("debug");
    fs::create_dir_all(&output).map_err(Error::file(&output))?;
    let library = output.join(if check {
        format!("lib{CELL}.rmeta")
    } else {
        format!("lib{CELL}.so")
    });
    let known = (!check && is_alone(&source)).then(|| {
        let key = format!("{opt_level}\n{flags:?}\n{}\n{source}", recipe.version);
        Known(known_cells(folder).join(&blake3::hash(key.as_bytes()).to_hex()[..16]))
    });
    if let Some(outcome) = known
        .as_ref()
        .and_then(|known| known.recall(&library, folder, &code))
    {
        return outcome;
    }
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
    outside(&mut rustc).stdout(Stdio::inherit());
    let (built, said) = with_plain_errors(&sources.join("lib.rs"), &source, &mut || {
        let output = rustc.output().map_err(Error::file(&recipe.rustc))?;
        Ok((output.status.success(), output.stderr))
    })?;
    if !built {
        Failed::write(folder, &code, &said);
    }
    std::io::stderr()
        .write_all(&for_evcxr(&said))
        .map_err(Error::system("writing to stderr"))?;
    if let Some(known) = known {
        known.remember(&library, built, &said)?;
    }
    match built {
        true if check => Ok(ExitCode::SUCCESS),
        true => done(&library),
        false => Ok(ExitCode::FAILURE),
    }
}

/// Compiles, and once more if the cell passes on by `?` what is no `std::error::Error` but can be shown: causes are told
/// of errors only.
fn with_plain_errors(
    file: &Path,
    source: &str,
    compile: &mut dyn FnMut() -> Result<(bool, Vec<u8>)>,
) -> Result<(bool, Vec<u8>)> {
    const ERROR: &str = "use ::cloze_cell::EvcxrUserCodeError;";
    const SHOWN: &str = "use ::cloze_cell::Shown as EvcxrUserCodeError;";
    let first = compile()?;
    let said = String::from_utf8_lossy(&first.1);
    if first.0 || !said.contains("E0277") || !source.contains(ERROR) {
        return Ok(first);
    }
    write(file, &source.replacen(ERROR, SHOWN, 1))?;
    let second = compile()?;
    // If it is something else that is wrong, the first report is the better one.
    Ok(if second.0 { second } else { first })
}

/// What the manifest of a cell says of other crates.
fn dependencies(manifest: &str) -> &str {
    let dependencies = manifest.split_once("[dependencies]");
    dependencies.map_or("", |(_, rest)| rest).trim()
}

/// Tells evcxr where the cell's library is.
fn done(library: &Path) -> Result<ExitCode> {
    if let Some(file) = std::env::var_os(LIBRARY_PATH_FILE) {
        write(Path::new(&file), &library.to_string_lossy())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the libraries of cells are kept that sessions begin with.
pub fn known_cells(folder: &Path) -> PathBuf {
    folder.join("known-cells")
}

/// Whether the cell has to do with no variable and with nothing outside of its text, as the first cells of a session: then
/// the same text has the same library, and is compiled once for all sessions.
fn is_alone(source: &str) -> bool {
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

/// Where the outcome of compiling a cell is kept: its library, or the errors.
struct Known(PathBuf);

impl Known {
    fn errors(&self) -> PathBuf {
        self.0.with_extension("errors")
    }

    /// Does as the compiler did, if it did anything.
    fn recall(&self, library: &Path, folder: &Path, code: &str) -> Option<Result<ExitCode>> {
        // The last used are kept.
        let touch = |path| File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Ok(errors) = fs::read(self.errors()) {
            let _ = touch(self.errors());
            Failed::write(folder, code, &errors);
            let said = std::io::stderr().write_all(&for_evcxr(&errors));
            return Some(
                said.map_err(Error::system("writing to stderr"))
                    .map(|()| ExitCode::FAILURE),
            );
        }
        fs::copy(&self.0, library).ok()?;
        let _ = touch(self.0.clone());
        Some(done(library))
    }

    /// Keeps what the compiler did, whole or not at all. Of errors only those that evcxr provokes, to learn whether cells
    /// use `?`: others may have to do with more than the text.
    fn remember(&self, library: &Path, built: bool, said: &[u8]) -> Result<()> {
        let unfinished = self.0.with_extension("unfinished");
        let folder = self.0.parent().unwrap_or(Path::new(""));
        let kept = if built {
            fs::create_dir_all(folder)
                .and_then(|()| fs::copy(library, &unfinished))
                .and_then(|_| fs::rename(&unfinished, &self.0))
        } else if String::from_utf8_lossy(said).contains("E0277") {
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&unfinished, said))
                .and_then(|()| fs::rename(&unfinished, self.errors()))
        } else {
            return Ok(());
        };
        kept.map_err(Error::file(&self.0))
    }
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
    // What evcxr is to hear does not go where a cell prints.
    let told = |line: &str| match line.trim() {
        PANICKED => "::cloze_cell::notice(\"EVCXR_PANIC_NOTIFICATION\");".to_owned(),
        _ => line.to_owned(),
    };
    let out = out.lines().map(told).collect::<Vec<_>>().join("\n");
    out + "\n#[allow(unused_imports)] use ::cloze_cell::{eprint, eprintln, print, println, ShowValue as _};\n"
}

/// What rust-analyzer asks to know the crates: those of the standard library, as it is shown here, and those of the cell
/// with the prelude's sources, which evcxr does not know of.
fn metadata(folder: &Path, recipe: &Recipe, arguments: &[String]) -> Result<ExitCode> {
    let asked_for = arguments
        .windows(2)
        .find(|pair| pair[0] == "--manifest-path")
        .map(|pair| Path::new(&pair[1]));
    let real_and_shown = |real: &Path, shown: &Path| {
        let (real, shown) = (real.to_string_lossy(), shown.to_string_lossy());
        (real.into_owned(), shown.into_owned())
    };
    let library = crate::workshop::library(folder);
    if asked_for.is_some_and(|manifest| manifest == library.join("Cargo.toml")) {
        let (real, shown) = real_and_shown(&recipe.library, &library);
        let answer = answer(folder, recipe, &without_lockfile(arguments), || {
            let mut cargo = Command::new(&recipe.cargo);
            let arguments = arguments
                .iter()
                .map(|argument| argument.replace(&shown, &real));
            cargo.args(arguments).current_dir(&recipe.library);
            cargo
        })?;
        return answer.pass_on(|stdout| {
            let stdout = without_hidden_crates(&stdout).unwrap_or(stdout);
            stdout.replace(&real, &shown)
        });
    }
    let manifest = folder.join("Cargo.toml");
    if asked_for != Some(&manifest) {
        return Err(real_cargo(recipe, arguments));
    }
    let analysis = folder.join("analysis");
    let mut contents =
        read(&manifest)?.replace("path = \"src/lib.rs\"", "path = \"../src/lib.rs\"");
    let has_dependencies = !dependencies(&contents).is_empty();
    if let Some(prelude) = &recipe.analysis
        && shows_library(folder)
    {
        contents += &format!("cloze = {{ path = {:?} }}\n", prelude.to_string_lossy());
    }
    contents += "\n[workspace]\n";
    write(&analysis.join("Cargo.toml"), &contents)?;
    let (real, shown) = real_and_shown(&analysis.join("Cargo.toml"), &manifest);
    let arguments = arguments.iter().map(|argument| match *argument == shown {
        true => real.clone(),
        false => argument.clone(),
    });
    let arguments: Vec<String> = arguments.collect();
    if has_dependencies {
        // They may have changed under the same name.
        return Err(real_cargo(recipe, &arguments));
    }
    let question = format!("{contents}\n{}", without_lockfile(&arguments));
    let answer = answer(folder, recipe, &question, || {
        let mut cargo = Command::new(&recipe.cargo);
        cargo.args(&arguments);
        cargo
    })?;
    answer.pass_on(|stdout| stdout)
}

/// The arguments but for the copy of the lock file, which is another one each time.
fn without_lockfile(arguments: &[String]) -> String {
    let mut kept: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(at) = kept
        .iter()
        .position(|argument| *argument == "--lockfile-path")
    {
        kept.drain(at..(at + 2).min(kept.len()));
    }
    kept.join(" ")
}

/// What the real cargo says.
struct Answer {
    stdout: String,
    succeeded: bool,
}

impl Answer {
    fn pass_on(self, change: impl FnOnce(String) -> String) -> Result<ExitCode> {
        let said = std::io::stdout().write_all(change(self.stdout).as_bytes());
        said.map_err(Error::system("writing to stdout"))?;
        match self.succeeded {
            true => Ok(ExitCode::SUCCESS),
            false => Ok(ExitCode::FAILURE),
        }
    }
}

/// Asks the real cargo, unless the same was asked with this compiler before.
fn answer(
    folder: &Path,
    recipe: &Recipe,
    question: &str,
    command: impl FnOnce() -> Command,
) -> Result<Answer> {
    let key = format!("{question}\n{}\n{}", recipe.cargo.display(), recipe.version);
    let key = blake3::hash(key.as_bytes()).to_hex();
    let known = folder
        .join("analysis")
        .join(format!("answer-{}", &key[..16]));
    if let Ok(stdout) = fs::read_to_string(&known) {
        return Ok(Answer {
            stdout,
            succeeded: true,
        });
    }
    let output = pin(outside(&mut command()), &recipe.sysroot)
        .stderr(Stdio::inherit())
        .output()
        .map_err(Error::file(&recipe.cargo))?;
    let answer = Answer {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        succeeded: output.status.success(),
    };
    if answer.succeeded {
        write(&known, &answer.stdout)?;
    }
    Ok(answer)
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
