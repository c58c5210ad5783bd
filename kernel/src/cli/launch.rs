//! `cloze launch`: starts a program or a notebook on several ranks.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::Args;
use cloze::distributed::{Launch as Start, environment};

use crate::{Error, Result};

/// Starts PROGRAM N times, as the ranks that train one model together, through mpirun, or through srun within a Slurm
/// job. A notebook is executed as by `cloze run`; its first rank shows the progress and writes the result. The signal
/// USR1 makes the training write a checkpoint and stop.
#[derive(Debug, Args)]
pub struct Launch {
    /// How many ranks to start
    #[arg(short = 'n', long, value_name = "N")]
    pub ranks: usize,
    /// Run the notebook as one of the ranks (internal)
    #[arg(long, hide = true)]
    pub as_rank: bool,
    /// The program or notebook, and its arguments (for a notebook, those of `cloze run`)
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM|NOTEBOOK"
    )]
    pub program: Vec<String>,
}

/// Replaces this process with the launcher, or runs the notebook as one rank.
pub fn launch(arguments: &Launch) -> Result<()> {
    let Some((program, rest)) = arguments.program.split_first() else {
        return Err("name a program or a notebook".into());
    };
    let own = std::env::current_exe().map_err(Error::system("finding the path of this program"))?;
    let is_notebook = Path::new(program)
        .extension()
        .is_some_and(|end| end == "ipynb");
    let mut command = if arguments.as_rank {
        rank(&own, program, rest)
    } else if is_notebook {
        let ranks = arguments.ranks.to_string();
        Start::new(arguments.ranks, own)
            .args(["launch", "-n", &ranks, "--as-rank", "--", program])
            .args(rest)
            .command()
            .map_err(|error| error.to_string())?
    } else {
        Start::new(arguments.ranks, program)
            .args(rest)
            .command()
            .map_err(|error| error.to_string())?
    };
    let error = command.exec();
    Err(Error::file(Path::new(command.get_program()))(error))
}

/// Returns the arguments of `cloze run` for one rank. All ranks compute the same; only the first shows it.
fn rank(own: &Path, notebook: &str, rest: &[String]) -> Command {
    let mut command = Command::new(own);
    command.arg("run").arg(notebook);
    if environment().rank == 0 {
        command.args(rest);
        return command;
    }
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "-o" | "--output" => drop(rest.next()),
            "--in-place" => {}
            text if text.starts_with("--output=") => {}
            _ => drop(command.arg(argument)),
        }
    }
    command
        .args(["--output", "/dev/null"])
        .stdout(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};

    #[test]
    fn arguments_after_the_program_are_passed_to_it() {
        let line = [
            "cloze", "launch", "-n", "4", "train", "--epochs", "3", "-n", "2",
        ];
        let Command::Launch(launch) = Cli::try_parse_from(line).unwrap().command else {
            panic!("another command");
        };
        assert_eq!(launch.ranks, 4);
        assert_eq!(launch.program, ["train", "--epochs", "3", "-n", "2"]);
        let line = [
            "cloze", "launch", "-n", "2", "--", "a.ipynb", "--output", "b.ipynb",
        ];
        let Command::Launch(launch) = Cli::try_parse_from(line).unwrap().command else {
            panic!("another command");
        };
        assert_eq!(launch.program, ["a.ipynb", "--output", "b.ipynb"]);
    }
}
