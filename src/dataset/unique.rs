//! The different values of a column.

use std::collections::HashSet;

use arrow::row::{RowConverter, SortField};

use super::column::FromColumn;
use super::table::Dataset;
use crate::Result;

impl Dataset {
    /// Returns the unique values of a column, in order of first occurrence: `dataset.unique::<String>("label")?`. A
    /// column with nulls is read as `Option`s, and null counts as a value. Mirrors `datasets.Dataset.unique`.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder().column("label", vec!["pos", "neg", "pos"]).build()?;
    /// assert_eq!(dataset.unique::<String>("label")?, ["pos", "neg"]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// # Errors
    /// Like [`Dataset::column`].
    pub fn unique<T: FromColumn>(&self, column: &str) -> Result<Vec<T>> {
        let position = self.position(column)?;
        let only = self.project(&[position]);
        let field = SortField::new(only.schema().field(0).data_type().clone());
        let converter = RowConverter::new(vec![field])?;
        let mut seen: HashSet<Vec<u8>> = HashSet::new();
        let mut first = Vec::new();
        for range in only.natural_chunks() {
            crate::interrupt::check("finding unique values")?;
            let start = range.start;
            let rows = converter.convert_columns(only.gather(range)?.columns())?;
            for (row, value) in rows.iter().enumerate() {
                if !seen.contains(value.as_ref()) {
                    seen.insert(value.as_ref().to_vec());
                    first.push(start + row);
                }
            }
        }
        only.select(&first)?.column(column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Dataset.unique of datasets 5.2
    #[test]
    fn values_are_unique_and_ordered_as_in_datasets() {
        let nan = Some(f64::NAN);
        let numbers = vec![
            Some(1.5),
            None,
            nan,
            Some(-0.0),
            Some(0.0),
            Some(-1.0),
            nan,
            None,
            Some(2.0),
        ];
        let dataset = Dataset::builder()
            .column("f", numbers)
            .column(
                "g",
                vec![
                    Some(true),
                    Some(false),
                    None,
                    Some(true),
                    None,
                    None,
                    None,
                    None,
                    None,
                ],
            )
            .column(
                "l",
                vec![
                    vec![1],
                    vec![],
                    vec![1],
                    vec![2],
                    vec![],
                    vec![1],
                    vec![1],
                    vec![1],
                    vec![1],
                ],
            )
            .build()
            .unwrap();
        let numbers = dataset.unique::<Option<f64>>("f").unwrap();
        let shown: Vec<String> = numbers.iter().map(|n| format!("{n:?}")).collect();
        assert_eq!(
            shown.join(" "),
            "Some(1.5) None Some(NaN) Some(-0.0) Some(0.0) Some(-1.0) Some(2.0)"
        );
        let truths = dataset.unique::<Option<bool>>("g").unwrap();
        assert_eq!(truths, [Some(true), Some(false), None]);
        assert_eq!(
            dataset.unique::<Vec<i32>>("l").unwrap(),
            [vec![1], vec![], vec![2]]
        );
        let chosen = dataset.select(&[8, 4, 8]).unwrap();
        assert_eq!(chosen.unique::<f64>("f").unwrap(), [2.0, 0.0]);
        assert!(
            dataset
                .unique::<f64>("f")
                .unwrap_err()
                .to_string()
                .contains("Option")
        );
    }
}
