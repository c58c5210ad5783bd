//! Where output goes, and displays that change while a cell runs.
//!
//! A cell talks to its kernel through stdout: a line `EVCXR_BEGIN_CONTENT mime`, the content, a line
//! `EVCXR_END_CONTENT`. Cloze's kernel reads attributes after the mime type: `display_id=NAME`, and `update=1` to replace
//! what was shown under that name. The stock kernel ignores them and shows what came last when the cell ends.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What looks at our output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// A notebook whose kernel changes displays while a cell runs.
    Live,
    /// A notebook in the stock evcxr kernel: pictures appear when the cell ends.
    Cell,
    /// A terminal, or nobody.
    Terminal,
}

/// Which surface this process writes to.
pub fn surface() -> Surface {
    let set = |name| std::env::var_os(name).is_some();
    if set("CLOZE_LIVE_DISPLAY") {
        Surface::Live
    } else if set("EVCXR_IS_RUNTIME") {
        Surface::Cell
    } else {
        Surface::Terminal
    }
}

/// A display that can be replaced as often as wished; it stays in the notebook as it was last.
#[derive(Debug)]
pub struct LiveDisplay {
    id: String,
    shown: AtomicBool,
}

impl Default for LiveDisplay {
    fn default() -> Self {
        Self::new()
    }
}

impl LiveDisplay {
    /// A new display; it appears with the first [`LiveDisplay::update`].
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            id: format!("cloze-{}-{number}", std::process::id()),
            shown: AtomicBool::new(false),
        }
    }

    /// Shows `html` (`text` where there is no HTML) in place of what the display showed before.
    pub fn update(&self, html: &str, text: &str) {
        let update = self.shown.swap(true, Ordering::Relaxed);
        emit(Some((&self.id, update)), html, text);
    }
}

/// Writes a display to stdout in one piece.
pub(super) fn emit(display: Option<(&str, bool)>, html: &str, text: &str) {
    let message = message(display, &[("text/html", html), ("text/plain", text)]);
    // `print!` and not a write to stdout itself: tests capture it.
    print!("{message}");
    let _ = std::io::stdout().flush();
}

fn message(display: Option<(&str, bool)>, contents: &[(&str, &str)]) -> String {
    const END: &str = "EVCXR_END_CONTENT";
    let attributes = match display {
        None => String::new(),
        Some((id, false)) => format!(" display_id={id}"),
        Some((id, true)) => format!(" display_id={id} update=1"),
    };
    let mut message = String::new();
    for (mime, content) in contents {
        // A text that holds the closing line must not close its block.
        let content = content.replace(END, "EVCXR_END\u{200b}_CONTENT");
        message += &format!("EVCXR_BEGIN_CONTENT {mime}{attributes}\n{content}\n{END}\n");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_display_is_named_and_then_replaced() {
        let first = message(Some(("a", false)), &[("text/html", "<b>1</b>")]);
        assert_eq!(
            first,
            "EVCXR_BEGIN_CONTENT text/html display_id=a\n<b>1</b>\nEVCXR_END_CONTENT\n"
        );
        let second = message(
            Some(("a", true)),
            &[("text/html", "2"), ("text/plain", "3")],
        );
        assert_eq!(
            second,
            "EVCXR_BEGIN_CONTENT text/html display_id=a update=1\n2\nEVCXR_END_CONTENT\n\
             EVCXR_BEGIN_CONTENT text/plain display_id=a update=1\n3\nEVCXR_END_CONTENT\n"
        );
    }

    #[test]
    fn content_cannot_end_its_own_block() {
        let message = message(None, &[("text/plain", "x\nEVCXR_END_CONTENT\ny")]);
        assert_eq!(message.matches("EVCXR_END_CONTENT").count(), 1);
        assert!(message.ends_with("y\nEVCXR_END_CONTENT\n"));
    }
}
