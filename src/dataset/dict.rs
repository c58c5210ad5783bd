//! Datasets under the names of their splits.

use std::fmt;
use std::ops::Index;

use super::column::FromColumn;
use super::column_type::ColumnType;
use super::group_texts::GroupTexts;
use super::map::Map;
use super::row::Row;
use super::sort::Sort;
use super::split;
use super::table::Dataset;
use crate::{Error, Result};

/// Datasets by name, in order: the result of loading and splitting. `dict["train"]` is one of them.
///
/// Operations on all of them have the names that they have on a [`Dataset`]. Mirrors `datasets.DatasetDict`.
///
/// ```
/// use cloze::prelude::*;
///
/// let all = Dataset::builder().column("text", vec!["a", "b", "c", "d", "e"]).build()?;
/// let splits = all.train_test_split(0.2)?;
/// assert_eq!((splits["train"].len(), splits["test"].len()), (4, 1));
/// let mut more = splits.clone();
/// more.insert("validation", all.slice(0..2));
/// assert_eq!(more.names(), ["train", "test", "validation"]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct DatasetDict {
    splits: Vec<(String, Dataset)>,
}

impl DatasetDict {
    /// Returns a dict without datasets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds (or replaces) the dataset `name`.
    pub fn insert(&mut self, name: impl Into<String>, dataset: Dataset) {
        let name = name.into();
        match self.splits.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = dataset,
            None => self.splits.push((name, dataset)),
        }
    }

    /// Returns the dataset `name`; an error that lists the names if there is none.
    pub fn get(&self, name: &str) -> Result<&Dataset> {
        self.find(name).ok_or_else(|| Error::Split {
            split: name.to_owned(),
            message: format!(
                "there is no such split; the splits are {}",
                self.names().join(", ")
            ),
        })
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Dataset> {
        self.splits
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, dataset)| dataset)
    }

    /// Returns the part that `split` means in the split grammar of `datasets`: `train`, `train[:5000]`,
    /// `train[10%:20%]`, `train[-5:]`, `train[:10]+test[50%:]`, each with an optional rounding as
    /// `train[:10%](pct1_dropremainder)`.
    ///
    /// Percentages go to the closest row, halves to the even one; boundaries past the end are the end. A split without
    /// rows in it is an error.
    pub fn split(&self, split: impl AsRef<str>) -> Result<Dataset> {
        split::resolve(self, split.as_ref())
    }

    /// Returns the names, in order.
    pub fn names(&self) -> Vec<String> {
        self.splits.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Returns the names with their datasets, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Dataset)> {
        self.splits
            .iter()
            .map(|(name, dataset)| (name.as_str(), dataset))
    }

    /// Returns the number of datasets.
    pub fn len(&self) -> usize {
        self.splits.len()
    }

    /// Returns whether there are no datasets.
    pub fn is_empty(&self) -> bool {
        self.splits.is_empty()
    }

    /// Returns what `change` makes of every dataset.
    pub fn each(&self, mut change: impl FnMut(&Dataset) -> Result<Dataset>) -> Result<Self> {
        let splits = self
            .splits
            .iter()
            .map(|(name, dataset)| Ok((name.clone(), change(dataset)?)))
            .collect::<Result<_>>()?;
        Ok(Self { splits })
    }

    /// Applies [`Dataset::flatten`] to every dataset.
    pub fn flatten(&self) -> Result<Self> {
        self.each(Dataset::flatten)
    }

    /// Applies [`Dataset::map`] to every dataset.
    pub fn map(&self, map: impl Into<Map>) -> Result<Self> {
        let map = map.into();
        self.each(|dataset| dataset.map(map.clone()))
    }

    /// Applies [`Dataset::group_texts`] to every dataset.
    pub fn group_texts(&self, group: impl Into<GroupTexts>) -> Result<Self> {
        let group = group.into();
        self.each(|dataset| dataset.group_texts(group.clone()))
    }

    /// Applies [`Dataset::filter`] to every dataset.
    pub fn filter(&self, keep: impl Fn(&Row) -> bool + Send + Sync) -> Result<Self> {
        self.each(|dataset| dataset.filter(&keep))
    }

    /// Applies [`Dataset::sort`] to every dataset.
    pub fn sort(&self, by: impl Into<Sort>) -> Result<Self> {
        let by = by.into();
        self.each(|dataset| dataset.sort(by.clone()))
    }

    /// Applies [`Dataset::cast`] to every dataset.
    pub fn cast<N: AsRef<str>, T: Into<ColumnType>>(
        &self,
        features: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self> {
        let features: Vec<(String, ColumnType)> = features
            .into_iter()
            .map(|(name, to)| (name.as_ref().to_owned(), to.into()))
            .collect();
        self.each(|dataset| dataset.cast(features.clone()))
    }

    /// Applies [`Dataset::cast_column`] to every dataset.
    pub fn cast_column(&self, name: &str, to: impl Into<ColumnType>) -> Result<Self> {
        let to = to.into();
        self.each(|dataset| dataset.cast_column(name, to.clone()))
    }

    /// Applies [`Dataset::unique`] to every dataset: the values by split.
    pub fn unique<T: FromColumn>(&self, column: &str) -> Result<Vec<(String, Vec<T>)>> {
        self.iter()
            .map(|(name, dataset)| Ok((name.to_owned(), dataset.unique(column)?)))
            .collect()
    }

    /// Applies [`Dataset::shuffle`] to every dataset.
    pub fn shuffle(&self, seed: u64) -> Result<Self> {
        self.each(|dataset| dataset.shuffle(seed))
    }

    /// Applies [`Dataset::remove_columns`] to every dataset.
    pub fn remove_columns<S: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let names: Vec<S> = names.into_iter().collect();
        self.each(|dataset| dataset.remove_columns(&names))
    }

    /// Applies [`Dataset::select_columns`] to every dataset.
    pub fn select_columns<S: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let names: Vec<S> = names.into_iter().collect();
        self.each(|dataset| dataset.select_columns(&names))
    }

    /// Applies [`Dataset::rename_column`] to every dataset.
    pub fn rename_column(&self, old: &str, new: &str) -> Result<Self> {
        self.each(|dataset| dataset.rename_column(old, new))
    }
}

impl Index<&str> for DatasetDict {
    type Output = Dataset;

    /// Returns the dataset `name`. It is cheap to clone where more than a look at it is wanted:
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let numbers = Dataset::builder().column("n", vec![1, 2]).build()?;
    /// let dict = DatasetDict::from_iter([("train", numbers)]);
    /// let train = dict["train"].clone();
    /// assert_eq!(train.len(), 2);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// # Panics
    /// If there is none of that name; [`DatasetDict::get`] gives an error instead.
    #[track_caller]
    fn index(&self, name: &str) -> &Dataset {
        match self.get(name) {
            Ok(dataset) => dataset,
            // Not in a closure, whose panic would point here and not to the caller.
            Err(error) => panic!("{error}"),
        }
    }
}

impl<S: Into<String>> FromIterator<(S, Dataset)> for DatasetDict {
    fn from_iter<I: IntoIterator<Item = (S, Dataset)>>(splits: I) -> Self {
        let mut dict = Self::new();
        for (name, dataset) in splits {
            dict.insert(name, dataset);
        }
        dict
    }
}

impl fmt::Debug for DatasetDict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatasetDict({\n")?;
        for (name, dataset) in &self.splits {
            let text = format!("{dataset:?}").replace('\n', "\n    ");
            writeln!(f, "    {name}: {text}")?;
        }
        f.write_str("})")
    }
}

impl fmt::Display for DatasetDict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_columns_and_rows_of_every_split() {
        let dataset = Dataset::builder()
            .column("text", vec!["a", "b"])
            .column("n", vec![1, 2])
            .build()
            .unwrap();
        let dict =
            DatasetDict::from_iter([("train", dataset.clone()), ("test", dataset.slice(0..1))]);
        let expected = "DatasetDict({\n    train: Dataset({\n        features: ['text', 'n'],\n        num_rows: 2\n    })\n    \
                        test: Dataset({\n        features: ['text', 'n'],\n        num_rows: 1\n    })\n})";
        assert_eq!(format!("{dict:?}"), expected);
        let error = dict.get("validation").unwrap_err().to_string();
        assert_eq!(
            error,
            "split \"validation\": there is no such split; the splits are train, test"
        );
        assert_eq!(
            dict.remove_columns(["n"]).unwrap()["test"].column_names(),
            ["text"]
        );
    }
}
