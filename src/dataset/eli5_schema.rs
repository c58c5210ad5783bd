//! The columns of ELI5.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use super::data_type::list_of;

/// Returns the schema of ELI5, as the Python guide shows it, field by field.
pub fn eli5_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let texts = |name: &str| Field::new(name, list_of(DataType::Utf8), true);
    let record = |name: &str, fields: Vec<Field>| {
        Field::new(name, DataType::Struct(Fields::from(fields)), true)
    };
    let answers = vec![
        texts("a_id"),
        texts("text"),
        Field::new("score", list_of(DataType::Int32), true),
    ];
    Arc::new(Schema::new(vec![
        text("q_id"),
        text("title"),
        text("selftext"),
        text("document"),
        text("subreddit"),
        record("answers", answers),
        record("title_urls", vec![texts("url")]),
        record("selftext_urls", vec![texts("url")]),
        record("answers_urls", vec![texts("url")]),
    ]))
}
