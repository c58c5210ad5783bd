//! The collators and the loader, against transformers' fixtures and on their own promises.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cloze::collate::{
    BatchKey, Collator, DataLoader, Example, Examples, IGNORED, MaskingCollator, MlmBatch,
    PaddingCollator,
};
use cloze::dataset::{Dataset, Map, load_dataset};
use cloze::tokenizer::Tokenizer;
use cloze::{Error, Result};
use serde_json::Value;

/// The tokenizers whose statistics transformers has taken.
fn families() -> Vec<String> {
    let text = std::fs::read_to_string(guide("collator/expected.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let tokenizers = expected
        .keys()
        .filter(|name| guide("tokenizers").join(name).exists());
    let names: Vec<String> = tokenizers.cloned().collect();
    assert!(!names.is_empty());
    names
}

const ROWS: usize = 2000;
const LENGTH: usize = 64;

/// A path in the guide's fixtures; `CLOZE_GUIDE_FIXTURES=DIR` takes those in another folder of the same layout.
fn guide(path: &str) -> std::path::PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide");
    let root = std::env::var_os("CLOZE_GUIDE_FIXTURES").map_or_else(own, std::path::PathBuf::from);
    root.join(path)
}

fn tokenizer(family: &str) -> Tokenizer {
    Tokenizer::from_path(guide("tokenizers").join(family)).unwrap()
}

fn expected(family: &str) -> Value {
    let text = std::fs::read_to_string(guide("collator/expected.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[family].take()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// As many rows as transformers' statistics were taken on: special tokens at the ends, others between.
fn rows(tokenizer: &Tokenizer) -> Vec<Example> {
    let special = tokenizer.all_special_ids();
    let plain: Vec<u32> = (0..tokenizer.len() as u32)
        .filter(|id| !special.contains(id))
        .collect();
    let mut next = 0usize;
    (0..ROWS)
        .map(|_| {
            let mut row = vec![tokenizer.cls_token_id().unwrap()];
            row.extend((0..LENGTH - 2).map(|_| {
                next = (next * 31 + 7) % 1_000_003;
                plain[next % plain.len()]
            }));
            row.push(tokenizer.sep_token_id().unwrap());
            Example::from(row)
        })
        .collect()
}

/// What became of the tokens of a batch.
#[derive(Debug, Default)]
struct Counts {
    candidates: f64,
    selected: f64,
    masked: f64,
    changed: f64,
    kept: f64,
}

fn counts(batch: &MlmBatch, originals: &[Example], tokenizer: &Tokenizer) -> Counts {
    let mask = tokenizer.mask_token_id().unwrap();
    let special = tokenizer.all_special_ids();
    let mut counts = Counts::default();
    for (r, original) in originals.iter().enumerate() {
        for (t, &id) in original.input_ids.iter().enumerate() {
            let (ours, label) = (
                batch.input_ids[r * batch.seq + t],
                batch.labels[r * batch.seq + t],
            );
            if special.contains(&id) {
                assert_eq!((ours, label), (id, IGNORED), "a special token was touched");
                continue;
            }
            counts.candidates += 1.0;
            if label == IGNORED {
                assert_eq!(ours, id, "a token that was not chosen has changed");
                continue;
            }
            assert_eq!(label, i64::from(id), "a label is not the original token");
            counts.selected += 1.0;
            match ours {
                _ if ours == mask => counts.masked += 1.0,
                _ if ours == id => counts.kept += 1.0,
                _ => counts.changed += 1.0,
            }
        }
    }
    counts
}

/// That `hits` of `total` draws at `probability` lie within 4 standard deviations, and as near to transformers'
/// fraction as two such samples should.
fn assert_fraction(what: &str, hits: f64, total: f64, probability: f64, theirs: f64) {
    let deviation = (probability * (1.0 - probability) / total).sqrt();
    let ours = hits / total;
    assert!(
        (ours - probability).abs() <= 4.0 * deviation,
        "{what}: {ours:.4} where {probability} is due (standard deviation {deviation:.4})"
    );
    assert!(
        (ours - theirs).abs() <= 4.0 * deviation * 2f64.sqrt() + 1e-12,
        "{what}: {ours:.4}, transformers has {theirs:.4} (standard deviation {deviation:.4})"
    );
}

#[test]
fn fractions_equal_those_of_transformers_within_sampling_error() {
    // Name in the fixture, mlm_probability, mask_replace_prob, random_replace_prob.
    let policies = [
        ("default_0.15", 0.15, 0.8, 0.1),
        ("p_0", 0.0, 0.8, 0.1),
        ("p_1", 1.0, 0.8, 0.1),
        ("p_0.3", 0.3, 0.8, 0.1),
        ("all_mask", 0.15, 1.0, 0.0),
        ("all_random", 0.15, 0.0, 1.0),
        ("half_0.4", 0.15, 0.5, 0.4),
    ];
    for family in &families() {
        let tokenizer = tokenizer(family);
        let fixture = expected(family);
        assert_eq!(
            tokenizer.len() as u64,
            fixture["len_tokenizer"].as_u64().unwrap()
        );
        let examples = rows(&tokenizer);
        let vocabulary = tokenizer.len() as f64;
        for (name, p, mask, random) in policies {
            let theirs = |key: &str| fixture[name][key].as_f64().unwrap();
            let collator = MaskingCollator::new(&tokenizer)
                .mlm_probability(p)
                .mask_replace_prob(mask)
                .random_replace_prob(random);
            let batch = collator.collate(&examples, BatchKey::default()).unwrap();
            let c = counts(&batch, &examples, &tokenizer);
            let what = |part: &str| format!("{family} {name} {part}");
            assert_eq!(c.candidates, theirs("candidates"));
            assert_fraction(
                &what("selected"),
                c.selected,
                c.candidates,
                p,
                theirs("selected_fraction"),
            );
            if p == 0.0 {
                continue;
            }
            // A random token is the mask or the original once in as many draws as there are tokens.
            let hit = random / vocabulary;
            let fates = [
                ("replaced_by_mask", c.masked, mask + hit),
                ("random_other", c.changed, random - 2.0 * hit),
                ("kept_same", c.kept, 1.0 - mask - random + hit),
            ];
            for (fate, hits, probability) in fates {
                assert_fraction(&what(fate), hits, c.selected, probability, theirs(fate));
            }
        }
    }
}

#[test]
fn random_tokens_are_uniform_over_the_vocabulary() {
    let tokenizer = tokenizer("roberta");
    let examples = rows(&tokenizer);
    let collator = MaskingCollator::new(&tokenizer)
        .mlm_probability(1.0)
        .mask_replace_prob(0.0)
        .random_replace_prob(1.0);
    let batch = collator.collate(&examples, BatchKey::default()).unwrap();
    let mut seen = vec![0f64; tokenizer.len()];
    let mut total = 0.0;
    for (&id, &label) in batch.input_ids.iter().zip(&batch.labels) {
        if label != IGNORED {
            seen[id as usize] += 1.0;
            total += 1.0;
        }
    }
    assert_eq!(total, (ROWS * (LENGTH - 2)) as f64);
    let mean = total / seen.len() as f64;
    let chi2: f64 = seen.iter().map(|count| (count - mean).powi(2) / mean).sum();
    let freedom = seen.len() as f64 - 1.0;
    assert!(
        (chi2 - freedom).abs() <= 4.0 * (2.0 * freedom).sqrt(),
        "chi-square {chi2:.0} at {freedom} degrees of freedom"
    );
}

#[test]
fn without_a_column_special_ids_are_exempt_and_with_one_the_marked_positions() {
    for family in &families() {
        let tokenizer = tokenizer(family);
        let case = &expected(family)["p1_labels_unk_and_mask_inside"];
        let mut example = Example::from(numbers::<u32>(&case["input_ids"]));
        let collator = MaskingCollator::new(&tokenizer).mlm_probability(1.0);
        let labels = |example: &Example| {
            let batch = collator.collate(std::slice::from_ref(example), BatchKey::default());
            batch.unwrap().labels
        };
        assert_eq!(
            labels(&example),
            numbers::<i64>(&case["without_special_tokens_mask"])
        );
        let last = example.input_ids.len() - 1;
        let marked = (0..=last).map(|t| u32::from(t == 0 || t == last)).collect();
        example.special_tokens_mask = Some(marked);
        assert_eq!(
            labels(&example),
            numbers::<i64>(&case["with_special_tokens_mask"])
        );
    }
}

#[test]
fn rows_are_padded_as_in_transformers() {
    for family in &families() {
        let tokenizer = tokenizer(family);
        let padding = &expected(family)["padding"];
        let inputs: Vec<Vec<u32>> = numbers(&padding["inputs"]);
        let examples: Vec<Example> = inputs.into_iter().map(Example::from).collect();
        for (name, multiple) in [
            ("longest", None),
            ("multiple_8", Some(8)),
            ("multiple_64", Some(64)),
        ] {
            let theirs = &padding[name];
            let mut none = MaskingCollator::new(&tokenizer).mlm_probability(0.0);
            let mut all = MaskingCollator::new(&tokenizer).mlm_probability(1.0);
            let mut plain = PaddingCollator::new(&tokenizer);
            if let Some(multiple) = multiple {
                none = none.pad_to_multiple_of(multiple);
                all = all.pad_to_multiple_of(multiple);
                plain = plain.pad_to_multiple_of(multiple);
            }
            let batch = none.collate(&examples, BatchKey::default()).unwrap();
            assert_eq!(batch, plain.collate(&examples).unwrap());
            assert_eq!(batch.shape().0 as u64, theirs["shape"][0].as_u64().unwrap());
            assert_eq!(batch.shape().1 as u64, theirs["shape"][1].as_u64().unwrap());
            assert_eq!(
                batch.input_ids,
                numbers::<Vec<u32>>(&theirs["input_ids"]).concat()
            );
            assert_eq!(
                batch.attention_mask,
                numbers::<Vec<u32>>(&theirs["attention_mask"]).concat()
            );
            assert_eq!(
                batch.labels,
                numbers::<Vec<i64>>(&theirs["labels"]).concat()
            );
            let labels = all.collate(&examples, BatchKey::default()).unwrap().labels;
            assert_eq!(labels, numbers::<Vec<i64>>(&theirs["labels_p1"]).concat());
        }
    }
}

#[test]
fn whole_words_are_masked_together() {
    for family in &families() {
        let tokenizer = tokenizer(family);
        let mask = tokenizer.mask_token_id().unwrap();
        for case in expected(family)["whole_word"]["cases"].as_array().unwrap() {
            let label = case["label"].as_str().unwrap();
            let mut example = Example::from(numbers::<u32>(&case["input_ids"]));
            example.special_tokens_mask = Some(numbers(&case["special_tokens_mask"]));
            example.offsets = Some(numbers(&case["offsets"]));
            let words: Vec<i64> = numbers(&case["word_ids"]);
            let collator = MaskingCollator::new(&tokenizer).whole_word_mask(true);
            let all = collator.clone().mlm_probability(1.0);
            let batch = all
                .collate(std::slice::from_ref(&example), BatchKey::default())
                .unwrap();
            let chosen: Vec<u8> = batch
                .labels
                .iter()
                .map(|&l| u8::from(l != IGNORED))
                .collect();
            assert_eq!(
                chosen,
                numbers::<u8>(&case["all_drawn_mask"]),
                "{family} {label}"
            );

            let third = collator.mlm_probability(0.3);
            let mut drawn = 0;
            for position in 0..200 {
                let key = BatchKey::new(0, position);
                let batch = third.collate(std::slice::from_ref(&example), key).unwrap();
                let masked: HashSet<i64> = (0..words.len())
                    .filter(|&t| batch.labels[t] != IGNORED)
                    .map(|t| words[t])
                    .collect();
                for (t, word) in words.iter().enumerate() {
                    let expected = if masked.contains(word) {
                        mask
                    } else {
                        example.input_ids[t]
                    };
                    assert_eq!(
                        batch.input_ids[t], expected,
                        "{family} {label}: word {word} in part"
                    );
                }
                drawn += masked.len();
            }
            let number = *words.iter().max().unwrap() as f64 * 200.0;
            let deviation = (0.3 * 0.7 / number).sqrt();
            assert!(
                (drawn as f64 / number - 0.3).abs() <= 4.0 * deviation,
                "{family} {label}: {drawn}/{number}"
            );
        }
    }
}

#[test]
fn without_offsets_the_spelling_marks_the_beginnings_of_words() {
    for (family, text, words) in [
        (
            "roberta",
            "Mumkrou titglail shoushun",
            vec!["Mumkrou", " titglail", " shoushun"],
        ),
        (
            "bert_uncased",
            "Mumkrou titglail shoushun",
            vec!["mumkrou", "titglail", "shoushun"],
        ),
    ] {
        let tokenizer = tokenizer(family);
        let example = Example::from(tokenizer.encode_ids(text).unwrap());
        let collator = MaskingCollator::new(&tokenizer)
            .whole_word_mask(true)
            .mlm_probability(0.4);
        let mut seen = HashSet::new();
        for position in 0..200 {
            let batch = collator
                .collate(std::slice::from_ref(&example), BatchKey::new(0, position))
                .unwrap();
            let chosen: Vec<Option<u32>> = batch
                .labels
                .iter()
                .map(|&l| u32::try_from(l).ok())
                .collect();
            for run in chosen.split(Option::is_none).filter(|run| !run.is_empty()) {
                let ids: Vec<u32> = run.iter().flatten().copied().collect();
                seen.insert(tokenizer.decode_with(&ids, false, false).unwrap());
            }
        }
        for word in &words {
            assert!(
                seen.contains(*word),
                "{family}: {word:?} never masked alone: {seen:?}"
            );
        }
        // Whatever was masked is words side by side, never a piece of one.
        let whole: HashSet<String> = (0..words.len())
            .flat_map(|from| (from + 1..=words.len()).map(move |to| (from, to)))
            .map(|(from, to)| words[from..to].join(if family == "roberta" { "" } else { " " }))
            .collect();
        assert!(seen.is_subset(&whole), "{family}: {seen:?}");
    }
}

#[test]
fn masks_depend_on_the_position_and_not_on_the_batch() {
    let tokenizer = tokenizer("roberta");
    let examples = rows(&tokenizer);
    let collator = MaskingCollator::new(&tokenizer).seed(3);
    let whole = collator
        .collate(&examples[..64], BatchKey::new(1, 0))
        .unwrap();
    for size in [1, 7, 32] {
        for (b, chunk) in examples[..64].chunks(size).enumerate() {
            let key = BatchKey::new(1, (b * size) as u64);
            let part = collator.collate(chunk, key).unwrap();
            let from = b * size * LENGTH;
            assert_eq!(
                part.input_ids[..],
                whole.input_ids[from..from + part.input_ids.len()]
            );
        }
    }
    let again = collator
        .collate(&examples[..64], BatchKey::new(2, 0))
        .unwrap();
    assert_ne!(again.labels, whole.labels, "another epoch has other masks");
    let other = collator
        .seed(4)
        .collate(&examples[..64], BatchKey::new(1, 0))
        .unwrap();
    assert_ne!(other.labels, whole.labels, "another seed has other masks");
}

#[test]
fn impossible_settings_are_refused() {
    let tokenizer = tokenizer("roberta");
    let example = [Example::from(vec![0, 10, 2])];
    let new = || MaskingCollator::new(&tokenizer);
    for (collator, name) in [
        (new().mlm_probability(1.5), "mlm_probability"),
        (new().mlm_probability(-0.1), "mlm_probability"),
        (new().mlm_probability(f64::NAN), "mlm_probability"),
        (
            new().mask_replace_prob(0.9).random_replace_prob(0.2),
            "random_replace_prob",
        ),
        (new().pad_to_multiple_of(0), "pad_to_multiple_of"),
    ] {
        let error = collator.collate(&example, BatchKey::default()).unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
        assert!(DataLoader::new(example.to_vec(), collator, 1).is_err());
    }
    // 0.9 + 0.1 is 1 for people, whatever it is for floats.
    new()
        .mask_replace_prob(0.9)
        .random_replace_prob(0.1)
        .validate()
        .unwrap();
    assert!(
        new().collate(&[], BatchKey::default()).is_err(),
        "no examples make no batch"
    );
    let broken = Example {
        attention_mask: Some(vec![1]),
        ..Example::from(vec![0, 10, 2])
    };
    let error = new()
        .collate(&[broken], BatchKey::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3 input_ids") && error.contains("1 values of attention_mask"),
        "{error}"
    );
}

#[test]
fn padding_keeps_labels_and_token_types() {
    let tokenizer = tokenizer("bert_uncased");
    let example = |ids: Vec<u32>, labels: Vec<i64>| Example {
        token_type_ids: Some(vec![1; ids.len()]),
        labels: Some(labels),
        ..Example::from(ids)
    };
    let examples = [
        example(vec![5, 9, 6], vec![-100, 8, -100]),
        example(vec![5, 6], vec![-100, 7]),
    ];
    let batch = PaddingCollator::new(&tokenizer).collate(&examples).unwrap();
    assert_eq!(batch.labels, [-100, 8, -100, -100, 7, -100]);
    assert_eq!(batch.token_type_ids, Some(vec![1, 1, 1, 1, 1, 0]));
    assert_eq!(batch.counted_tokens(), 2);
    assert_eq!(batch.input_ids, [5, 9, 6, 5, 6, 0]);
    assert_eq!(batch.shape(), (2, 3));
}

fn numbered(count: u32) -> Vec<Example> {
    (0..count)
        .map(|i| Example::from(vec![0, 10 + i, 2]))
        .collect()
}

fn ids(loader: &DataLoader, epoch: u64) -> Vec<Vec<u32>> {
    loader
        .epoch(epoch)
        .map(|batch| batch.unwrap().input_ids)
        .collect()
}

#[test]
fn every_epoch_uses_every_example_once_in_its_own_order() {
    let tokenizer = tokenizer("roberta");
    let loader = DataLoader::new(numbered(103), PaddingCollator::new(&tokenizer), 8).unwrap();
    let in_order: Vec<u32> = (10..113).collect();
    let seen = |loader: &DataLoader, epoch| -> Vec<u32> {
        ids(loader, epoch)
            .concat()
            .into_iter()
            .filter(|&id| id > 2)
            .collect()
    };
    assert_eq!(seen(&loader, 5), in_order);
    assert_eq!((loader.len(), loader.epoch(0).len()), (13, 13));
    let shuffled = loader.clone().shuffle(7);
    let (first, second) = (seen(&shuffled, 0), seen(&shuffled, 1));
    assert_ne!(first, in_order);
    assert_ne!(first, second);
    assert_eq!(
        first,
        seen(&shuffled, 0),
        "the order follows from seed and epoch alone"
    );
    assert_ne!(first, seen(&loader.clone().shuffle(8), 0));
    for order in [first, second] {
        assert_eq!(order.len(), 103);
        assert_eq!(
            order.into_iter().collect::<HashSet<_>>(),
            in_order.iter().copied().collect()
        );
    }
    let full = shuffled.drop_last(true);
    assert_eq!(full.len(), 12);
    assert!(full.epoch(0).all(|batch| batch.unwrap().batch == 8));
}

#[test]
fn an_epoch_resumed_at_any_batch_continues_identically() {
    let tokenizer = tokenizer("roberta");
    let loader = DataLoader::new(
        rows(&tokenizer)[..50].to_vec(),
        MaskingCollator::new(&tokenizer),
        8,
    );
    let loader = loader.unwrap().shuffle(1).prefetch(2);
    let whole: Vec<MlmBatch> = loader.epoch(3).map(Result::unwrap).collect();
    assert_eq!(whole.len(), 7);
    for first in 0..9 {
        let rest: Vec<MlmBatch> = loader.epoch_from(3, first).map(Result::unwrap).collect();
        assert_eq!(rest, whole[first.min(7)..]);
    }
    for prefetch in [0, 1, 100] {
        let other: Vec<MlmBatch> = loader
            .clone()
            .prefetch(prefetch)
            .epoch(3)
            .map(Result::unwrap)
            .collect();
        assert_eq!(other, whole, "working ahead changes nothing");
    }
}

/// Examples that count how often they are asked for, and fail at one index.
struct Faulty {
    asked: Arc<AtomicUsize>,
    fails_at: usize,
    panics: bool,
}

impl Examples for Faulty {
    fn len(&self) -> usize {
        100
    }

    fn get(&self, index: usize) -> Result<Example> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match index == self.fails_at {
            true if self.panics => panic!("index {index} is cursed"),
            true => Err(Error::Dataset(format!("row {index} is broken"))),
            false => Ok(Example::from(vec![0, 10, 2])),
        }
    }
}

#[test]
fn errors_and_panics_of_the_thread_are_returned_at_their_batch() {
    let tokenizer = tokenizer("roberta");
    for (panics, text) in [(false, "row 21 is broken"), (true, "index 21 is cursed")] {
        let examples = Faulty {
            asked: Arc::default(),
            fails_at: 21,
            panics,
        };
        let loader = DataLoader::new(examples, PaddingCollator::new(&tokenizer), 4).unwrap();
        let mut batches = loader.epoch(0);
        for _ in 0..5 {
            batches.next().unwrap().unwrap();
        }
        let error = batches.next().unwrap().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert!(batches.next().is_none(), "nothing comes after an error");
    }
}

#[test]
fn a_dropped_epoch_stops_its_thread() {
    let tokenizer = tokenizer("roberta");
    let asked = Arc::new(AtomicUsize::new(0));
    let examples = Faulty {
        asked: asked.clone(),
        fails_at: usize::MAX,
        panics: false,
    };
    let loader = DataLoader::new(examples, PaddingCollator::new(&tokenizer), 1)
        .unwrap()
        .prefetch(3);
    let mut batches = loader.epoch(0);
    batches.next().unwrap().unwrap();
    drop(batches);
    // Dropping waits for the thread: one batch taken, three kept ready, one in hand.
    let after = asked.load(Ordering::SeqCst);
    assert!((1..=6).contains(&after), "{after} examples were fetched");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(asked.load(Ordering::SeqCst), after);
}

#[test]
fn an_empty_loader_is_refused() {
    let tokenizer = tokenizer("roberta");
    let new = |examples: Vec<Example>, size| {
        DataLoader::new(examples, PaddingCollator::new(&tokenizer), size)
    };
    assert!(new(vec![], 4).unwrap_err().to_string().contains("empty"));
    assert!(
        new(numbered(3), 0)
            .unwrap_err()
            .to_string()
            .contains("batch_size")
    );
    let collator: Arc<dyn Collator> = Arc::new(PaddingCollator::new(&tokenizer));
    assert!(collator.validate().is_ok());
}

#[test]
fn a_dataset_is_tokenized_grouped_and_loaded_as_in_the_guide() {
    let tokenizer = tokenizer("roberta");
    let text = std::fs::read_to_string(guide("guide/expected.json")).unwrap();
    let theirs: Value = serde_json::from_str(&text).unwrap();
    let eli5 = load_dataset(guide("eli5/train_asks.jsonl").to_str().unwrap()).unwrap();
    let eli5 = eli5["train"].flatten().unwrap();
    let map = |threads| {
        Map::new(tokenizer.tokenize_column("answers.text"))
            .batched()
            .num_proc(threads)
            .remove_columns(eli5.column_names())
            .cache(false)
    };
    let tokenized = eli5.map(map(4)).unwrap();
    assert_eq!(
        tokenized.features(),
        [
            ("input_ids", "list<int32>"),
            ("attention_mask", "list<int8>")
        ]
        .map(|(n, t)| (n.into(), t.into()))
    );
    let expected: Vec<Vec<u32>> = numbers(&theirs["input_ids"]);
    assert_eq!(tokenized.column::<Vec<u32>>("input_ids").unwrap(), expected);
    let masks = tokenized.column::<Vec<u32>>("attention_mask").unwrap();
    assert!(
        masks
            .iter()
            .zip(&expected)
            .all(|(mask, ids)| *mask == vec![1; ids.len()])
    );
    assert_eq!(
        eli5.map(map(1).batch_size(7))
            .unwrap()
            .column::<Vec<u32>>("input_ids")
            .unwrap(),
        expected
    );

    let blocks = tokenized.group_texts(16).unwrap();
    let grouped: Vec<Vec<u32>> = numbers(&theirs["grouped"]["block16_batch1000"]["blocks"]);
    assert_eq!(blocks.column::<Vec<u32>>("input_ids").unwrap(), grouped);

    let loader = DataLoader::new(blocks.clone(), PaddingCollator::new(&tokenizer), 8).unwrap();
    let loaded: Vec<u32> = loader
        .epoch(0)
        .flat_map(|batch| batch.unwrap().input_ids)
        .collect();
    assert_eq!(loaded, grouped.concat());
    // A view of other rows in another order gives those.
    let reversed: Vec<usize> = (0..blocks.len()).rev().collect();
    let view = blocks.select(&reversed).unwrap();
    for (index, row) in reversed.into_iter().enumerate().step_by(97) {
        assert_eq!(Examples::get(&view, index).unwrap().input_ids, grouped[row]);
    }
    let masking = DataLoader::new(blocks, MaskingCollator::new(&tokenizer), 8)
        .unwrap()
        .shuffle(0);
    let batch = masking.epoch(0).next().unwrap().unwrap();
    assert_eq!(batch.shape(), (8, 16));
    assert!(batch.counted_tokens() > 0);
}

#[test]
fn a_column_of_texts_is_tokenized_row_by_row() {
    let tokenizer = tokenizer("bert_uncased");
    let texts: Vec<String> = (0..100)
        .map(|i| format!("zhir betquoul {}", "gai ".repeat(i % 7)))
        .collect();
    let dataset = Dataset::builder()
        .column("text", texts.clone())
        .build()
        .unwrap();
    let function = tokenizer
        .tokenize_column("text")
        .return_special_tokens_mask(true);
    let tokenized = dataset
        .map(Map::new(function).batched().cache(false))
        .unwrap();
    assert_eq!(
        tokenized.column_names(),
        ["text", "input_ids", "attention_mask", "special_tokens_mask"]
    );
    for (i, text) in texts.iter().enumerate() {
        let encoding = tokenizer.encode(text).unwrap();
        let example = Examples::get(&tokenized, i).unwrap();
        assert_eq!(example.input_ids, encoding.ids);
        assert_eq!(
            example.special_tokens_mask,
            Some(encoding.special_tokens_mask)
        );
    }
    let none = dataset
        .select(&[])
        .unwrap()
        .map(Map::new(tokenizer.tokenize_column("text")).batched())
        .unwrap();
    assert_eq!((none.len(), none.column_names().len()), (0, 3));
}

#[test]
fn the_cache_distinguishes_tokenizers() {
    let cache = tempfile::tempdir().unwrap();
    let dataset = Dataset::builder()
        .column("text", vec!["zhir gai", "nom"])
        .build()
        .unwrap();
    let ids = |family: &str| {
        let function = tokenizer(family).tokenize_column("text");
        let map = Map::new(function).batched().cache_dir(cache.path());
        dataset
            .map(map)
            .unwrap()
            .column::<Vec<u32>>("input_ids")
            .unwrap()
    };
    let files = || {
        let folder = cache.path().join("datasets");
        std::fs::read_dir(folder).unwrap().count()
    };
    let (first, second) = (ids("roberta"), ids("bert_uncased"));
    assert_ne!(first, second);
    let before = files();
    assert_eq!(before, 2, "both results are kept");
    assert_eq!((ids("roberta"), ids("bert_uncased")), (first, second));
    assert_eq!(files(), before, "found again, not made again");
}

#[test]
fn unusable_columns_are_named() {
    let tokenizer = tokenizer("roberta");
    let dataset = Dataset::builder()
        .column("score", vec![1, 2])
        .column("text", vec![Some("a"), None])
        .build()
        .unwrap();
    let error = |column: &str| {
        let map = Map::new(tokenizer.tokenize_column(column))
            .batched()
            .cache(false);
        format!("{:?}", dataset.map(map).unwrap_err())
    };
    assert!(
        error("score").contains("\"score\" holds int32") && error("score").contains("list<string>")
    );
    assert!(error("text").contains("null in row 1"), "{}", error("text"));
    assert!(error("body").contains("score, text"), "{}", error("body"));
    let load = |dataset: Dataset| {
        let loader = DataLoader::new(dataset, PaddingCollator::new(&tokenizer), 1);
        loader.unwrap_err().to_string()
    };
    let text = load(dataset);
    assert!(
        text.contains("input_ids") && text.contains("score, text") && text.contains("tokenize"),
        "{text}"
    );
    let words = Dataset::builder()
        .column("input_ids", vec![vec!["a"]])
        .build()
        .unwrap();
    assert!(load(words).contains("list<string>"));
    let negative = Dataset::builder()
        .column("input_ids", vec![vec![3, -1]])
        .build()
        .unwrap();
    assert!(load(negative).contains("out of range in row 0"));
}
