//! Compares Reformer's tokenizer with that of transformers.

use std::path::Path;

use serde_json::Value;

use super::Tokenizer;

#[test]
fn reformers_pieces_equal_those_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/reformer");
    let tokenizer = Tokenizer::from_path(&folder).unwrap();
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(tokenizer.class_name(), "ReformerTokenizer");
    assert_eq!(tokenizer.len() as u64, expected["len"].as_u64().unwrap());
    assert_eq!(
        serde_json::json!(tokenizer.all_special_ids()),
        expected["special_ids"]
    );
    assert!(tokenizer.mask_token_id().is_none() && tokenizer.pad_token_id().is_none());
    for case in expected["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let encoding = tokenizer.encode(text).unwrap();
        assert_eq!(serde_json::json!(encoding.ids), case["ids"], "{text:?}");
        assert_eq!(
            serde_json::json!(encoding.tokens),
            case["tokens"],
            "{text:?}"
        );
        let decoded = tokenizer.decode(&encoding.ids, false).unwrap();
        assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{text:?}");
        let decoded = tokenizer.decode(&encoding.ids, true).unwrap();
        assert_eq!(decoded, case["decoded_skip"].as_str().unwrap(), "{text:?}");
    }
    let saved = tempfile::tempdir().unwrap();
    tokenizer.save_pretrained(saved.path()).unwrap();
    let again = Tokenizer::from_path(saved.path()).unwrap();
    let text = "The galaxy has a spiral arm.";
    assert_eq!(
        again.encode(text).unwrap().ids,
        tokenizer.encode(text).unwrap().ids
    );
}
