//! What only some families have: languages, columns of other ids, entities, speech, tables.

use cloze::tokenizer::{EncodeOptions, Encoding, Mentions, Padding, Spoken, Tokenizer};
use serde_json::Value;

use super::{Report, check_encoding, numbers};

/// Compares whatever `e` has of these.
pub(super) fn check(report: &mut Report, tokenizer: &Tokenizer, e: &Value, fast: bool) {
    languages(report, tokenizer, e, fast);
    entities(report, tokenizer, e);
    speech(report, tokenizer, e);
    tables(report, tokenizer, e);
}

/// The columns that come beside the tokens, those of one number a token.
pub(super) fn check_columns(report: &mut Report, what: &str, ours: &Encoding, slow: &Value) {
    for name in ["input_shape_ids", "input_pronunciation_ids"] {
        if let Some(theirs) = slow.get(name) {
            check_column(report, what, ours, name, theirs);
        }
    }
}

fn check_column(report: &mut Report, what: &str, ours: &Encoding, name: &str, theirs: &Value) {
    let mut flat = Vec::new();
    for value in theirs.as_array().unwrap() {
        match value.as_array() {
            Some(row) => flat.extend(row.iter().map(|number| number.as_i64().unwrap())),
            None => flat.push(value.as_i64().unwrap()),
        }
    }
    let ours = ours.extra.get(name).map(|column| column.values.clone());
    report.check(&format!("{what} {name}"), ours, Some(flat));
}

fn languages(report: &mut Report, tokenizer: &Tokenizer, e: &Value, fast: bool) {
    let Some(languages) = e.get("languages") else {
        return;
    };
    report.check(
        "default language",
        tokenizer.source_language(),
        languages["default_src_lang"].as_str(),
    );
    let mut tokenizer = tokenizer.clone();
    for case in languages["source_mode"].as_array().unwrap() {
        let code = case["src_lang"].as_str().unwrap();
        tokenizer.set_source_language(code).unwrap();
        let ours = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
        check_encoding(report, code, &ours, case, fast);
        let id = tokenizer.token_to_id(code).map(u64::from);
        report.check(code, id, case["lang_id"].as_u64());
    }
    for case in languages["target_mode"].as_array().unwrap() {
        let code = case["tgt_lang"].as_str().unwrap();
        tokenizer.set_target_language(code).unwrap();
        let text = case["text_target"].as_str().unwrap();
        let ours = tokenizer.encode_target(text).unwrap();
        check_encoding(report, &format!("to {code}"), &ours, case, fast);
    }
}

fn spans(value: &Value) -> Vec<(usize, usize)> {
    super::pairs_of(value)
}

fn titles(value: &Value) -> Option<Vec<&str>> {
    let titles = value.as_array()?.iter();
    Some(titles.map(|title| title.as_str().unwrap()).collect())
}

fn entities(report: &mut Report, tokenizer: &Tokenizer, e: &Value) {
    for case in e["entities"]["cases"].as_array().into_iter().flatten() {
        let label = case["label"].as_str().unwrap();
        let mut options = EncodeOptions::new();
        let length = case["args"]["max_length"]
            .as_u64()
            .map(|length| length as usize);
        if case["args"]["truncation"] == true {
            options = options.truncation(length.unwrap());
        }
        if case["args"]["padding"] == "max_length" {
            options = options.padding(Padding::MaxLength(length.unwrap()));
        }
        let (first, second) = (
            spans(&case["entity_spans"]),
            case.get("pair_entity_spans").map(spans),
        );
        let (names, others) = (titles(&case["entities"]), titles(&case["pair_entities"]));
        let mentions = Mentions {
            spans: &first,
            titles: names.as_deref(),
        };
        let pair = case["pair"].as_str().map(|text| {
            let mentions = Mentions {
                spans: second.as_deref().unwrap_or_default(),
                titles: others.as_deref(),
            };
            (text, mentions)
        });
        let text = case["text"].as_str().unwrap();
        let ours = tokenizer
            .encode_entities(text, mentions, pair, &options)
            .unwrap();
        let theirs = &case["result"];
        report.check(
            &format!("{label} ids"),
            ours.ids.clone(),
            numbers(&theirs["input_ids"]),
        );
        report.check(
            &format!("{label} special tokens"),
            ours.special_tokens_mask.clone(),
            numbers(&theirs["special_tokens_mask"]),
        );
        report.check(
            &format!("{label} mask"),
            ours.attention_mask.clone(),
            numbers(&theirs["attention_mask"]),
        );
        for name in ["entity_ids", "entity_position_ids", "entity_attention_mask"] {
            check_column(report, label, &ours, name, &theirs[name]);
        }
    }
}

fn speech(report: &mut Report, tokenizer: &Tokenizer, e: &Value) {
    for (i, case) in e["ctc"].as_array().into_iter().flatten().enumerate() {
        let ids = numbers(&case["ids"]);
        let what = |key: &str| format!("ctc {i} {key}");
        let ours = [
            ("decode", tokenizer.decode_with(&ids, false, true)),
            ("decode_no_clean", tokenizer.decode_with(&ids, false, false)),
            (
                "skip_special_tokens",
                tokenizer.decode_with(&ids, true, true),
            ),
            ("no_group", tokenizer.decode_unfolded(&ids, false)),
        ];
        for (key, ours) in ours {
            report.check(
                &what(key),
                ours.unwrap(),
                case[key].as_str().unwrap().to_owned(),
            );
        }
        let spoken = |key: &str, text: &str| -> Vec<Spoken> {
            let said = case[key].as_array().unwrap().iter();
            said.map(|said| Spoken {
                text: said[text].as_str().unwrap().to_owned(),
                start: said["start_offset"].as_u64().unwrap() as usize,
                end: said["end_offset"].as_u64().unwrap() as usize,
            })
            .collect()
        };
        let letters = tokenizer.spoken_letters(&ids).unwrap();
        report.check(&what("letters"), letters, spoken("char_offsets", "char"));
        let words = tokenizer.spoken_words(&ids).unwrap();
        report.check(&what("words"), words, spoken("word_offsets", "word"));
    }
    if e.get("ctc").is_none() {
        return;
    }
    for case in e["cases"].as_array().unwrap() {
        let ids = numbers(&case["slow"]["input_ids"]);
        let theirs = case["decoded"]["keep_ungrouped"].as_str().unwrap();
        let ours = tokenizer.decode_unfolded(&ids, false).unwrap();
        report.check("ungrouped", ours.as_str(), theirs);
    }
}

/// The texts alone, and the tables.
fn tables(report: &mut Report, tokenizer: &Tokenizer, e: &Value) {
    let Some(tables) = e["tables"].as_array() else {
        return;
    };
    let strings = |value: &Value| -> Vec<String> {
        let texts = value.as_array().unwrap().iter();
        texts
            .map(|text| text.as_str().unwrap().to_owned())
            .collect()
    };
    let plain = EncodeOptions::new();
    for case in e["cases"].as_array().unwrap() {
        let label = case["label"].as_str().unwrap();
        let options = plain.clone().add_special_tokens(false);
        let ours = tokenizer
            .encode_with(case["text"].as_str().unwrap(), &options)
            .unwrap();
        report.check(label, ours.ids, numbers(&case["slow"]["input_ids"]));
        report.check(label, ours.tokens, strings(&case["tokens"]));
    }
    for table in tables {
        let label = table["label"].as_str().unwrap();
        let (header, rows, question) = super::table_of(table);
        for (mode, options) in [
            ("plain", plain.clone()),
            (
                "pad_max_length_48_truncate",
                plain.clone().truncation(48).padding(Padding::MaxLength(48)),
            ),
            ("drop_rows_24", plain.clone().truncation(24)),
        ] {
            let theirs = &table[mode];
            let what = format!("{label} {mode}");
            let ours = match tokenizer.encode_table(&header, &rows, question, &options) {
                Ok(ours) if theirs.get("error").is_none() => ours,
                ours => {
                    report.check(&what, ours.is_err(), theirs.get("error").is_some());
                    continue;
                }
            };
            report.check(&what, ours.ids.clone(), numbers(&theirs["input_ids"]));
            report.check(
                &what,
                ours.attention_mask.clone(),
                numbers(&theirs["attention_mask"]),
            );
            report.check(
                &what,
                ours.special_tokens_mask.clone(),
                numbers(&theirs["special_tokens_mask"]),
            );
            check_column(
                report,
                &what,
                &ours,
                "token_type_ids",
                &theirs["token_type_ids"],
            );
            if mode == "plain" {
                report.check(&what, ours.tokens, strings(&table["tokens"]));
            }
        }
    }
}

/// A folder with the `SentencePiece` model of XLM-RoBERTa's fixture and the given files.
fn multilingual(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    let model = "sentencepiece.bpe.model";
    std::fs::copy(
        root.join("xlm-roberta").join(model),
        folder.path().join(model),
    )
    .unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn relatives_of_xlm_roberta_share_its_vocabulary() {
    let text = "zhir betquoul <mask> gai";
    let parent = super::fixture("xlm-roberta").encode(text).unwrap();
    let folder = multilingual(&[("config.json", r#"{"model_type": "xmod"}"#)]);
    let xmod = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(xmod.encode(text).unwrap(), parent);
    assert!(!xmod.has_entities());

    let folder = multilingual(&[
        (
            "tokenizer_config.json",
            r#"{"tokenizer_class": "MLukeTokenizer", "max_mention_length": 4}"#,
        ),
        (
            "entity_vocab.json",
            r#"{"[MASK]": 0, "[UNK]": 1, "[PAD]": 2, "[MASK2]": 3, "de:Zhir": 4, "fr:Gai": 5}"#,
        ),
    ]);
    let mluke = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(mluke.len(), super::fixture("xlm-roberta").len() + 2);
    let mentions = Mentions {
        spans: &[(0, 4), (21, 24)],
        titles: Some(&["de:Zhir", "x"]),
    };
    let ours = mluke
        .encode_entities(text, mentions, None, &EncodeOptions::new())
        .unwrap();
    assert_eq!(ours.ids, parent.ids);
    assert_eq!(ours.extra["entity_ids"].values, [4, 1]);
    let places = &ours.extra["entity_position_ids"];
    assert_eq!((places.width, places.len()), (4, 2));
    mluke.save_pretrained(folder.path().join("new")).unwrap();
    let again = Tokenizer::from_path(folder.path().join("new")).unwrap();
    assert_eq!(again.entity_id("fr:Gai"), Some(5));
    assert_eq!(
        again
            .encode_entities(text, mentions, None, &EncodeOptions::new())
            .unwrap(),
        ours
    );
}

#[test]
fn entities_need_a_vocabulary_spans_within_the_text_and_a_title_each() {
    let options = EncodeOptions::new();
    let mentions = |spans, titles| Mentions { spans, titles };
    let error = |tokenizer: &Tokenizer, mentions: Mentions<'_>| {
        tokenizer
            .encode_entities("zhir", mentions, None, &options)
            .unwrap_err()
            .to_string()
    };
    let text = error(&super::fixture("roberta"), mentions(&[], None));
    assert!(text.contains("entity_vocab.json"), "{text}");
    let luke = super::fixture("luke");
    let text = error(&luke, mentions(&[(2, 5)], None));
    assert!(
        text.contains("2..5") && text.contains("4 characters"),
        "{text}"
    );
    let text = error(&luke, mentions(&[(0, 1), (1, 2)], Some(&["Shat"])));
    assert!(text.contains("1 titles for 2 spans"), "{text}");
    let folder = multilingual(&[
        (
            "tokenizer_config.json",
            r#"{"tokenizer_class": "MLukeTokenizer"}"#,
        ),
        ("entity_vocab.json", r#"{"[UNK]": 0}"#),
    ]);
    let text = Tokenizer::from_path(folder.path()).unwrap_err().to_string();
    assert!(
        text.contains("entity_vocab.json") && text.contains("[PAD]"),
        "{text}"
    );
}

#[test]
fn languages_and_tables_are_refused_by_other_families() {
    let mut roberta = super::fixture("roberta");
    assert_eq!(roberta.source_language(), None);
    assert!(roberta.set_source_language("de_DE").is_err());
    assert!(roberta.encode_target("zhir").is_err());
    let text = roberta.encode_table(&["a"], &[vec!["b"]], "zhir", &EncodeOptions::new());
    assert!(
        text.unwrap_err()
            .to_string()
            .contains("not a tokenizer for tables")
    );
    assert!(roberta.spoken_words(&[1, 2]).is_err());
    let mut mbart = super::fixture("mbart");
    let text = mbart.set_source_language("xx_XX").unwrap_err().to_string();
    assert!(text.contains("\"xx_XX\" is not one of ar_AR"), "{text}");
    let before = mbart.fingerprint();
    mbart.set_source_language("de_DE").unwrap();
    assert_ne!(mbart.fingerprint(), before);
    let folder = tempfile::tempdir().unwrap();
    mbart.save_pretrained(folder.path()).unwrap();
    let again = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(again.source_language(), Some("de_DE"));
    assert_eq!(again.encode("zhir").unwrap(), mbart.encode("zhir").unwrap());
    let tapas = super::fixture("tapas");
    let text = tapas.encode_table(&["a", "b"], &[vec!["c"]], "zhir", &EncodeOptions::new());
    assert!(text.unwrap_err().to_string().contains("row 0 has 1 cells"));
}

#[test]
fn a_list_of_abbreviations_in_the_folder_replaces_the_default() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/guide/tokenizers/flaubert");
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "config.json",
    ] {
        std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    let dots = |tokenizer: &Tokenizer| {
        let words = tokenizer.encode("M. Zhir. Shat. Gai").unwrap().word_ids;
        words.into_iter().flatten().max().unwrap()
    };
    // "M." is one word by the list of our own; by the folder's, "Zhir." and "Shat." are.
    let own = Tokenizer::from_path(folder.path()).unwrap();
    std::fs::write(
        folder.path().join("nonbreaking_prefix.fr"),
        "# none\nShat\nZhir\n",
    )
    .unwrap();
    let given = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(dots(&own), 6 - 1);
    assert_eq!(dots(&given), 5 - 1);
    assert_ne!(own.fingerprint(), given.fingerprint());
    given.save_pretrained(folder.path().join("new")).unwrap();
    assert_eq!(
        dots(&Tokenizer::from_path(folder.path().join("new")).unwrap()),
        4
    );
}

/// The tokenizer of tables with other settings.
fn tapas(settings: Value) -> Tokenizer {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/guide/tokenizers/tapas");
    let folder = tempfile::tempdir().unwrap();
    for name in ["vocab.txt", "config.json"] {
        std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    let text = std::fs::read_to_string(source.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in settings.as_object().unwrap() {
        config[key] = value.clone();
    }
    let path = folder.path().join("tokenizer_config.json");
    std::fs::write(path, config.to_string()).unwrap();
    Tokenizer::from_path(folder.path()).unwrap()
}

/// The numbers of each token of a table: column, row, rank, rank from the other end.
fn places(encoding: &Encoding) -> Vec<[i64; 4]> {
    let all = encoding.extra["token_type_ids"].values.chunks(7);
    let of_table = all.filter(|types| types[0] == 1);
    of_table
        .map(|types| [types[1], types[2], types[4], types[5]])
        .collect()
}

#[test]
fn table_settings_control_truncation() {
    let header = ["zhir", "gai"];
    let rows = vec![vec!["1 2 3 4", "5"], vec!["6 7 8 9", "10"]];
    let question = "zhir gai zhir gai";
    let plain = EncodeOptions::new();
    let encode = |settings: Value, options: &EncodeOptions| {
        let tokenizer = tapas(settings);
        tokenizer.encode_table(&header, &rows, question, options)
    };
    let none = serde_json::json!({});
    let whole = encode(none.clone(), &plain).unwrap();

    let stripped = encode(serde_json::json!({"strip_column_names": true}), &plain).unwrap();
    assert!(places(&whole).iter().any(|place| place[1] == 0));
    assert!(places(&stripped).iter().all(|place| place[1] > 0));

    // Nothing of the question but the special tokens around it.
    for settings in [
        serde_json::json!({"max_question_length": 3}),
        serde_json::json!({"min_question_length": 99}),
    ] {
        let silent = encode(settings, &plain).unwrap();
        assert_eq!(silent.tokens[..2], ["[CLS]", "[SEP]"]);
        assert_eq!(
            silent.tokens[2..],
            whole.tokens[whole.len() - silent.len() + 2..]
        );
    }

    // With room for two thirds of the table, ends of cells go, or rows where cells keep their length.
    let short = plain.clone().truncation(whole.len() - 6);
    let cut = places(&encode(none, &short).unwrap());
    assert!(cut.iter().any(|place| place[1] == 2));
    let kept = cut.iter().filter(|place| place[0..2] == [1, 1]).count();
    assert!((1..4).contains(&kept), "{kept}");
    let settings = serde_json::json!({"cell_trim_length": 4});
    let short = plain.clone().truncation(whole.len() - 5);
    let trimmed = places(&encode(settings, &short).unwrap());
    assert!(trimmed.iter().all(|place| place[1] < 2));
    let kept = trimmed.iter().filter(|place| place[0..2] == [1, 1]);
    assert_eq!(kept.count(), 4);
}

/// The model has 256 vectors for ranks, however long the table is.
#[test]
fn ranks_in_long_tables_stay_within_the_models_limit() {
    let rows: Vec<Vec<String>> = (0..400).map(|row| vec![row.to_string()]).collect();
    let options = EncodeOptions::new().truncation(512);
    let tokenizer = super::fixture("tapas");
    let encoding = tokenizer
        .encode_table(&["zhir"], &rows, "gai", &options)
        .unwrap();
    let places = places(&encoding);
    assert!(encoding.len() <= 512 && places.len() > 100);
    for [column, row, rank, inverse] in places {
        assert!(column == 1 && row < 256);
        if row > 0 {
            assert_eq!([rank, inverse], [row.min(255), (401 - row).min(255)]);
        }
    }
}

/// The Python classes drop what is no character, and lowercase a text before they look for special tokens.
#[test]
fn older_wordpiece_files_are_read_as_in_transformers() {
    let bert = super::fixture("bert_uncased");
    let ids = |text: &str| bert.encode_ids(text).unwrap();
    assert_eq!(
        ids("zh\u{200b}ir\u{ad}\0 \u{fffe}\u{10ffff} gai\u{feff}"),
        ids("zhir gai")
    );
    assert_eq!(ids("zhir\tgai\r\nzhir"), ids("zhir gai zhir"));
    let mpnet = super::fixture("mpnet");
    let mask = mpnet.mask_token_id().unwrap();
    let masks = |tokenizer: &Tokenizer, text: &str| {
        let ids = tokenizer.encode_ids(text).unwrap();
        ids.into_iter().filter(|&id| id == mask).count()
    };
    let folder = tempfile::tempdir().unwrap();
    mpnet.save_pretrained(folder.path()).unwrap();
    let again = Tokenizer::from_path(folder.path()).unwrap();
    for tokenizer in [mpnet, again] {
        assert_eq!(masks(&tokenizer, "zhir <MASK> gai <mask> <Mask>gai"), 3);
    }
}
