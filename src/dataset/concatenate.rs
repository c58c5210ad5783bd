//! Several datasets one after the other.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};

use super::cast::cast_batch;
use super::data_type::{common, type_name};
use super::fingerprint::Hashing;
use super::table::Dataset;
use crate::{Error, Result};

/// The rows of all `datasets`, one dataset after the other, without copying them.
///
/// All must have the same columns (in any order, the first one's counts). A column of nulls takes the type that the
/// others have for it, and whole numbers widen; other differences of type are an error.
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
    let mut fields: Vec<Field> = first
        .schema()
        .fields()
        .iter()
        .map(|f| f.as_ref().clone())
        .collect();
    for (i, dataset) in rest.iter().enumerate() {
        for name in dataset.column_names() {
            first.position(&name)?;
        }
        for field in &mut fields {
            let other = dataset
                .schema()
                .field(dataset.position(field.name())?)
                .data_type();
            let data_type = common(field.data_type(), other).ok_or_else(|| Error::ColumnType {
                name: field.name().clone(),
                operation: "concatenating".to_owned(),
                expected: format!(
                    "{} as in the datasets before it",
                    type_name(field.data_type())
                ),
                found: format!("{} in dataset {}", type_name(other), i + 1),
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
    fn rows_follow_each_other_and_selections_stay() {
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
    fn other_columns_or_types_are_named() {
        let a = Dataset::builder().column("n", vec![1i64]).build().unwrap();
        let b = Dataset::builder().column("m", vec![1i64]).build().unwrap();
        let c = Dataset::builder().column("n", vec!["x"]).build().unwrap();
        let d = Dataset::builder()
            .column("n", vec![Some(1.5)])
            .build()
            .unwrap();
        assert!(
            matches!(concatenate(&[a.clone(), b]), Err(Error::MissingColumn { name, .. }) if name == "m")
        );
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
