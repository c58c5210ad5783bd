//! `cargo metadata` for rust-analyzer, which asks for it at every start: answered from a cache where possible.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::compile::{alone, dependencies};
use super::{read, real_cargo, write};
use crate::evcxr::session_dir::{BuildPlan, library, shows_library};
use crate::toolchain::environment::outside;
use crate::toolchain::outline::without_hidden_crates;
use crate::toolchain::pin;
use crate::{Error, Result};

/// The cell library as rust-analyzer sees it: the macros that the cells' own code uses.
const CELL: &str = "[package]\nname = \"cloze_cell\"\nversion = \"0.0.0\"\nedition = \"2024\"\n";
const CELL_SOURCE: &str = "#[macro_export]\nmacro_rules! dbg {\n    ($place:literal) => { () };\n    \
    ($place:literal, $value:expr $(,)?) => { $value };\n    ($place:literal, $($value:expr),+ $(,)?) => { ($($value),+,) };\n}\n";

/// Answers rust-analyzer's question about the crates: those of the standard library, as shown here, or those of the
/// cell together with the prelude's sources, which evcxr does not know of.
pub fn metadata(folder: &Path, plan: &BuildPlan, arguments: &[String]) -> Result<ExitCode> {
    let asked_for = arguments
        .windows(2)
        .find(|pair| pair[0] == "--manifest-path")
        .map(|pair| Path::new(&pair[1]));
    let real_and_shown = |real: &Path, shown: &Path| {
        let (real, shown) = (real.to_string_lossy(), shown.to_string_lossy());
        (real.into_owned(), shown.into_owned())
    };
    let shown_library = library(folder);
    if asked_for.is_some_and(|manifest| manifest == shown_library.join("Cargo.toml")) {
        let (real, shown) = real_and_shown(&plan.std_sources, &shown_library);
        let answer = answer(folder, plan, &without_lockfile(arguments), || {
            let mut cargo = Command::new(&plan.cargo);
            let arguments = arguments
                .iter()
                .map(|argument| argument.replace(&shown, &real));
            cargo.args(arguments).current_dir(&plan.std_sources);
            cargo
        })?;
        return answer.pass_on(|stdout| {
            let stdout = without_hidden_crates(&stdout).unwrap_or(stdout);
            stdout.replace(&real, &shown)
        });
    }
    let manifest = folder.join("Cargo.toml");
    if asked_for.is_none() {
        // evcxr asks about a package that it writes for each crate that a cell adds.
        let package = alone(&read(&manifest)?);
        write(&manifest, &package)?;
    }
    if asked_for != Some(&manifest) {
        return real_cargo(plan, arguments);
    }
    let analysis = folder.join("analysis");
    let mut contents =
        read(&manifest)?.replace("path = \"src/lib.rs\"", "path = \"../src/lib.rs\"");
    let has_dependencies = !dependencies(&contents).is_empty();
    if let Some(prelude) = &plan.analysis
        && shows_library(folder)
    {
        contents += &format!("cloze = {{ path = {:?} }}\n", prelude.to_string_lossy());
    }
    // Of the cell library, rust-analyzer needs only what affects types.
    contents += "cloze_cell = { path = \"cell\" }\n";
    write(&analysis.join("cell/Cargo.toml"), CELL)?;
    write(&analysis.join("cell/src/lib.rs"), CELL_SOURCE)?;
    let contents = alone(&contents);
    write(&analysis.join("Cargo.toml"), &contents)?;
    let (real, shown) = real_and_shown(&analysis.join("Cargo.toml"), &manifest);
    let arguments = arguments.iter().map(|argument| match *argument == shown {
        true => real.clone(),
        false => argument.clone(),
    });
    let arguments: Vec<String> = arguments.collect();
    if has_dependencies {
        // They may have changed under the same name.
        return real_cargo(plan, &arguments);
    }
    let question = format!("{contents}\n{}", without_lockfile(&arguments));
    let answer = answer(folder, plan, &question, || {
        let mut cargo = Command::new(&plan.cargo);
        cargo.args(&arguments);
        cargo
    })?;
    answer.pass_on(|stdout| stdout)
}

/// The arguments without the path of the lock file's copy, which differs each time.
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

/// The output of the real cargo.
pub struct Answer {
    stdout: String,
    succeeded: bool,
}

impl Answer {
    /// Passes the output on, with a change.
    pub fn pass_on(self, change: impl FnOnce(String) -> String) -> Result<ExitCode> {
        let said = std::io::stdout().write_all(change(self.stdout).as_bytes());
        said.map_err(Error::system("writing to stdout"))?;
        match self.succeeded {
            true => Ok(ExitCode::SUCCESS),
            false => Ok(ExitCode::FAILURE),
        }
    }
}

/// Asks the real cargo, unless the same question was asked before with this compiler.
pub fn answer(
    folder: &Path,
    plan: &BuildPlan,
    question: &str,
    command: impl FnOnce() -> Command,
) -> Result<Answer> {
    let key = format!("{question}\n{}\n{}", plan.cargo.display(), plan.version);
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
    let output = pin(outside(&mut command()), &plan.sysroot)
        .stderr(Stdio::inherit())
        .output()
        .map_err(Error::file(&plan.cargo))?;
    let answer = Answer {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        succeeded: output.status.success(),
    };
    if answer.succeeded {
        write(&known, &answer.stdout)?;
    }
    Ok(answer)
}
