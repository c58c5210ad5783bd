//! Tokenizers give what transformers gives, from every layout of files.
//!
//! `CLOZE_TOKENIZER_FIXTURES=DIR` goes over another folder of the same layout as `tests/fixtures/guide/tokenizers`, and
//! `CLOZE_GUIDE_FIXTURES=DIR` over the folder `tokenizers` of one that is laid out as `tests/fixtures/guide`.

mod columns;
mod families;
mod faults;
mod layouts;
mod tables;
mod training;

use std::path::{Path, PathBuf};

use cloze::tokenizer::{EncodeOptions, Encoding, Padding, Tokenizer, TruncationStrategy};
use serde_json::Value;

/// Folders whose old files are not enough, and what the error must ask for.
const UNSUPPORTED: [(&str, &str); 0] = [];

/// The folders of folders that are gone over.
fn roots() -> Vec<PathBuf> {
    let given: Vec<PathBuf> = [
        std::env::var_os("CLOZE_TOKENIZER_FIXTURES").map(PathBuf::from),
        std::env::var_os("CLOZE_GUIDE_FIXTURES").map(|dir| Path::new(&dir).join("tokenizers")),
    ]
    .into_iter()
    .flatten()
    .filter(|dir| dir.is_dir())
    .collect();
    if given.is_empty() {
        return vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers")];
    }
    given
}

/// The differences found in one folder.
#[derive(Default)]
struct Report {
    compared: usize,
    wrong: Vec<String>,
}

impl Report {
    fn check<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, ours: T, theirs: T) {
        self.compared += 1;
        if ours != theirs {
            self.wrong.push(format!(
                "{what}:\n      ours   {ours:?}\n      theirs {theirs:?}"
            ));
        }
    }

    /// Fails if there are differences, and shows the first of them.
    fn finish(self) {
        let few = &self.wrong[..self.wrong.len().min(8)];
        assert!(
            self.wrong.is_empty(),
            "{} differ: {}",
            self.wrong.len(),
            few.join("\n")
        );
    }
}

fn numbers(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|n| n.as_u64().unwrap() as u32).collect()
}

/// Returns the header, the rows and the question of a table.
fn table_of(table: &Value) -> (Vec<String>, Vec<Vec<String>>, &str) {
    let strings = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).unwrap();
    let rows = table["rows"].as_array().unwrap().iter();
    let question = table["question"].as_str().unwrap();
    (
        strings(&table["header"]),
        rows.map(strings).collect(),
        question,
    )
}

fn pairs_of(value: &Value) -> Vec<(usize, usize)> {
    let pairs = value.as_array().unwrap().iter();
    pairs
        .map(|p| {
            (
                p[0].as_u64().unwrap() as usize,
                p[1].as_u64().unwrap() as usize,
            )
        })
        .collect()
}

/// The expected value of `key`: for a folder with a `tokenizer.json` what the fast tokenizer changes comes first.
fn expected<'a>(case: &'a Value, fast: bool, key: &str) -> Option<&'a Value> {
    let changed = fast.then(|| case["fast"].get(key)).flatten();
    changed.or_else(|| case["slow"].get(key))
}

fn check_encoding(report: &mut Report, what: &str, ours: &Encoding, case: &Value, fast: bool) {
    let fields = [
        ("input_ids", &ours.ids),
        ("attention_mask", &ours.attention_mask),
        ("special_tokens_mask", &ours.special_tokens_mask),
        ("token_type_ids", &ours.type_ids),
    ];
    for (key, ours) in fields {
        // In truncated pairs the fixtures leave out masks that are the same length of ones.
        if let Some(theirs) = expected(case, fast, key) {
            report.check(&format!("{what} {key}"), ours.clone(), numbers(theirs));
        }
    }
    families::check_columns(report, what, ours, &case["slow"]);
    // Offsets are the fast tokenizer's; they hold for the older files wherever the ids are the same.
    let same_ids = fast || case["fast"].get("input_ids").is_none();
    if let Some(theirs) = case["fast"].get("offsets").filter(|_| same_ids) {
        report.check(
            &format!("{what} offsets"),
            ours.offsets.clone(),
            pairs_of(theirs),
        );
    }
}

fn check_specials(report: &mut Report, tokenizer: &Tokenizer, e: &Value) {
    let ids = &e["special_ids"];
    let ours = [
        ("bos", tokenizer.bos_token(), tokenizer.bos_token_id()),
        ("eos", tokenizer.eos_token(), tokenizer.eos_token_id()),
        ("unk", tokenizer.unk_token(), tokenizer.unk_token_id()),
        ("sep", tokenizer.sep_token(), tokenizer.sep_token_id()),
        ("pad", tokenizer.pad_token(), tokenizer.pad_token_id()),
        ("cls", tokenizer.cls_token(), tokenizer.cls_token_id()),
        ("mask", tokenizer.mask_token(), tokenizer.mask_token_id()),
    ];
    for (role, token, id) in ours {
        // Where the family has no such part its key may be missing.
        report.check(role, token, e["special_tokens"][role].as_str());
        report.check(role, id.map(u64::from), ids[role].as_u64());
    }
    if let Some(theirs) = e.get("all_special_ids") {
        report.check(
            "all special ids",
            tokenizer.all_special_ids(),
            numbers(theirs),
        );
    }
    report.check("len", tokenizer.len() as u64, e["len"].as_u64().unwrap());
    if let Some(names) = e.get("model_input_names").and_then(Value::as_array) {
        for (name, ours) in [
            ("token_type_ids", tokenizer.uses_token_type_ids()),
            ("attention_mask", tokenizer.uses_attention_mask()),
        ] {
            report.check(name, ours, names.iter().any(|known| known == name));
        }
    }
}

fn check_cases(report: &mut Report, tokenizer: &Tokenizer, e: &Value, fast: bool) {
    let special = tokenizer.all_special_ids();
    // A tokenizer of tables has other cases, which are compared with the tables.
    let cases = e["cases"].as_array().filter(|_| e.get("tables").is_none());
    for case in cases.into_iter().flatten() {
        let label = case["label"].as_str().unwrap();
        let text = case["text"].as_str().unwrap();
        let ours = tokenizer.encode(text).unwrap();
        check_encoding(report, label, &ours, case, fast);
        report.check(
            &format!("{label} ids alone"),
            &tokenizer.encode_ids(text).unwrap(),
            &ours.ids,
        );
        if !fast || case["fast"].get("input_ids").is_none() {
            let tokens: Vec<&str> = case["tokens"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t.as_str().unwrap())
                .collect();
            let ours: Vec<&str> = ours.tokens.iter().map(String::as_str).collect();
            report.check(&format!("{label} tokens"), ours, tokens);
        }
        let ids = numbers(&case["slow"]["input_ids"]);
        let decoded = [
            ("keep", false, false),
            ("skip", true, false),
            ("keep_clean", false, true),
            ("skip_clean", true, true),
        ];
        for (key, skip, clean) in decoded {
            let theirs = fast
                .then(|| case["fast_decoded_of_slow_ids"].get(key))
                .flatten();
            let theirs = theirs.unwrap_or(&case["decoded"][key]).as_str().unwrap();
            let ours = tokenizer.decode_with(&ids, skip, clean).unwrap();
            report.check(&format!("{label} decoded, {key}"), ours.as_str(), theirs);
        }
        if e["slow_class"] == "RemBertTokenizer" {
            // That class alone counts only its separator and classification tokens.
            continue;
        }
        let mask: Vec<u32> = ids
            .iter()
            .map(|id| u32::from(special.contains(id)))
            .collect();
        report.check(
            &format!("{label} special ids"),
            mask,
            numbers(&case["mask_from_ids"]),
        );
    }
}

fn check_pairs(report: &mut Report, tokenizer: &Tokenizer, e: &Value, fast: bool) {
    let options = EncodeOptions::new();
    let modes = [
        ("plain", options.clone()),
        ("longest_first_16", options.clone().truncation(16)),
        (
            "only_second_16",
            options
                .truncation(16)
                .truncation_strategy(TruncationStrategy::OnlySecond),
        ),
    ];
    for (i, pair) in e["pairs"].as_array().into_iter().flatten().enumerate() {
        let (text, second) = (
            pair["text"].as_str().unwrap(),
            pair["pair"].as_str().unwrap(),
        );
        for (mode, options) in &modes {
            let what = format!("pair {i} {mode}");
            let ours = tokenizer.encode_pair_with(text, second, options);
            let fails = expected(&pair[mode], fast, "error")
                .or(pair[mode].get("error"))
                .is_some();
            match ours {
                Ok(ours) if !fails => check_encoding(report, &what, &ours, &pair[mode], fast),
                ours => report.check(&what, ours.is_err(), fails),
            }
        }
    }
}

fn check_batch(report: &mut Report, tokenizer: &Tokenizer, e: &Value, fast: bool) {
    let Some(batch) = e.get("batch") else {
        return;
    };
    let texts: Vec<&str> = batch["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    let options = EncodeOptions::new();
    let longest = options.clone().padding(Padding::Longest);
    let modes = [
        ("truncate_16", options.clone().truncation(16)),
        ("pad_longest", longest.clone()),
        ("pad_longest_truncate_16", longest.truncation(16)),
        (
            "pad_max_length_24_multiple_8",
            options
                .clone()
                .truncation(24)
                .padding(Padding::MaxLength(24))
                .pad_to_multiple_of(8),
        ),
        ("no_special_tokens", options.add_special_tokens(false)),
    ];
    for (mode, options) in modes {
        let ours = tokenizer.encode_batch_with(&texts, &options).unwrap();
        for (i, ours) in ours.iter().enumerate() {
            for name in ["input_shape_ids", "input_pronunciation_ids"] {
                if let Some(theirs) = batch[mode]["slow"].get(name) {
                    let column = ours.extra.get(name).map(|column| column.values.clone());
                    let theirs = numbers(&theirs[i]).into_iter().map(i64::from).collect();
                    report.check(
                        &format!("batch {mode} row {i} {name}"),
                        column,
                        Some(theirs),
                    );
                }
            }
            let fields = [
                ("input_ids", &ours.ids),
                ("attention_mask", &ours.attention_mask),
                ("special_tokens_mask", &ours.special_tokens_mask),
                ("token_type_ids", &ours.type_ids),
            ];
            for (key, ours) in fields {
                if let Some(theirs) = expected(&batch[mode], fast, key) {
                    report.check(
                        &format!("batch {mode} row {i} {key}"),
                        ours.clone(),
                        numbers(&theirs[i]),
                    );
                }
            }
        }
    }
}

/// The folder's `expected.json`, which may lie beside its older files only.
fn expectations(folder: &Path) -> Option<Value> {
    let name = folder.file_name()?.to_str()?;
    let family = name.strip_suffix("_fast").unwrap_or(name);
    let places = [folder.to_path_buf(), folder.with_file_name(family)];
    let text = places
        .iter()
        .find_map(|place| std::fs::read_to_string(place.join("expected.json")).ok())?;
    Some(serde_json::from_str(&text).unwrap())
}

#[test]
fn every_folder_agrees_with_transformers() {
    let mut failed = Vec::new();
    for root in roots() {
        let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
            .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        folders.sort();
        assert!(!folders.is_empty(), "{} is empty", root.display());
        for folder in folders {
            if !check_folder(&folder) {
                failed.push(folder.file_name().unwrap().to_owned());
            }
        }
    }
    assert!(
        failed.is_empty(),
        "these differ from transformers: {failed:?}"
    );
}

/// Compares one folder with its expectations; `false` when something differs.
fn check_folder(folder: &Path) -> bool {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let Some(e) = expectations(folder) else {
        println!("{name:<18} FAILED: no expected.json");
        return false;
    };
    let fast = name.ends_with("_fast");
    let tokenizer = match Tokenizer::from_path(folder) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            let reason = UNSUPPORTED
                .iter()
                .find(|(unsupported, _)| *unsupported == name);
            let told = reason.is_some_and(|(_, asks_for)| error.to_string().contains(asks_for));
            let what = if told {
                "unsupported"
            } else {
                "FAILED to load"
            };
            println!("{name:<18} {what}: {error}");
            return told;
        }
    };
    let mut report = Report::default();
    check_specials(&mut report, &tokenizer, &e);
    check_cases(&mut report, &tokenizer, &e, fast);
    check_pairs(&mut report, &tokenizer, &e, fast);
    check_batch(&mut report, &tokenizer, &e, fast);
    families::check(&mut report, &tokenizer, &e, fast);
    let (compared, wrong) = (report.compared, report.wrong.len());
    if wrong == 0 {
        println!("{name:<18} {compared} comparisons, all equal");
        return true;
    }
    println!("{name:<18} {compared} comparisons, {wrong} DIFFER");
    let shown = if std::env::var_os("CLOZE_SHOW_ALL").is_some() {
        wrong
    } else {
        8
    };
    for difference in report.wrong.iter().take(shown) {
        println!("    {difference}");
    }
    false
}

fn fixture(name: &str) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    Tokenizer::from_path(folder.join(name)).unwrap()
}

/// All texts of a family's fixture.
fn texts(family: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    let text = std::fs::read_to_string(folder.join(family).join("expected.json")).unwrap();
    let e: Value = serde_json::from_str(&text).unwrap();
    let cases = e["cases"].as_array().unwrap().iter();
    cases
        .map(|case| case["text"].as_str().unwrap().to_owned())
        .collect()
}

fn eli5_texts() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/eli5_sample.jsonl");
    let file = std::fs::read_to_string(path).unwrap();
    let record = |line: &str| -> Vec<String> {
        let record: Value = serde_json::from_str(line).unwrap();
        serde_json::from_value(record["answers"]["text"].clone()).unwrap()
    };
    file.lines().flat_map(record).collect()
}

#[test]
fn a_saved_tokenizer_opens_with_the_same_ids_and_tokens() {
    for name in [
        "roberta",
        "roberta_fast",
        "bert_cased",
        "bert_uncased_fast",
        "distilbert",
        "deberta",
        "mpnet",
        "funnel_fast",
        "esm",
        "xlm-roberta_fast",
        "albert_fast",
    ] {
        let tokenizer = fixture(name);
        let folder = tempfile::tempdir().unwrap();
        tokenizer
            .save_pretrained(folder.path().join("new"))
            .unwrap();
        let again = Tokenizer::from_path(folder.path().join("new")).unwrap();
        for text in texts(name.trim_end_matches("_fast")) {
            assert_eq!(
                tokenizer.encode(&text).unwrap(),
                again.encode(&text).unwrap(),
                "{name}: {text:?}"
            );
        }
        assert_eq!(format!("{tokenizer:?}"), format!("{again:?}"));
        assert_eq!(tokenizer.all_special_ids(), again.all_special_ids());
        assert_eq!(tokenizer.uses_token_type_ids(), again.uses_token_type_ids());
        assert_eq!(tokenizer.model_max_length(), again.model_max_length());
        // Saving over it changes nothing.
        again.save_pretrained(folder.path().join("new")).unwrap();
        let third = Tokenizer::from_path(folder.path().join("new")).unwrap();
        assert_eq!(again.fingerprint(), third.fingerprint());
        let files = std::fs::read_dir(folder.path().join("new"))
            .unwrap()
            .count();
        assert_eq!(files, 3, "no temporary file stays behind");
    }
}

#[test]
fn a_saved_tokenizer_json_is_readable_by_old_versions() {
    let folder = tempfile::tempdir().unwrap();
    fixture("roberta_fast")
        .save_pretrained(folder.path())
        .unwrap();
    let file = std::fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_str(&file).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap();
    assert!(
        !merges.is_empty()
            && merges
                .iter()
                .all(|merge| merge.as_str().unwrap().contains(' '))
    );
    fixture("xlm-roberta_fast")
        .save_pretrained(folder.path())
        .unwrap();
    let file = std::fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_str(&file).unwrap();
    assert_eq!(json["pre_tokenizer"]["add_prefix_space"], true);
}

#[test]
fn a_batch_equals_its_single_texts() {
    let tokenizer = fixture("roberta");
    let texts = eli5_texts();
    let batch = tokenizer.encode_batch(&texts).unwrap();
    let ids = tokenizer.encode_ids_batch(&texts).unwrap();
    assert_eq!(batch.len(), texts.len());
    for ((text, encoding), ids) in texts.iter().zip(&batch).zip(&ids) {
        assert_eq!(*encoding, tokenizer.encode(text).unwrap());
        assert_eq!(*ids, encoding.ids);
    }
}

#[test]
fn padding_needs_a_padding_token_which_may_be_the_end_token() {
    let vocabulary = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"<end>",
        "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,
        "pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"<end>":0,"a":1,"b":2},"unk_token":"<end>"}}"#;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), vocabulary).unwrap();
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        r#"{"eos_token":"<end>"}"#,
    )
    .unwrap();
    let mut tokenizer = Tokenizer::from_pretrained(folder.path().to_str().unwrap()).unwrap();
    let options = EncodeOptions::new().padding(Padding::Longest);
    let error = tokenizer
        .encode_batch_with(&["a b", "a"], &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("set_pad_token"), "{error}");
    assert_eq!(
        tokenizer
            .encode_batch_with(&["a", "b"], &options)
            .unwrap()
            .len(),
        2,
        "equal rows need none"
    );
    let before = tokenizer.fingerprint();
    tokenizer.set_pad_token_to_eos().unwrap();
    assert_ne!(tokenizer.fingerprint(), before);
    assert_eq!(
        (tokenizer.pad_token(), tokenizer.pad_token_id()),
        (Some("<end>"), Some(0))
    );
    let batch = tokenizer
        .encode_batch_with(&["a b", "a"], &options)
        .unwrap();
    assert_eq!(
        (&batch[1].ids[..], &batch[1].attention_mask[..]),
        (&[1, 0][..], &[1, 0][..])
    );
    let error = tokenizer.set_pad_token("<none>").unwrap_err().to_string();
    assert!(
        error.contains("<none>") && error.contains("3 tokens"),
        "{error}"
    );
    assert!(tokenizer.mask_token().is_none());
    // Saved and opened again, the choice stays.
    tokenizer.save_pretrained(folder.path()).unwrap();
    assert_eq!(
        Tokenizer::from_path(folder.path()).unwrap().pad_token(),
        Some("<end>")
    );
}

#[test]
fn rows_are_padded_on_the_configured_side() {
    let folder = tempfile::tempdir().unwrap();
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers/roberta");
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(source.join(file), folder.path().join(file)).unwrap();
    }
    let config = r#"{"padding_side": "left", "truncation_side": "left", "model_max_length": 512}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let left = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(left.model_max_length(), Some(512));
    let (right, text) = (fixture("roberta"), "zhir betquoul quoumenvon gai");
    assert_eq!(right.model_max_length(), None);
    let options = EncodeOptions::new()
        .padding(Padding::MaxLength(20))
        .truncation(6);
    let (left, right) = (
        left.encode_with(text, &options).unwrap(),
        right.encode_with(text, &options).unwrap(),
    );
    assert_eq!(left.ids[..14], [1; 14]);
    assert_eq!(right.ids[6..], [1; 14]);
    assert_eq!(
        left.ids[14..],
        [0, 89, 316, 335, 267, 2],
        "the end of the text stays"
    );
    assert_eq!(
        right.ids[..6],
        [0, 385, 393, 345, 72, 2],
        "the beginning stays"
    );
    assert_eq!(
        (left.attention_mask[13], left.special_tokens_mask[13]),
        (0, 1)
    );
}

#[test]
fn truncation_shorter_than_the_special_tokens_is_an_error() {
    let tokenizer = fixture("roberta");
    let encode = |n| tokenizer.encode_with("zhir", &EncodeOptions::new().truncation(n));
    let error = encode(1).unwrap_err().to_string();
    assert!(error.contains("2 special tokens"), "{error}");
    assert_eq!(encode(2).unwrap().ids, [0, 2]);
    assert_eq!(encode(3).unwrap().len(), 3);
}

#[test]
fn a_pair_without_special_tokens_keeps_its_token_types() {
    let options = EncodeOptions::new().add_special_tokens(false);
    let encoding = fixture("bert_uncased")
        .encode_pair_with("zhir", "gai", &options)
        .unwrap();
    assert!(encoding.type_ids.contains(&0) && encoding.type_ids.contains(&1));
    assert_eq!(encoding.special_tokens_mask, vec![0; encoding.len()]);
}

#[test]
fn broken_folders_report_the_file_and_the_fault() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let error = || Tokenizer::from_path(folder.path()).unwrap_err().to_string();

    write("model.safetensors", "");
    let text = error();
    assert!(
        text.contains("tokenizer.json") && text.contains("it contains model.safetensors"),
        "{text}"
    );

    write(
        "vocab.json",
        r#"{"<s>": 0, "</s>": 1, "<unk>": 2, "<pad>": 3, "<mask>": 4, "a": 5, "b": 6, "ab": 7}"#,
    );
    assert!(
        error().contains("vocab.json with merges.txt"),
        "{}",
        error()
    );
    write("merges.txt", "#version: 0.2\na b\na c\n");
    let text = error();
    assert!(
        text.contains("merges.txt, line 3") && text.contains("\"c\" is not in vocab.json"),
        "{text}"
    );
    write("merges.txt", "#version: 0.2\nab\n");
    assert!(error().contains("line 2"), "{}", error());
    write("merges.txt", "#version: 0.2\na b\n");
    let tokenizer = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("abab").unwrap().ids, [0, 7, 7, 1]);
    assert_eq!(
        tokenizer.encode("ax").unwrap().ids,
        [0, 5, 2, 1],
        "a byte that the vocabulary lacks is unknown"
    );

    write("vocab.json", "[1, 2]");
    assert!(
        error().contains("vocab.json") && error().contains("not a JSON object"),
        "{}",
        error()
    );
    write(
        "tokenizer.json",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    );
    assert!(
        error().contains("tokenizer.json") && error().contains("LFS"),
        "{}",
        error()
    );
    write("tokenizer_config.json", "{\"pad_token\": ");
    assert!(error().contains("tokenizer_config.json"), "{}", error());
    // Not a name that the Hub could have, so nobody is asked.
    let text = Tokenizer::from_pretrained("./nobody/nothing")
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("tokenizer \"./nobody/nothing\" was not found"),
        "{text}"
    );
}

#[test]
fn a_broken_sentencepiece_model_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers/xlm-roberta");
    let model = std::fs::read(source.join("sentencepiece.bpe.model")).unwrap();
    let file = folder.path().join("sentencepiece.bpe.model");
    let open = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        Tokenizer::from_path(folder.path())
    };
    // Without a config.json the file's name tells the family.
    let ids = |tokenizer: Tokenizer| tokenizer.encode("zhir betquoul").unwrap().ids;
    assert_eq!(
        ids(open(&model).unwrap()),
        ids(Tokenizer::from_path(&source).unwrap())
    );
    let lfs: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for bytes in [
        &model[..model.len() / 2],
        &model[..model.len() - 3],
        lfs,
        b"",
    ] {
        let error = open(bytes).unwrap_err().to_string();
        assert!(error.contains("sentencepiece.bpe.model"), "{error}");
    }
}

#[test]
fn a_vocabulary_without_any_configuration_gets_its_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    for (name, mask, pad) in [
        ("roberta_fast", "<mask>", "<pad>"),
        ("bert_uncased_fast", "[MASK]", "[PAD]"),
    ] {
        let file = folder.path().join("tokenizer.json");
        std::fs::copy(source.join(name).join("tokenizer.json"), &file).unwrap();
        // By the file itself or by its folder.
        for path in [folder.path(), &file] {
            let tokenizer = Tokenizer::from_path(path).unwrap();
            assert_eq!(
                (tokenizer.mask_token(), tokenizer.pad_token()),
                (Some(mask), Some(pad))
            );
            assert_eq!(tokenizer.len(), fixture(name).len(), "nothing is added");
        }
    }
}

#[test]
fn the_config_takes_precedence_over_tokenizer_json() {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    let copy = |name: &str| {
        let from = source.join(name).join("tokenizer.json");
        std::fs::copy(from, folder.path().join("tokenizer.json")).unwrap();
    };
    let config =
        |text: &str| std::fs::write(folder.path().join("tokenizer_config.json"), text).unwrap();
    copy("bert_uncased_fast");
    config(
        r#"{"do_lower_case": false, "strip_accents": false, "tokenizer_class": "BertTokenizer"}"#,
    );
    let cased = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(
        cased.tokenize("Zhir").unwrap(),
        ["[UNK]"],
        "capitals are not in this vocabulary"
    );
    copy("roberta_fast");
    config(r#"{"add_prefix_space": true, "tokenizer_class": "RobertaTokenizer"}"#);
    let prefixed = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(prefixed.tokenize("bet").unwrap()[0], "Ġb");
    assert_eq!(fixture("roberta_fast").tokenize("bet").unwrap()[0], "b");
}

#[test]
fn a_trained_tokenizer_is_reproducible_lossless_and_of_the_requested_size() {
    let texts = eli5_texts();
    let tokenizer = Tokenizer::train_bpe(&texts, 4000).unwrap();
    assert_eq!((tokenizer.len(), tokenizer.vocab_size()), (4000, 4000));
    let ids = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"].map(|token| tokenizer.token_to_id(token));
    assert_eq!(ids, [0, 1, 2, 3, 4].map(Some));
    assert_eq!(tokenizer.mask_token_id(), Some(4));
    let again = Tokenizer::train_bpe(&texts, 4000).unwrap();
    assert_eq!(tokenizer.fingerprint(), again.fingerprint());
    assert_ne!(
        tokenizer.fingerprint(),
        Tokenizer::train_bpe(&texts, 3000).unwrap().fingerprint()
    );
    let encodings = tokenizer.encode_batch(&texts).unwrap();
    let (mut bytes, mut tokens) = (0, 0);
    for (text, encoding) in texts.iter().zip(&encodings) {
        assert_eq!(
            tokenizer.decode_with(&encoding.ids, true, false).unwrap(),
            *text
        );
        (bytes, tokens) = (bytes + text.len(), tokens + encoding.len());
    }
    let ratio = bytes as f64 / tokens as f64;
    assert!(ratio > 3.5, "{ratio:.2} bytes per token");
    // Bytes that the texts never had are tokens all the same.
    let strange = "\u{0}\u{7f} é 漢 🧿 \u{10ffff}";
    let ids = tokenizer.encode_ids(strange).unwrap();
    assert_eq!(tokenizer.decode_with(&ids, true, false).unwrap(), strange);
    assert_eq!(tokenizer.encode("a <mask>.").unwrap().tokens[2], "<mask>");
    let error = Tokenizer::train_bpe(&texts, 100).unwrap_err().to_string();
    assert!(
        error.contains("vocab_size") && error.contains("261"),
        "{error}"
    );
}

#[test]
fn an_encoding_is_displayed_as_a_table() {
    let encoding = fixture("roberta").encode("zhir <mask>").unwrap();
    let lines: Vec<String> = format!("{encoding:?}").lines().map(str::to_owned).collect();
    assert_eq!(
        lines,
        [
            "Encoding of 5 tokens",
            "       id  token   characters   special",
            "        0  <s>     0..0         yes",
            "      385  zh      0..2",
            "      393  ir      2..4",
            "      399  <mask>  5..11",
            "        2  </s>    0..0         yes",
        ]
    );
}

#[test]
fn every_folder_round_trips() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    let mut folders = 0;
    for entry in std::fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        folders += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let tokenizer = fixture(name);
        let folder = tempfile::tempdir().unwrap();
        // Another tokenizer that lies there must not be opened in its place.
        std::fs::copy(
            root.join("mpnet_fast/tokenizer.json"),
            folder.path().join("tokenizer.json"),
        )
        .unwrap();
        tokenizer.save_pretrained(folder.path()).unwrap();
        let again = Tokenizer::from_path(folder.path()).unwrap();
        assert_eq!(format!("{tokenizer:?}"), format!("{again:?}"));
        assert_eq!(tokenizer.all_special_ids(), again.all_special_ids());
        assert_eq!(tokenizer.uses_token_type_ids(), again.uses_token_type_ids());
        assert_eq!(tokenizer.uses_attention_mask(), again.uses_attention_mask());
        assert_eq!(tokenizer.source_language(), again.source_language());
        assert_eq!(tokenizer.has_entities(), again.has_entities());
        let e = expectations(&path).unwrap();
        for case in e["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let encoding = tokenizer.encode(text).unwrap();
            assert_eq!(encoding, again.encode(text).unwrap(), "{name}: {text:?}");
            for skip in [false, true] {
                let decode = |tokenizer: &Tokenizer| tokenizer.decode(&encoding.ids, skip).unwrap();
                assert_eq!(decode(&tokenizer), decode(&again), "{name}: {text:?}");
            }
        }
    }
    assert!(folders > 50);
}
