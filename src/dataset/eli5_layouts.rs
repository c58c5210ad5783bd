//! The layouts that ELI5 has had since it was first published, converted to the original one: that of
//! `eli5_category`, where the data lives today; tables that were flattened; answers as a list of records.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};

use super::eli5_schema::eli5_schema;
use super::table::Dataset;
use crate::{Error, Result};

/// The splits of the original, and what mirrors call them, the likeliest first.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train_asks", &["train"]),
    ("validation_asks", &["validation", "validation1", "valid"]),
    ("test_asks", &["test"]),
];

/// The columns, or beginnings of columns, that no layout is without.
const NEEDED: [&str; 4] = ["q_id", "title", "subreddit", "answers"];

/// Returns the name, among the splits `available`, of the split called `asked` in the original.
pub(super) fn split_of(asked: &str, available: &[&str]) -> Option<&'static str> {
    if available.contains(&asked) {
        return None;
    }
    let (_, names) = SPLITS.iter().find(|(original, _)| *original == asked)?;
    let mut known = names.iter().copied();
    known.find(|name| available.contains(name))
}

/// Returns the rows of `dataset`, loaded as `name`, with the columns of the original; what was not as there is said.
pub(super) fn to_original(dataset: &Dataset, name: &str) -> Result<Dataset> {
    let names = dataset.column_names();
    let is_original = eli5_schema().fields().iter().all(|wanted| {
        let found = dataset.schema().field_with_name(wanted.name());
        found.is_ok_and(|found| {
            matches!(found.data_type(), DataType::Struct(_))
                == matches!(wanted.data_type(), DataType::Struct(_))
        })
    });
    if is_original {
        return Ok(dataset.clone());
    }
    let stem = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let stems: Vec<String> = names.iter().map(|name| stem(name)).collect();
    if let Some(missing) = NEEDED
        .iter()
        .find(|&needed| !stems.iter().any(|stem| stem == needed))
    {
        return Err(Error::MissingColumn {
            name: (*missing).to_owned(),
            available: names,
        });
    }
    let rows = dataset.record_batches(8192)?;
    let batches = rows
        .iter()
        .map(original_columns)
        .collect::<Result<Vec<_>>>()?;
    let Some(first) = batches.first() else {
        return Ok(dataset.clone());
    };
    let schema = first.schema();
    let quoted = |names: Vec<&str>| {
        let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        quoted.join(", ")
    };
    let has_urls = answer_urls(&rows[0]).is_some();
    let made: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .filter(|made| {
            !(stems.iter().any(|stem| stem == made) || has_urls && *made == "answers_urls")
        })
        .collect();
    let left_out: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|column| eli5_schema().field_with_name(&stem(column)).is_err())
        .collect();
    let mut changes = Vec::new();
    if !made.is_empty() {
        changes.push(format!("{} left empty", quoted(made)));
    }
    if !left_out.is_empty() {
        changes.push(format!("{} left out", quoted(left_out)));
    }
    if has_urls {
        changes.push("the answers' `text_urls` taken for `answers_urls`".to_owned());
    }
    eprintln!(
        "note: {name} was converted to the layout of the original ELI5{}{}",
        if changes.is_empty() { "" } else { ": " },
        changes.join(", ")
    );
    let made = Dataset::from_batches(&schema, batches.clone())?;
    Ok(made.with_origin(dataset.origin()))
}

/// Returns the columns of the original, as far as they can be derived.
fn original_columns(batch: &RecordBatch) -> Result<RecordBatch> {
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    for name in ["q_id", "title", "selftext", "document", "subreddit"] {
        match batch.column_by_name(name) {
            Some(column) => columns.push((name, column.clone())),
            // What a question may well be without.
            None if name == "document" || name == "selftext" => {
                let empty: ArrayRef = Arc::new(StringArray::from(vec![""; batch.num_rows()]));
                columns.push((name, empty));
            }
            None => {}
        }
    }
    columns.extend(record(batch, "answers")?.map(|answers| ("answers", answers)));
    for name in ["title_urls", "selftext_urls", "answers_urls"] {
        let column = match record(batch, name)? {
            Some(found) => found,
            None => match answer_urls(batch).filter(|_| name == "answers_urls") {
                Some(urls) => flattened(&urls)?,
                None => no_urls(batch.num_rows())?,
            },
        };
        columns.push((name, as_urls(column)?));
    }
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )?)
}

/// Returns the column `name` as a record of lists: unchanged, from columns called `name.field`, or from a list of
/// records.
fn record(batch: &RecordBatch, name: &str) -> Result<Option<ArrayRef>> {
    if let Some(column) = batch.column_by_name(name) {
        return of_lists(column).map(Some);
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let inner = field.name().strip_prefix(name);
        if let Some(inner) = inner.and_then(|rest| rest.strip_prefix('.')) {
            fields.push(Field::new(inner, field.data_type().clone(), true));
            columns.push(column.clone());
        }
    }
    if fields.is_empty() {
        return Ok(None);
    }
    let record = StructArray::try_new(fields.into(), columns, None)?;
    Ok(Some(Arc::new(record)))
}

/// Converts a list of records to a record of lists, as in the original; returns anything else unchanged.
fn of_lists(column: &ArrayRef) -> Result<ArrayRef> {
    let Some(list) = column.as_list_opt::<i32>() else {
        return Ok(column.clone());
    };
    let Some(records) = list.values().as_struct_opt() else {
        return Ok(column.clone());
    };
    let (mut fields, mut columns) = (Vec::new(), Vec::<ArrayRef>::new());
    for (field, values) in records.fields().iter().zip(records.columns()) {
        let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
        let lists = ListArray::try_new(
            item,
            list.offsets().clone(),
            values.clone(),
            list.nulls().cloned(),
        )?;
        fields.push(Field::new(field.name(), lists.data_type().clone(), true));
        columns.push(Arc::new(lists));
    }
    Ok(Arc::new(StructArray::try_new(
        fields.into(),
        columns,
        None,
    )?))
}

/// Returns the URLs of the answers, if they are stored next to the answers' texts, as lists of lists.
fn answer_urls(batch: &RecordBatch) -> Option<ArrayRef> {
    let answers = record(batch, "answers").ok()??;
    answers
        .as_struct_opt()?
        .column_by_name("text_urls")
        .cloned()
}

/// Returns a list as the record with the one field `url` that the original has.
fn as_urls(column: ArrayRef) -> Result<ArrayRef> {
    if matches!(column.data_type(), DataType::Struct(_)) {
        return Ok(column);
    }
    let field = Field::new("url", column.data_type().clone(), true);
    Ok(Arc::new(StructArray::try_new(
        vec![field].into(),
        vec![column],
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
    use arrow::array::{ListBuilder, StringBuilder};
    use serde_json::json;

    use super::*;

    #[test]
    fn urls_of_all_answers_are_merged_into_one_list() {
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

    #[test]
    fn splits_are_found_under_the_mirrors_names() {
        let today = ["train", "validation1", "validation2", "test"];
        assert_eq!(split_of("train_asks", &today), Some("train"));
        assert_eq!(split_of("validation_asks", &today), Some("validation1"));
        assert_eq!(split_of("train", &today), None, "it is called so");
        assert_eq!(split_of("train_eli5", &today), None, "another subreddit");
        assert_eq!(split_of("train_asks", &["train_asks", "train"]), None);
    }

    /// Every equivalent layout becomes the same table.
    #[test]
    fn all_layouts_convert_to_the_original() {
        let original = json!({
            "q_id": "1", "title": "Why?", "selftext": "", "document": "", "subreddit": "askscience",
            "answers": {"a_id": ["a", "b"], "text": ["Because.", "No."], "score": [5, -1]},
            "title_urls": {"url": ["u"]}, "selftext_urls": {"url": ["v"]}, "answers_urls": {"url": ["w"]},
        });
        let category = json!({
            "q_id": "1", "title": "Why?", "selftext": "", "category": "Physics", "subreddit": "askscience",
            "answers": {
                "a_id": ["a", "b"], "text": ["Because.", "No."], "score": [5, -1], "text_urls": [["w"], []],
            },
            "title_urls": ["u"], "selftext_urls": ["v"],
        });
        let flattened = json!({
            "q_id": "1", "title": "Why?", "selftext": "", "category": "Physics", "subreddit": "askscience",
            "answers.a_id": ["a", "b"], "answers.text": ["Because.", "No."], "answers.score": [5, -1],
            "answers.text_urls": [["w"], []], "title_urls": ["u"], "selftext_urls": ["v"],
        });
        let records = json!({
            "q_id": "1", "title": "Why?", "document": "", "subreddit": "askscience",
            "answers": [
                {"a_id": "a", "text": "Because.", "score": 5}, {"a_id": "b", "text": "No.", "score": -1},
            ],
            "title_urls": ["u"], "selftext_urls": ["v"], "answers_urls": ["w"],
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eli5.jsonl");
        let load = |row: &serde_json::Value| {
            std::fs::write(&path, format!("{row}\n{row}\n")).unwrap();
            super::super::load_eli5_from(path.to_str().unwrap(), "train_asks").unwrap()
        };
        let expected = load(&original);
        assert_eq!(expected.schema(), &eli5_schema());
        for layout in [category, flattened, records] {
            let loaded = load(&layout);
            assert_eq!(loaded.schema(), &eli5_schema(), "{layout}");
            let row = |dataset: &Dataset| format!("{:?}", dataset.row(1).unwrap());
            assert_eq!(row(&loaded), row(&expected), "{layout}");
        }
    }
}
