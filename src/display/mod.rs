//! How the public types look in a notebook: HTML and SVG, at the end of a cell or while it runs.
//!
//! A value that ends a cell shows itself through its `evcxr_display`; [`show`] does the same in the middle of one. The
//! HTML carries inline styles only and reads on white and on dark themes.

mod arguments;
mod dataset;
mod encoding;
mod fill_mask;
mod html;
mod input;
pub mod live;
mod live_training;
mod loss_plot;
mod masked_batch;
mod model;
mod progress;
mod tokenizer;
mod training;

pub use input::input;
use live::Host;
pub use live_training::{LiveTraining, training_display};
pub use loss_plot::LossPlot;
pub use masked_batch::MaskedBatch;
pub(crate) use progress::progress_content;

/// A value with a picture of itself.
pub trait Rich {
    /// HTML for a notebook: one element, inline styles only, all text escaped.
    fn to_html(&self) -> String;

    /// The same as plain text, for a terminal and for front ends without HTML.
    fn to_text(&self) -> String;
}

/// Shows `value` at once: as HTML in a notebook, as text elsewhere.
///
/// In the stock evcxr kernel a cell has room for one picture, which appears when the cell ends; the last one counts.
pub fn show(value: &impl Rich) {
    match Host::current() {
        Host::Plain => println!("{}", value.to_text()),
        Host::Live | Host::Stock => live::show(&content(value.to_html(), value.to_text())),
    }
}

/// Content by MIME type.
fn content(html: String, text: String) -> Vec<(&'static str, String)> {
    // A text that holds the line which ends a block must not end its block.
    let safe = |content: String| content.replace("EVCXR_END_CONTENT", "EVCXR\u{200b}_END_CONTENT");
    vec![("text/html", safe(html)), ("text/plain", safe(text))]
}

/// Gives types the method that evcxr calls on a cell's last value.
///
/// It must be inherent: a kernel may bring a trait of its own with a method of that name for every type.
macro_rules! evcxr_display {
    ($($type:ty),* $(,)?) => {
        $(impl $type {
            /// Shows the value in a notebook; called for the last value of a cell.
            pub fn evcxr_display(&self) {
                $crate::display::show(self);
            }
        })*
    };
}

evcxr_display! {
    LossPlot,
    MaskedBatch,
    crate::collate::MlmBatch,
    crate::dataset::Dataset,
    crate::dataset::DatasetDict,
    crate::dataset::Row,
    crate::dataset::Value,
    crate::fill_mask::Predictions,
    crate::fill_mask::PredictionsBatch,
    crate::model::Config,
    crate::model::MaskedLm,
    crate::tokenizer::Encoding,
    crate::tokenizer::Tokenizer,
    crate::train::EvalMetrics,
    crate::train::TrainingArguments,
    crate::train::History,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_cannot_end_its_own_block() {
        for (_, content) in content("EVCXR_END_CONTENT".into(), "x\nEVCXR_END_CONTENT\ny".into()) {
            assert!(!content.contains("EVCXR_END_CONTENT"), "{content}");
        }
    }
}
