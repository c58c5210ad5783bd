//! Damaged, contradictory and unusual files: told as errors that name the file, never a panic and never a wrong id.

use std::path::Path;

use cloze::Result;
use cloze::tokenizer::{EncodeOptions, Mentions, Tokenizer};
use serde_json::{Value, json};

use super::fixture;

/// A folder of files made for one test.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn error(files: &[(&str, &str)]) -> String {
    let error = Tokenizer::from_path(folder(files).path()).unwrap_err();
    error.to_string()
}

/// A `tokenizer.json` of whole words, with `changes` laid over it.
fn words(changes: Value) -> String {
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "up": 1, "down": 2, "<m>": 3}},
    });
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json.to_string()
}

fn added(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true})
}

#[test]
fn special_tokens_of_newer_writers_are_special() {
    let file = words(json!({"added_tokens": [added(3, "<m>")]}));
    for (extra, contents) in [
        (
            json!(["<one>", {"content": "<two>", "lstrip": true}]),
            ["<one>", "<two>"],
        ),
        (
            json!({"image_token": "<one>", "audio_token": "<two>"}),
            ["<one>", "<two>"],
        ),
    ] {
        let config = json!({"mask_token": "<m>", "unk_token": "?", "extra_special_tokens": extra})
            .to_string();
        let files = folder(&[
            ("tokenizer.json", &file),
            ("tokenizer_config.json", &config),
        ]);
        let tokenizer = Tokenizer::from_path(files.path()).unwrap();
        let ids = contents.map(|token| tokenizer.token_to_id(token));
        assert_eq!(ids, [Some(4), Some(5)]);
        assert_eq!(tokenizer.len(), 6);
        assert_eq!(tokenizer.all_special_ids(), [0, 3, 4, 5]);
        assert_eq!(tokenizer.encode("up <two> down").unwrap().ids, [1, 5, 2]);
        // Saved and opened again, they still are.
        tokenizer.save_pretrained(files.path()).unwrap();
        let again = Tokenizer::from_path(files.path()).unwrap();
        assert_eq!(again.all_special_ids(), tokenizer.all_special_ids());
    }
    let both = json!({"mask_token": "<m>", "additional_special_tokens": ["<one>"], "extra_special_tokens": ["<one>", "<x>"]});
    let files = folder(&[
        ("tokenizer.json", &file),
        ("tokenizer_config.json", &both.to_string()),
    ]);
    let tokenizer = Tokenizer::from_path(files.path()).unwrap();
    assert_eq!(tokenizer.all_special_ids(), [3, 4, 5]);
}

#[test]
fn malformed_special_tokens_are_reported_with_their_file() {
    let file = words(json!({}));
    for (config, what) in [
        (json!({"mask_token": 5}), "mask_token is 5"),
        (
            json!({"mask_token": {"contents": "<m>"}}),
            "mask_token is {",
        ),
        (
            json!({"mask_token": {"content": "<m>", "lstrip": "yes"}}),
            "mask_token is {",
        ),
        (json!({"pad_token": ["<m>"]}), "pad_token is ["),
        (
            json!({"additional_special_tokens": "<x>"}),
            "must be a list",
        ),
        (
            json!({"additional_special_tokens": [7]}),
            "an item of additional_special_tokens is 7",
        ),
        (
            json!({"extra_special_tokens": {"a": null}}),
            "an item of extra_special_tokens is null",
        ),
        (
            json!({"added_tokens_decoder": {"x": {"content": "<m>"}}}),
            "added_tokens_decoder has",
        ),
        (
            json!({"added_tokens_decoder": ["<m>"]}),
            "must be an object",
        ),
    ] {
        let text = error(&[
            ("tokenizer.json", &file),
            ("tokenizer_config.json", &config.to_string()),
        ]);
        assert!(
            text.contains("tokenizer_config.json") && text.contains(what),
            "{text}"
        );
    }
    let text = error(&[
        ("tokenizer.json", &file),
        ("special_tokens_map.json", r#"{"cls_token": true}"#),
    ]);
    assert!(
        text.contains("special_tokens_map.json") && text.contains("cls_token is true"),
        "{text}"
    );
    let text = error(&[
        ("tokenizer.json", &file),
        ("added_tokens.json", r#"{"<x>": "four"}"#),
    ]);
    assert!(
        text.contains("added_tokens.json") && text.contains("\"<x>\""),
        "{text}"
    );
}

#[test]
fn merges_start_at_the_first_valid_line() {
    let vocab = r#"{"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "<mask>": 4, "c": 5, "d": 6, "e": 7, "cd": 8, "cde": 9}"#;
    let ids = |merges: &str| {
        let files = folder(&[("vocab.json", vocab), ("merges.txt", merges)]);
        Tokenizer::from_path(files.path())
            .unwrap()
            .encode_ids("cdecd")
            .unwrap()
    };
    for merges in [
        "c d\ncd e\n",
        "#version: 0.2\nc d\ncd e\n",
        "#version: 0.2 - made elsewhere\r\nc d\r\ncd e",
        "\nc d\n\ncd e\n",
    ] {
        assert_eq!(ids(merges), [0, 9, 8, 1], "{merges:?}");
    }
    // A merge of the number sign is a merge.
    let vocab =
        r###"{"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "<mask>": 4, "#": 5, "##": 6}"###;
    let files = folder(&[("vocab.json", vocab), ("merges.txt", "# #\n")]);
    let tokenizer = Tokenizer::from_path(files.path()).unwrap();
    assert_eq!(tokenizer.encode_ids("##").unwrap(), [0, 6, 1]);
}

#[test]
fn an_lfs_pointer_in_place_of_any_file_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    let mut refused = 0;
    for family in std::fs::read_dir(root).unwrap() {
        let family = family.unwrap().path();
        if !family.is_dir() || Tokenizer::from_path(&family).is_err() {
            continue;
        }
        let names: Vec<_> = std::fs::read_dir(&family)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        for pointer in &names {
            let files = tempfile::tempdir().unwrap();
            for name in &names {
                std::fs::copy(family.join(name), files.path().join(name)).unwrap();
            }
            let file = files.path().join(pointer);
            let text = "version https://git-lfs.example/spec/v1\noid sha256:00\nsize 12345\n";
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, text).unwrap();
            // Files that are not read may be anything.
            let Err(error) = Tokenizer::from_path(files.path()) else {
                continue;
            };
            let error = error.to_string();
            let told = format!("{}: this is a Git LFS pointer", file.display());
            assert!(error.contains(&told), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 80, "{refused}");
}

#[test]
fn lists_of_tokens_may_have_any_line_ends_and_a_byte_order_mark() {
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nround\nsquare\n";
    let merges = "#version: 0.2\nc d\ncd e\n";
    let json = r#"{"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "<mask>": 4, "c": 5, "d": 6, "e": 7, "cd": 8, "cde": 9}"#;
    for (start, end) in [
        ("", "\n"),
        ("", "\r\n"),
        ("", "\r"),
        ("\u{feff}", "\n"),
        ("\u{feff}", "\r"),
    ] {
        let written = |text: &str| format!("{start}{}", text.replace('\n', end));
        let files = folder(&[("vocab.txt", &written(vocab))]);
        let tokenizer = Tokenizer::from_path(files.path()).unwrap();
        let ids = tokenizer.encode_ids("square [MASK] round").unwrap();
        assert_eq!(ids, [2, 6, 4, 5, 3], "{start:?} {end:?}");
        assert_eq!(
            (tokenizer.len(), tokenizer.token_to_id("[PAD]")),
            (7, Some(0))
        );
        let files = folder(&[("vocab.json", json), ("merges.txt", &written(merges))]);
        let tokenizer = Tokenizer::from_path(files.path()).unwrap();
        assert_eq!(
            tokenizer.encode_ids("cdecd").unwrap(),
            [0, 9, 8, 1],
            "{start:?} {end:?}"
        );
    }
}

#[test]
fn no_two_tokens_share_an_id() {
    // A line that is there twice leaves a gap, so that nothing can be added with certainty.
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nround\nsquare\nround\n";
    let text = error(&[("vocab.txt", vocab)]);
    assert!(text.contains("[MASK]") && text.contains("gaps"), "{text}");
    assert!(
        text.contains("line 7 of vocab.txt repeats \"round\" from line 5"),
        "{text}"
    );
    // When nothing is to be added, the later line counts, as in transformers.
    let files = folder(&[("vocab.txt", &format!("{vocab}[MASK]\n"))]);
    let tokenizer = Tokenizer::from_path(files.path()).unwrap();
    assert_eq!(
        tokenizer.encode_ids("round square [MASK]").unwrap(),
        [2, 6, 5, 7, 3]
    );
    tokenizer.save_pretrained(files.path()).unwrap();
    let again = Tokenizer::from_path(files.path()).unwrap();
    assert_eq!(
        again.encode_ids("round square [MASK]").unwrap(),
        [2, 6, 5, 7, 3]
    );

    let vocab =
        json!({"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "up": 2, "down": 2}});
    let text = error(&[("tokenizer.json", &words(json!({"model": vocab})))]);
    assert!(
        text.contains("\"down\" and \"up\" have the same id 2"),
        "{text}"
    );
    let vocab =
        json!({"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "up": 2_000_000_000}});
    let text = error(&[("tokenizer.json", &words(json!({"model": vocab})))]);
    assert!(text.contains("2000000000"), "{text}");
    let text = error(&[
        ("vocab.json", r#"{"<s>": 0, "a": 1, "b": 1}"#),
        ("merges.txt", ""),
    ]);
    assert!(text.contains("same id 1"), "{text}");

    // An added token whose id the vocabulary would not give it, or which another token has.
    let text = error(&[(
        "tokenizer.json",
        &words(json!({"added_tokens": [added(9, "<far>")]})),
    )]);
    assert!(text.contains("\"<far>\" has the id 9"), "{text}");
    let decoder = json!({"added_tokens_decoder": {"2": {"content": "<x>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}}});
    let text = error(&[
        ("tokenizer.json", &words(json!({}))),
        ("tokenizer_config.json", &decoder.to_string()),
    ]);
    assert!(text.contains("\"<x>\" is to have the id 2"), "{text}");
    let text = error(&[
        ("tokenizer.json", &words(json!({}))),
        ("added_tokens.json", r#"{"<x>": 8}"#),
    ]);
    assert!(text.contains("\"<x>\" is to have the id 8"), "{text}");
}

#[test]
fn a_template_must_contain_the_text_once() {
    let piece = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    for (single, what) in [
        (json!([piece("A"), piece("A")]), "2 times"),
        (json!([]), "leaves the text out"),
        (
            json!([{"SpecialToken": {"id": "<no>", "type_id": 0}}, piece("A")]),
            "tokenizer.json",
        ),
    ] {
        let post = json!({"type": "TemplateProcessing", "single": single, "pair": [piece("A"), piece("B")],
            "special_tokens": {}});
        let text = error(&[("tokenizer.json", &words(json!({"post_processor": post})))]);
        let folder_is_named = text.contains("/tmp") || text.contains("tokenizer");
        assert!(
            text.contains(what) || folder_is_named && what == "tokenizer.json",
            "{text}"
        );
    }
}

#[test]
fn panics_of_the_libraries_are_errors() {
    // A decoder that slices inside a character, and one whose part is no decoder.
    let strip = json!({"type": "Strip", "content": "u", "start": 9, "stop": 9});
    let files = folder(&[("tokenizer.json", &words(json!({"decoder": strip})))]);
    let opened = Tokenizer::from_path(files.path());
    let _ = opened.and_then(|tokenizer| tokenizer.decode(&[1, 2], false));
    let prefix = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "####",
        "end_of_word_suffix": null, "fuse_unk": false, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
    let text = error(&[("tokenizer.json", &words(json!({"model": prefix})))]);
    assert!(text.contains("tokenizer.json"), "{text}");
    // A map of characters that claims 8 GiB, and one that is cut short.
    for map in ["AAAAgAAA", "AAAA", ""] {
        let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": map}]});
        let text = error(&[("tokenizer.json", &words(json!({"normalizer": normalizer})))]);
        assert!(text.contains("map of characters"), "{text}");
    }
}

#[test]
fn no_pattern_of_a_rule_hangs() {
    let text = format!("{} \u{e9}\u{6f22} {}b", "a".repeat(3000), "xa".repeat(500));
    let mut encoded = 0;
    for pattern in [
        "(a*)*b",
        "(a|aa)+$",
        "(.*)*c",
        "(a+)+c",
        "((a{1,100}){1,100}){1,100}c",
        "(?=(a+))\\1*c",
        "",
        "(?=)",
        "^",
        "$",
        "\\b",
        "[",
        "(?<n>a)\\g<n>*c",
        "(?<n>a|b\\g<n>)",
    ] {
        let regex = json!({"Regex": pattern});
        let mut rules = Vec::new();
        for behavior in [
            "Removed",
            "Isolated",
            "MergedWithPrevious",
            "MergedWithNext",
            "Contiguous",
        ] {
            for invert in [false, true] {
                let split = json!({"type": "Split", "pattern": regex, "behavior": behavior, "invert": invert});
                rules.push(json!({"pre_tokenizer": split}));
            }
        }
        let replace = json!({"type": "Replace", "pattern": regex, "content": "u"});
        rules.push(json!({"normalizer": replace}));
        rules.push(json!({"decoder": replace}));
        for rule in rules {
            let files = folder(&[("tokenizer.json", &words(rule.clone()))]);
            let started = std::time::Instant::now();
            let Ok(tokenizer) = Tokenizer::from_path(files.path()) else {
                continue;
            };
            if let Ok(encoding) = tokenizer.encode(&text) {
                encoded += 1;
                let _ = tokenizer.decode(&encoding.ids, false);
            }
            let _ = tokenizer.decode(&[1; 3000], true);
            assert!(started.elapsed().as_secs_f64() < 3.0, "{rule}");
        }
    }
    assert!(encoded > 50, "{encoded}");
}

/// Small random numbers, the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// Opens, encodes and decodes; all that matters is that it returns.
fn try_all(path: &Path) -> Result<()> {
    let tokenizer = Tokenizer::from_path(path)?;
    let text = "  The Ünïted <mask> [MASK] 12,5 naïve ﬁ 漢字\n🧿'' don't ";
    let ids = tokenizer.encode(text)?.ids;
    let _ = tokenizer.encode_pair(text, "b");
    let _ = tokenizer.encode_ids(text);
    let mentions = Mentions {
        spans: &[(2, 9)],
        titles: None,
    };
    let _ = tokenizer.encode_entities(text, mentions, None, &EncodeOptions::new());
    let _ = tokenizer.encode_target(text);
    let mut ids = ids;
    ids.extend([0, 1, 7, u32::MAX]);
    tokenizer.decode(&ids, false)?;
    tokenizer.decode(&ids, true)?;
    Ok(())
}

/// One of `bytes` with something cut off, changed, doubled or swapped.
fn mutated(bytes: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut new = bytes.to_vec();
    for _ in 0..=chance.below(3) {
        let at = chance.below(new.len());
        match chance.below(6) {
            0 => new.truncate(at),
            1 => {
                if let Some(byte) = new.get_mut(at) {
                    *byte = chance.below(256) as u8;
                }
            }
            2 => {
                if let Some(byte) = new.get_mut(at) {
                    *byte ^= 1 << chance.below(8);
                }
            }
            3 => {
                let end = (at + chance.below(40)).min(new.len());
                new.drain(at..end);
            }
            4 => {
                let end = (at + chance.below(40)).min(new.len());
                let part = new[at..end].to_vec();
                let to = chance.below(new.len());
                new.splice(to..to, part);
            }
            _ => {
                let with = [
                    &b"null"[..],
                    b"0",
                    b"-1",
                    b"99999999999",
                    b"\"\"",
                    b"[]",
                    b"{}",
                    b"true",
                ];
                let end = (at + chance.below(4)).min(new.len());
                new.splice(at..end, with[chance.below(with.len())].iter().copied());
            }
        }
    }
    new
}

/// A tokenizer file that keeps its structure and has a small vocabulary, so that mutations hit the structure.
fn small(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    let text = std::fs::read_to_string(path.join(name).join("tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let model = &mut json["model"];
    if let Some(vocab) = model["vocab"].as_object_mut() {
        vocab.retain(|_, id| id.as_u64().unwrap() < 40);
    }
    if let Some(merges) = model.get_mut("merges") {
        *merges = json!([]);
    }
    json["added_tokens"]
        .as_array_mut()
        .unwrap()
        .retain(|token| token["id"].as_u64().unwrap() < 40);
    json.to_string().into_bytes()
}

#[test]
fn thousands_of_damaged_files_are_reported_without_a_panic() {
    let mut chance = Chance(11);
    let files = tempfile::tempdir().unwrap();
    let mut opened = 0;
    for name in [
        "roberta_fast",
        "bert_uncased_fast",
        "funnel_fast",
        "deberta-v2_fast",
        "albert_fast",
    ] {
        let file = files.path().join("tokenizer.json");
        let whole = small(name);
        for round in 0..500 {
            let bytes = match round % 5 {
                0 => whole[..chance.below(whole.len())].to_vec(),
                _ => mutated(&whole, &mut chance),
            };
            std::fs::write(&file, bytes).unwrap();
            opened += usize::from(try_all(&file).is_ok());
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    for (family, file) in [
        ("xlm-roberta", "sentencepiece.bpe.model"),
        ("albert", "spiece.model"),
        ("deberta-v3", "spm.model"),
        ("bert_uncased", "vocab.txt"),
        ("roformer", "vocab.txt"),
        ("roberta", "vocab.json"),
        ("xlm", "vocab.json"),
        ("flaubert", "merges.txt"),
        ("wav2vec2", "vocab.json"),
        ("roc_bert", "word_shape.json"),
        ("luke", "entity_vocab.json"),
        ("mbart", "tokenizer_config.json"),
        ("perceiver", "tokenizer_config.json"),
    ] {
        let files = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(root.join(family)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), files.path().join(entry.file_name())).unwrap();
        }
        let whole = std::fs::read(root.join(family).join(file)).unwrap();
        for _ in 0..150 {
            let path = files.path().join(file);
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, mutated(&whole, &mut chance)).unwrap();
            opened += usize::from(try_all(files.path()).is_ok());
        }
    }
    println!("of 4450 damaged files {opened} still work");
    assert!(
        opened > 100,
        "the mutations should not only break the syntax: {opened}"
    );
}

#[test]
fn undamaged_files_still_open() {
    // The checks leave sound files alone.
    for name in [
        "roberta_fast",
        "deberta-v3_fast",
        "albert_fast",
        "xlm-roberta",
        "esm",
    ] {
        assert!(fixture(name).len() > 10);
    }
}
