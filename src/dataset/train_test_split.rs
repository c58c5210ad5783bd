//! A training part and a test part of one dataset.

use super::dict::DatasetDict;
use super::random::NumpyGenerator;
use super::table::Dataset;
use crate::{Error, Result};

/// The size of a part: a fraction of the rows, or their number. `0.2.into()` and `1000.into()` give one.
///
/// ```
/// use cloze::prelude::*;
///
/// let rows = Dataset::builder().column("n", (0..10).collect::<Vec<i64>>()).build()?;
/// assert_eq!(rows.train_test_split(0.2)?["test"].len(), 2);
/// assert_eq!(rows.train_test_split(3)?["test"].len(), 3);
/// assert_eq!(TestSize::from(0.2), TestSize::Fraction(0.2));
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TestSize {
    /// A fraction between 0 and 1, both excluded.
    Fraction(f64),
    /// A number of rows, at least 1 and less than there are.
    Rows(usize),
}

impl From<f64> for TestSize {
    fn from(fraction: f64) -> Self {
        Self::Fraction(fraction)
    }
}

impl From<usize> for TestSize {
    fn from(rows: usize) -> Self {
        Self::Rows(rows)
    }
}

/// Options of [`Dataset::train_test_split`]. A plain fraction or number is short for [`TrainTestSplit::new`].
///
/// ```
/// use cloze::prelude::*;
///
/// let rows = Dataset::builder().column("n", (0..10).collect::<Vec<i64>>()).build()?;
/// let parts = rows.train_test_split(TrainTestSplit::new(0.3).train_size(5).seed(7))?;
/// assert_eq!((parts["train"].len(), parts["test"].len()), (5, 3));
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TrainTestSplit {
    test_size: TestSize,
    train_size: Option<TestSize>,
    shuffle: bool,
    seed: u64,
}

impl TrainTestSplit {
    /// Returns a test part of `test_size`; the rest is for training. Rows are shuffled with the seed 42.
    pub fn new(test_size: impl Into<TestSize>) -> Self {
        Self {
            test_size: test_size.into(),
            train_size: None,
            shuffle: true,
            seed: 42,
        }
    }

    /// Sets the size of the training part; by default it is all the rest.
    pub fn train_size(mut self, train_size: impl Into<TestSize>) -> Self {
        self.train_size = Some(train_size.into());
        self
    }

    /// Sets the seed of the shuffle (default 42, so that a notebook gives the same split every time). The same seed
    /// gives the same parts as in `datasets`.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets whether to shuffle the rows first (default); otherwise the test part is cut from the end.
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.shuffle = shuffle;
        self
    }

    /// Returns the numbers of rows for training and for testing, out of `rows`.
    fn sizes(&self, rows: usize) -> Result<(usize, usize)> {
        let check = |name: &'static str, size: TestSize| match size {
            TestSize::Fraction(fraction) if !(fraction > 0.0 && fraction < 1.0) => {
                Err(Error::argument(
                    name,
                    format!(
                        "{fraction} is not a fraction between 0 and 1 (for a number of rows, write a whole number)"
                    ),
                ))
            }
            TestSize::Rows(size) if size == 0 || size >= rows => Err(Error::argument(
                name,
                format!("{size} rows must be at least 1 and fewer than the dataset's {rows}"),
            )),
            size => Ok(size),
        };
        let test = match check("test_size", self.test_size)? {
            TestSize::Fraction(fraction) => (fraction * rows as f64).ceil() as usize,
            TestSize::Rows(size) => size,
        };
        let train = match self
            .train_size
            .map(|size| check("train_size", size))
            .transpose()?
        {
            Some(TestSize::Fraction(fraction)) => (fraction * rows as f64).floor() as usize,
            Some(TestSize::Rows(size)) => size,
            None => rows - test,
        };
        if train + test > rows {
            return Err(Error::argument(
                "train_size",
                format!(
                    "{train} rows for training and {test} for testing are more than the dataset's {rows}"
                ),
            ));
        }
        if train == 0 {
            return Err(Error::argument(
                "test_size",
                format!("with {test} of {rows} rows for testing none are left for training"),
            ));
        }
        Ok((train, test))
    }
}

impl<S: Into<TestSize>> From<S> for TrainTestSplit {
    fn from(test_size: S) -> Self {
        Self::new(test_size)
    }
}

impl Dataset {
    /// Returns the rows divided at random into `"train"` and `"test"`: by a fraction for testing (rounded up), a number
    /// of rows, or a [`TrainTestSplit`] with more to say.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder().column("n", (0..10).collect::<Vec<i64>>()).build()?;
    /// let split = dataset.train_test_split(0.2)?;
    /// assert_eq!((split["train"].len(), split["test"].len()), (8, 2));
    /// let split = dataset.train_test_split(TrainTestSplit::new(3).shuffle(false))?;
    /// assert_eq!(split["test"].column::<i64>("n")?, [7, 8, 9]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn train_test_split(&self, split: impl Into<TrainTestSplit>) -> Result<DatasetDict> {
        if self.is_empty() {
            return Ok(DatasetDict::from_iter([
                ("train", self.clone()),
                ("test", self.clone()),
            ]));
        }
        let split = split.into();
        let rows = self.len();
        let (train, test) = split.sizes(rows)?;
        let (train, test) = if split.shuffle {
            let order = NumpyGenerator::new(split.seed).permutation(rows);
            (self.at(&order[test..test + train]), self.at(&order[..test]))
        } else {
            (self.slice(0..train), self.slice(train..train + test))
        };
        Ok(DatasetDict::from_iter([("train", train), ("test", test)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Dataset {
        let numbers = (0..len as i64).collect::<Vec<_>>();
        Dataset::builder().column("n", numbers).build().unwrap()
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for split in [
            0.0.into(),
            1.0.into(),
            (-0.5).into(),
            f64::NAN.into(),
            0.into(),
            10.into(),
            11.into(),
        ] {
            let split: TestSize = split;
            let error = numbers(10).train_test_split(split).unwrap_err().to_string();
            assert!(error.starts_with("test_size: "), "{error}");
        }
        let none_left = numbers(1).train_test_split(0.5).unwrap_err().to_string();
        assert!(none_left.contains("none are left"), "{none_left}");
        let more = TrainTestSplit::new(6).train_size(5);
        assert!(
            numbers(10)
                .train_test_split(more)
                .unwrap_err()
                .to_string()
                .contains("more than")
        );
    }

    #[test]
    fn parts_do_not_overlap_and_depend_on_the_seed() {
        let split = numbers(1000)
            .train_test_split(TrainTestSplit::new(0.25).seed(3))
            .unwrap();
        let mut all = split["train"].column::<i64>("n").unwrap();
        let test = split["test"].column::<i64>("n").unwrap();
        assert_eq!(
            test,
            numbers(1000)
                .shuffle(3)
                .unwrap()
                .slice(0..250)
                .column::<i64>("n")
                .unwrap()
        );
        all.extend(test);
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
        let smaller = TrainTestSplit::new(2).train_size(0.5).shuffle(false);
        let split = numbers(10).train_test_split(smaller).unwrap();
        assert_eq!(split["train"].column::<i64>("n").unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(split["test"].column::<i64>("n").unwrap(), [5, 6]);
    }

    #[test]
    fn an_empty_dataset_gives_two_empty_parts() {
        let split = numbers(0).train_test_split(0.2).unwrap();
        assert!(split["train"].is_empty() && split["test"].is_empty());
    }
}
