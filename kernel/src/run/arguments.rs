//! The arguments of `cloze run`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::parameters::Parameter;

/// Executes each NOTEBOOK in its own folder, and writes the executed notebook beside it as NAME.executed.ipynb, even if
/// a cell fails. Ends with status 1 at the first failing cell.
#[derive(Debug, Args)]
pub struct Run {
    /// The notebooks to execute
    #[arg(required = true, value_name = "NOTEBOOK")]
    pub notebooks: Vec<PathBuf>,
    /// Where to write the executed notebook; with several notebooks, the folder for all of them
    #[arg(short, long, value_name = "FILE", conflicts_with = "in_place")]
    pub output: Option<PathBuf>,
    /// Overwrite each notebook with its executed version
    #[arg(long)]
    pub in_place: bool,
    /// Override a variable of the cell tagged `parameters`
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub parameters: Vec<Parameter>,
    /// Stop a cell that runs for more than this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Continue after a failing cell, and end with status 0
    #[arg(long)]
    pub allow_errors: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
