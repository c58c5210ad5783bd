//! Asking the person at the notebook.

use std::io::{BufRead, Write};

use super::live::{Host, mark};
use crate::{Error, Result};

/// Asks the person at the notebook or the terminal for a line, and waits for it.
///
/// The line comes without its newline. In a notebook the front end shows a field with the prompt.
///
/// ```no_run
/// use cloze::notebook::input;
///
/// let name = input("Name? ")?;
/// println!("Hello {name}");
/// # Ok::<(), cloze::Error>(())
/// ```
///
/// # Errors
/// If there is no user to ask: the input is at its end, as in a run without a terminal, or was interrupted.
pub fn input(prompt: &str) -> Result<String> {
    let io = |error| Error::io("read", "standard input", error);
    let request = request(Host::current(), prompt);
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(request.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(io)?;
    drop(stdout);
    answer(&mut std::io::stdin().lock()).map_err(io)
}

/// Returns what is printed to ask: for a kernel a request, on one line, elsewhere the prompt itself.
fn request(host: Host, prompt: &str) -> String {
    match host {
        Host::Plain => prompt.to_owned(),
        Host::Live | Host::Stock => {
            let prompt = prompt.replace(['\n', '\r'], " ");
            format!("{}EVCXR_INPUT_REQUEST:{prompt}\n", mark())
        }
    }
}

fn answer(stdin: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    if stdin.read_line(&mut line)? == 0 {
        return Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "there is no user to ask, or the question was interrupted",
        ));
    }
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_line_without_its_newline_and_no_line_is_an_error() {
        let mut lines: &[u8] = b"Ann Lee \r\n\nlast";
        let answers: Vec<String> = std::iter::from_fn(|| answer(&mut lines).ok()).collect();
        assert_eq!(answers, ["Ann Lee ", "", "last"]);
        assert!(answer(&mut lines).is_err());
    }

    #[test]
    fn a_prompt_is_sent_on_one_line() {
        assert_eq!(request(Host::Plain, "a\nb"), "a\nb");
        assert_eq!(
            request(Host::Stock, "a\nb? "),
            "EVCXR_INPUT_REQUEST:a b? \n"
        );
    }
}
