//! Tables, questions and their numbers as few write them.

use std::path::Path;

use cloze::tokenizer::EncodeOptions;
use serde_json::{Value, json};

/// Compares ids and the seven numbers of each token with those of transformers. `odd_tables.py` made the file.
#[test]
fn odd_tables_have_the_ids_and_numbers_of_transformers() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/odd_tables.json");
    let tables: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let tokenizer = super::fixture("tapas");
    let mut report = super::Report::default();
    for table in tables.as_array().unwrap() {
        let (header, rows, question) = super::table_of(table);
        for (limit, theirs) in table["encoded"].as_object().unwrap() {
            let options = match limit.parse().unwrap() {
                0 => EncodeOptions::new(),
                limit => EncodeOptions::new().truncation(limit),
            };
            let ours = match tokenizer.encode_table(&header, &rows, question, &options) {
                Ok(ours) => {
                    let types: Vec<&[i64]> =
                        ours.extra["token_type_ids"].values.chunks(7).collect();
                    json!({"ids": ours.ids, "types": types})
                }
                Err(_) => json!({"fails": true}),
            };
            let what = format!("{header:?} {rows:?} {question:?} {limit}");
            report.check(&what, &ours, theirs);
        }
    }
    report.finish();
}
