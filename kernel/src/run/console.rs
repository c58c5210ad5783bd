//! The terminal output of `cloze run`.
//!
//! If its reader goes away before the run ends (`| head -1`), the run continues.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::session::event::{Display, Event, Stream};
use crate::session::failure::Failure;

/// The number of characters shown of a cell's first line.
const TITLE: usize = 72;
/// How often a status is printed where it can't replace the previous one.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// The terminal, or whatever stdout is.
pub struct Console {
    cells: usize,
    start: Instant,
    /// When the running cell began.
    cell: Instant,
    /// Whether stdout is reserved for the notebook, so that output goes to stderr.
    aside: bool,
    /// Whether stdout is at the beginning of a line.
    fresh: bool,
    terminal: bool,
    /// Whether the last line is a status that the next one replaces.
    status: bool,
    /// When the last status was printed where lines can't be replaced.
    told: Option<Instant>,
    /// The last state of a display that changed while the cell ran.
    last_state: Option<String>,
    /// This rank's number, if `cloze launch` started several and this is not the first, whose stdout is shown.
    rank: Option<usize>,
}

impl Console {
    /// Creates a console for a notebook with this many cells; with `aside` it writes nothing to stdout.
    pub fn new(cells: usize, aside: bool) -> Self {
        let now = Instant::now();
        Self {
            cells,
            start: now,
            cell: now,
            aside,
            fresh: true,
            terminal: match aside {
                true => io::stderr().is_terminal(),
                false => io::stdout().is_terminal(),
            },
            status: false,
            told: None,
            last_state: None,
            rank: Some(cloze::distributed::environment().rank).filter(|rank| *rank > 0),
        }
    }

    /// Announces a notebook, the `number`th of `count`.
    pub fn notebook(&mut self, path: &Path, number: usize, count: usize) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let which = match count {
            1 => String::new(),
            _ => format!(" ({number} of {count})"),
        };
        self.line(&format!("{name}{which}: {} cells", self.cells));
    }

    /// Reports that the session has started.
    pub fn ready(&mut self) {
        self.end_status();
        let line = format!("  ready after {}", seconds(self.start));
        self.line(&self.dim(&line));
    }

    pub fn begin(&mut self, number: usize, code: &str) {
        self.cell = Instant::now();
        let first = code
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        let mut title: String = first.chars().take(TITLE).collect();
        if first.chars().count() > TITLE || code.trim().lines().count() > 1 {
            title += " …";
        }
        let width = self.cells.to_string().len();
        let line = format!("[{number:>width$}/{}] {title}", self.cells);
        self.line(&self.bold(&line));
    }

    pub fn end(&mut self, failure: Option<&Failure>) {
        self.end_status();
        self.end_line();
        if let Some(text) = self.last_state.take() {
            self.print(&text);
            self.end_line();
        }
        let elapsed = seconds(self.cell);
        match failure {
            None => self.line(&self.dim(&format!("  ok, {elapsed}"))),
            Some(failure) => {
                for line in &failure.traceback {
                    if let Some(rank) = self.rank {
                        eprintln!("rank {rank}: {}", without_colours(line));
                    }
                    let line = if self.terminal {
                        line.clone()
                    } else {
                        without_colours(line)
                    };
                    self.line(&line);
                }
                self.line(&format!("  failed after {elapsed}"));
            }
        }
    }

    /// Prints a note of the kernel's own.
    pub fn note(&mut self, text: &str) {
        self.end_line();
        self.line(&format!("  -- {text}"));
    }

    pub fn written(&mut self, place: &str) {
        self.line(&format!("wrote {place} after {}", seconds(self.start)));
    }

    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Text(Stream::Stdout, text) => self.print(text),
            Event::Text(Stream::Stderr, text) => {
                self.end_status();
                let _ = io::stderr().write_all(text.as_bytes());
            }
            Event::Display(display) => self.display(display),
            Event::Clear { .. } | Event::Input { .. } | Event::Reads => {}
            Event::Waiting(what) => self.waiting(what),
        }
    }

    fn display(&mut self, display: &Display) {
        if display.display_id.is_some() {
            return self.changing(display);
        }
        self.end_line();
        if let Some(text) = display
            .data
            .get("text/plain")
            .and_then(|text| text.as_str())
        {
            self.print(text);
            self.end_line();
            return;
        }
        let kinds: Vec<&str> = display
            .data
            .keys()
            .map(|mime| mime.rsplit('/').next().unwrap_or(mime))
            .collect();
        let note = format!("  [{}]", kinds.join(", "));
        self.line(&self.dim(&note));
    }

    /// Shows a display that may be replaced: its state is the status line until the cell ends.
    fn changing(&mut self, display: &Display) {
        let Some(text) = display
            .data
            .get("text/plain")
            .and_then(|text| text.as_str())
        else {
            return;
        };
        if self.terminal
            && let Some(line) = text.lines().find(|line| !line.trim().is_empty())
        {
            self.end_line();
            self.out(&format!("\r\u{1b}[2K  {line}"));
            self.status = true;
        }
        self.last_state = Some(text.to_owned());
    }

    fn waiting(&mut self, what: &str) {
        let line = format!("  {what} ({})", seconds(self.start));
        if self.terminal {
            self.out(&format!("\r\u{1b}[2K{}", self.dim(&line)));
            self.status = true;
        } else if self
            .told
            .is_none_or(|told| told.elapsed() > STATUS_INTERVAL)
        {
            self.told = Some(Instant::now());
            self.line(&line);
        }
    }

    fn end_status(&mut self) {
        if std::mem::take(&mut self.status) {
            self.out("\r\u{1b}[2K");
        }
    }

    /// Writes output, ignoring errors: stdout may be closed.
    fn out(&self, text: &str) {
        let _ = match self.aside {
            true => io::stderr().write_all(text.as_bytes()),
            false => {
                let mut stdout = io::stdout().lock();
                stdout
                    .write_all(text.as_bytes())
                    .and_then(|()| stdout.flush())
            }
        };
    }

    /// Whether there is a user to ask.
    pub fn can_ask() -> bool {
        io::stdin().is_terminal()
    }

    /// Asks the user at the terminal for a line. Returns `None` if there is no terminal, or the user ended the input.
    pub fn ask(&mut self, prompt: &str, password: bool) -> Option<String> {
        if !Self::can_ask() {
            let what = match prompt {
                "" => String::new(),
                prompt => format!(" ({prompt})"),
            };
            self.note(&format!(
                "the cell asks for input{what}, but there is no terminal: it reads the end of the input"
            ));
            return None;
        }
        if password {
            self.note("your input will be visible");
        }
        self.print(prompt);
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        self.fresh = true;
        read.is_ok_and(|bytes| bytes > 0).then_some(line)
    }

    fn print(&mut self, text: &str) {
        self.end_status();
        self.out(text);
        if let Some(last) = text.chars().last() {
            self.fresh = last == '\n';
        }
    }

    fn end_line(&mut self) {
        if !self.fresh {
            self.out("\n");
            self.fresh = true;
        }
    }

    fn line(&mut self, text: &str) {
        self.end_status();
        self.end_line();
        self.out(&format!("{text}\n"));
    }

    fn bold(&self, text: &str) -> String {
        if self.terminal {
            format!("\u{1b}[1m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    fn dim(&self, text: &str) -> String {
        if self.terminal {
            format!("\u{1b}[2m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

fn seconds(since: Instant) -> String {
    let elapsed = since.elapsed().as_secs_f64();
    if elapsed < 60.0 {
        format!("{elapsed:.1} s")
    } else {
        format!("{} min {:.0} s", elapsed as u64 / 60, elapsed % 60.0)
    }
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain += before;
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain + rest
}
