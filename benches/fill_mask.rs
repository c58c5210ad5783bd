//! The fill-mask pipeline on a DistilRoBERTa-sized model (82M parameters, random weights): text in, five guesses out.
//!
//! `cargo bench --bench fill_mask -- --texts 1 --length 10 --rounds 30` prints one JSON line. `--model DIR` keeps the model
//! there, with `texts.json`, for the peers; `--prepare` stops once they are written. `--precision` is f32, bf16 or int8.
//! `--ceiling` prints instead how fast the model's products are at best.

mod support;

use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use cloze::model::MaskedLm;
use cloze::ops::{Param, Precision, autocast, inference, linear, no_grad};
use cloze::prelude::{FillMask, Tokenizer};
use cloze::{Error, Result};
use support::{Arguments, VOCAB, cpu_seconds, distilroberta, median, peak_rss_mib};

/// Calls that warm up caches and allocators and are not timed, as in the peer.
const WARMUP: usize = 3;

fn main() -> Result<()> {
    let arguments = Arguments::read(
        &["model", "texts", "length", "rounds", "precision"],
        &["prepare", "ceiling"],
    )?;
    let name: String = arguments.get("precision", "f32".to_owned())?;
    let precision = match name.as_str() {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        "int8" => Precision::Int8,
        _ => return Err(Error::argument("--precision", "f32, bf16 or int8")),
    };
    if arguments.flag("ceiling") {
        let line = serde_json::json!({
            "bench": "ceiling", "peer": "cloze", "precision": name, "gflop_per_s": ceiling(precision)? / 1e9,
        });
        println!("{line}");
        return Ok(());
    }
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
    let fill_mask = FillMask::new(model, tokenizer).precision(precision);
    let mut times = Vec::with_capacity(rounds);
    let mut best = 0.0;
    let mut first = 0.0;
    let mut cpu_before = None;
    for round in 0..rounds + WARMUP {
        if round == WARMUP {
            cpu_before = cpu_seconds();
        }
        let started = Instant::now();
        let predictions = fill_mask.fill_batch(&texts)?;
        if round == 0 {
            first = started.elapsed().as_secs_f64();
        }
        if round >= WARMUP {
            times.push(started.elapsed().as_secs_f64());
        }
        best = predictions[0][0].score;
    }
    let cpu = cpu_seconds().zip(cpu_before);
    let cpu = cpu.map(|(after, before)| (after - before) / rounds as f64);
    let middle = median(&mut times);
    let [whole, done] = flop(count, length);
    let line = serde_json::json!({
        "bench": "fill_mask", "peer": format!("cloze {name}"), "precision": name, "cpu_s": cpu, "first_s": first,
        "gflop": whole / 1e9, "gflop_done": done / 1e9, "texts": count, "length": length, "rounds": rounds,
        "threads": rayon::current_num_threads(), "load_s": load, "median_s": middle, "min_s": times[0],
        "max_s": times[times.len() - 1], "texts_per_s": count as f64 / middle, "peak_rss_mib": peak_rss_mib(),
        "best_score": best,
    });
    println!("{line}");
    Ok(())
}

/// The features of the model, and of the inner layer of its feed-forward maps.
const SIZES: (usize, usize) = (768, 3072);

/// The operations of a call: of the whole encoder for all tokens and the head for the masked ones, and of what is done, which
/// leaves out what the last layer would compute for other tokens.
fn flop(texts: usize, length: usize) -> [f64; 2] {
    let (wide, inner) = SIZES;
    let attention = 4 * length * wide;
    let (seen, rest) = (2 * wide * wide, 2 * wide * wide + 2 * wide * inner);
    let head = wide * wide + wide * VOCAB;
    let (token, layers) = (2 * (seen + rest) + attention, 6);
    let whole = texts * (length * layers * token + 2 * head);
    let done = whole - texts * (length - 1) * (2 * rest + attention);
    [whole as f64, done as f64]
}

/// Returns the operations per second of the fastest of the model's products.
fn ceiling(precision: Precision) -> Result<f64> {
    let (wide, inner) = SIZES;
    let mut best: f64 = 0.0;
    for (width, out) in [(wide, wide), (wide, inner), (inner, wide)] {
        let weight = Param::new(
            "weight",
            &Tensor::randn(0f32, 1.0, (out, width), &Device::Cpu)?,
        )?;
        for rows in [128, 512, 1024] {
            let x = Tensor::randn(0f32, 1.0, (rows, width), &Device::Cpu)?;
            for _ in 0..20 {
                let started = Instant::now();
                autocast(precision, || {
                    inference(|| no_grad(|| linear(&x, &weight, None)))
                })?;
                let time = started.elapsed().as_secs_f64();
                best = best.max((2 * rows * width * out) as f64 / time);
            }
        }
    }
    Ok(best)
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
