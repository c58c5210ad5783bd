//! `cloze launch`: a program or a notebook on several ranks.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::Args;
use cloze::distributed::{Launch as Start, environment};

use crate::{Error, Result};

/// PROGRAM is started N times, as the ranks that train one model together: by mpirun, or by srun within a Slurm job. Of a
/// notebook, which is executed as by `cloze run`, the first rank shows its progress and writes the result. USR1 lets the
/// training write a checkpoint and stop.
#[derive(Debug, Args)]
pub struct Launch {
    /// How many ranks to start
    #[arg(short = 'n', long, value_name = "N")]
    pub ranks: usize,
    /// This is one of the ranks, to run a notebook
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

/// Becomes the launcher, or one rank's `cloze run`.
pub fn launch(arguments: &Launch) -> Result<()> {
    let Some((program, rest)) = arguments.program.split_first() else {
        return Err("name a program or a notebook".into());
    };
    let own = std::env::current_exe().map_err(Error::system("finding this program"))?;
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

/// Returns what a rank does with a notebook. All compute the same: the first shows it.
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
    fn the_programs_own_arguments_are_left_to_it() {
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
