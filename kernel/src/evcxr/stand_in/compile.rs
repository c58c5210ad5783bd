//! `cargo build` of a cell: one call of rustc, or of the real cargo if the cell adds crates.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use super::known_cells::Known;
use super::{OPT_LEVEL, done, read, write};
use crate::evcxr::building;
use crate::evcxr::effort::only_calls;
use crate::evcxr::failed::{CELL, Failed, for_evcxr};
use crate::evcxr::generated::{is_alone, with_cell_library};
use crate::evcxr::session_dir::{BuildPlan, Compilation, known_cells};
use crate::evcxr::{shapes, statics};
use crate::toolchain::environment::outside;
use crate::toolchain::pin;
use crate::{Error, Result};

/// The variable that sets the compiler's stack size, in bytes.
const MIN_STACK: &str = "RUST_MIN_STACK";

/// Compiles the cell in the session's folder, as evcxr asks: `cargo build` or `cargo check`, with these arguments.
pub fn compile_cell(
    folder: &Path,
    plan: &BuildPlan,
    verb: &str,
    arguments: &[String],
) -> Result<ExitCode> {
    if !Compilation::begin(folder) {
        return Ok(ExitCode::FAILURE);
    }
    let cell = CellCrate::lay_out(folder, plan, verb == "check")?;
    match dependencies(&cell.manifest).is_empty() {
        true => cell.with_rustc(),
        false => cell.with_cargo(verb, arguments),
    }
}

/// The crate that evcxr generated for a cell, and how it is compiled.
struct CellCrate<'a> {
    folder: &'a Path,
    plan: &'a BuildPlan,
    manifest: String,
    /// The source as evcxr wrote it.
    code: String,
    /// The source as it is compiled, with the same line numbers.
    source: String,
    /// Arguments of rustc.
    flags: Vec<String>,
    /// Whether only the types are checked.
    check: bool,
}

impl<'a> CellCrate<'a> {
    /// Writes the source to compile beside evcxr's own file, with the same line numbers, so that messages point where
    /// evcxr expects.
    fn lay_out(folder: &'a Path, plan: &'a BuildPlan, check: bool) -> Result<Self> {
        let manifest = read(&folder.join("Cargo.toml"))?;
        let code = read(&folder.join("src/lib.rs"))?;
        let source = statics::shared(folder, &code, dependencies(&manifest));
        let source = shapes::with_shapes(folder, &source, dependencies(&manifest));
        let source = with_cell_library(&source);
        // Reports of panics need the line tables, which would otherwise be stripped.
        let flags = [
            "-Awarnings",
            "-Cprefer-dynamic",
            "-Cdebuginfo=line-tables-only",
            "-Cstrip=none",
        ];
        let flags = flags.map(String::from).into_iter();
        let cell = Self {
            folder,
            plan,
            manifest,
            code,
            source,
            flags: flags.chain(plan.flags.iter().cloned()).collect(),
            check,
        };
        write(&cell.file(), &cell.source)?;
        Ok(cell)
    }

    /// Returns the path of the file to compile.
    fn file(&self) -> PathBuf {
        self.folder.join("cell/lib.rs")
    }

    /// Compiles a cell that uses other crates: the real cargo builds them.
    fn with_cargo(&self, verb: &str, arguments: &[String]) -> Result<ExitCode> {
        write(
            &self.folder.join("cell/Cargo.toml"),
            &alone(
                &self
                    .manifest
                    .replace("path = \"src/lib.rs\"", "path = \"lib.rs\""),
            ),
        )?;
        let mut rest = vec!["rustc".to_owned()];
        rest.extend(arguments.iter().filter(|it| *it != verb).cloned());
        rest.extend(["--lib", "--manifest-path", "cell/Cargo.toml"].map(String::from));
        if self.check {
            rest.extend(["--profile", "check"].map(String::from));
        }
        rest.push("--".into());
        rest.extend(self.flags.iter().cloned());
        let (built, said) =
            with_plain_errors(&self.file(), &self.source, &mut || self.run_cargo(&rest))?;
        if !built {
            Failed::write(self.folder, &self.code, &said);
        }
        std::io::stdout()
            .write_all(&for_evcxr(&said))
            .map_err(Error::system("writing to stdout"))?;
        Ok(match built {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    /// Runs the real cargo, and records its progress for the session.
    fn run_cargo(&self, arguments: &[String]) -> Result<(bool, Vec<u8>)> {
        let mut cargo = Command::new(&self.plan.cargo);
        let cargo = pin(outside(cargo.args(arguments)), &self.plan.sysroot)
            .envs(building::PROGRESS_VARIABLES)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut cargo = cargo.spawn().map_err(Error::file(&self.plan.cargo))?;
        let said = cargo.stderr.take();
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Some(said) = said {
                    building::listen(self.folder, said, std::io::stderr());
                }
            });
            cargo.wait_with_output()
        });
        let output = output.map_err(Error::file(&self.plan.cargo))?;
        Ok((output.status.success(), output.stdout))
    }

    /// Compiles a cell that uses only the prelude: one call of rustc, or none if the same cell was compiled before.
    fn with_rustc(&self) -> Result<ExitCode> {
        let opt_level = self.opt_level();
        let library = self.cell_library()?;
        let known = (!self.check && is_alone(&self.source)).then(|| self.known(opt_level));
        if let Some(outcome) = known
            .as_ref()
            .and_then(|known| known.recall(&library, self.folder, &self.code))
        {
            return outcome;
        }
        let mut rustc = self.rustc(opt_level, &library);
        let (built, said) = with_plain_errors(&self.file(), &self.source, &mut || {
            let output = rustc.output().map_err(Error::file(&self.plan.rustc))?;
            Ok((output.status.success(), output.stderr))
        })?;
        if !built {
            Failed::write(self.folder, &self.code, &said);
        }
        std::io::stderr()
            .write_all(&for_evcxr(&said))
            .map_err(Error::system("writing to stderr"))?;
        if let Some(known) = known {
            known.remember(&library, built, &said)?;
        }
        match built {
            true if self.check => Ok(ExitCode::SUCCESS),
            true => done(&library),
            false => Ok(ExitCode::FAILURE),
        }
    }

    /// Returns the optimization level in the manifest, or 0 where optimizing is not worth its time.
    fn opt_level(&self) -> &str {
        let asked = self
            .manifest
            .lines()
            .find_map(|line| line.strip_prefix("opt-level = "))
            .map_or(OPT_LEVEL, |level| level.trim_matches('"'));
        match asked {
            OPT_LEVEL if only_calls(&self.code) => "0",
            asked => asked.trim_start_matches('+'),
        }
    }

    /// Returns the path for the cell's library, in a folder that exists.
    fn cell_library(&self) -> Result<PathBuf> {
        let output = self
            .folder
            .join("target")
            .join(&self.plan.host)
            .join("debug");
        fs::create_dir_all(&output).map_err(Error::file(&output))?;
        Ok(output.join(match self.check {
            true => format!("lib{CELL}.rmeta"),
            false => format!("{DLL_PREFIX}{CELL}{DLL_SUFFIX}"),
        }))
    }

    /// Returns where the result of this compilation is kept for later sessions.
    fn known(&self, opt_level: &str) -> Known {
        let key = format!(
            "{opt_level}\n{:?}\n{}\n{}",
            self.flags, self.plan.version, self.source
        );
        Known(known_cells(self.folder).join(&blake3::hash(key.as_bytes()).to_hex()[..16]))
    }

    fn rustc(&self, opt_level: &str, library: &Path) -> Command {
        let mut rustc = Command::new(&self.plan.rustc);
        rustc
            .args(["--crate-name", CELL])
            .args(["--edition=2024", "--crate-type=cdylib"])
            .args(["--error-format=json", "--json=diagnostic-rendered-ansi"])
            .arg(match self.check {
                true => "--emit=metadata",
                false => "--emit=link",
            })
            .arg(format!("-Copt-level={opt_level}"))
            .args(["-Ccodegen-units=2", "-Crpath"])
            .args(["-Cdebug-assertions=on", "-Coverflow-checks=on"])
            .args(&self.flags)
            .arg("-o")
            .arg(library)
            .arg("cell/lib.rs");
        outside(&mut rustc).stdout(Stdio::inherit());
        if std::env::var_os(MIN_STACK).is_none() {
            // Enough for all code that the kernel's depth limit accepts.
            rustc.env(MIN_STACK, (64 << 20).to_string());
        }
        rustc
    }
}

/// Compiles, and compiles again if `?` passes on a type that is not a `std::error::Error` but can be displayed: causes
/// are reported for errors only.
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
    // If something else is wrong, the first report is better.
    Ok(if second.0 { second } else { first })
}

/// Returns the manifest of a package that belongs to no workspace, wherever its folder is.
pub fn alone(manifest: &str) -> String {
    const ALONE: &str = "\n[workspace]\n";
    match manifest.contains(ALONE) {
        true => manifest.to_owned(),
        false => format!("{manifest}{ALONE}"),
    }
}

/// Returns the dependencies in the manifest of a cell.
pub fn dependencies(manifest: &str) -> &str {
    let dependencies = manifest.split_once("[dependencies]");
    dependencies.map_or("", |(_, rest)| rest).trim()
}
