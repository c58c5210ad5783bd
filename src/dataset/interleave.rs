//! Several datasets, taking turns.

use super::concatenate::concatenate;
use super::random::NumpyGenerator;
use super::table::Dataset;
use crate::{Error, Result};

/// When datasets that take turns are done.
///
/// ```
/// use cloze::prelude::*;
///
/// let rows = |numbers: Vec<i64>| Dataset::builder().column("n", numbers).build();
/// let both = [rows(vec![1, 2, 3])?, rows(vec![10])?];
/// let all = Interleave::new(both).stopping_strategy(StoppingStrategy::AllExhaustedWithoutReplacement).build()?;
/// assert_eq!(all.column::<i64>("n")?, [1, 10, 2, 3]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoppingStrategy {
    /// As soon as one of them is through.
    #[default]
    FirstExhausted,
    /// When all of them are through; the shorter ones begin again.
    AllExhausted,
    /// When all of them are through; each row comes once.
    AllExhaustedWithoutReplacement,
}

/// How datasets take turns. Mirrors the arguments of `datasets.interleave_datasets`.
///
/// ```
/// use cloze::prelude::*;
///
/// let letters = Dataset::builder().column("text", vec!["a", "b", "c"]).build()?;
/// let digits = Dataset::builder().column("text", vec!["1", "2"]).build()?;
/// let turns = Interleave::new([letters, digits])
///     .stopping_strategy(StoppingStrategy::AllExhaustedWithoutReplacement)
///     .build()?;
/// assert_eq!(turns.column::<String>("text")?, ["a", "1", "b", "2", "c"]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Interleave {
    datasets: Vec<Dataset>,
    probabilities: Option<Vec<f64>>,
    seed: Option<u64>,
    stopping: StoppingStrategy,
}

impl Interleave {
    /// Takes a row of each dataset in turn, until one of them is through.
    pub fn new(datasets: impl IntoIterator<Item = Dataset>) -> Self {
        Self {
            datasets: datasets.into_iter().collect(),
            probabilities: None,
            seed: None,
            stopping: StoppingStrategy::default(),
        }
    }

    /// Draws the dataset that the next row comes from by these probabilities, one for each, with the sum 1.
    pub fn probabilities(mut self, probabilities: impl IntoIterator<Item = f64>) -> Self {
        self.probabilities = Some(probabilities.into_iter().collect());
        self
    }

    /// Sets the seed of the draws: the order equals that of `datasets` with the same seed. Without a seed every call
    /// draws differently.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets when it ends (default: [`StoppingStrategy::FirstExhausted`]).
    pub fn stopping_strategy(mut self, strategy: StoppingStrategy) -> Self {
        self.stopping = strategy;
        self
    }

    /// Builds the dataset. Columns are brought together as [`concatenate`] does.
    ///
    /// # Errors
    /// If there is no dataset; if columns don't match; if the probabilities are not one for each dataset or don't sum
    /// to 1; if a dataset can't be exhausted because it is empty or never drawn.
    pub fn build(&self) -> Result<Dataset> {
        if self.datasets.is_empty() {
            let message = "there must be at least one dataset to interleave";
            return Err(Error::argument("datasets", message));
        }
        let all = concatenate(&self.datasets)?;
        let lengths: Vec<usize> = self.datasets.iter().map(Dataset::len).collect();
        let order = match &self.probabilities {
            None => in_turn(&lengths, self.stopping),
            Some(probabilities) => {
                check(probabilities, &lengths, self.stopping)?;
                let seed = self.seed.unwrap_or_else(rand::random);
                drawn(&lengths, probabilities, seed, self.stopping)?
            }
        };
        let mut offsets = vec![0; lengths.len()];
        for i in 1..lengths.len() {
            offsets[i] = offsets[i - 1] + lengths[i - 1];
        }
        let rows: Vec<usize> = order
            .into_iter()
            .map(|(dataset, row)| offsets[dataset] + row)
            .collect();
        all.select(&rows)
    }
}

/// Takes the rows of all `datasets` in turn, a row of each, until one of them is through; see [`Interleave`] for other ways.
///
/// ```
/// use cloze::prelude::*;
/// let numbers = |numbers: Vec<i64>| Dataset::builder().column("n", numbers).build();
/// let (a, b) = (numbers(vec![1, 2])?, numbers(vec![10, 20, 30])?);
/// assert_eq!(interleave(&[a.clone(), b.clone()])?.column::<i64>("n")?, [1, 10, 2, 20]);
/// let all = Interleave::new([a, b])
///     .probabilities([0.3, 0.7])
///     .seed(42)
///     .stopping_strategy(StoppingStrategy::AllExhausted)
///     .build()?;
/// assert!(all.len() >= 5);
/// # Ok::<(), cloze::Error>(())
/// ```
///
/// # Errors
/// Like [`Interleave::build`].
pub fn interleave(datasets: &[Dataset]) -> Result<Dataset> {
    Interleave::new(datasets.iter().cloned()).build()
}

/// Returns dataset and row, as they come in turn.
fn in_turn(lengths: &[usize], stopping: StoppingStrategy) -> Vec<(usize, usize)> {
    let rounds = match stopping {
        StoppingStrategy::FirstExhausted => lengths.iter().min(),
        _ => lengths.iter().max(),
    };
    let mut order = Vec::new();
    for round in 0..*rounds.unwrap_or(&0) {
        for (dataset, &length) in lengths.iter().enumerate() {
            match stopping {
                StoppingStrategy::AllExhaustedWithoutReplacement if round >= length => {}
                // An empty one has no row to begin again with.
                _ if length == 0 => {}
                _ => order.push((dataset, round % length)),
            }
        }
    }
    order
}

/// Checks that each dataset has a probability, that these make sense and that the end can be reached.
fn check(probabilities: &[f64], lengths: &[usize], stopping: StoppingStrategy) -> Result<()> {
    let refuse = |message: String| Err(Error::argument("probabilities", message));
    if probabilities.len() != lengths.len() {
        return refuse(format!(
            "there are {} probabilities for {} datasets; give one for each",
            probabilities.len(),
            lengths.len()
        ));
    }
    if probabilities.iter().any(|p| !(0.0..=1.0).contains(p)) {
        return refuse(format!("{probabilities:?} are not all between 0 and 1"));
    }
    let sum: f64 = probabilities.iter().sum();
    // What numpy tolerates.
    if (sum - 1.0).abs() > f64::EPSILON.sqrt() {
        return refuse(format!("they sum to {sum}, not to 1"));
    }
    for (dataset, (&p, &length)) in probabilities.iter().zip(lengths).enumerate() {
        if p > 0.0 && length == 0 {
            return refuse(format!("dataset {dataset} may be drawn, but it is empty"));
        }
        if p == 0.0 && length > 0 && stopping != StoppingStrategy::FirstExhausted {
            return refuse(format!(
                "dataset {dataset} is never drawn, so it can't be exhausted; leave it out"
            ));
        }
    }
    Ok(())
}

/// Draws dataset and row.
fn drawn(
    lengths: &[usize],
    probabilities: &[f64],
    seed: u64,
    stopping: StoppingStrategy,
) -> Result<Vec<(usize, usize)>> {
    let mut ends: Vec<f64> = probabilities
        .iter()
        .scan(0.0, |sum, p| {
            *sum += p;
            Some(*sum)
        })
        .collect();
    let whole = ends.last().copied().unwrap_or(1.0);
    ends.iter_mut().for_each(|end| *end /= whole);
    let mut generator = NumpyGenerator::new(seed);
    let mut order = Vec::new();
    let mut taken = vec![0; lengths.len()];
    // A dataset that is never drawn is not waited for.
    let waited_for = |dataset: &usize| probabilities[*dataset] > 0.0;
    let mut left = (0..lengths.len()).filter(waited_for).count();
    while left > 0 {
        if order.len() % 100_000 == 0 {
            crate::interrupt::check("interleaving datasets")?;
        }
        let number = generator.next_f64();
        let dataset = ends.partition_point(|&end| end <= number);
        let length = lengths[dataset];
        if stopping != StoppingStrategy::AllExhaustedWithoutReplacement || taken[dataset] < length {
            order.push((dataset, taken[dataset] % length));
            taken[dataset] += 1;
            if taken[dataset] == length {
                left -= 1;
                if stopping == StoppingStrategy::FirstExhausted {
                    break;
                }
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use StoppingStrategy::*;

    /// Lengths, when it ends, probabilities, a seed if one is drawn by, and the rows.
    type Case = (
        &'static [usize],
        StoppingStrategy,
        &'static [f64],
        Option<u64>,
        &'static [i64],
    );

    fn datasets(lengths: &[usize]) -> Vec<Dataset> {
        let dataset = |(k, &n): (usize, &usize)| {
            let numbers: Vec<i64> = (0..n).map(|j| (100 * k + j) as i64).collect();
            Dataset::builder().column("n", numbers).build().unwrap()
        };
        lengths.iter().enumerate().map(dataset).collect()
    }

    // interleave_datasets of datasets 5.2
    #[test]
    fn the_order_equals_that_of_datasets() {
        let cases: &[Case] = &[
            (
                &[3, 4, 5],
                FirstExhausted,
                &[0.2, 0.5, 0.3],
                None,
                &[0, 100, 200, 1, 101, 201, 2, 102, 202],
            ),
            (
                &[3, 4, 5],
                FirstExhausted,
                &[0.2, 0.5, 0.3],
                Some(0),
                &[100, 101, 0, 1, 200, 201, 102, 202, 103],
            ),
            (
                &[3, 4, 5],
                FirstExhausted,
                &[0.2, 0.5, 0.3],
                Some(42),
                &[200, 100, 201, 101, 0, 202, 203, 204],
            ),
            (
                &[3, 4, 5],
                FirstExhausted,
                &[0.2, 0.5, 0.3],
                Some(8589934597),
                &[100, 101, 102, 200, 0, 103],
            ),
            (
                &[3, 4, 5],
                AllExhausted,
                &[0.2, 0.5, 0.3],
                None,
                &[
                    0, 100, 200, 1, 101, 201, 2, 102, 202, 0, 103, 203, 1, 100, 204,
                ],
            ),
            (
                &[3, 4, 5],
                AllExhausted,
                &[0.2, 0.5, 0.3],
                Some(0),
                &[100, 101, 0, 1, 200, 201, 102, 202, 103, 203, 204, 2],
            ),
            (
                &[3, 4, 5],
                AllExhausted,
                &[0.2, 0.5, 0.3],
                Some(42),
                &[
                    200, 100, 201, 101, 0, 202, 203, 204, 1, 102, 103, 200, 100, 201, 101, 102,
                    103, 2,
                ],
            ),
            (
                &[3, 4, 5],
                AllExhausted,
                &[0.2, 0.5, 0.3],
                Some(8589934597),
                &[
                    100, 101, 102, 200, 0, 103, 1, 2, 100, 0, 101, 102, 103, 100, 201, 101, 1, 202,
                    203, 102, 2, 103, 100, 101, 102, 103, 204,
                ],
            ),
            (
                &[3, 4, 5],
                AllExhaustedWithoutReplacement,
                &[0.2, 0.5, 0.3],
                None,
                &[0, 100, 200, 1, 101, 201, 2, 102, 202, 103, 203, 204],
            ),
            (
                &[3, 4, 5],
                AllExhaustedWithoutReplacement,
                &[0.2, 0.5, 0.3],
                Some(0),
                &[100, 101, 0, 1, 200, 201, 102, 202, 103, 203, 204, 2],
            ),
            (
                &[3, 4, 5],
                AllExhaustedWithoutReplacement,
                &[0.2, 0.5, 0.3],
                Some(42),
                &[200, 100, 201, 101, 0, 202, 203, 204, 1, 102, 103, 2],
            ),
            (
                &[3, 4, 5],
                AllExhaustedWithoutReplacement,
                &[0.2, 0.5, 0.3],
                Some(8589934597),
                &[100, 101, 102, 200, 0, 103, 1, 2, 201, 202, 203, 204],
            ),
            (
                &[5, 2],
                FirstExhausted,
                &[0.7, 0.3],
                None,
                &[0, 100, 1, 101],
            ),
            (
                &[5, 2],
                FirstExhausted,
                &[0.7, 0.3],
                Some(0),
                &[0, 1, 2, 3, 100, 101],
            ),
            (
                &[5, 2],
                FirstExhausted,
                &[0.7, 0.3],
                Some(42),
                &[100, 0, 101],
            ),
            (
                &[5, 2],
                FirstExhausted,
                &[0.7, 0.3],
                Some(8589934597),
                &[0, 1, 2, 100, 3, 4],
            ),
            (
                &[5, 2],
                AllExhausted,
                &[0.7, 0.3],
                None,
                &[0, 100, 1, 101, 2, 100, 3, 101, 4, 100],
            ),
            (
                &[5, 2],
                AllExhausted,
                &[0.7, 0.3],
                Some(0),
                &[0, 1, 2, 3, 100, 101, 4],
            ),
            (
                &[5, 2],
                AllExhausted,
                &[0.7, 0.3],
                Some(42),
                &[100, 0, 101, 1, 2, 100, 101, 100, 3, 4],
            ),
            (
                &[5, 2],
                AllExhausted,
                &[0.7, 0.3],
                Some(8589934597),
                &[0, 1, 2, 100, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 101],
            ),
            (
                &[5, 2],
                AllExhaustedWithoutReplacement,
                &[0.7, 0.3],
                None,
                &[0, 100, 1, 101, 2, 3, 4],
            ),
            (
                &[5, 2],
                AllExhaustedWithoutReplacement,
                &[0.7, 0.3],
                Some(0),
                &[0, 1, 2, 3, 100, 101, 4],
            ),
            (
                &[5, 2],
                AllExhaustedWithoutReplacement,
                &[0.7, 0.3],
                Some(42),
                &[100, 0, 101, 1, 2, 3, 4],
            ),
            (
                &[5, 2],
                AllExhaustedWithoutReplacement,
                &[0.7, 0.3],
                Some(8589934597),
                &[0, 1, 2, 100, 3, 4, 101],
            ),
            (
                &[1, 1, 4],
                FirstExhausted,
                &[0.2, 0.5, 0.3],
                None,
                &[0, 100, 200],
            ),
            (
                &[1, 1, 4],
                FirstExhausted,
                &[0.2, 0.5, 0.3],
                Some(0),
                &[100],
            ),
            (
                &[1, 1, 4],
                FirstExhausted,
                &[0.2, 0.5, 0.3],
                Some(42),
                &[200, 100],
            ),
            (
                &[1, 1, 4],
                FirstExhausted,
                &[0.2, 0.5, 0.3],
                Some(8589934597),
                &[100],
            ),
            (
                &[1, 1, 4],
                AllExhausted,
                &[0.2, 0.5, 0.3],
                None,
                &[0, 100, 200, 0, 100, 201, 0, 100, 202, 0, 100, 203],
            ),
            (
                &[1, 1, 4],
                AllExhausted,
                &[0.2, 0.5, 0.3],
                Some(0),
                &[100, 100, 0, 0, 200, 201, 100, 202, 100, 203],
            ),
            (
                &[1, 1, 4],
                AllExhausted,
                &[0.2, 0.5, 0.3],
                Some(42),
                &[200, 100, 201, 100, 0, 202, 203],
            ),
            (
                &[1, 1, 4],
                AllExhausted,
                &[0.2, 0.5, 0.3],
                Some(8589934597),
                &[
                    100, 100, 100, 200, 0, 100, 0, 0, 100, 0, 100, 100, 100, 100, 201, 100, 0, 202,
                    203,
                ],
            ),
            (
                &[1, 1, 4],
                AllExhaustedWithoutReplacement,
                &[0.2, 0.5, 0.3],
                None,
                &[0, 100, 200, 201, 202, 203],
            ),
            (
                &[1, 1, 4],
                AllExhaustedWithoutReplacement,
                &[0.2, 0.5, 0.3],
                Some(0),
                &[100, 0, 200, 201, 202, 203],
            ),
            (
                &[1, 1, 4],
                AllExhaustedWithoutReplacement,
                &[0.2, 0.5, 0.3],
                Some(42),
                &[200, 100, 201, 0, 202, 203],
            ),
            (
                &[1, 1, 4],
                AllExhaustedWithoutReplacement,
                &[0.2, 0.5, 0.3],
                Some(8589934597),
                &[100, 200, 0, 201, 202, 203],
            ),
            (&[4], FirstExhausted, &[1.0], None, &[0, 1, 2, 3]),
            (&[4], FirstExhausted, &[1.0], Some(0), &[0, 1, 2, 3]),
            (&[4], FirstExhausted, &[1.0], Some(42), &[0, 1, 2, 3]),
            (
                &[4],
                FirstExhausted,
                &[1.0],
                Some(8589934597),
                &[0, 1, 2, 3],
            ),
            (&[4], AllExhausted, &[1.0], None, &[0, 1, 2, 3]),
            (&[4], AllExhausted, &[1.0], Some(0), &[0, 1, 2, 3]),
            (&[4], AllExhausted, &[1.0], Some(42), &[0, 1, 2, 3]),
            (&[4], AllExhausted, &[1.0], Some(8589934597), &[0, 1, 2, 3]),
            (
                &[4],
                AllExhaustedWithoutReplacement,
                &[1.0],
                None,
                &[0, 1, 2, 3],
            ),
            (
                &[4],
                AllExhaustedWithoutReplacement,
                &[1.0],
                Some(0),
                &[0, 1, 2, 3],
            ),
            (
                &[4],
                AllExhaustedWithoutReplacement,
                &[1.0],
                Some(42),
                &[0, 1, 2, 3],
            ),
            (
                &[4],
                AllExhaustedWithoutReplacement,
                &[1.0],
                Some(8589934597),
                &[0, 1, 2, 3],
            ),
            (&[3, 0], FirstExhausted, &[1.0, 0.0], Some(0), &[0, 1, 2]),
            (&[3, 0], FirstExhausted, &[1.0, 0.0], Some(42), &[0, 1, 2]),
            (
                &[3, 0],
                FirstExhausted,
                &[1.0, 0.0],
                Some(8589934597),
                &[0, 1, 2],
            ),
        ];
        for &(lengths, stopping, probabilities, seed, expected) in cases {
            let mut turns = Interleave::new(datasets(lengths)).stopping_strategy(stopping);
            if let Some(seed) = seed {
                turns = turns.probabilities(probabilities.to_vec()).seed(seed);
            }
            let rows = turns.build().unwrap().column::<i64>("n").unwrap();
            assert_eq!(rows, expected, "{lengths:?} {stopping:?} {seed:?}");
        }
    }

    #[test]
    fn endless_and_invalid_interleavings_are_refused() {
        let refused = |lengths: &[usize], probabilities: &[f64], stopping, told: &str| {
            let turns = Interleave::new(datasets(lengths)).stopping_strategy(stopping);
            let error = turns
                .probabilities(probabilities.to_vec())
                .build()
                .unwrap_err()
                .to_string();
            assert!(error.contains(told), "{error}");
        };
        refused(
            &[1, 2],
            &[1.0],
            FirstExhausted,
            "1 probabilities for 2 datasets",
        );
        refused(&[1, 2], &[0.5, 0.6], FirstExhausted, "sum to 1.1");
        refused(&[1, 2], &[1.5, -0.5], FirstExhausted, "between 0 and 1");
        refused(&[1, 2], &[f64::NAN, 0.5], FirstExhausted, "between 0 and 1");
        refused(
            &[1, 0],
            &[0.5, 0.5],
            FirstExhausted,
            "dataset 1 may be drawn, but it is empty",
        );
        refused(&[1, 2], &[1.0, 0.0], AllExhausted, "never drawn");
        assert!(interleave(&[]).is_err());
        assert!(interleave(&datasets(&[0, 3])).unwrap().is_empty());
    }

    #[test]
    fn selections_interleave_only_their_own_rows() {
        let mut all = datasets(&[4, 3]);
        all[0] = all[0].select(&[3, 1]).unwrap();
        let rows = interleave(&all).unwrap().column::<i64>("n").unwrap();
        assert_eq!(rows, [3, 100, 1, 101]);
    }
}
