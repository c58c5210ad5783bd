//! Checks of a tokenizer's files before they are passed to the libraries.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::base::misspelling::meant;
use crate::{Error, Result};

/// No model has more rows of embeddings; a larger id is a damaged file, and some loops go over all ids.
pub(super) const MAX_ID: u32 = 1 << 24;

/// Consecutive rules may make a text at most this many times longer; those of known tokenizers stay below a hundred.
const MOST_TIMES: f64 = 10_000.0;

/// The parts of `tokenizer.json` that are looked at before the library parses it.
#[derive(Deserialize)]
pub(super) struct Outline {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Value>,
}

impl Outline {
    /// Reads the outline and checks the sizes that the file claims.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let outline: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        charsmaps(&outline.normalizer)?;
        for (part, rules) in [
            ("normalizer", &outline.normalizer),
            ("decoder", &outline.decoder),
        ] {
            if growth(rules) > MOST_TIMES {
                return Err(format!(
                    "its {part} may turn each character into more than {MOST_TIMES}, by replacing its own output"
                ));
            }
        }
        Ok(outline)
    }

    /// Checks that the vocabulary gives each added token the id that the file gives it.
    pub(super) fn agrees(&self, id: impl Fn(&str) -> Option<u32>) -> Result<(), String> {
        for token in &self.added_tokens {
            let (Some(content), Some(said)) = (token["content"].as_str(), token["id"].as_u64())
            else {
                continue;
            };
            let found = id(content);
            if found.map(u64::from) != Some(said) && !content.is_empty() {
                let found = found.map_or("none".to_owned(), |id| id.to_string());
                return Err(format!(
                    "the added token {content:?} has the id {said} in the file, but the vocabulary leaves {found} for it: \
                     the ids before it are not all there"
                ));
            }
        }
        Ok(())
    }
}

/// Returns how many times longer the rules below `part` may make a text: the output of one rule may be the input of the
/// next.
fn growth(part: &Value) -> f64 {
    let below: f64 = match part {
        Value::Object(object) => object.values().map(growth).product(),
        Value::Array(list) => list.iter().map(growth).product(),
        _ => 1.0,
    };
    let length = |value: &Value| value.as_str().map(|text| text.len() as f64);
    let own = match (part["type"].as_str(), length(&part["content"])) {
        (Some("Replace"), Some(new)) => match length(&part["pattern"]["String"]) {
            Some(old) if old > 0.0 => (new / old).max(1.0),
            // Between any two characters there may be nothing that matches.
            _ => 1.0 + new,
        },
        _ => 1.0,
    };
    below * own
}

/// Checks every `precompiled_charsmap` below `part`.
fn charsmaps(part: &Value) -> Result<(), String> {
    match part {
        Value::Object(object) => {
            if let Some(Value::String(map)) = object.get("precompiled_charsmap") {
                let head: Vec<u8> = base64_head(map);
                let bytes = map.trim_end_matches('=').len() * 3 / 4;
                charsmap(&head, bytes)?;
            }
            object.values().try_for_each(charsmaps)
        }
        Value::Array(parts) => parts.iter().try_for_each(charsmaps),
        _ => Ok(()),
    }
}

/// Checks the head of a `SentencePiece` map of characters of `bytes` bytes: the size of its trie must fit.
pub(super) fn charsmap(head: &[u8], bytes: usize) -> Result<(), String> {
    let size = head
        .first_chunk::<4>()
        .map(|size| u32::from_le_bytes(*size));
    match size.map(|size| size as usize) {
        Some(size) if size >= 4 && size % 4 == 0 && size <= bytes.saturating_sub(4) => Ok(()),
        Some(size) => Err(format!(
            "its map of characters is damaged: it claims a trie of {size} bytes and has {bytes} in all"
        )),
        None => Err("its map of characters is damaged: it is cut short".to_owned()),
    }
}

/// Returns the first bytes of what `text` encodes.
fn base64_head(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(u32::from(byte - b'A')),
        b'a'..=b'z' => Some(u32::from(byte - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(byte - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut head = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for digit in text.bytes().take(8).map_while(digit) {
        (bits, held) = (bits << 6 | digit, held + 6);
        if held >= 8 {
            held -= 8;
            head.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    head
}

/// Checks that no two tokens share an id and that no id is absurd.
pub(super) fn ids<'a>(vocabulary: impl Iterator<Item = (&'a str, u32)>) -> Result<(), String> {
    let mut all: Vec<(u32, &str)> = vocabulary.map(|(token, id)| (id, token)).collect();
    all.sort_unstable();
    for pair in all.windows(2) {
        if pair[0].0 == pair[1].0 {
            return Err(format!(
                "the tokens {:?} and {:?} have the same id {}",
                pair[0].1, pair[1].1, pair[0].0
            ));
        }
    }
    match all.last() {
        Some(&(id, token)) if id >= MAX_ID => Err(format!(
            "the token {token:?} has the id {id}, though the vocabulary has {} tokens",
            all.len()
        )),
        _ => Ok(()),
    }
}

/// The keys of `tokenizer_config.json` that this library or a class of transformers reads.
const KNOWN: &[&str] = &[
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "auto_map",
    "backend",
    "bos_token",
    "cell_trim_length",
    "chat_template",
    "clean_up_tokenization_spaces",
    "cls_token",
    "cls_token_box",
    "do_basic_tokenize",
    "do_lower_case",
    "do_lowercase",
    "do_lowercase_and_remove_accent",
    "do_normalize",
    "drop_rows_to_fit",
    "empty_token",
    "entity_mask2_token",
    "entity_mask_token",
    "entity_pad_token",
    "entity_token_1",
    "entity_token_2",
    "entity_unk_token",
    "eos_token",
    "errors",
    "extra_special_tokens",
    "id2lang",
    "is_local",
    "keep_accents",
    "lang2id",
    "language_codes",
    "legacy",
    "local_files_only",
    "mask_token",
    "max_column_id",
    "max_entity_length",
    "max_len",
    "max_length",
    "max_mention_length",
    "max_question_length",
    "max_row_id",
    "min_question_length",
    "model_input_names",
    "model_max_length",
    "model_specific_special_tokens",
    "name_or_path",
    "never_split",
    "only_label_first_subword",
    "pad_token",
    "pad_token_box",
    "pad_token_type_id",
    "padding_side",
    "processor_class",
    "remove_space",
    "replace_word_delimiter_char",
    "return_attention_mask",
    "sep_token",
    "sep_token_box",
    "single_word",
    "sp_model_kwargs",
    "special_tokens_map_file",
    "split_by_punct",
    "split_special_tokens",
    "spaces_between_special_tokens",
    "src_lang",
    "strip_accents",
    "strip_cell_values",
    "target_lang",
    "task",
    "tgt_lang",
    "tokenize_chinese_chars",
    "tokenizer_class",
    "tokenizer_file",
    "trim_offsets",
    "truncation_side",
    "unk_token",
    "update_numeric_column",
    "use_fast",
    "vocab_file",
    "vocab_type",
    "wordpieces_prefix",
    "word_delimiter_token",
];

/// Returns the unknown keys of `config` that look like a known one, each with the one meant.
pub(super) fn misspelled(config: &Map<String, Value>) -> Vec<(&str, &'static str)> {
    let unknown = config.keys().filter(|key| !KNOWN.contains(&key.as_str()));
    unknown
        .filter_map(|key| {
            let absent = KNOWN.iter().filter(|known| !config.contains_key(**known));
            Some((key.as_str(), meant(key, absent.copied())?))
        })
        .collect()
}

/// Tells about keys of `tokenizer_config.json` that look misspelled.
pub(super) fn warn_of_misspelled_keys(path: &Path, config: &Map<String, Value>) {
    for (key, meant) in misspelled(config) {
        eprintln!(
            "warning: {}: the key {key:?} is not known and has no effect; did you mean {meant:?}?",
            path.display()
        );
    }
}

/// Returns an error about one of the files.
pub(super) fn damaged(file: &Path, what: impl Into<String>) -> Error {
    Error::format(file, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelled_keys_are_found_and_others_accepted() {
        let config: Map<String, Value> = serde_json::from_str(
            r#"{"mask_tokn": "<m>", "do_lowercase": true, "model_maxlength": 3, "Pad_Token": "<p>", "my_own_note": 1,
                "tokenizer_class": "BertTokenizer", "paddingside": "left", "x": 1, "truncation-side": "left"}"#,
        )
        .unwrap();
        assert_eq!(
            misspelled(&config),
            [
                ("mask_tokn", "mask_token"),
                ("model_maxlength", "model_max_length"),
                ("Pad_Token", "pad_token"),
                ("paddingside", "padding_side"),
                ("truncation-side", "truncation_side"),
            ]
        );
        // A known key beside it is not what was meant.
        let both: Map<String, Value> =
            serde_json::from_str(r#"{"mask_token": "a", "mask_tokens": "b"}"#).unwrap();
        assert_eq!(misspelled(&both), []);
    }

    #[test]
    fn rules_that_blow_up_the_text_are_refused() {
        let read = |rule: &str, times: usize| {
            let rules = vec![rule; times].join(",");
            let text =
                format!(r#"{{"normalizer": {{"type": "Sequence", "normalizers": [{rules}]}}}}"#);
            Outline::read(text.as_bytes()).map(drop)
        };
        let double = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}"#;
        let blank = r#"{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}"#;
        let mark = r#"{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}"#;
        assert!(read(double, 14).unwrap_err().contains("more than 10000"));
        assert!(read(blank, 14).is_err());
        for (rule, times) in [(double, 10), (blank, 5), (mark, 5)] {
            assert!(read(rule, times).is_ok(), "{rule}");
        }
        let decoder = format!(
            r#"{{"decoder": {{"type": "Sequence", "decoders": [{0}, [{0}, {0}]]}}}}"#,
            [double; 5].join(",")
        );
        let told = Outline::read(decoder.as_bytes()).map(drop).unwrap_err();
        assert!(told.contains("its decoder"), "{told}");
    }

    #[test]
    fn sizes_of_charsmaps_are_checked() {
        assert!(charsmap(&[8, 0, 0, 0], 12).is_ok());
        for (head, bytes) in [
            ([8u8, 0, 0, 0], 11),
            ([0, 0, 0, 0], 4),
            ([9, 0, 0, 0], 99),
            ([255; 4], 113),
        ] {
            assert!(charsmap(&head, bytes).is_err(), "{head:?} {bytes}");
        }
        assert!(charsmap(&[1, 2], 2).is_err());
        assert_eq!(base64_head("AAECAwQFBgcICQ=="), [0, 1, 2, 3, 4, 5]);
        let json = br#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled",
            "precompiled_charsmap": "AAAAgAAA"}]}}"#;
        assert!(
            Outline::read(json)
                .err()
                .unwrap()
                .contains("2147483648 bytes")
        );
    }

    #[test]
    fn shared_and_impossible_ids_are_named() {
        assert!(ids([("a", 0), ("b", 7)].into_iter()).is_ok());
        let same = ids([("a", 3), ("b", 1), ("c", 3)].into_iter()).unwrap_err();
        assert!(
            same.contains("\"a\" and \"c\"") && same.contains("id 3"),
            "{same}"
        );
        let far = ids([("a", 0), ("b", 2_000_000_000)].into_iter()).unwrap_err();
        assert!(
            far.contains("2000000000") && far.contains("2 tokens"),
            "{far}"
        );
    }
}
