//! Texts that few write, in layouts that few folders have.

use std::path::Path;

use cloze::tokenizer::Tokenizer;
use serde_json::Value;

/// Compares ids and places with those of transformers, folder by folder. `odd_texts.py` made the file.
#[test]
fn odd_texts_have_the_ids_and_places_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let text = std::fs::read_to_string(root.join("tokenizers/odd_texts.json")).unwrap();
    let folders: Value = serde_json::from_str(&text).unwrap();
    let mut report = super::Report::default();
    for folder in folders.as_array().unwrap() {
        let name = folder["folder"].as_str().unwrap();
        let place = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(root.join("guide/tokenizers").join(name)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), place.path().join(file.file_name())).unwrap();
        }
        let config = folder["config"].to_string();
        std::fs::write(place.path().join("tokenizer_config.json"), &config).unwrap();
        let tokenizer = Tokenizer::from_path(place.path()).unwrap();
        let saved = place.path().join("saved");
        tokenizer.save_pretrained(&saved).unwrap();
        let again = Tokenizer::from_path(&saved).unwrap();
        for case in folder["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ours = tokenizer.encode(text).unwrap();
            let what = format!("{name} {config}: {text:?}");
            let ids = super::numbers(&case["ids"]);
            report.check(&what, &ours.ids, &ids);
            let alone = tokenizer.encode_ids(text).unwrap();
            report.check(&format!("{what}, ids alone"), alone, ids);
            if case["offsets"].is_array() {
                let what = format!("{what}, places of {:?}", ours.tokens);
                report.check(&what, &ours.offsets, &super::pairs_of(&case["offsets"]));
            }
            assert_eq!(again.encode(text).unwrap(), ours, "{what}, saved");
        }
    }
    report.finish();
}
