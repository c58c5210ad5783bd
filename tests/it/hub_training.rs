//! A model that is trained, pushed while it trains and after it, and opened again under its new name.

use std::path::Path;
use std::process::Command;

use crate::support::bench::Bench;
use crate::support::hub_server::{Fault, TOKEN};
use cloze::collate::{Example, MaskingCollator};
use cloze::prelude::*;
use cloze::train::IntervalStrategy::Epoch;
use hyper::Method;
use parquet::arrow::ArrowWriter;

/// Set for the processes that a test starts: the folder to train in.
const FOLDER: &str = "CLOZE_TEST_FOLDER";
/// Set for some of them: the name of the `hub_strategy`.
const STRATEGY: &str = "CLOZE_TEST_HUB_STRATEGY";

/// The verbs read their settings from the environment, which belongs to the whole process: each run has its own.
fn in_a_process(bench: &Bench, task: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("hub_training::{task}"),
            "--nocapture",
            "--ignored",
        ])
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env(FOLDER, bench.folder.path())
        .env("HF_ENDPOINT", bench.server.url())
        .env("HF_HOME", bench.folder.path().join("home"))
        .env("HF_TOKEN", TOKEN)
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
        "{text}"
    );
    assert!(
        !text.contains(TOKEN) && !text.contains("verysecretsignature"),
        "{text}"
    );
    text
}

fn trainer(push: bool) -> Trainer {
    let folder = std::env::var(FOLDER).unwrap();
    let texts = [
        "a spiral galaxy",
        "a barred spiral galaxy",
        "a spiral staircase",
        "the milky way is a galaxy",
    ];
    let tokenizer = Tokenizer::train_bpe(texts, 300).unwrap();
    let examples: Vec<Example> = tokenizer
        .encode_batch(&texts)
        .unwrap()
        .into_iter()
        .map(Example::from)
        .collect();
    let config = Config::new("roberta")
        .set("vocab_size", tokenizer.len())
        .set("hidden_size", 16)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 2)
        .set("max_position_embeddings", 66)
        .set("pad_token_id", 1)
        .set("intermediate_size", 32);
    let model = MaskedLm::from_config(&config, 42).unwrap();
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
    let arguments = TrainingArguments::new(Path::new(&folder).join("my_eli5_model"))
        .learning_rate(1e-3)
        .epochs(3)
        .per_device_train_batch_size(2)
        .eval_strategy(Epoch)
        .save_strategy(Epoch)
        .hub_private_repo(true)
        .push_to_hub(push);
    let arguments = match std::env::var(STRATEGY) {
        Ok(strategy) => arguments.hub_strategy(strategy.as_str()),
        Err(_) => arguments,
    };
    Trainer::new(model, arguments, (examples.clone(), examples), collator)
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn trains_pushes_and_opens_the_pushed_model() {
    let mut trainer = trainer(true);
    trainer.train().unwrap();
    let opened = MaskedLm::from_pretrained("tester/my_eli5_model").unwrap();
    let tokenizer = Tokenizer::from_pretrained("tester/my_eli5_model").unwrap();
    let ids = tokenizer.encode("a spiral galaxy").unwrap().ids;
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
    println!("logits {}", serde_json::json!([ids, logits(&opened)]));
}

/// Whether Python's `transformers`, with the same endpoint, opens what was pushed and gives the same logits.
fn python_agrees(bench: &Bench, text: &str) {
    let python = std::env::var("CLOZE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python)
        .args(["-c", "import torch, transformers"])
        .output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: no Python with transformers was found; set CLOZE_PYTHON to one to compare with it"
        );
        return;
    }
    let logits = text
        .lines()
        .find_map(|line| line.strip_prefix("logits "))
        .unwrap();
    let output = Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hub_python/client.py"))
        .args(["logits", "tester/my_eli5_model", logits])
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_HUB_CACHE")
        .env("HF_ENDPOINT", bench.server.url())
        .env("HF_HOME", bench.folder.path().join("python"))
        .env("HF_TOKEN", TOKEN)
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let worst: f64 = String::from_utf8_lossy(&output.stdout)
        .lines()
        .last()
        .unwrap()
        .parse()
        .unwrap();
    assert!(worst < 2e-5, "the logits differ by {worst}");
}

#[test]
fn a_trained_model_is_shared_with_its_card() {
    let bench = Bench::new();
    let text = in_a_process(&bench, "trains_pushes_and_opens_the_pushed_model", &[]);
    assert!(text.contains("pushed to"), "{text}");
    python_agrees(&bench, &text);
    let state = bench.server.state();
    let repo = &state.repos[&("models".to_owned(), "tester/my_eli5_model".to_owned())];
    assert!(repo.private);
    assert_eq!(
        repo.messages.last().map(String::as_str),
        Some("End of training")
    );
    assert!(
        repo.messages.contains(&"Training in progress".to_owned()),
        "{:?}",
        repo.messages
    );
    let files: Vec<&str> = repo
        .files("main")
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    for file in [
        "README.md",
        "config.json",
        "model.safetensors",
        "loss.svg",
        "tokenizer.json",
        "training_history.json",
    ] {
        assert!(files.contains(&file), "{file} is not among {files:?}");
    }
    for file in &files {
        assert!(
            !file.contains("optimizer") && !file.contains("checkpoint"),
            "{files:?}"
        );
    }
    let card = state
        .file("models", "tester/my_eli5_model", "README.md")
        .unwrap();
    let card = std::str::from_utf8(&card).unwrap();
    for part in [
        "pipeline_tag: fill-mask",
        "- learning_rate: 1e-3",
        "- num_train_epochs: 3",
        "| 3.0 | 6 |",
        "./loss.svg",
    ] {
        assert!(card.contains(part), "{part:?} is not in:\n{card}");
    }
    assert!(
        !card.contains("base_model"),
        "this model began with nothing"
    );
    let left: Vec<_> = std::fs::read_dir(bench.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().starts_with(".push")),
        "{left:?}"
    );
}

#[test]
fn a_strategy_of_the_end_pushes_once() {
    let bench = Bench::new();
    let task = "trains_pushes_and_opens_the_pushed_model";
    in_a_process(&bench, task, &[(STRATEGY, "end")]);
    let state = bench.server.state();
    let repo = &state.repos[&("models".to_owned(), "tester/my_eli5_model".to_owned())];
    let in_progress = |message: &&String| *message == "Training in progress";
    assert_eq!(repo.messages.iter().find(in_progress), None);
    assert!(repo.messages.contains(&"End of training".to_owned()));
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn runs_the_guide_with_hub_names() {
    let folder = std::env::var(FOLDER).unwrap();
    let eli5 = load_eli5_from("eli5", "train_asks[:40]").unwrap();
    let eli5 = eli5.train_test_split(0.2).unwrap().flatten().unwrap();
    let tokenizer = Tokenizer::from_pretrained("tester/base").unwrap();
    let tokenize = Map::new(tokenizer.tokenize_column("answers.text"))
        .batched()
        .remove_columns(eli5["train"].column_names());
    let blocks = eli5.map(tokenize).unwrap().group_texts(64).unwrap();
    let model = MaskedLm::from_pretrained("tester/base").unwrap();
    let arguments = TrainingArguments::new(Path::new(&folder).join("my_eli5_model"))
        .max_steps(2)
        .eval_strategy(Epoch)
        .save_strategy(IntervalStrategy::No);
    let collator = MaskingCollator::new(&tokenizer);
    let (train, test) = (blocks["train"].clone(), blocks["test"].clone());
    let mut trainer = Trainer::new(model, arguments, (train, test), collator);
    trainer.train().unwrap();
    let pushed = trainer.push_to_hub().unwrap();
    assert_eq!(pushed.repo, "tester/my_eli5_model");
    let opened = MaskedLm::from_pretrained(&pushed.repo).unwrap();
    let ids = tokenizer.encode("a spiral <mask>").unwrap().ids;
    let logits = |model: &MaskedLm| {
        let inputs = ModelInputs::new(ids.clone(), (1, ids.len())).unwrap();
        let logits = model.forward(inputs).unwrap().flatten_all().unwrap();
        logits.to_vec1::<f32>().unwrap()
    };
    assert_eq!(logits(&opened), logits(trainer.model()));
    println!("logits {}", serde_json::json!([ids, logits(&opened)]));
    let guesses = FillMask::from_pretrained(&pushed.repo).unwrap();
    guesses.top_k(3).fill("a spiral <mask>").unwrap();
}

/// A small model with a tokenizer, a licence and a card, and the sample of ELI5 where the real one lives.
fn put_model_and_dataset(bench: &Bench) {
    let sample = load_eli5("train_asks").unwrap();
    let made = bench.folder.path().join("made");
    let titles = sample.column::<String>("title").unwrap();
    let tokenizer = Tokenizer::train_bpe(&titles, 500).unwrap();
    tokenizer.save_pretrained(&made).unwrap();
    let config = Config::new("roberta")
        .set("vocab_size", tokenizer.len())
        .set("hidden_size", 16)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 2)
        .set("max_position_embeddings", 66)
        .set("pad_token_id", 1)
        .set("intermediate_size", 32);
    let model = MaskedLm::from_config(&config, 42).unwrap();
    model.save_pretrained(&made).unwrap();
    std::fs::write(made.join("README.md"), "---\nlicense: apache-2.0\n---\n").unwrap();
    let name_of =
        |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files = crate::support::bench::files_under(&made)
        .iter()
        .map(|path| (name_of(path), std::fs::read(path).unwrap()))
        .collect();
    let mut state = bench.server.state();
    state.commit("models", "tester/base", "main", files);
    let mut bytes = Vec::new();
    let batch = sample.record_batches(sample.len()).unwrap().remove(0);
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let files = [("default/train/0000.parquet".to_owned(), bytes)];
    state.commit(
        "datasets",
        "dany0407/eli5_category",
        "refs/convert/parquet",
        files.into(),
    );
}

#[test]
fn the_guide_runs_with_hub_names_and_its_card_lists_them() {
    let bench = Bench::new();
    put_model_and_dataset(&bench);
    let cache = bench.folder.path().join("cloze");
    let variables = [("CLOZE_CACHE", cache.to_str().unwrap())];
    let text = in_a_process(&bench, "runs_the_guide_with_hub_names", &variables);
    python_agrees(&bench, &text);
    let state = bench.server.state();
    let card = state
        .file("models", "tester/my_eli5_model", "README.md")
        .unwrap();
    let card = std::str::from_utf8(&card).unwrap();
    println!("{card}");
    for part in [
        "license: apache-2.0\n",
        "base_model: tester/base\n",
        "datasets:\n- dany0407/eli5_category\n",
        "- text: 'The Milky Way is a <mask> galaxy.'\n",
        "a fine-tuned version of [tester/base]",
        "- Candle 0.11\n",
        "FillMask::from_pretrained(\"tester/my_eli5_model\")",
        "model=\"tester/my_eli5_model\"",
    ] {
        assert!(card.contains(part), "{part:?} is not in:\n{card}");
    }
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn trains_while_pushes_fail() {
    let mut trainer = trainer(true);
    let history = trainer.train().unwrap();
    assert_eq!(history.step(), 6);
}

#[test]
fn pushes_that_fail_do_not_stop_the_training() {
    let bench = Bench::new();
    bench.server.fail(
        Some(Method::POST),
        "/commit/",
        usize::MAX,
        Fault::Status(403, None),
    );
    let text = in_a_process(&bench, "trains_while_pushes_fail", &[]);
    assert!(
        text.contains("the training is complete, but the push failed")
            && text.contains("to try again"),
        "{text}"
    );
    let folder = bench.folder.path().join("my_eli5_model");
    assert!(folder.join("README.md").exists() && folder.join("model.safetensors").exists());
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn refuses_without_a_login() {
    let text = trainer(true).train().unwrap_err().to_string();
    assert!(text.contains("push_to_hub needs a login"), "{text}");
}

#[test]
fn a_missing_login_is_reported_before_training() {
    let bench = Bench::new();
    in_a_process(&bench, "refuses_without_a_login", &[("HF_TOKEN", "")]);
    assert!(bench.server.take_log().is_empty());
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn trains_by_hand_and_pushes_each_epoch() {
    let folder = Path::new(&std::env::var(FOLDER).unwrap()).join("by_hand");
    let model = trainer(false).model().clone();
    let inputs = ModelInputs::new(vec![0, 4, 7, 8, 9, 2], (1, 6)).unwrap();
    let inputs = inputs
        .with_labels(vec![-100, 6, -100, -100, -100, -100])
        .unwrap();
    let mut optimizer = AdamW::new(&model);
    let mut push = PushToHubCallback::new("tester/by_hand").unwrap();
    let mut pushed = Vec::new();
    for epoch in 0..2 {
        let loss = model.loss(&inputs, &Context::train(42, epoch)).unwrap();
        model.backward(&loss.mean().unwrap()).unwrap();
        optimizer.step(1e-2).unwrap();
        optimizer.zero_grad();
        model.save_pretrained(&folder).unwrap();
        assert!(push.push(&folder).unwrap(), "no other push is under way");
        pushed.push(push.finish().unwrap().unwrap());
        assert!(push.finish().is_none(), "each push is told of once");
        let opened = MaskedLm::from_pretrained("tester/by_hand").unwrap();
        for (ours, theirs) in model.params().iter().zip(opened.params()) {
            let values = |param: &cloze::ops::Param| {
                param.var().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(
                values(ours),
                values(theirs),
                "{} after epoch {epoch}",
                ours.name()
            );
        }
    }
    println!("{pushed:?}");
}

#[test]
fn a_manual_loop_pushes_its_epochs() {
    let bench = Bench::new();
    in_a_process(&bench, "trains_by_hand_and_pushes_each_epoch", &[]);
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn panics_with_everything_that_knows_the_token() {
    let hub = Hub::from_env().unwrap();
    let push = PushToHubCallback::new("tester/by_hand").unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        panic!("{hub:?} {:?} {push:?}", hub.settings())
    }));
    assert!(panicked.is_err());
}

#[test]
fn a_panic_does_not_show_the_token() {
    let bench = Bench::new();
    let text = in_a_process(&bench, "panics_with_everything_that_knows_the_token", &[]);
    assert!(
        text.contains("panicked") && text.contains("tester/by_hand"),
        "{text}"
    );
}
