//! Training on more data than memory shall hold: from JSON lines to steps.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cloze::Result;
use cloze::collate::{BatchKey, Collator, Example, MaskingCollator, MlmBatch};
use cloze::dataset::{Map, load_dataset};
use cloze::distributed::Group;
use cloze::model::{Config, MaskedLm};
use cloze::tokenizer::Tokenizer;
use cloze::train::{IntervalStrategy, Trainer, TrainingArguments};
use serde_json::json;

/// Writes about so many bytes of answers to questions, and returns how many rows they are.
pub fn write(path: &Path, bytes: u64) -> u64 {
    const WORDS: [&str; 12] = [
        "spiral",
        "galaxy",
        "of",
        "stars",
        "the",
        "a",
        "barred",
        "staircase",
        "light",
        "years",
        "dust",
        "gas",
    ];
    let mut file = BufWriter::new(std::fs::File::create(path).unwrap());
    let (mut written, mut row, mut draw) = (0, 0u64, 1u64);
    let mut text = |out: &mut String, words: usize| {
        for _ in 0..words {
            draw = draw
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            out.push_str(WORDS[(draw >> 40) as usize % WORDS.len()]);
            out.push(' ');
        }
    };
    while written < bytes {
        let (mut first, mut second) = (String::new(), String::new());
        text(&mut first, 60);
        text(&mut second, 90);
        let line = json!({
            "q_id": format!("q{row}"),
            "answers": {"text": [first.trim_end(), second.trim_end()], "score": [row % 7, row % 5]},
        });
        let line = format!("{line}\n");
        file.write_all(line.as_bytes()).unwrap();
        written += line.len() as u64;
        row += 1;
    }
    file.flush().unwrap();
    row
}

/// Prepares the data and takes four steps of twelve batches.
pub fn train(out: &Path) -> Result<()> {
    let peak = watch();
    let data = std::env::var("DATA").unwrap();
    let data = load_dataset(&data)?["train"].clone();
    let tokenizer = Tokenizer::train_bpe(
        ["a barred spiral galaxy of stars, the light years of dust and gas"],
        320,
    )?;
    let map = Map::new(tokenizer.tokenize_column("answers.text"));
    let flat = data.flatten()?;
    let columns = flat.column_names();
    let tokens = flat.map(map.batched().num_proc(2).remove_columns(columns))?;
    let blocks = tokens.group_texts(64)?;
    let config = Config::new("roberta")
        .set("vocab_size", tokenizer.len())
        .set("hidden_size", 32)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 64);
    let model = MaskedLm::from_config(&config, 1)?;
    let arguments = TrainingArguments::new(out.join("checkpoints"))
        .per_device_train_batch_size(2)
        .global_batch_size(24)
        .max_steps(4)
        .save_strategy(IntervalStrategy::No);
    let collator = Recording {
        inner: MaskingCollator::new(&tokenizer),
        out: out.to_path_buf(),
    };
    Trainer::new(model, arguments, blocks, None, collator).train()?;
    let line = json!({"peak": peak.load(Ordering::Relaxed)});
    crate::rank::write_line(out, Group::current()?.rank(), &line);
    Ok(())
}

/// Looks every few milliseconds at the memory that is this process's own: pages of mapped files can go at any time.
fn watch() -> Arc<AtomicU64> {
    let peak = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&peak);
    std::thread::spawn(move || {
        loop {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("RssAnon:"));
            let kilobytes =
                line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            seen.fetch_max(kilobytes.unwrap_or(0) << 10, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    peak
}

/// Writes down every batch of the first steps that it makes.
struct Recording {
    inner: MaskingCollator,
    out: std::path::PathBuf,
}

impl Collator for Recording {
    fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
        let batch = self.inner.collate(examples, key)?;
        let number = key.position / 2;
        if key.epoch == 0 && number < 48 {
            let mut hasher = blake3::Hasher::new();
            for (id, label) in batch.input_ids.iter().zip(&batch.labels) {
                hasher.update(&id.to_le_bytes());
                hasher.update(&label.to_le_bytes());
            }
            let line = json!({"batch": number, "digest": hasher.finalize().to_hex().as_str()});
            crate::rank::write_line(&self.out, Group::current()?.rank(), &line);
        }
        Ok(batch)
    }
}
