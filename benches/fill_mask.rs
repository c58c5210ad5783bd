//! The fill-mask pipeline on a DistilRoBERTa-sized model (82M parameters, random weights): text in, five guesses out.
//!
//! `cargo bench --bench fill_mask -- --texts 1 --length 10 --rounds 30` prints one JSON line. `--model DIR` keeps the model
//! there, with `texts.json`, for `peer_fill_mask.py`; `--prepare` stops once they are written.

mod support;

use std::path::Path;
use std::time::Instant;

use cloze::model::MaskedLm;
use cloze::prelude::{FillMask, Tokenizer};
use cloze::{Error, Result};
use support::{Arguments, VOCAB, distilroberta, median, peak_rss_mib};

/// Calls that warm up caches and allocators and are not timed, as in the peer.
const WARMUP: usize = 3;

fn main() -> Result<()> {
    let arguments = Arguments::read(&["model", "texts", "length", "rounds"], &["prepare"])?;
    let (count, length) = (arguments.get("texts", 1)?, arguments.get("length", 10)?);
    let rounds = arguments.get("rounds", 30)?.max(1);
    let scratch =
        tempfile::tempdir().map_err(|e| Error::argument("temporary folder", e.to_string()))?;
    let folder = arguments.get("model", scratch.path().to_path_buf().display().to_string())?;
    let folder = Path::new(&folder);
    if !folder.join("config.json").exists() {
        make_model(folder)?;
    }
    let tokenizer = Tokenizer::from_path(folder)?;
    let texts = texts(&tokenizer, count, length)?;
    write(&folder.join("texts.json"), &serde_json::json!(texts))?;
    if arguments.flag("prepare") {
        return Ok(());
    }

    let started = Instant::now();
    let model = MaskedLm::from_pretrained(folder.display().to_string())?;
    let load = started.elapsed().as_secs_f64();
    let fill_mask = FillMask::new(model, tokenizer);
    let mut times = Vec::with_capacity(rounds);
    let mut best = 0.0;
    for round in 0..rounds + WARMUP {
        let started = Instant::now();
        let predictions = fill_mask.fill_batch(&texts)?;
        if round >= WARMUP {
            times.push(started.elapsed().as_secs_f64());
        }
        best = predictions[0][0].score;
    }
    let middle = median(&mut times);
    let line = serde_json::json!({
        "bench": "fill_mask", "peer": "cloze", "texts": count, "length": length, "rounds": rounds,
        "threads": rayon::current_num_threads(), "load_s": load, "median_s": middle, "min_s": times[0],
        "max_s": times[times.len() - 1], "texts_per_s": count as f64 / middle, "peak_rss_mib": peak_rss_mib(),
        "best_score": best,
    });
    println!("{line}");
    Ok(())
}

/// Saves a model with random weights, and a tokenizer that knows as many tokens as it.
fn make_model(folder: &Path) -> Result<()> {
    let tokenizer = Tokenizer::from_pretrained("bundled:tiny_roberta")?;
    tokenizer.save_pretrained(folder)?;
    // Words that no text has make the vocabulary as large as the real one.
    let path = folder.join("tokenizer.json");
    let read = std::fs::read(&path).map_err(|e| Error::argument("--model", e.to_string()))?;
    let mut json: serde_json::Value =
        serde_json::from_slice(&read).map_err(|e| Error::argument("--model", e.to_string()))?;
    for id in tokenizer.len()..VOCAB {
        json["model"]["vocab"][format!("\u{120}unseen{id}")] = id.into();
    }
    write(&path, &json)?;
    MaskedLm::from_config(&distilroberta(), 0)?.save_pretrained(folder)
}

/// `count` different texts of exactly `length` tokens, of which one is the mask.
fn texts(tokenizer: &Tokenizer, count: usize, length: usize) -> Result<Vec<String>> {
    if length < 4 {
        return Err(Error::argument("--length", "a text has at least 4 tokens"));
    }
    let words: Vec<String> = (0..VOCAB as u32)
        .filter_map(|id| {
            tokenizer
                .id_to_token(id)?
                .strip_prefix('\u{120}')
                .map(str::to_owned)
        })
        .filter(|word| word.len() > 2 && word.bytes().all(|b| b.is_ascii_lowercase()))
        .collect();
    // Of the special tokens, RoBERTa's way to encode has one at each end.
    let word = |text: usize, place: usize| words[(text * 97 + place * 13) % words.len()].as_str();
    let text = |text: usize| {
        let rest: Vec<&str> = (0..length - 3).map(|place| word(text, place)).collect();
        format!("<mask> {}", rest.join(" "))
    };
    let texts: Vec<String> = (0..count).map(text).collect();
    match tokenizer
        .encode_batch(&texts)?
        .iter()
        .find(|e| e.len() != length)
    {
        None => Ok(texts),
        Some(other) => {
            let message = format!("a text has {} tokens, not {length}", other.len());
            Err(Error::argument("--length", message))
        }
    }
}

fn write(path: &Path, json: &serde_json::Value) -> Result<()> {
    std::fs::write(path, json.to_string()).map_err(|e| Error::argument("--model", e.to_string()))
}
