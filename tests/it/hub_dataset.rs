//! Datasets from a Hub on loopback.

use std::process::Command;
use std::sync::Arc;

use crate::support::bench::Bench;
use arrow::array::{
    ArrayRef, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
};
use arrow::datatypes::Field;
use cloze::prelude::*;
use parquet::arrow::ArrowWriter;

/// Set for the processes that a test starts; says which of [`TASKS`] they do.
const TASK: &str = "CLOZE_TEST_TASK";

/// The verbs read their settings from the environment, which belongs to the whole process: each task has its own.
fn in_a_process(bench: &Bench, task: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hub_dataset::child_process", "--nocapture"])
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        .env(TASK, task)
        .env("HF_ENDPOINT", bench.server.url())
        .env("HF_HOME", bench.folder.path())
        .env("CLOZE_CACHE", bench.folder.path().join("cloze"))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{task}: {text}"
    );
    text
}

#[test]
fn child_process() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let numbers = |dataset: &Dataset| dataset.column::<i64>("n").unwrap();
    match task.as_str() {
        "all" => {
            let dict = load_dataset("tester/data").unwrap();
            assert_eq!(dict.names(), ["train", "test"]);
            assert_eq!(numbers(&dict["train"]), (0..300).collect::<Vec<_>>());
            assert_eq!(numbers(&dict["test"]), [1000]);
        }
        "first" => {
            let part = load_dataset_split("tester/data", "train[:50]").unwrap();
            assert_eq!(numbers(&part), (0..50).collect::<Vec<_>>());
        }
        "middle" => {
            let part = Loader::new("tester/data")
                .part("train[40%:60%]+test")
                .unwrap();
            assert_eq!(numbers(&part), (120..180).chain([1000]).collect::<Vec<_>>());
        }
        "last" => {
            let part = Loader::new("tester/data").part("train[-5:]").unwrap();
            assert_eq!(numbers(&part), (295..300).collect::<Vec<_>>());
        }
        "wrong" => {
            let error = |loader: Loader, split: &str| loader.part(split).unwrap_err().to_string();
            assert!(error(Loader::new("tester/data"), "trian").contains("train, test"));
            assert!(error(Loader::new("tester/data").config("xx"), "train").contains("default"));
            assert!(error(Loader::new("tester/nothing"), "train").contains("was not found"));
        }
        "own" => {
            let dict = load_dataset("tester/own").unwrap();
            assert_eq!(dict.names(), ["train", "test"]);
            assert_eq!(numbers(&dict["test"]), [3]);
        }
        "own first" => {
            let part = Loader::new("tester/own").part("train[:15]").unwrap();
            assert_eq!(numbers(&part), (0..15).collect::<Vec<_>>());
            assert_eq!(part.origin(), Some("tester/own"));
        }
        "own test" => {
            let part = Loader::new("tester/own").part("test[50%:]").unwrap();
            assert_eq!(numbers(&part), (105..110).collect::<Vec<_>>());
        }
        "old name" => {
            let eli5 = load_dataset_split("eli5", "train_asks[:2]").unwrap();
            assert_eq!(eli5.schema(), &cloze::dataset::eli5_schema());
            assert_eq!(eli5.origin(), Some("dany0407/eli5_category"));
            let blocks = eli5.flatten().unwrap().slice(0..1);
            assert_eq!(blocks.origin(), Some("dany0407/eli5_category"));
            let text = load_eli5_from("eli5", "trian").unwrap_err().to_string();
            assert!(text.contains("train, test"), "{text}");
        }
        "mirrors" => {
            for name in ["tester/original", "tester/asks", "tester/plain"] {
                let eli5 = load_eli5_from(name, "train_asks").unwrap();
                assert_eq!(eli5.schema(), &cloze::dataset::eli5_schema(), "{name}");
                let row = format!("{}", eli5.row(0).unwrap());
                assert!(
                    name == "tester/original" || row.contains("Rayleigh"),
                    "{name}: {row}"
                );
                assert_eq!(eli5.len(), 1, "{name}");
            }
        }
        "sample" => {
            assert_eq!(load_eli5("train_asks[:7]").unwrap().len(), 7);
            assert!(load_eli5("train_asks[:5000]").unwrap().len() < 5000);
        }
        "eli5" => {
            let eli5 = load_eli5_from("dany0407/eli5_category", "train_asks[:2]").unwrap();
            assert_eq!(eli5.schema(), &cloze::dataset::eli5_schema());
            let row = format!("{}", eli5.row(0).unwrap());
            assert!(
                row.contains("Why is the sky blue?")
                    && row.contains("Rayleigh")
                    && row.contains("_URL_0_"),
                "{row}"
            );
            let flat = eli5.flatten().unwrap();
            assert!(flat.column_names().contains(&"answers_urls.url".to_owned()));
        }
        "pushed" => {
            let dict = load_dataset("tester/words").unwrap();
            assert_eq!(dict.names(), ["train", "test"]);
            assert_eq!(numbers(&dict["train"]), (0..25).collect::<Vec<_>>());
            assert_eq!(numbers(&dict["test"]), [100]);
            let other = Loader::new("tester/words").config("en").load().unwrap();
            assert_eq!(other.names(), ["train"]);
            assert_eq!(other["train"].column_names(), ["text"]);
        }
        "addresses" => {
            let at = |path: &str| {
                let hub = std::env::var("HF_ENDPOINT").unwrap();
                format!("{hub}/datasets/tester/own/resolve/main/{path}")
            };
            let dict = load_dataset(at("data/a.jsonl.gz?download=true")).unwrap();
            assert_eq!(numbers(&dict["train"]), [1, 2]);
            let dict = Loader::new("")
                .data_files("train", [at("data/a.jsonl.gz"), at("data/b.jsonl")])
                .data_files("test", [at("data/b.jsonl")])
                .load()
                .unwrap();
            assert_eq!(numbers(&dict["train"]), [1, 2, 3]);
            assert_eq!(numbers(&dict["test"]), [3]);
            let part = load_dataset_split(at("data/b.jsonl"), "train[:1]").unwrap();
            assert_eq!(numbers(&part), [3]);
            let text = load_dataset(at("data/c.jsonl")).unwrap_err().to_string();
            assert!(text.contains("data/c.jsonl"), "{text}");
        }
        "address" => {
            let hub = std::env::var("HF_ENDPOINT").unwrap();
            let dict = load_dataset(format!(
                "{hub}/datasets/tester/own/resolve/main/data/b.jsonl"
            ));
            println!("numbers {:?}", numbers(&dict.unwrap()["train"]));
        }
        _ => panic!("no such task: {task}"),
    }
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn numbers(range: std::ops::Range<i64>) -> Vec<u8> {
    parquet(vec![("n", Arc::new(Int64Array::from_iter_values(range)))])
}

/// Puts files on a branch.
fn commit_to(bench: &Bench, id: &str, branch: &str, files: Vec<(&str, Vec<u8>)>) {
    let files = files
        .into_iter()
        .map(|(path, bytes)| (path.to_owned(), bytes))
        .collect();
    bench.server.state().commit("datasets", id, branch, files);
}

fn with_shards() -> Bench {
    let bench = Bench::new();
    commit_to(
        &bench,
        "tester/data",
        "main",
        vec![("README.md", b"data".to_vec())],
    );
    let shards = vec![
        ("default/train/0000.parquet", numbers(0..100)),
        ("default/train/0001.parquet", numbers(100..200)),
        ("default/train/0002.parquet", numbers(200..300)),
        ("default/test/0000.parquet", numbers(1000..1001)),
    ];
    commit_to(&bench, "tester/data", "refs/convert/parquet", shards);
    bench
}

/// The shards that were fetched whole, in the cache's folder.
fn fetched(bench: &Bench) -> Vec<String> {
    let root = bench
        .folder
        .path()
        .join("hub/datasets--tester--data/snapshots");
    let mut names: Vec<String> = crate::support::bench::files_under(&root)
        .into_iter()
        .map(|path| {
            let parts: Vec<_> = path
                .iter()
                .rev()
                .take(2)
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            format!("{}/{}", parts[1], parts[0])
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_dataset_is_loaded_from_its_parquet_branch_and_then_from_the_cache() {
    let bench = with_shards();
    in_a_process(&bench, "all", &[]);
    bench.server.take_log();
    in_a_process(&bench, "all", &[("HF_HUB_OFFLINE", "1")]);
    assert!(
        bench.server.take_log().is_empty(),
        "offline makes no request"
    );
}

#[test]
fn a_slice_fetches_only_the_files_with_its_rows() {
    for (task, expected) in [
        ("first", vec!["train/0000.parquet"]),
        ("middle", vec!["test/0000.parquet", "train/0001.parquet"]),
        ("last", vec!["train/0002.parquet"]),
    ] {
        let bench = with_shards();
        in_a_process(&bench, task, &[]);
        assert_eq!(fetched(&bench), expected, "{task}");
    }
}

#[test]
fn missing_splits_and_configurations_are_reported() {
    in_a_process(&with_shards(), "wrong", &[]);
}

#[test]
fn without_the_parquet_branch_the_repositorys_files_are_used() {
    let bench = Bench::new();
    let files = vec![
        ("README.md", b"data".to_vec()),
        ("data/train.jsonl", b"{\"n\": 1}\n{\"n\": 2}\n".to_vec()),
        ("data/test.jsonl", b"{\"n\": 3}\n".to_vec()),
        ("picture.png", b"png".to_vec()),
    ];
    commit_to(&bench, "tester/own", "main", files);
    in_a_process(&bench, "own", &[]);
    assert!(
        !bench
            .server
            .take_log()
            .iter()
            .any(|request| request.path.contains("picture"))
    );
}

#[test]
fn eli5_category_is_converted_to_the_original_schema() {
    let bench = Bench::new();
    commit_to(
        &bench,
        "dany0407/eli5_category",
        "main",
        vec![("README.md", b"data".to_vec())],
    );
    let texts = |values: [&str; 3]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    let lists = |values: [&[&str]; 3]| -> ArrayRef {
        let mut builder = ListBuilder::new(StringBuilder::new());
        for list in values {
            builder.append_value(list.iter().map(Some));
        }
        Arc::new(builder.finish())
    };
    let mut scores = ListBuilder::new(arrow::array::Int32Builder::new());
    let mut urls = ListBuilder::new(ListBuilder::new(StringBuilder::new()));
    for row in 0..3 {
        scores.append_value([Some(5 + row)]);
        urls.values().append_value([Some("_URL_0_")]);
        urls.append(true);
    }
    let field =
        |name: &str, array: &ArrayRef| Arc::new(Field::new(name, array.data_type().clone(), true));
    let answer = "Rayleigh scattering.";
    let parts: Vec<(&str, ArrayRef)> = vec![
        ("a_id", lists([&["a1"], &["a2"], &["a3"]])),
        ("text", lists([&[answer], &[answer], &[answer]])),
        ("score", Arc::new(scores.finish())),
        ("text_urls", Arc::new(urls.finish())),
    ];
    let answers: Vec<_> = parts
        .into_iter()
        .map(|(name, array)| (field(name, &array), array))
        .collect();
    let title = "Why is the sky blue?";
    let bytes = parquet(vec![
        ("q_id", texts(["1", "2", "3"])),
        ("title", texts([title, title, title])),
        ("selftext", texts(["", "", ""])),
        ("category", texts(["Physics", "Physics", "Physics"])),
        ("subreddit", texts(["explainlikeimfive"; 3])),
        ("answers", Arc::new(StructArray::from(answers))),
        ("title_urls", lists([&["url"], &[], &[]])),
        ("selftext_urls", lists([&[], &[], &[]])),
    ]);
    commit_to(
        &bench,
        "dany0407/eli5_category",
        "refs/convert/parquet",
        vec![
            ("default/train/0000.parquet", bytes.clone()),
            ("default/test/0000.parquet", bytes),
        ],
    );
    let text = in_a_process(&bench, "eli5", &[]);
    assert!(
        text.contains("has no split \"train_asks\"; using its \"train\"")
            && text.contains("`document` left empty, `category` left out"),
        "{text}"
    );
    let text = in_a_process(&bench, "old name", &[]);
    assert!(
        text.contains("using \"dany0407/eli5_category\" instead"),
        "{text}"
    );
}

/// JSON lines with these numbers.
fn lines(range: std::ops::Range<i64>) -> Vec<u8> {
    range
        .map(|n| format!("{{\"n\": {n}}}\n"))
        .collect::<String>()
        .into_bytes()
}

#[test]
fn a_slice_of_repository_files_fetches_only_the_needed_ones() {
    let jsonl: [(&str, Vec<u8>); 4] = [
        ("data/train-00000-of-00003.jsonl", lines(0..10)),
        ("data/train-00001-of-00003.jsonl", lines(10..20)),
        ("data/train-00002-of-00003.jsonl", lines(20..30)),
        ("data/test-00000-of-00001.jsonl", lines(100..110)),
    ];
    let parquet = [
        ("data/train-00000-of-00003.parquet", numbers(0..10)),
        ("data/train-00001-of-00003.parquet", numbers(10..20)),
        ("data/train-00002-of-00003.parquet", numbers(20..30)),
        ("data/test-00000-of-00001.parquet", numbers(100..110)),
    ];
    for files in [jsonl, parquet] {
        let cases = [
            ("own first", ["train-00000", "train-00001"].as_slice()),
            ("own test", &["test-00000"]),
        ];
        for (task, expected) in cases {
            let bench = Bench::new();
            commit_to(&bench, "tester/own", "main", files.to_vec());
            in_a_process(&bench, task, &[]);
            let root = bench
                .folder
                .path()
                .join("hub/datasets--tester--own/snapshots");
            let mut fetched: Vec<String> = crate::support::bench::files_under(&root)
                .iter()
                .map(|path| {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    name.split("-of-").next().unwrap().to_owned()
                })
                .collect();
            fetched.sort();
            assert_eq!(fetched, expected, "{task} {}", files[0].0);
            bench.server.take_log();
            in_a_process(&bench, task, &[("HF_HUB_OFFLINE", "1")]);
            assert!(
                bench.server.take_log().is_empty(),
                "offline makes no request"
            );
        }
    }
}

/// One question as JSON lines, in the layout of the original.
fn question() -> Vec<u8> {
    let row = serde_json::json!({
        "q_id": "1", "title": "Why is the sky blue?", "selftext": "", "document": "", "subreddit": "askscience",
        "answers": {"a_id": ["a"], "text": ["Rayleigh scattering."], "score": [5]},
        "title_urls": {"url": ["u"]}, "selftext_urls": {"url": ["v"]}, "answers_urls": {"url": ["w"]},
    });
    format!("{row}\n").into_bytes()
}

#[test]
fn the_layouts_of_mirrors_are_recognised() {
    let bench = Bench::new();
    // Named like the splits of the original, beside those of the other subreddits.
    let files = vec![
        ("train_asks.jsonl", question()),
        ("train_eli5.jsonl", lines(0..3)),
        ("test_asks.jsonl", question()),
    ];
    commit_to(&bench, "tester/asks", "main", files);
    let files = vec![("train.json", question()), ("validation.json", question())];
    commit_to(&bench, "tester/plain", "main", files);
    // As the Hub converted the original.
    let sample = load_eli5("train_asks[:1]").unwrap();
    let batch = sample.record_batches(1).unwrap().remove(0);
    let mut original = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut original, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let files = vec![
        ("LFQA_reddit/train_asks/0000.parquet", original),
        ("LFQA_reddit/train_eli5/0000.parquet", numbers(0..3)),
    ];
    commit_to(&bench, "tester/original", "refs/convert/parquet", files);
    in_a_process(&bench, "mirrors", &[]);
}

#[test]
fn the_sample_works_offline_and_reports_when_it_is_too_small() {
    let bench = Bench::new();
    let text = in_a_process(&bench, "sample", &[]);
    assert_eq!(
        text.matches("the bundled sample of ELI5").count(),
        1,
        "{text}"
    );
    assert!(
        text.contains("load_eli5_from(\"eli5\", \"train_asks[:5000]\")"),
        "{text}"
    );
    assert!(bench.server.take_log().is_empty());
}

fn dataset(range: std::ops::Range<i64>) -> Dataset {
    let numbers: Vec<i64> = range.collect();
    Dataset::builder().column("n", numbers).build().unwrap()
}

/// The paths of a dataset on the stand-in.
fn paths(bench: &Bench, id: &str) -> Vec<String> {
    let state = bench.server.state();
    let repo = &state.repos[&("datasets".to_owned(), id.to_owned())];
    repo.files("main").unwrap().keys().cloned().collect()
}

#[test]
fn pushed_datasets_are_loaded_with_their_splits_and_configurations() {
    let bench = Bench::new();
    let hub = bench.with_token();
    let pushed = dataset(0..100)
        .push_to(&hub, "words", &PushDataset::new().num_shards(3))
        .unwrap();
    assert_eq!(pushed.repo, "tester/words");
    assert!(
        pushed.url.ends_with("/datasets/tester/words"),
        "{}",
        pushed.url
    );
    assert_eq!(pushed.changed, 4);
    let shards = |count: usize| -> Vec<String> {
        (0..count)
            .map(|i| format!("data/train-{i:05}-of-{count:05}.parquet"))
            .collect()
    };
    assert_eq!(paths(&bench, "tester/words")[2..], shards(3));

    // What the split had before goes, other splits and configurations stay.
    let options = PushDataset::new().max_shard_size(120);
    dataset(0..25)
        .push_to(&hub, "tester/words", &options)
        .unwrap();
    dataset(100..101)
        .push_to(&hub, "tester/words", &PushDataset::new().split("test"))
        .unwrap();
    let texts = Dataset::builder()
        .column("text", vec!["a", "b"])
        .build()
        .unwrap();
    texts
        .push_to(&hub, "tester/words", &PushDataset::new().config_name("en"))
        .unwrap();
    let expected = [
        vec![
            ".gitattributes".to_owned(),
            "README.md".to_owned(),
            "data/test-00000-of-00001.parquet".to_owned(),
        ],
        shards(2),
        vec!["en/train-00000-of-00001.parquet".to_owned()],
    ];
    assert_eq!(paths(&bench, "tester/words"), expected.concat());
    in_a_process(&bench, "pushed", &[]);
    let card = bench
        .server
        .state()
        .file("datasets", "tester/words", "README.md")
        .unwrap();
    let card = String::from_utf8(card.to_vec()).unwrap();
    assert!(
        card.contains("  - name: train\n    num_bytes: 200\n    num_examples: 25\n"),
        "{card}"
    );
    assert!(
        card.contains("  - name: test\n    num_bytes: 8\n    num_examples: 1\n"),
        "{card}"
    );

    // Nothing has changed: no commit.
    let again = texts
        .push_to(&hub, "tester/words", &PushDataset::new().config_name("en"))
        .unwrap();
    assert_eq!((again.changed, again.unchanged), (0, 2));
    // All splits at once replace what the configuration had.
    let dict = DatasetDict::from_iter([("validation", dataset(0..3))]);
    dict.push_to(&hub, "tester/words", &PushDataset::new())
        .unwrap();
    assert_eq!(
        paths(&bench, "tester/words")[2..],
        [
            "data/validation-00000-of-00001.parquet",
            "en/train-00000-of-00001.parquet"
        ]
    );
}

#[test]
fn invalid_pushes_are_refused_before_anything_is_sent() {
    let bench = Bench::new();
    let hub = bench.with_token();
    let refused = |dict: &DatasetDict, options: PushDataset, told: &str| {
        let error = dict
            .push_to(&hub, "tester/no", &options)
            .unwrap_err()
            .to_string();
        assert!(error.contains(told), "{error}");
    };
    let mixed = DatasetDict::from_iter([
        ("train", dataset(0..2)),
        ("test", dataset(0..2).rename_column("n", "m").unwrap()),
    ]);
    refused(&mixed, PushDataset::new(), "different columns");
    let dict = DatasetDict::from_iter([("train", dataset(0..2))]);
    refused(
        &dict,
        PushDataset::new().config_name("data"),
        "configuration",
    );
    refused(
        &dict,
        PushDataset::new().num_shards(1).max_shard_size(9),
        "not both",
    );
    refused(&dict, PushDataset::new().split("x"), "already have names");
    refused(&DatasetDict::new(), PushDataset::new(), "no split");
    let odd = DatasetDict::from_iter([("a-b", dataset(0..2))]);
    refused(&odd, PushDataset::new(), "\"a-b\"");
    assert!(bench.server.take_log().is_empty());
    assert!(
        dataset(0..1)
            .push_to(&bench.hub(), "tester/no", &PushDataset::new())
            .is_err()
    );
}

#[test]
fn files_are_loaded_from_urls_and_fetched_again_only_when_changed() {
    let bench = Bench::new();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &lines(1..3)).unwrap();
    let files = vec![
        ("data/a.jsonl.gz", packed.finish().unwrap()),
        ("data/b.jsonl", lines(3..4)),
    ];
    commit_to(&bench, "tester/own", "main", files);
    in_a_process(&bench, "addresses", &[]);
    bench.server.take_log();
    let address = |variables: &[(&str, &str)]| in_a_process(&bench, "address", variables);
    assert!(address(&[]).contains("numbers [3]"));
    let methods: Vec<String> = bench
        .server
        .take_log()
        .into_iter()
        .map(|r| r.method)
        .collect();
    assert_eq!(methods, ["HEAD"]);
    assert!(address(&[("HF_HUB_OFFLINE", "1")]).contains("numbers [3]"));
    assert!(bench.server.take_log().is_empty());
    commit_to(
        &bench,
        "tester/own",
        "main",
        vec![("data/b.jsonl", lines(7..9))],
    );
    assert!(address(&[]).contains("numbers [7, 8]"));
}
