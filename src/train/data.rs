//! What a trainer trains or evaluates on.

use std::sync::Arc;

use crate::collate::{DataLoader, Examples};

/// Where batches come from.
#[derive(Clone)]
pub(super) enum Data {
    Examples(Arc<dyn Examples>),
    Loader(DataLoader),
}

#[cfg(feature = "hub")]
impl Data {
    /// Returns the name on the Hub of the dataset that the examples were made from, if it is known.
    pub(super) fn origin(&self) -> Option<&str> {
        match self {
            Self::Examples(examples) => examples.origin(),
            Self::Loader(loader) => loader.origin(),
        }
    }
}
