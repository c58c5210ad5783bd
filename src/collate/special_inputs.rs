//! Tests that masking hides a family's additional inputs, from the tokenizer's files to the batch.

use std::path::{Path, PathBuf};

use super::{BatchKey, DataLoader, Example, IGNORED, MaskingCollator, MlmBatch};
use crate::dataset::{Dataset, Map};
use crate::model::{Config, MaskedLm};
use crate::tokenizer::{EncodeOptions, Tokenizer};

fn tokenizer(name: &str) -> Tokenizer {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder: PathBuf = root.join("tests/fixtures/guide/tokenizers").join(name);
    Tokenizer::from_path(folder).unwrap()
}

fn column<'a>(batch: &'a MlmBatch, name: &str) -> &'a [i64] {
    batch.columns[name].as_ids(name).unwrap()
}

#[test]
fn shapes_and_pronunciations_do_not_reveal_masked_characters() {
    let tokenizer = tokenizer("roc_bert");
    let mask = tokenizer.mask_token_id().unwrap();
    let words: Vec<String> = (0..tokenizer.len() as u32)
        .filter_map(|id| tokenizer.id_to_token(id))
        .filter(|token| token.chars().count() == 1 && token.chars().all(char::is_alphanumeric))
        .collect();
    let texts: Vec<String> = words.chunks(6).map(|words| words.concat()).collect();
    let dataset = Dataset::builder().column("text", texts).build().unwrap();
    let map = Map::new(tokenizer.tokenize_column("text")).batched();
    let dataset = dataset
        .map(map.remove_columns(["text"]).cache(false))
        .unwrap();
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.4);
    let plain = collator.clone().mlm_probability(0.0);
    let plain = DataLoader::new(dataset.clone(), plain, 8).unwrap();
    let plain: Vec<MlmBatch> = plain.epoch(0).map(Result::unwrap).collect();
    let alone = tokenizer.encode(tokenizer.mask_token().unwrap()).unwrap();
    let at = alone.ids.iter().position(|&id| id == mask).unwrap();
    let config = Config::small("roc_bert").set("vocab_size", tokenizer.len());
    let model = MaskedLm::from_config(&config, 1).unwrap();
    for collator in [
        collator.clone(),
        collator
            .clone()
            .mask_replace_prob(0.0)
            .random_replace_prob(1.0),
        collator.clone().whole_word_mask(true),
        collator.span_mask(0.2, 3),
    ] {
        let loader = DataLoader::new(dataset.clone(), collator, 8).unwrap();
        let (mut masked, mut told) = (0, 0);
        for (batch, whole) in loader.epoch(0).zip(&plain) {
            let batch = batch.unwrap();
            for name in ["input_shape_ids", "input_pronunciation_ids"] {
                let hidden = alone.extra[name].values[at];
                let (now, before) = (column(&batch, name), column(whole, name));
                for (place, &label) in batch.labels.iter().enumerate() {
                    if label == IGNORED || i64::from(batch.input_ids[place]) == label {
                        assert_eq!(now[place], before[place]);
                    } else {
                        assert_eq!(now[place], hidden);
                        masked += 1;
                        told += usize::from(before[place] != hidden);
                    }
                }
            }
            // And the model takes the batch.
            model.forward(&batch).unwrap();
        }
        assert!(
            masked > 20 && told > 10,
            "{masked} masked, {told} of which had values of their own"
        );
    }
}

#[test]
fn masked_words_of_a_table_keep_their_cells() {
    let tokenizer = tokenizer("tapas");
    let words: Vec<String> = (0..tokenizer.len() as u32)
        .filter_map(|id| tokenizer.id_to_token(id))
        .filter(|token| token.len() > 2 && token.chars().all(|c| c.is_ascii_lowercase()))
        .take(12)
        .collect();
    let cells: Vec<Vec<&str>> = words[4..]
        .chunks(2)
        .map(|pair| vec![pair[0].as_str(), pair[1].as_str()])
        .collect();
    let header = [words[0].as_str(), words[1].as_str()];
    let encoding = tokenizer
        .encode_table(&header, &cells, &words[2], &EncodeOptions::new())
        .unwrap();
    let example = Example::from(&encoding);
    let (mut in_cells, mut in_question) = (0, 0);
    for whole_words in [false, true] {
        let collator = MaskingCollator::new(&tokenizer)
            .mlm_probability(0.5)
            .whole_word_mask(whole_words);
        for epoch in 0..20 {
            let batch = collator
                .collate(std::slice::from_ref(&example), BatchKey::new(epoch, 0))
                .unwrap();
            let types = column(&batch, "token_type_ids");
            assert_eq!(
                types,
                example.columns["token_type_ids"]
                    .as_ids("token_type_ids")
                    .unwrap()
            );
            for (place, &label) in batch.labels.iter().enumerate() {
                if label == IGNORED {
                    assert_eq!(batch.input_ids[place], example.input_ids[place]);
                    continue;
                }
                assert_eq!(label, i64::from(example.input_ids[place]));
                assert_eq!(encoding.special_tokens_mask[place], 0);
                match types[7 * place] {
                    1 => in_cells += 1,
                    _ => in_question += 1,
                }
            }
            let config = Config::small("tapas").set("vocab_size", tokenizer.len());
            let model = MaskedLm::from_config(&config, 1).unwrap();
            if batch.counted_tokens() > 0 && epoch == 0 {
                let loss = model.loss(&batch, &crate::model::Context::eval()).unwrap();
                assert!(loss.value().unwrap().is_finite());
            }
        }
    }
    assert!(
        in_cells > 50 && in_question > 5,
        "{in_cells} in cells, {in_question} in the question"
    );
}

#[test]
fn masked_entities_have_their_ids_as_labels() {
    let tokenizer = tokenizer("luke");
    let titles: Vec<String> = {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(
            root.join("tests/fixtures/guide/tokenizers/luke/entity_vocab.json"),
        );
        let vocabulary: std::collections::BTreeMap<String, u32> =
            serde_json::from_str(&text.unwrap()).unwrap();
        vocabulary
            .into_keys()
            .filter(|title| !title.starts_with('['))
            .collect()
    };
    let rows = 24;
    let dataset = Dataset::builder()
        .column("text", vec!["alpha beta gamma"; rows])
        .column(
            "spans",
            vec![vec![vec![0i64, 5], vec![6, 10], vec![11, 16]]; rows],
        )
        .column(
            "titles",
            vec![
                vec![
                    titles[0].as_str(),
                    titles[titles.len() - 1].as_str(),
                    "no such title"
                ];
                rows
            ],
        )
        .build()
        .unwrap();
    let map = Map::new(
        tokenizer
            .tokenize_entities("text", "spans")
            .titles("titles"),
    )
    .batched();
    let dataset = dataset
        .map(map.remove_columns(["text", "spans", "titles"]).cache(false))
        .unwrap();
    let ids: Vec<Vec<i64>> = dataset.column("entity_ids").unwrap();
    let special = tokenizer.special_entities().unwrap();
    assert_eq!(
        ids[0][0],
        i64::from(tokenizer.entity_id(&titles[0]).unwrap())
    );
    assert_eq!(ids[0][2], i64::from(special.unknown));
    let collator = MaskingCollator::new(&tokenizer).entity_mask_probability(0.5);
    let mut masked = 0;
    for batch in DataLoader::new(dataset.clone(), collator.clone(), 6)
        .unwrap()
        .epoch(0)
    {
        let batch = batch.unwrap();
        let (now, labels) = (
            column(&batch, "entity_ids"),
            column(&batch, "entity_labels"),
        );
        for (place, (&id, &label)) in now.iter().zip(labels).enumerate() {
            let own = ids[0][place % 3];
            match label {
                IGNORED => assert_eq!(id, own),
                label => {
                    assert_eq!((label, id), (own, i64::from(special.mask)));
                    masked += 1;
                }
            }
            assert!(
                place % 3 < 2 || label == IGNORED,
                "what is unknown has no label"
            );
        }
        let config = Config::small("luke")
            .set("vocab_size", tokenizer.len())
            .set("entity_vocab_size", titles.len() + 10);
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let loss = model.loss(&batch, &crate::model::Context::eval()).unwrap();
        assert_eq!(loss.terms.len(), 2);
        assert!(loss.value().unwrap().is_finite());
    }
    // 48 entities that are known, each with probability one half.
    assert!((12..=36).contains(&masked), "{masked}");
    let never = collator.entity_mask_probability(0.0);
    let batch = DataLoader::new(dataset, never, 6)
        .unwrap()
        .epoch(0)
        .next()
        .unwrap()
        .unwrap();
    assert!(
        column(&batch, "entity_labels")
            .iter()
            .all(|&label| label == IGNORED)
    );
}

#[test]
fn texts_with_and_without_entities_fit_in_one_batch() {
    let tokenizer = tokenizer("luke");
    let texts = vec!["alpha beta", "gamma", ""];
    let batch = |spans: Vec<Vec<Vec<i64>>>| {
        let dataset = Dataset::builder()
            .column("text", texts.clone())
            .column("spans", spans)
            .build()
            .unwrap();
        let map = Map::new(tokenizer.tokenize_entities("text", "spans")).batched();
        let dataset = dataset
            .map(map.remove_columns(["text", "spans"]).cache(false))
            .unwrap();
        let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
        let loader = DataLoader::new(dataset, collator, 3).unwrap();
        loader.epoch(0).next().unwrap().unwrap()
    };
    let config = Config::small("luke")
        .set("vocab_size", tokenizer.len())
        .set("entity_vocab_size", 1000);
    let model = MaskedLm::from_config(&config, 1).unwrap();
    let some = batch(vec![
        vec![vec![0, 5], vec![6, 10]],
        vec![vec![0, 5]],
        vec![],
    ]);
    assert_eq!(some.columns["entity_ids"].shape, [3, 2]);
    assert_eq!(column(&some, "entity_attention_mask"), [1, 1, 1, 0, 0, 0]);
    let none = batch(vec![vec![]; 3]);
    for batch in [some, none] {
        let logits = model.forward(&batch).unwrap();
        assert_eq!(logits.dims(), [3, batch.seq, tokenizer.len()]);
        if batch.counted_tokens() > 0 {
            let loss = model.loss(&batch, &crate::model::Context::eval()).unwrap();
            assert!(loss.value().unwrap().is_finite());
        }
    }
}

#[test]
fn pages_with_boxes_become_batches_for_the_model() {
    let tokenizer =
        Tokenizer::train_wordpiece(["invoice total sum of it", "invoice total sum"], 60, true)
            .unwrap();
    let pages = Dataset::builder()
        .column(
            "words",
            vec![vec!["invoice", "total"], vec!["sum", "of", "it"]],
        )
        .column(
            "bboxes",
            vec![
                vec![vec![10i64, 20, 30, 40], vec![50, 20, 70, 40]],
                vec![vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![0, 0, 200, 400]],
            ],
        )
        .column("width", vec![100i64, 200])
        .column("height", vec![200i64, 400])
        .build()
        .unwrap();
    let map = Map::new(
        tokenizer
            .tokenize_boxes("words", "bboxes")
            .page("width", "height"),
    )
    .batched();
    let dataset = pages
        .map(map.remove_columns(pages.column_names()).cache(false))
        .unwrap();
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
    let batch = DataLoader::new(dataset, collator, 2)
        .unwrap()
        .epoch(0)
        .next()
        .unwrap()
        .unwrap();
    let boxes = column(&batch, "bbox");
    assert_eq!(batch.columns["bbox"].shape, [2, batch.seq, 4]);
    assert_eq!(boxes[4..8], [100, 100, 300, 200]);
    let config = Config::small("layoutlm").set("vocab_size", tokenizer.len());
    MaskedLm::from_config(&config, 1)
        .unwrap()
        .forward(&batch)
        .unwrap();
    // Boxes beyond the page name their row.
    let map = Map::new(
        tokenizer
            .tokenize_boxes("words", "bboxes")
            .page("height", "width"),
    )
    .batched();
    let error = pages.map(map.cache(false)).unwrap_err().to_string();
    assert!(error.contains("row 1"), "{error}");
}
