//! Tokenizers give what the reference gives, from every layout of files.
//!
//! `CLOZE_TOKENIZER_FIXTURES=DIR` goes over another folder of the same layout as `tests/fixtures/guide/tokenizers`.

use std::path::{Path, PathBuf};

use cloze::tokenizer::{EncodeOptions, Encoding, Padding, Tokenizer, TruncationStrategy};
use serde_json::Value;

/// Folders whose old files are not enough, and what the error must ask for.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("albert", "tokenizer.json"),
    ("bigbird", "tokenizer.json"),
    ("camembert", "tokenizer.json"),
    ("deberta-v2", "tokenizer.json"),
    ("deberta-v3", "tokenizer.json"),
    ("flaubert", "tokenizer.json"),
    ("rembert", "tokenizer.json"),
    ("xlm", "tokenizer.json"),
    ("xlm-roberta", "tokenizer.json"),
];

fn fixtures() -> PathBuf {
    std::env::var_os("CLOZE_TOKENIZER_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers"),
        PathBuf::from,
    )
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
}

fn numbers(value: &Value) -> Vec<u32> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|n| n.as_u64().unwrap() as u32).collect()
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
        report.check(role, token, e["special_tokens"][role].as_str());
        report.check(role, id.map(u64::from), ids[role].as_u64());
    }
    report.check(
        "all special ids",
        tokenizer.all_special_ids(),
        numbers(&e["all_special_ids"]),
    );
    report.check("len", tokenizer.len() as u64, e["len"].as_u64().unwrap());
    let type_ids = e["model_input_names"]
        .as_array()
        .unwrap()
        .iter()
        .any(|n| n == "token_type_ids");
    report.check(
        "uses token_type_ids",
        tokenizer.uses_token_type_ids(),
        type_ids,
    );
}

fn check_cases(report: &mut Report, tokenizer: &Tokenizer, e: &Value, fast: bool) {
    let special = tokenizer.all_special_ids();
    for case in e["cases"].as_array().unwrap() {
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
    for (i, pair) in e["pairs"].as_array().unwrap().iter().enumerate() {
        let (text, second) = (
            pair["text"].as_str().unwrap(),
            pair["pair"].as_str().unwrap(),
        );
        for (mode, options) in &modes {
            let what = format!("pair {i} {mode}");
            let ours = tokenizer.encode_pair_with(text, second, options);
            let fails = expected(&pair[mode], fast, "error").is_some();
            match ours {
                Ok(ours) if !fails => check_encoding(report, &what, &ours, &pair[mode], fast),
                ours => report.check(&what, ours.is_err(), fails),
            }
        }
    }
}

fn check_batch(report: &mut Report, tokenizer: &Tokenizer, e: &Value, fast: bool) {
    let batch = &e["batch"];
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

#[test]
fn every_folder_gives_what_the_reference_gives() {
    let root = fixtures();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "{} is empty", root.display());
    let mut failed = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let family = name.strip_suffix("_fast").unwrap_or(name);
        let fast = name != family;
        let text = std::fs::read_to_string(root.join(family).join("expected.json")).unwrap();
        let e: Value = serde_json::from_str(&text).unwrap();
        let tokenizer = match Tokenizer::from_path(&folder) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                let reason = UNSUPPORTED
                    .iter()
                    .find(|(unsupported, _)| *unsupported == name);
                match reason {
                    Some((_, asks_for)) if error.to_string().contains(asks_for) => {
                        println!("{name:<18} unsupported: {error}");
                    }
                    _ => {
                        println!("{name:<18} FAILED to load: {error}");
                        failed.push(name.to_owned());
                    }
                }
                continue;
            }
        };
        let mut report = Report::default();
        check_specials(&mut report, &tokenizer, &e);
        check_cases(&mut report, &tokenizer, &e, fast);
        check_pairs(&mut report, &tokenizer, &e, fast);
        check_batch(&mut report, &tokenizer, &e, fast);
        let (compared, wrong) = (report.compared, report.wrong.len());
        if wrong == 0 {
            println!("{name:<18} {compared} comparisons, all equal");
        } else {
            println!("{name:<18} {compared} comparisons, {wrong} DIFFER");
            for difference in report.wrong.iter().take(8) {
                println!("    {difference}");
            }
            failed.push(name.to_owned());
        }
    }
    assert!(
        failed.is_empty(),
        "these differ from the reference: {failed:?}"
    );
}
