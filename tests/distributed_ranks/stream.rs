//! Training on a stream: from JSON lines to steps, nothing cached.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cloze::Result;
use cloze::collate::{BatchKey, Collator, Example, MaskingCollator, MlmBatch};
use cloze::dataset::{Batch, BatchFunction, Map, load_dataset_streaming};
use cloze::distributed::Group;
use cloze::model::{Config, MaskedLm};
use cloze::tokenizer::{TokenizeColumn, Tokenizer};
use cloze::train::{Control, Event, IntervalStrategy, Trainer, TrainingArguments};
use serde_json::json;

/// Writes about so many bytes of answers to questions into a file and a compressed one, and returns how many rows they are.
pub fn write(folder: &Path, bytes: u64) -> u64 {
    let plain = std::fs::File::create(folder.join("a.jsonl")).unwrap();
    let packed = std::fs::File::create(folder.join("b.jsonl.gz")).unwrap();
    let packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    let few = bytes / 16;
    write_lines(BufWriter::new(plain), bytes - few, 1) + write_lines(packed, few, 2)
}

fn write_lines(mut file: impl Write, bytes: u64, seed: u64) -> u64 {
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
    let (mut written, mut row, mut draw) = (0, 0u64, seed);
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

/// Streams the data through tokens and blocks, and takes as many steps of twelve batches as `STEPS` says; `STOP_AT` and
/// `RESUME` as for other runs.
pub fn train(out: &Path) -> Result<()> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    let peak = watch();
    let tokenizer = Tokenizer::train_bpe(
        ["a barred spiral galaxy of stars, the light years of dust and gas"],
        320,
    )?;
    let tokens = Map::new(Counted(tokenizer.tokenize_column("answers.text")));
    let stream = load_dataset_streaming(std::env::var("DATA").unwrap(), "train")?
        .flatten()?
        .map(tokens.batched().remove_all_columns())?
        .group_texts(64)?
        .shuffle(5, 2000)
        .lanes(6)?;
    let config = Config::new("roberta")
        .set("vocab_size", tokenizer.len())
        .set("hidden_size", 32)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 64);
    let model = MaskedLm::from_config(&config, 1)?;
    let batch = number("BATCH").unwrap_or(2);
    let arguments = TrainingArguments::new(out.join("checkpoints"))
        .per_device_train_batch_size(batch)
        .global_batch_size(12 * batch)
        .max_steps(number("STEPS").unwrap_or(8))
        .logging_steps(1_000_000)
        .save_strategy(IntervalStrategy::Steps)
        .save_steps(1_000_000);
    let collator = Recording {
        inner: MaskingCollator::new(&tokenizer),
        out: out.to_path_buf(),
        batch,
        trained: number("TRAINED").unwrap_or(batch),
    };
    let group = Group::current()?;
    let (rank, stop_at) = (group.rank(), number("STOP_AT"));
    let mut trainer =
        Trainer::new(model, arguments, &stream, collator).callback(move |event: &Event| {
            if let Event::StepEnd { step, .. } = event
                && stop_at == Some(step.step)
                && rank == 0
            {
                cloze::interrupt::request();
            }
            Ok(Control::Continue)
        });
    let history = match std::env::var_os("RESUME") {
        Some(_) => trainer.resume_from_latest_checkpoint()?,
        None => trainer.train()?,
    };
    let losses: Vec<f32> = history.steps.iter().map(|step| step.loss).collect();
    let line = json!({
        "peak": peak.load(Ordering::Relaxed), "rows": ROWS.load(Ordering::Relaxed), "losses": losses,
    });
    crate::rank::write_line(out, rank, &line);
    Ok(())
}

/// The rows that this process tokenized.
static ROWS: AtomicU64 = AtomicU64::new(0);

/// Tokenizes, and counts the rows.
struct Counted(TokenizeColumn);

impl BatchFunction for Counted {
    fn call(&self, batch: &Batch) -> Result<Batch> {
        ROWS.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.0.call(batch)
    }
}

/// Looks every few milliseconds at the memory that this process has, pages of files included.
fn watch() -> Arc<AtomicU64> {
    let peak = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&peak);
    std::thread::spawn(move || {
        loop {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kilobytes =
                line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            seen.fetch_max(kilobytes.unwrap_or(0) << 10, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    peak
}

/// Writes down every batch that it makes, up to a number of them.
struct Recording {
    inner: MaskingCollator,
    out: std::path::PathBuf,
    batch: usize,
    /// How many examples of each batch are trained on.
    trained: usize,
}

/// The batches that are written down.
const RECORDED: u64 = 96;

impl Collator for Recording {
    fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
        let batch = self.inner.collate(&examples[..self.trained], key)?;
        let number = key.position / self.batch as u64;
        if number < RECORDED {
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
