//! Communication with a notebook: displays of values, live displays, progress bars, and questions to the user.
//!
//! The HTML carries inline styles only and reads on white and on dark themes.

pub(crate) mod html;
mod input;
pub mod live;
pub mod progress;
mod progress_bar;

pub use input::input;
use live::Host;

/// A value with a picture of itself.
///
/// ```
/// use cloze::prelude::*;
///
/// struct Gauge(f64);
///
/// impl Rich for Gauge {
///     fn to_html(&self) -> String {
///         format!("<meter value=\"{}\"></meter>", self.0)
///     }
///
///     fn to_text(&self) -> String {
///         format!("{:.0}%", 100.0 * self.0)
///     }
/// }
///
/// show(&Gauge(0.7));
/// ```
pub trait Rich {
    /// HTML for a notebook: one element, inline styles only, all text escaped.
    fn to_html(&self) -> String;

    /// Returns the same as plain text, for a terminal and for front ends without HTML.
    fn to_text(&self) -> String;
}

/// Shows `value` at once: as HTML in a notebook, as text elsewhere.
///
/// In the stock evcxr kernel a cell has room for one picture, which appears when the cell ends; the last one counts.
///
/// ```
/// use cloze::prelude::*;
///
/// show(&LossPlot::new().losses(&[4.0f32, 3.5, 3.2]));
/// ```
pub fn show(value: &impl Rich) {
    match Host::current() {
        Host::Plain => println!("{}", value.to_text()),
        Host::Live | Host::Stock => live::show(&content(value.to_html(), value.to_text())),
    }
}

/// Content by MIME type.
pub(crate) fn content(html: String, text: String) -> Vec<(&'static str, String)> {
    // A text that holds the line which ends a block must not end its block.
    let safe = |content: String| content.replace("EVCXR_END_CONTENT", "EVCXR\u{200b}_END_CONTENT");
    vec![("text/html", safe(html)), ("text/plain", safe(text))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_cannot_terminate_its_own_block() {
        for (_, content) in content("EVCXR_END_CONTENT".into(), "x\nEVCXR_END_CONTENT\ny".into()) {
            assert!(!content.contains("EVCXR_END_CONTENT"), "{content}");
        }
    }
}
