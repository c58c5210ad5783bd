//! Flattens nested records into columns: `answers.text`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::compute::nullif;
use arrow::datatypes::{DataType, Field, Fields, Schema};

use super::table::{Dataset, check_unique};
use crate::Result;

impl Dataset {
    /// Turns every nested record into a column per field, named with a dot: `answers` with the field `text` becomes
    /// `answers.text`, in the place of `answers`; nested records, too. Lists are unchanged.
    pub fn flatten(&self) -> Result<Self> {
        let mut fields = Vec::new();
        flat_fields(self.schema().fields(), "", &mut fields);
        let schema = Arc::new(Schema::new(fields));
        check_unique(&schema)?;
        let flat = self.with_columns(schema, |batch| {
            let mut columns = Vec::new();
            for column in batch.columns() {
                flat_columns(column, &mut columns);
            }
            columns
        });
        Ok(flat.with_content(self.content().derive("flatten", &[])))
    }
}

fn flat_fields(fields: &Fields, prefix: &str, out: &mut Vec<Field>) {
    for field in fields {
        let name = format!("{prefix}{}", field.name());
        match field.data_type() {
            DataType::Struct(inner) => flat_fields(inner, &format!("{name}."), out),
            data_type => out.push(Field::new(name, data_type.clone(), true)),
        }
    }
}

fn flat_columns(column: &ArrayRef, out: &mut Vec<ArrayRef>) {
    let Some(record) = column.as_struct_opt() else {
        out.push(column.clone());
        return;
    };
    for child in record.columns() {
        // Where the record itself is null, so are its fields.
        let child = match record.nulls().filter(|nulls| nulls.null_count() > 0) {
            Some(nulls) => {
                let absent = BooleanArray::new(!nulls.inner(), None);
                nullif(child, &absent).unwrap_or_else(|_| child.clone())
            }
            None => child.clone(),
        };
        flat_columns(&child, out);
    }
}

#[cfg(test)]
mod tests {
    use crate::dataset::{Dataset, Loader, concatenate};

    fn load(lines: &str) -> Dataset {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, lines).unwrap();
        Loader::new(path.to_str().unwrap()).load().unwrap()["train"].clone()
    }

    #[test]
    fn nested_records_flatten_in_place_and_nulls_propagate() {
        let dataset = load(
            "{\"a\": 1, \"b\": {\"x\": {\"y\": [1], \"z\": \"t\"}, \"w\": 2}, \"c\": [{\"k\": 1}]}\n\
             {\"a\": 2, \"b\": null, \"c\": []}\n{\"a\": 3, \"b\": {\"x\": null, \"w\": 5}, \"c\": []}\n",
        );
        let flat = dataset.flatten().unwrap();
        assert_eq!(flat.column_names(), ["a", "b.x.y", "b.x.z", "b.w", "c"]);
        assert_eq!(
            flat.column::<Option<i64>>("b.w").unwrap(),
            [Some(2), None, Some(5)]
        );
        assert_eq!(
            flat.column::<Option<Vec<i64>>>("b.x.y").unwrap(),
            [Some(vec![1]), None, None]
        );
        let twice = concatenate(&[dataset.clone(), dataset])
            .unwrap()
            .select(&[4, 0])
            .unwrap();
        assert_eq!(
            twice
                .flatten()
                .unwrap()
                .column::<Option<i64>>("b.w")
                .unwrap(),
            [None, Some(2)]
        );
    }

    #[test]
    fn a_flat_dataset_is_unchanged() {
        let dataset = Dataset::builder().column("a", vec![1]).build().unwrap();
        assert_eq!(dataset.flatten().unwrap().column_names(), ["a"]);
    }

    #[test]
    fn colliding_names_are_refused() {
        let dataset = load("{\"a\": {\"b\": 1}, \"a.b\": 2}\n");
        assert!(
            dataset
                .flatten()
                .unwrap_err()
                .to_string()
                .contains("two columns named \"a.b\"")
        );
    }
}
