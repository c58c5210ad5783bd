//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::parameters::Parameter;

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
    /// Build the prelude, and make the kernel known to Jupyter
    Install(Install),
    /// Make Jupyter forget the kernel
    Uninstall(Place),
    /// Open JupyterLab on the notebooks
    Lab(Lab),
    /// Tell what is there, what is missing and how to mend it
    Doctor,
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

/// Each NOTEBOOK is executed from its own folder, and the executed notebook written beside it as NAME.executed.ipynb,
/// also when a cell fails. Ends with status 1 at the first failing cell.
#[derive(Debug, Args)]
pub struct Run {
    /// The notebooks to execute
    #[arg(required = true, value_name = "NOTEBOOK")]
    pub notebooks: Vec<PathBuf>,
    /// Where to write the executed notebook, or, with several of them, the folder for all
    #[arg(short, long, value_name = "FILE", conflicts_with = "in_place")]
    pub output: Option<PathBuf>,
    /// Write each executed notebook over itself
    #[arg(long)]
    pub in_place: bool,
    /// Override a variable of the cell tagged `parameters`
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub parameters: Vec<Parameter>,
    /// Stop a cell that runs for longer, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Go on after a failing cell, and end with status 0
    #[arg(long)]
    pub allow_errors: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
