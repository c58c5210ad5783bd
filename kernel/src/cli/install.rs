//! `cloze install` and `cloze uninstall`: write and remove the kernelspec through which Jupyter finds the kernel.

use std::fs;
use std::path::{Path, PathBuf};

use cloze::files;
use serde_json::json;

use super::{Install, Place};
use crate::toolchain::Toolchain;
use crate::toolchain::gpu::CAPABILITY;
use crate::toolchain::prelude::{Libraries, SOURCES, Sources};
use crate::toolchain::work::{Stop, Work};
use crate::{Error, Result};

/// Icons that front ends show for notebooks of this kernel.
const LOGOS: [(&str, &[u8]); 3] = [
    ("logo-svg.svg", include_bytes!("../../assets/logo.svg")),
    (
        "logo-32x32.png",
        include_bytes!("../../assets/logo-32x32.png"),
    ),
    (
        "logo-64x64.png",
        include_bytes!("../../assets/logo-64x64.png"),
    ),
];

/// Builds the prelude and writes the kernelspec.
pub fn install(arguments: &Install) -> Result<()> {
    let toolchain = Toolchain::find()?;
    println!("compiler: {}", toolchain.name());
    let (stop, print) = (Stop::default(), |what| println!("{what}"));
    let work = Work::new(&print, &stop);
    toolchain.add_sources(&work)?;
    let mut environment = serde_json::Map::new();
    let sources = match &arguments.source {
        Some(folder) => {
            let sources = Sources::at(folder).ok_or_else(|| {
                format!(
                    "{} contains no sources of Cloze: --source takes a clone, or the folder of the package `cloze`",
                    folder.display()
                )
            })?;
            let folder = folder.canonicalize().map_err(Error::file(folder))?;
            // Sessions look there, too.
            environment.insert(SOURCES.into(), folder.display().to_string().into());
            sources
        }
        None => Sources::own().ok_or_else(Sources::missing)?,
    };
    let sources = sources.with_features(&arguments.features);
    println!("sources: {sources}");
    if let Some(capability) = &sources.capability {
        println!("GPU kernels: for compute capability {capability}");
        // Sessions look for the prelude that was built for this capability.
        environment.insert(CAPABILITY.into(), capability.as_str().into());
    }
    Libraries::prepare(&toolchain, Some(&sources), &work)?;
    let folder = arguments.place.folder()?;
    fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    let program = settle(&folder)?;
    let mut argv = vec![program.to_string_lossy().into_owned(), "kernel".into()];
    for feature in &arguments.features {
        argv.extend(["--features".into(), feature.clone()]);
    }
    argv.push("{connection_file}".into());
    let display_name = match arguments.features.as_slice() {
        [] => "Cloze (Rust)".to_owned(),
        features => format!("Cloze (Rust, {})", features.join(", ")),
    };
    let kernelspec = json!({
        "argv": argv,
        "display_name": display_name,
        "language": "rust",
        "interrupt_mode": "message",
        "env": environment,
        "metadata": { "debugger": false },
    });
    write(
        &folder.join("kernel.json"),
        format!("{kernelspec:#}\n").as_bytes(),
    )?;
    for (name, contents) in LOGOS {
        write(&folder.join(name), contents)?;
    }
    println!(
        "installed the kernel `{}` in {}",
        arguments.place.name,
        folder.display()
    );
    Ok(())
}

/// Removes the kernelspec. Built preludes stay in the cache.
pub fn uninstall(place: &Place) -> Result<()> {
    let folder = place.folder()?;
    if !folder.join("kernel.json").exists() {
        return Err(format!(
            "there is no kernel `{}` in {}",
            place.name,
            folder.display()
        )
        .into());
    }
    fs::remove_dir_all(&folder).map_err(Error::file(&folder))?;
    println!(
        "removed {}; built preludes are still in {}",
        folder.display(),
        crate::toolchain::environment::cache_folder()?.display()
    );
    Ok(())
}

impl Place {
    /// Returns the folder of the kernelspec.
    pub fn folder(&self) -> Result<PathBuf> {
        let valid = !self.name.is_empty()
            && self
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !valid {
            return Err(format!(
                "`{}` is not a valid kernel name: use letters, digits, `-`, `_` and `.` only",
                self.name
            )
            .into());
        }
        let data = match &self.prefix {
            Some(prefix) => prefix.join("share/jupyter"),
            None => user_data()?,
        };
        Ok(data.join("kernels").join(&self.name))
    }
}

/// Returns the folder in which Jupyter looks for the user's own kernels.
fn user_data() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("JUPYTER_DATA_DIR") {
        return Ok(folder.into());
    }
    if cfg!(target_os = "macos") {
        return Ok(dirs::home_dir()
            .ok_or("no home folder was found")?
            .join("Library/Jupyter"));
    }
    Ok(dirs::data_dir()
        .ok_or("no folder for user data was found: name one with --prefix")?
        .join("jupyter"))
}

/// Returns the program that the kernelspec starts: this one, or a copy beside the kernelspec if this one is in a build
/// folder, where the next build would replace it.
fn settle(folder: &Path) -> Result<PathBuf> {
    let program =
        std::env::current_exe().map_err(Error::system("finding the path of this program"))?;
    if crate::toolchain::prelude::target_folder().is_none() {
        return Ok(program);
    }
    let copy = folder.join("cloze");
    // A kernel may still be running from the old copy. It keeps its open file; the new copy takes over the name.
    let permissions = program
        .metadata()
        .map_err(Error::file(&program))?
        .permissions();
    files::replace_atomically(&copy, |new| {
        let copied = fs::copy(&program, new);
        copied
            .map(drop)
            .map_err(|error| cloze::Error::io("write", &copy, error))
    })
    .map_err(|error| error.to_string())?;
    fs::set_permissions(&copy, permissions).map_err(Error::file(&copy))?;
    Ok(copy)
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    files::write_atomically(path, contents).map_err(|error| error.to_string().into())
}
