//! `cloze lab`: opens the notebooks in JupyterLab.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::kernelspec::{self, find_jupyter};
use super::{Install, Lab, install};
use crate::toolchain::prelude::Sources;
use crate::{Error, Result};

/// Replaces this process with JupyterLab.
pub fn lab(arguments: &Lab) -> Result<()> {
    let Some(jupyter) = find_jupyter() else {
        return Err("JupyterLab was not found. To get it, one of:\n  \
                    pipx install jupyterlab\n  \
                    uv tool install jupyterlab\n  \
                    python3 -m pip install --user jupyterlab\n\
                    Notebooks also run without it: cloze run NOTEBOOK"
            .into());
    };
    if kernelspec::find().is_none() {
        install::install(&Install::default())?;
    }
    let folder = arguments.folder.clone().or_else(notebooks);
    if folder.is_none() {
        println!("`cloze notebooks` writes the notebooks that come with Cloze to a folder");
    }
    let folder = folder.unwrap_or_else(|| ".".into());
    let error = Command::new(&jupyter)
        .args(&arguments.arguments)
        .arg(folder)
        .exec();
    Err(Error::file(&jupyter)(error))
}

/// Returns the folder of the notebooks that come with Cloze, if the sources are a clone.
fn notebooks() -> Option<PathBuf> {
    let notebooks = Sources::own()?.clone_folder()?.join("notebooks");
    Some(notebooks).filter(|folder| folder.is_dir())
}
