//! Displays that change while a cell runs: a bar that moves, a plot that grows.
//!
//! A notebook's process talks to its kernel over stdout, in blocks that the kernel removes from the text:
//!
//! ```text
//! EVCXR_BEGIN_CONTENT text/html display_id=cloze-17-1 update=1
//! <b>step 3 of 10</b>
//! EVCXR_END_CONTENT
//! ```
//!
//! Blocks that follow each other are one display in several representations (`text/html` and `text/plain`, say).
//! `display_id` names a display, and a block with `update=1` replaces the display of that name wherever it is shown.
//! `metadata=JSON`, last on the line, goes with the representation. A block of the type
//! `application/x-cloze-clear-output` clears what the cell has shown: at once, or, if it says `wait`, when something new is
//! shown.
//!
//! Cloze's own kernel understands all of it ([`Host::Live`]). It tells a block of this library from the same words in what
//! a program prints by the session's mark, which it puts into `CLOZE_KERNEL`: a byte 1 and the mark stand before
//! `EVCXR_BEGIN_CONTENT` and `EVCXR_END_CONTENT`. The stock evcxr kernel reads the type, passes over the
//! rest of the line, and shows the last block of each type when the cell ends ([`Host::Stock`]), so there only the final
//! state is sent. Outside of a notebook ([`Host::Plain`]) nothing of this is printed.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How often a display changes at most: five times a second.
pub const INTERVAL: Duration = Duration::from_millis(200);

/// The reader of what this process prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Cloze's kernel: displays appear at once and can be replaced.
    Live,
    /// The stock evcxr kernel: displays appear when the cell ends.
    Stock,
    /// A terminal, a file, a test: no displays.
    Plain,
}

impl Host {
    /// Returns the reader of what this process prints, which is determined once.
    pub fn current() -> Self {
        static HOST: OnceLock<Host> = OnceLock::new();
        *HOST.get_or_init(|| {
            let in_evcxr = std::env::var_os("EVCXR_IS_RUNTIME").is_some();
            match (mark().is_empty(), in_evcxr) {
                (false, _) => Self::Live,
                (true, true) => Self::Stock,
                (true, false) => Self::Plain,
            }
        })
    }
}

/// Returns the prefix of control words for Cloze's own kernel; empty if it is not the reader. Determined once: the
/// kernel removes it from the environment before the first cell runs.
pub(crate) fn mark() -> &'static str {
    static MARK: OnceLock<String> = OnceLock::new();
    MARK.get_or_init(|| match std::env::var("CLOZE_KERNEL") {
        Ok(mark) => format!("\u{1}{mark}"),
        Err(_) => String::new(),
    })
}

/// A display that is replaced, in place, by each new state of it.
///
/// Cheap to call often: a state that comes less than [`INTERVAL`] after the last is not even rendered.
///
/// ```
/// use cloze::notebook::live::LiveDisplay;
///
/// let mut display = LiveDisplay::new();
/// for step in 1..=1000 {
///     display.update(|| vec![("text/html", format!("<b>{step}</b> of 1000"))]);
/// }
/// display.finish(|| vec![("text/html", "done".to_owned()), ("text/plain", "done".to_owned())]);
/// ```
#[derive(Debug)]
pub struct LiveDisplay {
    id: String,
    host: Host,
    /// When the last state was shown.
    shown: Option<Instant>,
}

impl Default for LiveDisplay {
    fn default() -> Self {
        Self::new()
    }
}

impl LiveDisplay {
    /// Returns a display that shows nothing yet.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // A process that took the place of a crashed one must not write over its displays.
        Self {
            id: format!("cloze-{}-{number}", std::process::id()),
            host: Host::current(),
            shown: None,
        }
    }

    /// Returns whether the next call of [`update`](Self::update) will show its state.
    pub fn is_due(&self) -> bool {
        self.host == Host::Live && self.shown.is_none_or(|shown| shown.elapsed() >= INTERVAL)
    }

    /// Shows a state, as content by MIME type, unless the last one is too fresh.
    pub fn update(&mut self, state: impl FnOnce() -> Vec<(&'static str, String)>) {
        if self.is_due() {
            self.show(&state());
        }
    }

    /// Shows the last state, whenever the one before was shown.
    pub fn finish(&mut self, state: impl FnOnce() -> Vec<(&'static str, String)>) {
        if self.host != Host::Plain {
            self.show(&state());
        }
    }

    fn show(&mut self, state: &[(&str, String)]) {
        let update = if self.shown.is_some() {
            " update=1"
        } else {
            ""
        };
        let attributes = match self.host {
            Host::Live => format!(" display_id={}{update}", self.id),
            Host::Stock | Host::Plain => String::new(),
        };
        let blocks: String = state
            .iter()
            .map(|(mime, content)| block(mime, &attributes, content))
            .collect();
        send(&blocks);
        self.shown = Some(Instant::now());
    }
}

/// Shows something, as content by MIME type. Prints nothing outside of a notebook.
pub fn show(content: &[(&str, String)]) {
    if Host::current() != Host::Plain {
        send(
            &content
                .iter()
                .map(|(mime, content)| block(mime, "", content))
                .collect::<String>(),
        );
    }
}

/// Clears what the running cell has shown; with `wait`, not before it shows something new.
pub fn clear_output(wait: bool) {
    if Host::current() == Host::Live {
        send(&block(
            "application/x-cloze-clear-output",
            "",
            if wait { "wait" } else { "" },
        ));
    }
}

fn block(mime: &str, attributes: &str, content: &str) -> String {
    let content = content.trim_end_matches('\n');
    let mark = mark();
    format!("{mark}EVCXR_BEGIN_CONTENT {mime}{attributes}\n{content}\n{mark}EVCXR_END_CONTENT\n")
}

/// Prints blocks in one piece, whatever other threads print.
fn send(blocks: &str) {
    let mut stdout = std::io::stdout().lock();
    // A notebook whose kernel is gone has nobody to tell.
    let _ = stdout
        .write_all(blocks.as_bytes())
        .and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_starts_with_its_type_for_the_stock_kernel() {
        let block = block("text/html", " display_id=a update=1", "<b>x</b>\n");
        let expected =
            "EVCXR_BEGIN_CONTENT text/html display_id=a update=1\n<b>x</b>\nEVCXR_END_CONTENT\n";
        assert_eq!(block, expected);
    }

    #[test]
    fn frequent_updates_are_not_rendered() {
        let mut display = LiveDisplay {
            id: "a".into(),
            host: Host::Live,
            shown: Some(Instant::now()),
        };
        display.update(|| unreachable!("the last state is fresh"));
        display.shown = Instant::now().checked_sub(INTERVAL);
        assert!(display.is_due());
    }

    #[test]
    fn only_the_live_kernel_gets_intermediate_states() {
        for host in [Host::Stock, Host::Plain] {
            let mut display = LiveDisplay {
                id: "a".into(),
                host,
                shown: None,
            };
            display.update(|| unreachable!("nobody could show it"));
        }
    }

    #[test]
    fn each_display_has_its_own_id() {
        assert_ne!(LiveDisplay::new().id, LiveDisplay::new().id);
    }
}
