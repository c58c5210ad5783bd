//! The guide's notebook at its full size, on names of the Hub: an 82M-parameter model and a Parquet ELI5 come from a
//! stand-in on loopback, the model is trained for a few steps and pushed, and opens again in Cloze and in Python. Some
//! minutes and gigabytes, so only when asked for:
//! `cargo test --release --locked --test it hub_guide -- --ignored --nocapture`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::support::bench::{Bench, read};
use crate::support::hub_server::TOKEN;
use cloze::prelude::*;
use parquet::arrow::ArrowWriter;

const MODEL: &str = "distilbert/distilroberta-base";
const DATASET: &str = "dany0407/eli5_category";
const PUSHED: &str = "tester/eli5_mlm_model";
const GUIDE: &str = "notebooks/masked_language_modeling.ipynb";

/// A model of DistilRoBERTa's shape with random weights, and a tokenizer.
fn put_model(bench: &Bench) {
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
    let model = MaskedLm::from_config(&config, 1).unwrap();
    assert!(model.num_parameters() > 80_000_000);
    model.save_pretrained(&made).unwrap();
    let titles = load_eli5("train_asks").unwrap();
    let titles = titles.column::<String>("title").unwrap();
    let tokenizer = Tokenizer::train_bpe(&titles, 2000).unwrap();
    tokenizer.save_pretrained(&made).unwrap();
    let files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(&made)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| (name.clone(), read(&made, &name)))
        .collect();
    std::fs::remove_dir_all(&made).unwrap();
    bench.server.state().commit("models", MODEL, "main", files);
}

/// The sample as the Hub would convert it: Parquet, in shards, its split called `train`.
fn put_dataset(bench: &Bench) {
    let sample = load_eli5("train_asks").unwrap();
    let files = sample
        .record_batches(200)
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(number, batch)| {
            let mut bytes = Vec::new();
            let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
            (format!("default/train/{number:04}.parquet"), bytes)
        })
        .collect();
    let mut state = bench.server.state();
    state.commit("datasets", DATASET, "refs/convert/parquet", files);
}

/// A copy of the guide in `folder`, which finds the crate where it is.
fn copy_of_the_guide(folder: &Path) -> PathBuf {
    let text = read(Path::new(env!("CARGO_MANIFEST_DIR")), GUIDE);
    let text = String::from_utf8(text).unwrap();
    let here = r#"path = \"..\""#;
    assert_eq!(text.matches(here).count(), 1);
    let there = format!(r#"path = \"{}\""#, env!("CARGO_MANIFEST_DIR"));
    let path = folder.join("guide.ipynb");
    std::fs::write(&path, text.replace(here, &there)).unwrap();
    path
}

/// How far Python's logits for what was pushed are from `logits`; `None` where there is no Python with transformers.
fn python_differs(bench: &Bench, ids: &[u32], logits: &[f32]) -> Option<f64> {
    let python = std::env::var("CLOZE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python)
        .args(["-c", "import torch, transformers"])
        .output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: no Python with transformers; set CLOZE_PYTHON to one to compare with it"
        );
        return None;
    }
    let expected = bench.folder.path().join("logits.json");
    std::fs::write(&expected, serde_json::json!([ids, logits]).to_string()).unwrap();
    let output = Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hub_python/client.py"))
        .args(["logits", PUSHED, &format!("@{}", expected.display())])
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_HUB_CACHE")
        .env("HF_ENDPOINT", bench.server.url())
        .env("HF_HOME", bench.folder.path().join("python"))
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().last().unwrap().parse().unwrap())
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn the_guides_notebook_runs_with_hub_names() {
    let bench = Bench::new();
    put_model(&bench);
    put_dataset(&bench);
    let notebook = copy_of_the_guide(bench.folder.path());
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["run", "--release", "--locked", "--quiet", "--", "run"])
        .arg(&notebook)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env("CLOZE_CACHE", bench.folder.path().join("cloze"))
        .env("HF_ENDPOINT", bench.server.url())
        .env("HF_HOME", bench.folder.path().join("home"))
        .env("HF_TOKEN", TOKEN);
    for parameter in [
        &format!("model_name={MODEL}"),
        &format!("dataset={DATASET}"),
        "split=train_asks[:40]",
        "epochs=0.5",
        "push_to_hub=true",
    ] {
        command.args(["--param", parameter]);
    }
    let began = Instant::now();
    assert!(command.status().unwrap().success(), "the notebook failed");
    println!("the notebook took {:.0} s", began.elapsed().as_secs_f64());

    let executed = read(bench.folder.path(), "guide.executed.ipynb");
    let executed = String::from_utf8(executed).unwrap();
    assert!(!executed.contains(TOKEN) && !executed.contains("verysecretsignature"));
    let fetched: Vec<String> = bench
        .server
        .take_log()
        .into_iter()
        .filter(|request| request.method == "GET" && request.range.is_none())
        .map(|request| request.path)
        .collect();
    let shard = |number: usize| {
        fetched
            .iter()
            .any(|path| path.contains(&format!("/train/000{number}.parquet")))
    };
    assert!(shard(0) && !shard(1), "40 questions need one shard");

    let pushed = bench.hub().resolve("model", PUSHED).unwrap();
    let kept = bench.folder.path().join("eli5_mlm_model");
    let weights = read(&pushed, "model.safetensors");
    assert!(weights.len() > 300_000_000, "{}", weights.len());
    assert!(
        weights == read(&kept, "model.safetensors"),
        "other weights were pushed"
    );
    let card = bench.server.state().file("models", PUSHED, "README.md");
    let card = String::from_utf8(card.unwrap().to_vec()).unwrap();
    println!("{card}");
    for part in [
        &format!("base_model: {MODEL}\n"),
        &format!("datasets:\n- {DATASET}\n"),
        "pipeline_tag: fill-mask\n",
        "- text: The Milky Way is a <mask> galaxy.\n",
    ] {
        assert!(
            card.replace('"', "").contains(part),
            "{part:?} is not on the card"
        );
    }

    let model = MaskedLm::from_pretrained(pushed.to_str().unwrap()).unwrap();
    bench.hub().resolve("tokenizer", PUSHED).unwrap();
    let tokenizer = Tokenizer::from_pretrained(pushed.to_str().unwrap()).unwrap();
    let ids = tokenizer
        .encode("The Milky Way is a <mask> galaxy.")
        .unwrap()
        .ids;
    let inputs = ModelInputs::new(ids.clone(), (1, ids.len())).unwrap();
    let logits = model.forward(inputs).unwrap().flatten_all().unwrap();
    let logits = logits.to_vec1::<f32>().unwrap();
    if let Some(worst) = python_differs(&bench, &ids, &logits) {
        println!(
            "the logits of {} positions differ from Python's by at most {worst:e}",
            ids.len()
        );
        assert!(worst < 1e-5, "the logits differ by {worst}");
    }
}
