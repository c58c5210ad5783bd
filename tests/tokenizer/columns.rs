//! Columns of a dataset that become columns of ids.

use cloze::prelude::*;

use super::fixture;

#[test]
fn additional_inputs_become_columns() {
    let tokenizer = fixture("roc_bert");
    let texts = ["zhir betquoul", "[MASK] gai", ""];
    let dataset = Dataset::builder()
        .column("text", texts.to_vec())
        .build()
        .unwrap();
    let function = tokenizer
        .tokenize_column("text")
        .return_special_tokens_mask(true);
    let map = Map::new(function).batched().remove_columns(["text"]);
    let tokenized = dataset.map(map).unwrap();
    assert_eq!(
        tokenized.column_names(),
        [
            "input_ids",
            "attention_mask",
            "input_shape_ids",
            "input_pronunciation_ids",
            "special_tokens_mask"
        ]
    );
    for name in ["input_shape_ids", "input_pronunciation_ids"] {
        let rows = tokenized.column::<Vec<u32>>(name).unwrap();
        for (row, text) in rows.iter().zip(texts) {
            let row: Vec<i64> = row.iter().map(|number| i64::from(*number)).collect();
            assert_eq!(
                row,
                tokenizer.encode(text).unwrap().extra[name].values,
                "{text:?}"
            );
        }
    }
    let ids = tokenized.column::<Vec<u32>>("input_ids").unwrap();
    assert_eq!(ids[1], tokenizer.encode(texts[1]).unwrap().ids);
}
