//! Several datasets one after the other.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};

use super::cast::cast_batch;
use super::data_type::{common, type_name};
use super::fingerprint::Hashing;
use super::table::Dataset;
use crate::{Error, Result};

/// Returns the rows of all `datasets`, one dataset after the other, without copying them.
///
/// The columns are those of all datasets, in the order in which they first come; where a dataset lacks one, its rows have
/// nulls there, as with `concatenate_datasets`. A column of nulls takes the type that the others have for it, and whole
/// numbers widen.
///
/// # Errors
/// Other differences of type, with the column and the number of the dataset, counted from 0.
///
/// ```
/// use cloze::prelude::*;
///
/// let first = Dataset::builder().column("text", vec!["a"]).build()?;
/// let second = Dataset::builder().column("text", vec!["b"]).column("score", vec![1i64]).build()?;
/// let both = concatenate(&[first, second])?;
/// assert_eq!(both.column::<String>("text")?, ["a", "b"]);
/// assert!(both.row(0)?["score"].is_null());
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn concatenate(datasets: &[Dataset]) -> Result<Dataset> {
    let [first, rest @ ..] = datasets else {
        return Err(Error::argument(
            "datasets",
            "there must be at least one dataset to concatenate",
        ));
    };
    if rest.is_empty() {
        return Ok(first.clone());
    }
    let mut fields: Vec<Field> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (i, dataset) in datasets.iter().enumerate() {
        for other in dataset.schema().fields() {
            let Some(&place) = places.get(other.name()) else {
                places.insert(other.name().clone(), fields.len());
                fields.push(Field::new(other.name(), other.data_type().clone(), true));
                continue;
            };
            let field = &mut fields[place];
            let data_type =
                common(field.data_type(), other.data_type()).ok_or_else(|| Error::ColumnType {
                    name: field.name().clone(),
                    operation: "concatenating".to_owned(),
                    expected: format!(
                        "{} as in the datasets before it",
                        type_name(field.data_type())
                    ),
                    found: format!("{} in dataset {i}", type_name(other.data_type())),
                })?;
            *field = Field::new(field.name(), data_type, true);
        }
    }
    let schema = Arc::new(Schema::new(fields));
    let mut hashing = Hashing::new("concatenate");
    let mut batches = Vec::new();
    let mut indices = Vec::new();
    let mut offset = 0;
    for dataset in datasets {
        hashing.part(dataset.content().as_bytes());
        let rows: usize = dataset.batches().iter().map(|batch| batch.num_rows()).sum();
        match dataset.indices() {
            Some(selected) => indices.extend(selected.iter().map(|&row| offset + row)),
            None => indices.extend(offset..offset + rows),
        }
        offset += rows;
        for batch in dataset.batches() {
            batches.push(cast_batch(batch, &schema)?);
        }
    }
    let content = hashing.finish();
    let origin = first
        .origin()
        .filter(|origin| rest.iter().all(|other| other.origin() == Some(origin)));
    let all = Dataset::from_parts(schema, batches, content).with_origin(origin);
    if datasets.iter().any(|dataset| dataset.indices().is_some()) {
        return Ok(all.with_indices(indices.into(), content));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_concatenated_and_selections_kept() {
        let a = Dataset::builder()
            .column("n", vec![1i64, 2, 3])
            .build()
            .unwrap();
        let b = Dataset::builder()
            .column("n", vec![4i64, 5])
            .build()
            .unwrap();
        let all = concatenate(&[a.select(&[2, 0]).unwrap(), b.clone(), a]).unwrap();
        assert_eq!(all.column::<i64>("n").unwrap(), [3, 1, 4, 5, 1, 2, 3]);
        assert_eq!(concatenate(&[b]).unwrap().len(), 2);
        assert!(concatenate(&[]).is_err());
    }

    #[test]
    fn missing_columns_are_filled_with_nulls() {
        let a = Dataset::builder().column("n", vec![1i64]).build().unwrap();
        let b = Dataset::builder()
            .column("m", vec!["x", "y"])
            .column("n", vec![2i64, 3])
            .build()
            .unwrap();
        for (datasets, names) in [([&a, &b], ["n", "m"]), ([&b, &a], ["m", "n"])] {
            let all = concatenate(&datasets.map(Clone::clone)).unwrap();
            assert_eq!(all.column_names(), names);
            assert_eq!(all.len(), 3);
            let texts = all.column::<Option<String>>("m").unwrap();
            assert_eq!(texts.iter().flatten().count(), 2);
        }
    }

    #[test]
    fn conflicting_types_are_named() {
        let a = Dataset::builder().column("n", vec![1i64]).build().unwrap();
        let c = Dataset::builder().column("n", vec!["x"]).build().unwrap();
        let d = Dataset::builder()
            .column("n", vec![Some(1.5)])
            .build()
            .unwrap();
        let text = concatenate(&[a.clone(), c]).unwrap_err().to_string();
        assert_eq!(
            text,
            "column \"n\" holds string in dataset 1, but concatenating needs int64 as in the datasets before it"
        );
        assert_eq!(
            concatenate(&[a, d]).unwrap().column::<f64>("n").unwrap(),
            [1.0, 1.5]
        );
    }
}
