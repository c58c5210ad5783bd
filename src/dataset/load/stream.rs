//! Streams of files: see [`IterableDataset`].

#[cfg(feature = "hub")]
use super::remote;
use super::shards::Shards;
use super::{Loader, files};
use crate::dataset::stream::IterableDataset;
use crate::{Error, Result};

/// Opens the split `split` of a dataset as a stream, which reads rows only as they are used and stores nothing:
/// Python's `load_dataset(path, split=..., streaming=True)`. See [`Loader::stream`], whose defaults this uses.
///
/// ```no_run
/// use cloze::prelude::*;
/// let stream = load_dataset_streaming("crawl/*.jsonl.zst", "train")?;
/// for row in stream.take(3).iter() {
///     println!("{:?}", row?);
/// }
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn load_dataset_streaming(
    path_or_name: impl AsRef<str>,
    split: impl AsRef<str>,
) -> Result<IterableDataset> {
    Loader::new(path_or_name).stream(split)
}

impl Loader {
    /// Opens the split `split` ("train", "test", ...) as a stream: for data that fit neither in memory nor in the
    /// cache.
    ///
    /// JSON lines, Parquet and text can be streamed, compressed or not. Parquet stores its schema; for JSON lines,
    /// columns and types are inferred from the first megabyte of each of up to 32 files, and lines that do not match
    /// are an error when they are read. The files of a dataset on the Hub are downloaded first.
    ///
    /// # Errors
    /// Like [`load`](Self::load); a split that is not there; formats that are not streamed.
    pub fn stream(&self, split: impl AsRef<str>) -> Result<IterableDataset> {
        let split = split.as_ref();
        #[cfg(feature = "hub")]
        if let Some(fetched) = self.with_fetched_files()? {
            return fetched.stream(split);
        }
        let found = match files::named(&self.name, &self.request) {
            Some(found) => found?,
            None => {
                #[cfg(feature = "hub")]
                if let Some(dataset) = remote::on_hub(&self.name, &self.request)? {
                    let format = self.request.format.unwrap_or(dataset.format());
                    let paths = dataset.first(split, usize::MAX)?;
                    let options = self.options(dataset.options())?;
                    let shards = Shards::find(format, &paths, options)?;
                    return Ok(IterableDataset::new(shards, Some(dataset.name())));
                }
                let path = files::locate(&self.name)?;
                files::find(&self.name, &path, &self.request)?
            }
        };
        let Some((_, paths)) = found.splits.iter().find(|(name, _)| name == split) else {
            let names: Vec<&str> = found.splits.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Error::Split {
                split: split.to_owned(),
                message: format!(
                    "a stream takes a whole split, and the splits are {}; for a part use take and skip",
                    names.join(", ")
                ),
            });
        };
        let shards = Shards::find(found.format, paths, self.options(&found.options)?)?;
        Ok(IterableDataset::new(shards, None))
    }
}
