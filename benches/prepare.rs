//! From JSON lines to blocks: load, flatten, join the answers, tokenize, group.
//!
//! `cargo bench --bench prepare -- --records 5000 --num-proc 2 --rounds 3` prints one JSON line. `--data FILE` keeps the
//! records there for `peer_prepare.py`, as Parquet if the name ends so; `--prepare` stops once they are written. Every round
//! has a cache of its own, so that nothing is reused.
//!
//! The answers are sentences of the bundled sample, which repeat, or with `--text FILE` the file's lines, each of them once:
//! at most as many records as they make.

mod support;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cloze::prelude::{GroupTexts, Loader, Map, Tokenizer, load_eli5};
use cloze::{Error, Result};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use support::{Arguments, median, peak_rss_mib};

const BLOCK: usize = 128;

fn main() -> Result<()> {
    let names = ["data", "records", "num-proc", "rounds", "tokenizer", "text"];
    let arguments = Arguments::read(&names, &["prepare"])?;
    let records = arguments.get("records", 5000)?;
    let num_proc = arguments.get("num-proc", 2)?;
    let tokenizer = arguments.get("tokenizer", "bundled:tiny_roberta".to_owned())?;
    let scratch = folder()?;
    let data: PathBuf = arguments.get("data", scratch.path().join("records.jsonl"))?;
    if !data.exists() {
        make_records(
            &data,
            records,
            arguments.find::<PathBuf>("text")?.as_deref(),
        )?;
    }
    if arguments.flag("prepare") {
        return Ok(());
    }

    let tokenizer = Tokenizer::from_pretrained(&tokenizer)?;
    let mut phases: [Vec<f64>; 4] = Default::default();
    let (mut rows, mut tokens) = (0, 0);
    for _ in 0..arguments.get("rounds", 3)?.max(1) {
        let cache = folder()?;
        let started = Instant::now();
        let loaded = Loader::new(data.display().to_string())
            .cache_dir(cache.path())
            .load()?
            .split("train")?;
        let load = started.elapsed();
        let flat = loaded.flatten()?;
        let tokenize = Map::new(tokenizer.tokenize_column("answers.text"))
            .batched()
            .num_proc(num_proc)
            .remove_columns(flat.column_names())
            .cache_dir(cache.path());
        let tokenized = flat.map(tokenize)?;
        let tokenize = started.elapsed();
        let group = GroupTexts::new(BLOCK).num_proc(num_proc);
        let blocks = tokenized.group_texts(group.cache_dir(cache.path()))?;
        let all = started.elapsed();
        for (phase, part) in phases
            .iter_mut()
            .zip([all, load, tokenize - load, all - tokenize])
        {
            phase.push(part.as_secs_f64());
        }
        (rows, tokens) = (loaded.len(), blocks.len() * BLOCK);
    }
    let [all, load, tokenize, group] = phases.each_mut().map(|phase| median(phase));
    let line = serde_json::json!({
        "bench": "prepare", "peer": "cloze", "records": rows, "tokens": tokens, "num_proc": num_proc,
        "rounds": phases[0].len(), "median_s": all, "min_s": phases[0][0], "max_s": phases[0].last(), "load_s": load,
        "tokenize_s": tokenize, "group_s": group, "records_per_s": rows as f64 / all, "tokens_per_s": tokens as f64 / all,
        "peak_rss_mib": peak_rss_mib(),
    });
    println!("{line}");
    Ok(())
}

fn folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|e| Error::argument("temporary folder", e.to_string()))
}

/// Writes records in the schema of ELI5, whose one to three answers are made of sentences of the bundled sample, or of the
/// lines of `text`.
fn make_records(path: &Path, count: usize, text: Option<&Path>) -> Result<()> {
    let failed = |e: std::io::Error| Error::argument("--data", e.to_string());
    let sample = load_eli5("train_asks")?.flatten()?;
    let titles: Vec<String> = sample.column("title")?;
    let answers: Vec<Vec<String>> = sample.column("answers.text")?;
    let sentences: Vec<&str> = answers
        .iter()
        .flatten()
        .flat_map(|a| a.split_inclusive(". "))
        .collect();
    let text = text
        .map(std::fs::read_to_string)
        .transpose()
        .map_err(failed)?;
    let mut rest = text
        .as_ref()
        .map(|text| text.lines().filter(|line| line.len() > 20));
    let mut random = rand::rngs::StdRng::seed_from_u64(0);
    let mut lines = String::new();
    for record in 0..count {
        let answers = random.random_range(1..=3);
        let mut answer = |_| -> String {
            let length = random.random_range(3..=14);
            match &mut rest {
                Some(rest) => rest.by_ref().take(length).collect::<Vec<_>>().join(" "),
                None => (0..length)
                    .filter_map(|_| sentences.choose(&mut random).copied())
                    .collect(),
            }
        };
        let texts: Vec<String> = (0..answers).map(&mut answer).collect();
        if texts.iter().any(String::is_empty) {
            break;
        }
        let line = serde_json::json!({
            "q_id": format!("q{record}"), "title": titles.choose(&mut random), "selftext": "", "document": "",
            "subreddit": "askscience",
            "answers": {
                "a_id": (0..answers).map(|i| format!("a{record}_{i}")).collect::<Vec<_>>(),
                "text": texts,
                "score": (0..answers).map(|_| random.random_range(1..500)).collect::<Vec<i32>>(),
            },
            "title_urls": {"url": []}, "selftext_urls": {"url": []}, "answers_urls": {"url": []},
        });
        let _ = writeln!(lines, "{line}");
    }
    if path.extension().is_some_and(|end| end == "parquet") {
        let json = folder()?;
        let json = json.path().join("records.jsonl");
        std::fs::write(&json, lines).map_err(failed)?;
        return Loader::new(json.display().to_string())
            .load()?
            .split("train")?
            .to_parquet(path);
    }
    std::fs::write(path, lines).map_err(failed)
}
