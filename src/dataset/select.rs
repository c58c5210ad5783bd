//! Choosing rows: by number, by a condition, in a random order.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::fingerprint::Hashing;
use super::random::NumpyGenerator;
use super::row::Row;
use super::table::Dataset;
use crate::{Error, Result};

impl Dataset {
    /// Returns the rows at `indices`, in that order and with repetition.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        let len = self.len();
        if let Some(index) = indices.iter().find(|&&index| index >= len) {
            return Err(Error::argument(
                "indices",
                format!("there is no row {index}: the dataset has {len} rows, counted from 0"),
            ));
        }
        Ok(self.at(indices))
    }

    /// Returns the rows of `range`, which may reach past the end: `dataset.slice(0..100)` gives at most 100 rows.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let end = range.end.min(self.len());
        let start = range.start.min(end);
        if start == 0 && end == self.len() {
            return self.clone();
        }
        let content = self
            .content()
            .derive("slice", &[&start.to_le_bytes(), &end.to_le_bytes()]);
        if let Some(indices) = self.indices() {
            return self.with_indices(indices[start..end].into(), content);
        }
        let mut offset = 0;
        let mut kept = Vec::new();
        for batch in self.batches() {
            let (from, to) = (start.max(offset), end.min(offset + batch.num_rows()));
            if from < to {
                kept.push(batch.slice(from - offset, to - from));
            }
            offset += batch.num_rows();
        }
        Self::from_parts(self.schema().clone(), kept, content).with_origin(self.origin())
    }

    /// Returns the rows in a random order that `seed` determines: the order that `datasets` gives for the same seed
    /// (numpy's `default_rng(seed).permutation`).
    pub fn shuffle(&self, seed: u64) -> Result<Self> {
        if self.is_empty() {
            return Ok(self.clone());
        }
        let content = self.content().derive("shuffle", &[&seed.to_le_bytes()]);
        let order = NumpyGenerator::new(seed).permutation(self.len());
        Ok(self.at(&order).with_content(content))
    }

    /// Returns the rows for which `keep` is true, in their order. Rows are asked on all cores.
    pub fn filter(&self, keep: impl Fn(&Row) -> bool + Send + Sync) -> Result<Self> {
        self.filter_with_indices(|row, _| keep(row))
    }

    /// Like [`Dataset::filter`], with a condition that is also given the number of each row in this dataset, counted from 0
    /// (`with_indices=True` in Python).
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder().column("n", vec![5, 6, 7, 8]).build()?;
    /// let even = dataset.filter_with_indices(|_, index| index % 2 == 0)?;
    /// assert_eq!(even.column::<i64>("n")?, [5, 7]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn filter_with_indices(
        &self,
        keep: impl Fn(&Row, usize) -> bool + Send + Sync,
    ) -> Result<Self> {
        let kept = self
            .chunks(1000)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|range| {
                crate::base::interrupt::check("filtering a dataset")?;
                let start = range.start;
                let batch = self.gather(range)?;
                let rows = 0..batch.num_rows();
                Ok(rows
                    .filter(|&row| keep(&Row::of_batch(&batch, row), start + row))
                    .map(|row| start + row)
                    .collect::<Vec<_>>())
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(self.at(&kept.concat()))
    }

    /// Returns the rows at `indices`, which lie within the dataset.
    pub(crate) fn at(&self, indices: &[usize]) -> Self {
        let mut hashing = Hashing::new("select");
        hashing.part(self.content().as_bytes());
        for &index in indices {
            hashing.part(&(index as u64).to_le_bytes());
        }
        let content = hashing.finish();
        let indices: Arc<[usize]> = match self.indices() {
            Some(mine) => indices.iter().map(|&index| mine[index]).collect(),
            None => indices.into(),
        };
        self.with_indices(indices, content)
    }
}

#[cfg(test)]
mod tests {
    use crate::dataset::{Dataset, concatenate};

    fn numbers(range: std::ops::Range<i64>) -> Dataset {
        Dataset::builder()
            .column("n", range.collect::<Vec<_>>())
            .build()
            .unwrap()
    }

    fn values(dataset: &Dataset) -> Vec<i64> {
        dataset.column("n").unwrap()
    }

    #[test]
    fn rows_are_selected_in_any_order_and_with_repetition() {
        // Over several batches, and a selection of a selection.
        let dataset = concatenate(&[numbers(0..10), numbers(10..20), numbers(20..30)]).unwrap();
        let selected = dataset.select(&[25, 3, 3, 12, 29]).unwrap();
        assert_eq!(values(&selected), [25, 3, 3, 12, 29]);
        assert_eq!(values(&selected.select(&[4, 0]).unwrap()), [29, 25]);
        assert_eq!(values(&selected.slice(1..3)), [3, 3]);
        assert_eq!(values(&dataset.slice(8..22)), (8..22).collect::<Vec<_>>());
        assert_eq!(values(&dataset.slice(28..100)), [28, 29]);
        assert_eq!(selected.row(3).unwrap()["n"], 12);
        assert_eq!(dataset.row(10).unwrap()["n"], 10);
        let error = dataset.select(&[30]).unwrap_err().to_string();
        assert_eq!(
            error,
            "indices: there is no row 30: the dataset has 30 rows, counted from 0"
        );
    }

    #[test]
    fn a_seed_gives_the_same_order_as_in_datasets() {
        // datasets.Dataset.from_dict({"n": range(10)}).shuffle(seed=42)["n"]
        assert_eq!(
            values(&numbers(0..10).shuffle(42).unwrap()),
            [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]
        );
        assert_eq!(values(&numbers(0..0).shuffle(42).unwrap()), [0i64; 0]);
    }

    #[test]
    fn filter_keeps_the_order() {
        let dataset = numbers(0..5000).shuffle(7).unwrap();
        let all = values(&dataset);
        let even = dataset
            .filter(|row| row["n"].as_i64().is_some_and(|n| n % 2 == 0))
            .unwrap();
        assert_eq!(
            values(&even),
            all.into_iter().filter(|n| n % 2 == 0).collect::<Vec<_>>()
        );
        assert!(dataset.filter(|_| false).unwrap().is_empty());
    }

    #[test]
    fn different_rows_have_different_fingerprints() {
        let dataset = numbers(0..10);
        let again = numbers(0..10);
        assert_eq!(dataset.fingerprint(), again.fingerprint());
        assert_ne!(dataset.fingerprint(), numbers(0..11).fingerprint());
        assert_ne!(dataset.fingerprint(), dataset.slice(0..9).fingerprint());
        assert_ne!(
            dataset.shuffle(1).unwrap().fingerprint(),
            dataset.shuffle(2).unwrap().fingerprint()
        );
        assert_eq!(
            dataset.shuffle(1).unwrap().fingerprint(),
            again.shuffle(1).unwrap().fingerprint()
        );
    }
}
