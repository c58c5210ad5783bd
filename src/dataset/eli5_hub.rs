//! ELI5 as the Hub has it today (`dany0407/eli5_category` and its kin), brought to the schema of the original.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};

use super::load::Loader;
use super::table::Dataset;
use crate::Result;
use crate::hub::HubDataset;

/// The splits of the original, and what they are called where the data lives today.
const TODAY: [(&str, &str); 3] = [
    ("train_asks", "train"),
    ("validation_asks", "validation1"),
    ("test_asks", "test"),
];

/// The part `split` of an ELI5 on the Hub, in the columns of the original as far as they were found.
pub(super) fn load(
    loader: &Loader,
    dataset: &HubDataset,
    name: &str,
    split: &str,
) -> Result<Dataset> {
    let available = dataset.splits().unwrap_or_default();
    let rename = |asked: &str| {
        let today = TODAY
            .iter()
            .find(|(original, _)| *original == asked)
            .map(|(_, today)| *today);
        match today.filter(|today| !available.contains(&asked) && available.contains(today)) {
            Some(today) => {
                eprintln!("note: {name} has no split {asked:?}; its {today:?} is used");
                today.to_owned()
            }
            None => asked.to_owned(),
        }
    };
    let part = loader.part_of(dataset, split, &rename)?;
    if part
        .column_names()
        .iter()
        .any(|column| column == "document")
    {
        return Ok(part);
    }
    eprintln!(
        "note: {name} has the fields of eli5_category: `document` is left empty, `category` is left out, and the answers' \
         URLs become `answers_urls`"
    );
    let rows = part.record_batches(8192)?;
    let batches = rows
        .iter()
        .map(original_columns)
        .collect::<Result<Vec<_>>>()?;
    match batches.first() {
        Some(first) => Dataset::from_batches(&first.schema(), batches.clone()),
        None => Ok(part),
    }
}

/// The columns of the original, made from those of today.
fn original_columns(batch: &RecordBatch) -> Result<RecordBatch> {
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    for name in ["q_id", "title", "selftext", "subreddit", "answers"] {
        if let Some(column) = batch.column_by_name(name) {
            columns.push((name, column.clone()));
        }
    }
    let empty: ArrayRef = Arc::new(StringArray::from(vec![""; batch.num_rows()]));
    columns.push(("document", empty));
    for name in ["title_urls", "selftext_urls"] {
        if let Some(column) = batch.column_by_name(name) {
            columns.push((name, as_urls(column)?));
        }
    }
    let answers = batch
        .column_by_name("answers")
        .filter(|column| matches!(column.data_type(), DataType::Struct(_)));
    let urls = answers.and_then(|answers| answers.as_struct().column_by_name("text_urls").cloned());
    let urls = match urls {
        Some(urls) => flattened(&urls)?,
        None => no_urls(batch.num_rows())?,
    };
    columns.push(("answers_urls", as_urls(&urls)?));
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )?)
}

/// A list as the record with the one field `url` that the original has.
fn as_urls(column: &ArrayRef) -> Result<ArrayRef> {
    if matches!(column.data_type(), DataType::Struct(_)) {
        return Ok(column.clone());
    }
    let field = Field::new("url", column.data_type().clone(), true);
    Ok(Arc::new(StructArray::try_new(
        vec![field].into(),
        vec![column.clone()],
        None,
    )?))
}

/// Lists of lists as the lists of what is in them.
fn flattened(column: &ArrayRef) -> Result<ArrayRef> {
    let Some(outer) = column.as_list_opt::<i32>() else {
        return no_urls(column.len());
    };
    let Some(inner) = outer.values().as_list_opt::<i32>() else {
        return Ok(column.clone());
    };
    // A null among the inner lists spans no values, so offsets of offsets are all there is to it.
    let offsets: Vec<i32> = outer
        .offsets()
        .iter()
        .map(|&offset| inner.offsets()[offset as usize])
        .collect();
    let field = Arc::new(Field::new_list_field(inner.value_type(), true));
    let offsets = OffsetBuffer::new(offsets.into());
    Ok(Arc::new(ListArray::try_new(
        field,
        offsets,
        inner.values().clone(),
        outer.nulls().cloned(),
    )?))
}

/// Empty lists, one for each row.
fn no_urls(rows: usize) -> Result<ArrayRef> {
    let field = Arc::new(Field::new_list_field(DataType::Utf8, true));
    let values: ArrayRef = Arc::new(StringArray::from(Vec::<&str>::new()));
    Ok(Arc::new(ListArray::try_new(
        field,
        OffsetBuffer::new_zeroed(rows),
        values,
        None,
    )?))
}

#[cfg(test)]
mod tests {
    use arrow::array::ListBuilder;
    use arrow::array::StringBuilder;

    use super::*;

    #[test]
    fn urls_of_all_answers_become_one_list() {
        let mut builder = ListBuilder::new(ListBuilder::new(StringBuilder::new()));
        for answers in [vec![vec!["a", "b"], vec![]], vec![], vec![vec!["c"]]] {
            for urls in answers {
                for url in urls {
                    builder.values().values().append_value(url);
                }
                builder.values().append(true);
            }
            builder.append(true);
        }
        let nested: ArrayRef = Arc::new(builder.finish());
        let flat = flattened(&nested).unwrap();
        let lists: Vec<Vec<String>> = flat
            .as_list::<i32>()
            .iter()
            .map(|list| {
                let list = list.unwrap();
                list.as_string::<i32>()
                    .iter()
                    .map(|url| url.unwrap().to_owned())
                    .collect()
            })
            .collect();
        assert_eq!(lists, [vec!["a", "b"], vec![], vec!["c"]]);
    }
}
