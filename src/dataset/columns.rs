//! Renaming, removing and choosing columns: no row is touched.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};

use super::table::{Dataset, check_unique};
use crate::Result;

impl Dataset {
    /// Returns the dataset without the columns `names`.
    pub fn remove_columns<S: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let mut removed = vec![false; self.schema().fields().len()];
        for name in names {
            removed[self.position(name.as_ref())?] = true;
        }
        let kept: Vec<usize> = (0..removed.len()).filter(|&i| !removed[i]).collect();
        Ok(self.keep(&kept))
    }

    /// Returns the dataset with only the columns `names`, in that order.
    pub fn select_columns<S: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let positions = names
            .into_iter()
            .map(|name| self.position(name.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        let kept = self.keep(&positions);
        check_unique(kept.schema())?;
        Ok(kept)
    }

    fn keep(&self, positions: &[usize]) -> Self {
        let kept = self.project(positions);
        let names = kept.column_names().join("\0");
        let content = self.content().derive("select_columns", &[names.as_bytes()]);
        kept.with_content(content)
    }

    /// Returns the dataset with the column `old` named `new`.
    pub fn rename_column(&self, old: &str, new: &str) -> Result<Self> {
        self.rename_columns([(old, new)])
    }

    /// Returns the dataset with the columns renamed from the first to the second name of each pair.
    pub fn rename_columns<A: AsRef<str>, B: Into<String>>(
        &self,
        names: impl IntoIterator<Item = (A, B)>,
    ) -> Result<Self> {
        let mut renamed = self.column_names();
        for (old, new) in names {
            renamed[self.position(old.as_ref())?] = new.into();
        }
        let fields: Vec<Field> = self
            .schema()
            .fields()
            .iter()
            .zip(&renamed)
            .map(|(field, name)| field.as_ref().clone().with_name(name))
            .collect();
        let schema = Arc::new(Schema::new(fields));
        check_unique(&schema)?;
        let content = self
            .content()
            .derive("rename_columns", &[renamed.join("\0").as_bytes()]);
        let dataset = self.with_columns(schema, |batch| batch.columns().to_vec());
        Ok(dataset.with_content(content))
    }
}

#[cfg(test)]
mod tests {
    use crate::dataset::Dataset;

    fn sample() -> Dataset {
        Dataset::builder()
            .column("a", vec![1, 2])
            .column("b", vec!["x", "y"])
            .column("c", vec![1.5, 2.5])
            .build()
            .unwrap()
    }

    #[test]
    fn columns_are_renamed_removed_and_selected() {
        let dataset = sample();
        assert_eq!(
            dataset.rename_column("b", "text").unwrap().column_names(),
            ["a", "text", "c"]
        );
        assert_eq!(
            dataset
                .rename_columns([("a", "b"), ("b", "a")])
                .unwrap()
                .column_names(),
            ["b", "a", "c"]
        );
        assert_eq!(
            dataset.remove_columns(["a", "c"]).unwrap().column_names(),
            ["b"]
        );
        let chosen = dataset.select_columns(["c", "a"]).unwrap();
        assert_eq!(chosen.column_names(), ["c", "a"]);
        assert_eq!(chosen.column::<i64>("a").unwrap(), [1, 2]);
    }

    #[test]
    fn a_dataset_without_columns_keeps_its_rows() {
        let rows = sample().remove_columns(["a", "b", "c"]).unwrap();
        assert_eq!(rows.len(), 2);
        assert!(rows.row(1).unwrap().is_empty());
        assert_eq!(rows.shuffle(1).unwrap().batch(0..2).unwrap().len(), 2);
    }

    #[test]
    fn a_missing_column_lists_the_existing_ones() {
        let error = sample().remove_columns(["a", "title"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no column \"title\"; the columns are a, b, c"
        );
    }

    #[test]
    fn duplicate_column_names_are_refused() {
        assert!(
            sample()
                .rename_column("a", "b")
                .unwrap_err()
                .to_string()
                .contains("two columns named \"b\"")
        );
        assert!(sample().select_columns(["a", "a"]).is_err());
    }
}
