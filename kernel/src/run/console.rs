//! What `cloze run` shows in the terminal.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::event::{Display, Event, Stream};
use crate::failure::Failure;

/// How much of a cell's first line is shown.
const TITLE: usize = 72;
/// How often a status is told where it can't replace the last one.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The terminal, or whatever stdout is.
pub struct Console {
    cells: usize,
    start: Instant,
    /// When the running cell began.
    cell: Instant,
    /// Whether stdout stands at the beginning of a line.
    fresh: bool,
    terminal: bool,
    /// Whether the last line is a status that the next one replaces.
    status: bool,
    /// When the last status was told where lines can't be replaced.
    told: Option<Instant>,
    /// The last state of a display that changed while the cell ran.
    last_state: Option<String>,
}

impl Console {
    pub fn new(cells: usize) -> Self {
        let now = Instant::now();
        Self {
            cells,
            start: now,
            cell: now,
            fresh: true,
            terminal: io::stdout().is_terminal(),
            status: false,
            told: None,
            last_state: None,
        }
    }

    pub fn notebook(&mut self, all: &[PathBuf], path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = all
            .iter()
            .position(|other| other.ends_with(path.file_name().unwrap_or_default()))
            .unwrap_or(0);
        let which = if all.len() > 1 {
            format!(" ({} of {})", number + 1, all.len())
        } else {
            String::new()
        };
        self.line(&format!("{name}{which}: {} cells", self.cells));
    }

    /// The session is there.
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

    /// Something that the kernel has to say.
    pub fn note(&mut self, text: &str) {
        self.end_line();
        self.line(&format!("  -- {text}"));
    }

    pub fn written(&mut self, path: &Path) {
        self.line(&format!(
            "wrote {}, {} in all",
            path.display(),
            seconds(self.start)
        ));
    }

    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Text(Stream::Stdout, text) => self.print(text),
            Event::Text(Stream::Stderr, text) => {
                self.end_status();
                let _ = io::stdout().flush();
                eprint!("{text}");
            }
            Event::Display(display) => self.display(display),
            Event::Clear { .. } | Event::Input { .. } => {}
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

    /// A display that may be replaced: its state is the status line until the cell ends.
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
            print!("\r\u{1b}[2K  {line}");
            let _ = io::stdout().flush();
            self.status = true;
        }
        self.last_state = Some(text.to_owned());
    }

    fn waiting(&mut self, what: &str) {
        let line = format!("  {what} ({})", seconds(self.start));
        if self.terminal {
            print!("\r\u{1b}[2K{}", self.dim(&line));
            let _ = io::stdout().flush();
            self.status = true;
        } else if self.told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
            self.told = Some(Instant::now());
            self.line(&line);
        }
    }

    fn end_status(&mut self) {
        if std::mem::take(&mut self.status) {
            print!("\r\u{1b}[2K");
        }
    }

    /// Asks the person at the terminal, if there is one, for a line.
    pub fn ask(&mut self, prompt: &str, password: bool) -> String {
        if !io::stdin().is_terminal() {
            self.note(&format!(
                "the cell asks for input ({prompt}) and gets an empty line: there is no terminal"
            ));
            return String::new();
        }
        if password {
            self.note("what you type will be seen");
        }
        self.print(prompt);
        let mut line = String::new();
        let _ = io::stdin().read_line(&mut line);
        self.fresh = true;
        line
    }

    fn print(&mut self, text: &str) {
        self.end_status();
        print!("{text}");
        let _ = io::stdout().flush();
        if let Some(last) = text.chars().last() {
            self.fresh = last == '\n';
        }
    }

    fn end_line(&mut self) {
        if !self.fresh {
            println!();
            self.fresh = true;
        }
    }

    fn line(&mut self, text: &str) {
        self.end_status();
        self.end_line();
        println!("{text}");
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
