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

/// Rust notebooks for masked language modelling: the Jupyter kernel and what belongs to it.
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
    /// Build the prelude, and make the kernel known to Jupyter
    Install(Install),
    /// Make Jupyter forget the kernel
    Uninstall(Place),
    /// Open JupyterLab on the notebooks
    Lab(Lab),
    /// Write the notebooks that come with Cloze to a folder
    Notebooks {
        /// Where to; what is there already stays as it is
        #[arg(default_value = "cloze-notebooks")]
        folder: PathBuf,
    },
    /// Tell what is there, what is missing and how to mend it
    Doctor,
    /// Train a model without a notebook: --model NAME --dataset NAME --output FOLDER, and any argument of the training
    #[command(disable_help_flag = true)]
    Train {
        /// Settings, as --name value; a file of them after --config
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
        /// The text, with the model's mask token, <mask> or [MASK] for what is to be filled
        text: String,
        /// How many candidates each mask gets
        #[arg(long, default_value = "5")]
        top_k: NonZeroUsize,
    },
    /// Serve a Jupyter client; the kernelspec says so
    #[command(hide = true)]
    Kernel {
        /// Features of Cloze that the prelude is built with
        #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
        features: Vec<String>,
        /// The file that describes the connection
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
    /// Build from this clone of Cloze, or this folder of its package, and let sessions do so
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
}

/// Where the kernelspec is.
#[derive(Debug, Args)]
pub struct Place {
    /// Among the user's own kernels (the default)
    #[arg(long, conflicts_with = "prefix")]
    pub user: bool,
    /// Among the kernels of this installation, for instance a virtual environment
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
