//! The guide at its full size: an 82M-parameter model and a Parquet dataset come from a Hub on loopback, the model is
//! trained for a few steps, pushed, and opened again. Some minutes and gigabytes, so only when asked for:
//! `cargo test --release --test hub_guide -- --ignored --nocapture the_guide_runs`
#![cfg(feature = "hub")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use cloze::prelude::*;
use parquet::arrow::ArrowWriter;
use support::bench::Bench;
use support::hub_server::TOKEN;

/// Set for the process that walks through the guide: the folder to train in.
const FOLDER: &str = "CLOZE_TEST_FOLDER";

#[test]
#[ignore = "run by the other test, in a process of its own"]
fn a_reader_of_the_guide() {
    let folder = std::env::var(FOLDER).unwrap();
    let began = Instant::now();
    let told = |what: &str| println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    let eli5 = load_eli5_from("tester/eli5", "train_asks[:60]")
        .unwrap()
        .train_test_split(0.2)
        .unwrap();
    let tokenizer = Tokenizer::from_pretrained("distilbert/distilroberta-base").unwrap();
    told("the dataset and the tokenizer are here");
    let eli5 = eli5.flatten().unwrap();
    let columns = eli5["train"].column_names();
    let tokenized = eli5
        .map(
            Map::new(tokenizer.tokenize_column("answers.text"))
                .batched()
                .num_proc(2)
                .remove_columns(columns),
        )
        .unwrap();
    let blocks = tokenized.group_texts(128).unwrap();
    let model = MaskedLm::from_pretrained("distilbert/distilroberta-base").unwrap();
    assert!(model.num_parameters() > 80_000_000);
    told("the model is here");
    let arguments = TrainingArguments::new(Path::new(&folder).join("my_eli5_model"))
        .max_steps(3)
        .per_device_train_batch_size(4)
        .save_strategy(IntervalStrategy::No)
        .push_to_hub(true);
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.15);
    let mut trainer = Trainer::new(model, arguments, blocks["train"].clone(), None, collator);
    trainer.train().unwrap();
    told("three steps are trained and the model is pushed");
    let opened = MaskedLm::from_pretrained("tester/my_eli5_model").unwrap();
    told("what was pushed is here");
    let ids = tokenizer
        .encode("The Milky Way is a spiral galaxy.")
        .unwrap()
        .ids;
    let logits = |model: &MaskedLm| {
        let inputs = ModelInputs::new(ids.clone(), (1, ids.len())).unwrap();
        model
            .forward(inputs)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    assert_eq!(logits(&opened), logits(trainer.model()));
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn the_guide_runs_at_full_size() {
    let bench = Bench::new();
    let made = bench.folder.path().join("made");
    let config = Config::new("roberta")
        .set("vocab_size", 50265)
        .set("hidden_size", 768)
        .set("num_hidden_layers", 6)
        .set("num_attention_heads", 12)
        .set("intermediate_size", 3072)
        .set("max_position_embeddings", 514)
        .set("type_vocab_size", 1)
        .set("pad_token_id", 1);
    MaskedLm::from_config(&config, 1)
        .unwrap()
        .save_pretrained(&made)
        .unwrap();
    let sample = load_eli5("train_asks").unwrap();
    let texts = sample.column::<String>("title").unwrap();
    Tokenizer::train_bpe(&texts, 2000)
        .unwrap()
        .save_pretrained(&made)
        .unwrap();
    let files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(&made)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    bench
        .server
        .state()
        .commit("models", "distilbert/distilroberta-base", "main", files);
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, sample.schema().clone(), None).unwrap();
    for batch in sample.record_batches(100).unwrap() {
        writer.write(&batch).unwrap();
    }
    writer.close().unwrap();
    let files = BTreeMap::from([("default/train_asks/0000.parquet".to_owned(), bytes)]);
    bench
        .server
        .state()
        .commit("datasets", "tester/eli5", "refs/convert/parquet", files);

    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_reader_of_the_guide",
            "--nocapture",
            "--ignored",
        ])
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env(FOLDER, bench.folder.path())
        .env("CLOZE_CACHE", bench.folder.path().join("cloze"))
        .env("HF_ENDPOINT", bench.server.url())
        .env("HF_HOME", bench.folder.path().join("home"))
        .env("HF_TOKEN", TOKEN)
        .status()
        .unwrap();
    assert!(status.success());
    let state = bench.server.state();
    let pushed = state
        .file("models", "tester/my_eli5_model", "model.safetensors")
        .unwrap();
    assert!(pushed.len() > 300_000_000, "{}", pushed.len());
}
