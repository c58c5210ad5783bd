//! Streams: the same rows as loading gives, orders that can be gone on with, and what is said of data that don't fit.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cloze::dataset::StreamRows;
use cloze::interrupt;
use cloze::prelude::*;
use tempfile::TempDir;

/// Records of uneven length; every third has a null.
fn records(count: usize) -> Vec<Row> {
    let record = |i: usize| {
        let words: Vec<String> = (0..3 + i * 7 % 19)
            .map(|t| format!("w{}", (i * 31 + t) % 97))
            .collect();
        let note = match i % 3 {
            0 => Value::Null,
            _ => Value::from(format!("n{i}")),
        };
        Row::new()
            .with("id", i as i64)
            .with("text", words.join(" "))
            .with(
                "more",
                Row::new().with("note", note).with("share", i as f64 / 8.0),
            )
    };
    (0..count).map(record).collect()
}

fn lines(rows: &[Row]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    Dataset::from_rows(rows.to_vec())
        .unwrap()
        .to_json(&path)
        .unwrap();
    std::fs::read(path).unwrap()
}

fn write(path: PathBuf, bytes: &[u8]) -> String {
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn stream(path: impl AsRef<str>) -> IterableDataset {
    load_dataset_streaming(path, "train").unwrap()
}

fn ids(rows: StreamRows) -> Vec<i64> {
    rows.map(|row| row.unwrap()["id"].as_i64().unwrap())
        .collect()
}

#[test]
fn every_format_streams_the_same_rows_as_loading() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let rows = records(5000);
    let plain = lines(&rows);
    let gzip = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    };
    let document = |rows: &[Row]| {
        let lines = String::from_utf8(lines(rows)).unwrap();
        format!("[{}]", lines.trim_end().replace('\n', ","))
    };
    let windows = String::from_utf8(plain.clone())
        .unwrap()
        .replace('\n', "\r\n\r\n");
    let mut files = vec![
        write(at("plain.jsonl"), &plain),
        write(at("no_end.jsonl"), plain.trim_ascii_end()),
        write(at("windows.jsonl"), windows.as_bytes()),
        write(at("marked.jsonl"), &[b"\xef\xbb\xbf", &plain[..]].concat()),
        write(at("packed.jsonl.gz"), &gzip(&plain)),
        write(
            at("packed.jsonl.zst"),
            &zstd::encode_all(&plain[..], 1).unwrap(),
        ),
        write(at("document.json"), document(&rows).as_bytes()),
    ];
    let parquet = at("rows.parquet");
    Dataset::from_rows(rows.clone())
        .unwrap()
        .to_parquet(&parquet)
        .unwrap();
    files.push(parquet.to_str().unwrap().to_owned());
    for file in files {
        let stream = stream(&file);
        let loaded = load_dataset(&file).unwrap()["train"].clone();
        let found: Vec<Row> = stream.iter().collect::<Result<_>>().unwrap();
        assert_eq!(found, loaded.iter().collect::<Vec<_>>(), "{file}");
        assert_eq!(
            stream.to_dataset().unwrap().features(),
            loaded.features(),
            "{file}"
        );
        // Shuffled, every row comes once, and every epoch has an order of its own.
        let shuffled = stream.shuffle(3, 700);
        let orders = [0, 1].map(|epoch| ids(shuffled.clone().set_epoch(epoch).iter()));
        assert_eq!(ids(shuffled.iter()), orders[0], "{file}");
        assert_ne!(orders[0], orders[1], "{file}");
        assert_ne!(orders[0], ids(stream.shuffle(4, 700).iter()), "{file}");
        for mut order in orders {
            order.sort_unstable();
            assert_eq!(order, (0..5000).collect::<Vec<i64>>(), "{file}");
        }
    }
    let text = write(
        at("text.txt"),
        "first\n\nthird\r\nlast without an end".as_bytes(),
    );
    let found: Vec<Row> = stream(&text).iter().collect::<Result<_>>().unwrap();
    let loaded = load_dataset(&text).unwrap()["train"].clone();
    assert_eq!(found, loaded.iter().collect::<Vec<_>>());
}

#[test]
fn several_files_have_many_shards_and_one_order() {
    let folder = tempfile::tempdir().unwrap();
    let rows = records(30_000);
    for (number, part) in rows.chunks(12_000).enumerate() {
        write(folder.path().join(format!("{number}.jsonl")), &lines(part));
    }
    let stream = stream(folder.path().to_str().unwrap());
    assert!(stream.num_shards() > 6, "{}", stream.num_shards());
    assert_eq!(ids(stream.iter()), (0..30_000).collect::<Vec<i64>>());
    let order = ids(stream.shuffle(1, 1000).iter());
    // Shards come in a random order, and rows within a section: neighbours are far apart.
    let far = order
        .windows(2)
        .filter(|pair| pair[0].abs_diff(pair[1]) > 50)
        .count();
    assert!(far > 20_000, "{far}");
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 30_000);
}

#[test]
fn lazy_operations_agree_with_those_on_a_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path().join("rows.jsonl"), &lines(&records(4300)));
    let (stream, loaded) = (stream(&file), load_dataset(&file).unwrap()["train"].clone());
    let tokenizer = Tokenizer::train_bpe(["w1 w2 w3 w4 w5 w6 w7 w8 w9 w10"], 300).unwrap();
    let tokens = || {
        Map::new(tokenizer.tokenize_column("text"))
            .batched()
            .remove_all_columns()
    };
    let expected = loaded.flatten().unwrap().map(tokens()).unwrap();
    let expected = expected
        .group_texts(GroupTexts::new(32).cache(false))
        .unwrap();
    let blocks = stream
        .flatten()
        .unwrap()
        .map(tokens())
        .unwrap()
        .group_texts(32)
        .unwrap();
    let found = blocks.to_dataset().unwrap();
    // Sections are batches of 1000 here too.
    let column = |data: &Dataset| data.column::<Vec<u32>>("input_ids").unwrap();
    assert_eq!(column(&found), column(&expected));
    let of = |keep: fn(&Row) -> bool| ids(stream.filter(keep).rename_column("text", "t").iter());
    assert_eq!(
        of(|row| row["id"].as_i64() > Some(4290)),
        (4291..4300).collect::<Vec<i64>>()
    );
    let shares = stream
        .flatten()
        .unwrap()
        .select_columns(["more.share", "id"]);
    assert_eq!(
        shares.take(1).to_dataset().unwrap().column_names(),
        ["more.share", "id"]
    );
    assert_eq!(
        ids(shares.remove_columns(["more.share"]).skip(4298).iter()),
        [4298, 4299]
    );
}

#[test]
fn take_and_skip_partition_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path().join("rows.jsonl"), &lines(&records(3500)));
    let shuffled = stream(&file).shuffle(9, 100);
    let all = ids(shuffled.iter());
    for rows in [0, 1, 999, 1000, 2500, 3500, 9000] {
        let parts = [
            ids(shuffled.take(rows).iter()),
            ids(shuffled.skip(rows).iter()),
        ];
        assert_eq!(parts[0].len(), rows.min(3500));
        assert_eq!(parts.concat(), all, "{rows}");
    }
    assert_eq!(ids(shuffled.skip(1200).take(700).iter()), all[1200..1900]);
    // What is taken ends the reading.
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let counted = stream(&file).map(
        Map::new(move |batch: &Batch| {
            counter.fetch_add(batch.len(), Ordering::Relaxed);
            Ok(batch.clone())
        })
        .batched(),
    );
    assert_eq!(ids(counted.unwrap().take(10).iter()).len(), 10);
    assert_eq!(read.load(Ordering::Relaxed), 1000);
}

#[test]
fn mismatched_values_are_reported_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut text: Vec<String> = (0..60_000)
        .map(|i| format!("{{\"id\": {i}, \"text\": \"some words of row {i}\"}}"))
        .collect();
    let mut error_of = |line: usize, text_of: &str| {
        let before = std::mem::replace(&mut text[line - 1], text_of.to_owned());
        let file = write(at("bad.jsonl"), text.join("\n").as_bytes());
        text[line - 1] = before;
        let mut rows = stream(&file).iter();
        let error = rows.find_map(Result::err).expect("an error").to_string();
        assert!(rows.next().is_none());
        error
    };
    let error = error_of(50_001, "{\"id\": \"five\", \"text\": \"t\"}");
    assert!(
        error.contains("bad.jsonl") && error.contains("a stream takes its columns and types"),
        "{error}"
    );
    // Told from the batch's first line on.
    let line: usize = error
        .split("line ")
        .nth(1)
        .unwrap()
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!((20_000..=50_001).contains(&line), "{error}");
    let error = error_of(59_999, "{\"id\": 1, \"text\": \"t\", \"new\": 1}");
    assert!(error.contains("new"), "{error}");
    let open = |file: String| {
        load_dataset_streaming(file, "train")
            .unwrap_err()
            .to_string()
    };
    let error = open(write(at("rows.csv"), b"a,b\n1,2\n"));
    assert!(
        error.contains("JSON lines, text and Parquet can be streamed"),
        "{error}"
    );
    let error = open(write(at("empty.jsonl"), b""));
    assert!(error.contains("has no rows"), "{error}");
    let file = write(at("good.jsonl"), text[..10].join("\n").as_bytes());
    let error = load_dataset_streaming(&file, "test")
        .unwrap_err()
        .to_string();
    assert!(error.contains("the splits are train"), "{error}");
    assert!(stream(&file).lanes(0).is_err());
    assert!(stream(&file).group_texts(0).is_err());
    let lazy = stream(&file).group_texts(4).unwrap();
    let error = lazy.to_dataset().unwrap_err().to_string();
    assert!(
        error.contains("lists of token ids") && error.contains("good.jsonl"),
        "{error}"
    );
    let none = stream(&file)
        .filter(|_| false)
        .to_dataset()
        .unwrap_err()
        .to_string();
    assert!(none.contains("the stream has no rows"), "{none}");
    assert!(
        format!("{:?}", stream(&file)).contains("features: ['id', 'text'],\n    num_shards: 1")
    );
}

// Training.

struct Setting {
    folder: TempDir,
    tokenizer: Tokenizer,
    /// The rows that were tokenized.
    read: Arc<AtomicUsize>,
}

impl Setting {
    fn new(rows: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path().join("rows.jsonl"), &lines(&records(rows)));
        Self {
            folder,
            tokenizer: Tokenizer::train_bpe(["w1 w2 w3 w4 w5 w6 w7 w8 w9 w10"], 300).unwrap(),
            read: Arc::default(),
        }
    }

    fn stream(&self) -> IterableDataset {
        let (tokens, read) = (
            self.tokenizer.tokenize_column("text"),
            Arc::clone(&self.read),
        );
        let tokens = Map::new(move |batch: &Batch| {
            read.fetch_add(batch.len(), Ordering::Relaxed);
            tokens.call(batch)
        });
        stream(self.folder.path().join("rows.jsonl").to_str().unwrap())
            .map(tokens.batched().remove_all_columns())
            .unwrap()
            .group_texts(32)
            .unwrap()
            .shuffle(7, 1000)
    }

    fn trainer(&self, stream: &IterableDataset, out: &Path, steps: usize) -> Trainer {
        let config = Config::new("roberta")
            .set("vocab_size", self.tokenizer.len())
            .set("hidden_size", 16)
            .set("num_hidden_layers", 1)
            .set("num_attention_heads", 2)
            .set("intermediate_size", 32);
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let args = TrainingArguments::new(out)
            .per_device_train_batch_size(4)
            .gradient_accumulation_steps(3)
            .max_steps(steps)
            .logging_steps(1000)
            .save_steps(1000);
        Trainer::new(model, args, stream, MaskingCollator::new(&self.tokenizer))
    }
}

fn losses(history: &History) -> Vec<u32> {
    history
        .steps
        .iter()
        .map(|step| step.loss.to_bits())
        .collect()
}

#[test]
fn a_run_on_a_stream_resumes() {
    let setting = Setting::new(24_000);
    let stream = setting.stream().lanes(2).unwrap();
    assert!(stream.num_shards() >= 4, "{}", stream.num_shards());
    let out = tempfile::tempdir().unwrap();
    let whole = setting
        .trainer(&stream, &out.path().join("whole"), 1200)
        .train()
        .unwrap();
    assert_eq!(whole.steps.len(), 1200);
    let all_read = setting.read.swap(0, Ordering::Relaxed);
    let parts = out.path().join("parts");
    let stopped = setting
        .trainer(&stream, &parts, 1200)
        .callback(|event: &Event| {
            if let Event::StepEnd { step, .. } = event
                && step.step == 1150
            {
                interrupt::request();
            }
            Ok(Control::Continue)
        })
        .train()
        .unwrap();
    assert!(stopped.interrupted && stopped.steps.len() == 1150);
    setting.read.store(0, Ordering::Relaxed);
    let resumed = setting
        .trainer(&stream, &parts, 1200)
        .resume_from_latest_checkpoint()
        .unwrap();
    assert_eq!(losses(&resumed), losses(&whole));
    // What came before was not read again, but for the sections that the lanes stood in.
    let read = setting.read.load(Ordering::Relaxed);
    assert!(read < all_read / 2, "{read} of {all_read}");
    // Longer than first meant, and beyond an epoch, in this process and from the last checkpoint.
    let longer = setting
        .trainer(&stream, &parts, 1210)
        .resume_from_latest_checkpoint()
        .unwrap();
    assert_eq!(longer.steps.len(), 1210);
    assert_eq!(losses(&longer)[..1200], losses(&whole));
}

#[test]
fn each_epoch_of_a_stream_has_its_own_order() {
    let setting = Setting::new(2000);
    let out = tempfile::tempdir().unwrap();
    let stream = setting.stream();
    let blocks = stream.to_dataset().unwrap().len();
    setting.read.store(0, Ordering::Relaxed);
    // Two and a half epochs.
    let steps = blocks * 5 / 2 / 12;
    let history = setting.trainer(&stream, out.path(), steps).train().unwrap();
    assert_eq!(history.steps.len(), steps);
    assert!(setting.read.load(Ordering::Relaxed) >= 6000 - 1000);
    let other = stream.clone().set_epoch(1);
    let moved = setting
        .trainer(&other, &out.path().join("other"), 2)
        .train()
        .unwrap();
    assert_ne!(losses(&moved)[..2], losses(&history)[..2]);
}

#[test]
fn unsupported_settings_for_streams_are_reported_first() {
    let setting = Setting::new(500);
    let out = tempfile::tempdir().unwrap();
    let stream = setting.stream();
    let error_of = |args: TrainingArguments, stream: &IterableDataset| {
        let model = setting.trainer(stream, out.path(), 1).model().clone();
        let collator = MaskingCollator::new(&setting.tokenizer);
        let mut trainer = Trainer::new(model, args, stream, collator);
        trainer.train().unwrap_err().to_string()
    };
    let args = || TrainingArguments::new(out.path()).max_steps(2);
    let error = error_of(TrainingArguments::new(out.path()), &stream);
    assert!(error.contains("max_steps"), "{error}");
    let error = error_of(args().group_by_length(true), &stream);
    assert!(error.contains("group_by_length"), "{error}");
    let error = error_of(args(), &stream.filter(|_| false));
    assert!(error.contains("gave no example"), "{error}");
    let texts = load_dataset_streaming(setting.folder.path().to_str().unwrap(), "train").unwrap();
    let error = error_of(args(), &texts);
    assert!(
        error.contains("input_ids") && error.contains("tokenize"),
        "{error}"
    );
    // The lanes are part of the order.
    setting
        .trainer(&stream, &out.path().join("lanes"), 2)
        .train()
        .unwrap();
    let other = stream.skip(1);
    let error = setting
        .trainer(&other, &out.path().join("lanes"), 3)
        .resume_from_latest_checkpoint()
        .unwrap_err();
    assert!(error.to_string().contains("other batches"), "{error}");
    // Evaluated on what is taken of it.
    let held_out = stream.take(20).to_dataset().unwrap();
    let collator = MaskingCollator::new(&setting.tokenizer);
    let model = setting.trainer(&stream, out.path(), 1).model().clone();
    let args = args().eval_strategy(IntervalStrategy::Epoch);
    let mut trainer = Trainer::new(model, args, (&stream.skip(20), held_out), collator);
    let history = trainer.train().unwrap();
    assert_eq!(history.evaluations.len(), 1);
}
