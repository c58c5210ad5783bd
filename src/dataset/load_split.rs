//! A part of a dataset in one call.

#[cfg(not(feature = "hub"))]
use super::dict::DatasetDict;
use super::eli5::{is_eli5, load_eli5_from};
use super::load::Loader;
use super::table::Dataset;
use crate::Result;

/// Loads the part `split` of a dataset, as `load_dataset(path_or_name, split=...)` does in Python: `train`,
/// `train[:5000]`, `train[10%:20%]`, `train[:10]+test[50%:]`. Of a dataset on the Hub only the files with these rows are
/// downloaded.
///
/// The name `eli5` refers to the ELI5 of the guides, in the schema of the original (see
/// [`load_eli5_from`](super::load_eli5_from)).
///
/// ```no_run
/// use cloze::prelude::*;
/// let eli5 = load_dataset_split("eli5", "train_asks[:5000]")?;
/// # Ok::<(), cloze::Error>(())
/// ```
///
/// # Errors
/// Like [`load_dataset`](super::load_dataset) and [`DatasetDict::split`](super::DatasetDict::split).
pub fn load_dataset_split(
    path_or_name: impl AsRef<str>,
    split: impl AsRef<str>,
) -> Result<Dataset> {
    let name = path_or_name.as_ref();
    if is_eli5(name) {
        return load_eli5_from(name, split);
    }
    #[cfg(feature = "hub")]
    return Loader::new(name).part(split);
    #[cfg(not(feature = "hub"))]
    Loader::new(name)
        .load()
        .and_then(|dict: DatasetDict| dict.split(split))
}
