//! The words that a notebook uses: `use cloze::prelude::*;`

pub use crate::{Error, Result};
