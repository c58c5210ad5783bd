//! How the public types look in a notebook: HTML and SVG, at the end of a cell or while it runs.
//!
//! A value that ends a cell shows itself through its `evcxr_display`; [`show`] does the same in the middle of one. The
//! HTML carries inline styles only and reads on white and on dark themes.

mod encoding;
mod fill_mask;
mod html;
mod live;
mod loss_plot;
mod masked_batch;
mod model;
mod tokenizer;

pub use live::{LiveDisplay, Surface, surface};
pub use loss_plot::LossPlot;
pub use masked_batch::MaskedBatch;

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
    match surface() {
        Surface::Terminal => println!("{}", value.to_text()),
        Surface::Live | Surface::Cell => send(value),
    }
}

/// Sends `value` in the form in which evcxr reads pictures from stdout.
fn send(value: &impl Rich) {
    live::emit(None, &value.to_html(), &value.to_text());
}

/// Gives types the method that evcxr calls on a cell's last value.
///
/// It must be inherent: a kernel may bring a trait of its own with a method of that name for every type.
macro_rules! evcxr_display {
    ($($type:ty),* $(,)?) => {
        $(impl $type {
            /// Shows the value in a notebook; called for the last value of a cell.
            pub fn evcxr_display(&self) {
                $crate::display::send(self);
            }
        })*
    };
}

evcxr_display! {
    LossPlot,
    MaskedBatch,
    crate::collate::MlmBatch,
    crate::fill_mask::Predictions,
    crate::fill_mask::PredictionsBatch,
    crate::model::Config,
    crate::model::MaskedLm,
    crate::tokenizer::Encoding,
    crate::tokenizer::Tokenizer,
}
