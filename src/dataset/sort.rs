//! Rows in the order of their values.

use std::cmp::Ordering;

use arrow::array::{Array, ArrayRef, Float64Array, make_comparator};
use arrow::compute::{SortOptions, cast};
use arrow::datatypes::DataType;

use super::data_type::type_name;
use super::table::Dataset;
use crate::{Error, Result};

/// Where rows without a value are placed, and with them NaNs.
///
/// ```
/// use cloze::prelude::*;
///
/// let rows = Dataset::builder().column("n", vec![Some(2i64), None, Some(1)]).build()?;
/// let sorted = rows.sort(Sort::by(["n"]).null_placement(NullPlacement::AtStart))?;
/// assert_eq!(sorted.column::<Option<i64>>("n")?, [None, Some(1), Some(2)]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NullPlacement {
    /// Before all others.
    AtStart,
    /// Last, whatever the direction.
    #[default]
    AtEnd,
}

/// By what [`Dataset::sort`] sorts. Mirrors the arguments of `datasets.Dataset.sort`.
///
/// ```
/// use cloze::prelude::*;
///
/// let dataset = Dataset::builder().column("text", vec!["b", "a", "b"]).column("score", vec![1i64, 2, 3]).build()?;
/// let sorted = dataset.sort(Sort::by(["text", "score"]).reverse_each([false, true]))?;
/// assert_eq!(sorted.column::<i64>("score")?, [2, 3, 1]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sort {
    columns: Vec<String>,
    reverse: Vec<bool>,
    nulls: NullPlacement,
}

impl Sort {
    /// Sorts by the first column, rows that are equal there by the second, and so on.
    pub fn by<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Self {
        Self {
            columns: columns.into_iter().map(Into::into).collect(),
            reverse: vec![false],
            nulls: NullPlacement::default(),
        }
    }

    /// Sets whether larger values come first (default: no), in all columns.
    pub fn reverse(self, reverse: bool) -> Self {
        self.reverse_each([reverse])
    }

    /// Sets for each column whether larger values come first.
    pub fn reverse_each(mut self, reverse: impl IntoIterator<Item = bool>) -> Self {
        self.reverse = reverse.into_iter().collect();
        self
    }

    /// Sets where rows without a value go (default: the end).
    pub fn null_placement(mut self, placement: NullPlacement) -> Self {
        self.nulls = placement;
        self
    }
}

impl From<&str> for Sort {
    fn from(column: &str) -> Self {
        Self::by([column])
    }
}

impl From<String> for Sort {
    fn from(column: String) -> Self {
        Self::by([column])
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Sort {
    fn from(columns: [S; N]) -> Self {
        Self::by(columns)
    }
}

impl<S: Into<String>> From<Vec<S>> for Sort {
    fn from(columns: Vec<S>) -> Self {
        Self::by(columns)
    }
}

impl Dataset {
    /// Returns the rows sorted by the values of one or several columns of numbers, text, booleans or times. Rows with
    /// equal values keep their order. Mirrors `datasets.Dataset.sort`.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let dataset = Dataset::builder()
    ///     .column("label", vec![1, 0, 1])
    ///     .column("text", vec!["c", "b", "a"])
    ///     .build()?;
    /// assert_eq!(dataset.sort("text")?.column::<String>("text")?, ["a", "b", "c"]);
    /// let sorted = dataset.sort(Sort::by(["label", "text"]).reverse_each([true, false]))?;
    /// assert_eq!(sorted.column::<String>("text")?, ["a", "c", "b"]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// # Errors
    /// A column that is not there, or whose values have no order; not as many directions as columns.
    pub fn sort(&self, by: impl Into<Sort>) -> Result<Self> {
        let Sort {
            columns,
            mut reverse,
            nulls,
        } = by.into();
        if columns.is_empty() {
            return Err(Error::argument("column_names", "name a column to sort by"));
        }
        if let [reverse_all] = reverse[..] {
            reverse = vec![reverse_all; columns.len()];
        }
        if reverse.len() != columns.len() {
            return Err(Error::argument(
                "reverse",
                format!(
                    "give one direction, or one for each of the {} columns; {} were given",
                    columns.len(),
                    reverse.len()
                ),
            ));
        }
        let positions = columns
            .iter()
            .map(|name| self.position(name))
            .collect::<Result<Vec<_>>>()?;
        let values = self.project(&positions).gather(0..self.len())?;
        let orders = (values.columns().iter().zip(&columns))
            .zip(&reverse)
            .map(|((values, name), &reverse)| order(name, values, reverse, nulls))
            .collect::<Result<Vec<_>>>()?;
        let mut rows: Vec<usize> = (0..self.len()).collect();
        rows.sort_by(|&left, &right| {
            let different = orders.iter().map(|order| order(left, right));
            different
                .into_iter()
                .find(|order| order.is_ne())
                .unwrap_or(Ordering::Equal)
        });
        crate::interrupt::check("sorting a dataset")?;
        Ok(self.at(&rows))
    }
}

type Order = Box<dyn Fn(usize, usize) -> Ordering>;

/// Returns how two rows of a column compare.
fn order(name: &str, values: &ArrayRef, reverse: bool, nulls: NullPlacement) -> Result<Order> {
    let data_type = values.data_type();
    if data_type.is_nested() {
        return Err(Error::ColumnType {
            name: name.to_owned(),
            operation: "sorting".to_owned(),
            expected: "numbers, text, truth values or times".to_owned(),
            found: type_name(data_type),
        });
    }
    if *data_type == DataType::Null {
        return Ok(Box::new(|_, _| Ordering::Equal));
    }
    if !data_type.is_floating() {
        let options = SortOptions {
            descending: reverse,
            nulls_first: nulls == NullPlacement::AtStart,
        };
        return Ok(make_comparator(values, values, options)?);
    }
    let values = cast(values, &DataType::Float64)?;
    let values = Float64Array::from(values.to_data());
    // What has a value, what is no number, what has none: in this order or the reverse.
    let kind = move |values: &Float64Array, row: usize| match values.is_null(row) {
        true => 2,
        false => i32::from(values.value(row).is_nan()),
    };
    Ok(Box::new(move |left, right| {
        let kinds = (kind(&values, left), kind(&values, right));
        let by_kind = match nulls {
            NullPlacement::AtStart => kinds.1.cmp(&kinds.0),
            NullPlacement::AtEnd => kinds.0.cmp(&kinds.1),
        };
        if kinds != (0, 0) {
            return by_kind;
        }
        // Both zeros are one number.
        let by_value = values.value(left).partial_cmp(&values.value(right));
        let by_value = by_value.unwrap_or(Ordering::Equal);
        match reverse {
            true => by_value.reverse(),
            false => by_value,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset() -> Dataset {
        let nan = Some(f64::NAN);
        Dataset::builder()
            .column(
                "f",
                vec![
                    Some(1.5),
                    None,
                    nan,
                    Some(-0.0),
                    Some(0.0),
                    Some(-1.0),
                    nan,
                    None,
                    Some(2.0),
                ],
            )
            .column("i", (0..9i64).collect::<Vec<_>>())
            .column(
                "s",
                vec![
                    Some("b"),
                    Some("a"),
                    None,
                    Some("é"),
                    Some("Z"),
                    Some(""),
                    Some("b"),
                    Some("a"),
                    Some("~"),
                ],
            )
            .column(
                "g",
                vec![
                    Some(true),
                    Some(false),
                    None,
                    Some(true),
                    Some(false),
                    Some(true),
                    None,
                    Some(false),
                    Some(true),
                ],
            )
            .build()
            .unwrap()
    }

    fn sorted(by: impl Into<Sort>) -> Vec<i64> {
        dataset().sort(by).unwrap().column("i").unwrap()
    }

    // Dataset.sort of datasets 5.2
    #[test]
    fn the_order_equals_that_of_datasets() {
        let first = NullPlacement::AtStart;
        assert_eq!(sorted("f"), [5, 3, 4, 0, 8, 2, 6, 1, 7]);
        assert_eq!(
            sorted(Sort::by(["f"]).reverse(true)),
            [8, 0, 3, 4, 5, 2, 6, 1, 7]
        );
        assert_eq!(
            sorted(Sort::by(["f"]).null_placement(first)),
            [1, 7, 2, 6, 5, 3, 4, 0, 8]
        );
        assert_eq!(
            sorted(Sort::by(["f"]).reverse(true).null_placement(first)),
            [1, 7, 2, 6, 8, 0, 3, 4, 5]
        );
        assert_eq!(sorted("s"), [5, 4, 1, 7, 0, 6, 8, 3, 2]);
        assert_eq!(
            sorted(Sort::by(["s"]).reverse(true)),
            [3, 8, 0, 6, 1, 7, 4, 5, 2]
        );
        assert_eq!(
            sorted(Sort::by(["g", "s"]).reverse_each([true, false])),
            [5, 0, 8, 3, 4, 1, 7, 6, 2]
        );
        assert_eq!(
            sorted(Sort::by(["g", "f"]).null_placement(first)),
            [2, 6, 1, 7, 4, 5, 3, 0, 8]
        );
        assert_eq!(sorted("g"), [1, 4, 7, 0, 3, 5, 8, 2, 6]);
    }

    #[test]
    fn a_selection_keeps_its_rows_when_sorted_and_unordered_types_are_refused() {
        let chosen = dataset().select(&[8, 0, 0, 5]).unwrap().sort("f").unwrap();
        assert_eq!(chosen.column::<i64>("i").unwrap(), [5, 0, 0, 8]);
        assert!(dataset().slice(0..0).sort("s").unwrap().is_empty());
        let lists = Dataset::builder()
            .column("l", vec![vec![1], vec![]])
            .build()
            .unwrap();
        let error = lists.sort("l").unwrap_err().to_string();
        assert!(
            error.contains("list<int32>") && error.contains("sorting"),
            "{error}"
        );
        assert!(
            dataset()
                .sort("x")
                .unwrap_err()
                .to_string()
                .contains("\"x\"")
        );
        assert!(dataset().sort(Vec::<String>::new()).is_err());
        let directions = Sort::by(["f", "s"]).reverse_each([true, false, true]);
        assert!(
            dataset()
                .sort(directions)
                .unwrap_err()
                .to_string()
                .contains("3 were given")
        );
    }
}
