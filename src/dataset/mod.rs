//! Tables of text on Arrow: load, split, look, flatten, map, group, save.
//!
//! A [`Dataset`] is a table of nested records; it is cheap to clone, and every operation gives a new one and leaves
//! its input as it was. A [`DatasetDict`] holds several under the names of their splits. The names, the split grammar,
//! the seeded shuffles and the results are those of the Python library `datasets`.
//!
//! ```
//! use cloze::prelude::*;
//!
//! let dataset = Dataset::builder()
//!     .column("text", vec!["one two", "three", "four five six"])
//!     .build()?;
//! let counted = dataset.map(Map::new(|batch: &Batch| {
//!     let words: Vec<u32> = batch.strings("text")?.iter().map(|text| text.split(' ').count() as u32).collect();
//!     Batch::new().with_column("words", words)
//! }).batched())?;
//! assert_eq!(counted.column::<u32>("words")?, [2, 1, 3]);
//! # Ok::<(), cloze::Error>(())
//! ```

mod arrow_file;
mod batch;
mod builder;
mod cache;
mod cast;
mod cast_column;
mod column;
mod column_type;
mod columns;
mod concatenate;
mod data_type;
mod dict;
mod eli5;
mod eli5_layouts;
mod eli5_schema;
mod fingerprint;
mod flatten;
mod group_texts;
mod interleave;
mod load;
mod load_split;
mod map;
mod parallel;
mod parts;
#[cfg(feature = "hub")]
mod push;
mod random;
mod row;
mod rows;
mod save;
mod select;
mod sink;
mod sort;
mod split;
mod stream;
mod table;
mod text_file;
mod train_test_split;
mod unique;

pub use crate::base::cache_dir::cache_dir;
pub use batch::Batch;
pub use builder::DatasetBuilder;
pub use cache::clear_cache;
pub use column::{ColumnItem, FromColumn, IntoColumn, ReadError};
pub use column_type::ColumnType;
pub use concatenate::concatenate;
pub use data_type::type_name;
pub use dict::DatasetDict;
pub use eli5::{load_eli5, load_eli5_from};
pub use eli5_schema::eli5_schema;
pub use group_texts::GroupTexts;
pub use interleave::{Interleave, StoppingStrategy, interleave};
#[cfg(feature = "hub")]
pub(crate) use load::Selection;
pub use load::{FileFormat, Loader, SampleBy, load_dataset, load_dataset_streaming};
pub use load_split::load_dataset_split;
pub use map::{BatchFunction, Map};
#[cfg(feature = "hub")]
pub use push::PushDataset;
pub use row::{Row, Value};
pub use save::load_from_disk;
pub use sort::{NullPlacement, Sort};
pub use stream::{IterableDataset, StreamRows};
pub(crate) use stream::{Lane, Position};
pub use table::{Dataset, Rows};
pub use train_test_split::{TestSize, TrainTestSplit};
