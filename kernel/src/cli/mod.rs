//! The command line.

pub mod doctor;
mod finding;
mod gpu;
pub mod install;
mod kernelspec;
pub mod lab;
pub mod launch;
pub mod notebooks;
pub mod train;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::run::Run;

/// Rust notebooks for masked language modelling: the Jupyter kernel and its tools.
#[derive(Debug, Parser)]
#[command(version, name = "cloze")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Execute notebooks without Jupyter, cell by cell
    Run(Run),
    /// Train on several ranks: start a program or a notebook N times
    Launch(launch::Launch),
    /// Build the prelude and register the kernel with Jupyter
    Install(Install),
    /// Remove the kernel from Jupyter
    Uninstall(Place),
    /// Open the notebooks in JupyterLab
    Lab(Lab),
    /// Write the notebooks that come with Cloze to a folder
    Notebooks {
        /// The folder to write to; existing files are kept
        #[arg(default_value = "cloze-notebooks")]
        folder: PathBuf,
    },
    /// Report what is installed, what is missing and how to fix it
    Doctor,
    /// Train a model without a notebook: --model NAME --dataset NAME --output FOLDER, and any training argument
    #[command(disable_help_flag = true)]
    Train {
        /// Settings, as --name value; --config FILE reads them from a file
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "SETTINGS"
        )]
        arguments: Vec<String>,
    },
    /// Fill the masks of a text
    Fill {
        /// The model: a folder, a name on the Hub, or bundled:NAME
        model: String,
        /// The text, with <mask>, [MASK] or the model's own mask token where a word is to be filled in
        text: String,
        /// The number of candidates for each mask
        #[arg(long, default_value = "5")]
        top_k: NonZeroUsize,
    },
    /// Serve a Jupyter client; called by Jupyter through the kernelspec
    #[command(hide = true)]
    Kernel {
        /// Features of Cloze that the prelude is built with
        #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
        features: Vec<String>,
        /// The connection file
        connection_file: PathBuf,
    },
}

#[derive(Debug, Default, Args)]
pub struct Install {
    #[command(flatten)]
    pub place: Place,
    /// Build with these features of Cloze, for instance `cuda`
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub features: Vec<String>,
    /// Build from this clone of Cloze or this folder of its package, and use it in sessions
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
}

/// The folder that the kernelspec is written to.
#[derive(Debug, Args)]
pub struct Place {
    /// Install for the current user (the default)
    #[arg(long, conflicts_with = "prefix")]
    pub user: bool,
    /// Install into this prefix, for instance a virtual environment
    #[arg(long, value_name = "DIR")]
    pub prefix: Option<PathBuf>,
    /// The name of the kernel
    #[arg(long, default_value = KERNEL_NAME)]
    pub name: String,
}

const KERNEL_NAME: &str = "cloze";

impl Default for Place {
    fn default() -> Self {
        Self {
            user: true,
            prefix: None,
            name: KERNEL_NAME.into(),
        }
    }
}

#[derive(Debug, Args)]
pub struct Lab {
    /// The folder to open instead of the notebooks that come with Cloze
    pub folder: Option<PathBuf>,
    /// Arguments for JupyterLab
    #[arg(last = true)]
    pub arguments: Vec<String>,
}
