//! How the public types look in a notebook: HTML and SVG, at the end of a cell or while it runs.
//!
//! A value that ends a cell shows itself through its `evcxr_display`; [`show`] does the same in the middle of one. The
//! HTML carries inline styles only and reads on white and on dark themes.

mod arguments;
mod dataset;
mod encoding;
mod fill_mask;
mod masked_batch;
mod model;
mod tensor;
mod tokenizer;
mod training;

pub use crate::notebook::{Rich, input, show};
pub use crate::train::LossPlot;
pub use masked_batch::MaskedBatch;

/// Implements the method that evcxr calls on a cell's last value.
///
/// It must be inherent: a kernel may define a trait with a method of this name for every type.
macro_rules! evcxr_display {
    ($($type:ty),* $(,)?) => {
        $(impl $type {
            /// Shows the value in a notebook; called for the last value of a cell.
            pub fn evcxr_display(&self) {
                $crate::notebook::show(self);
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
