//! What programs do with files that others made, a function for each kind: reads it, looks at it, writes it again.
//!
//! Whatever the bytes are, such a function returns: `tests/damaged_files.rs` calls them with the files of `tests/corpus` and
//! damaged copies of them, the programs of `fuzz/` with whatever reaches new code.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cloze::collate::{Example, MaskingCollator};
use cloze::dataset::{Dataset, DatasetDict, FileFormat, Loader};
use cloze::model::{Config, MaskedLm};
use cloze::tokenizer::Tokenizer;
use cloze::train::{Trainer, TrainingArguments};

/// Reads bytes as files of one kind; the folder is its own.
pub type Reader = fn(&Path, &[u8]);

/// The kinds, by the names of their folders in `tests/corpus`.
pub const READERS: &[(&str, Reader)] = &[
    ("arrow", arrow),
    ("card", card),
    ("config", config),
    ("csv", csv),
    ("index", index),
    ("json", json),
    ("legacy_tokenizer", legacy_tokenizer),
    ("parquet", parquet),
    ("pickle", pickle),
    ("safetensors", safetensors),
    ("split", split),
    ("text", text),
    ("tokenizer", tokenizer),
    ("trainer_state", trainer_state),
];

/// What is loaded is also looked at and written, as people do it.
fn load(folder: &Path, name: &str, bytes: &[u8], format: FileFormat) {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    let loaded = Loader::new(path.to_str().unwrap())
        .cache(false)
        .format(format)
        .load();
    let Ok(dict) = loaded else {
        return;
    };
    let dataset = &dict["train"];
    assert!(dataset.len() < 50_000_000);
    let _ = dataset.row(0).map(|row| row.to_string());
    let _ = dataset.shuffle(1);
    if dataset.len() < 10_000 {
        let _ = dataset.flatten();
        let _ = dataset.to_parquet(folder.join("out.parquet"));
        let _ = dataset.to_json_lines(folder.join("out.jsonl"));
    }
}

fn json(folder: &Path, bytes: &[u8]) {
    load(folder, "a.json", bytes, FileFormat::Json);
}

fn csv(folder: &Path, bytes: &[u8]) {
    load(folder, "a.csv", bytes, FileFormat::Csv);
}

fn text(folder: &Path, bytes: &[u8]) {
    load(folder, "a.txt", bytes, FileFormat::Text);
}

fn arrow(folder: &Path, bytes: &[u8]) {
    load(folder, "a.arrow", bytes, FileFormat::Arrow);
}

fn parquet(folder: &Path, bytes: &[u8]) {
    load(folder, "a.parquet", bytes, FileFormat::Parquet);
}

fn split(_: &Path, bytes: &[u8]) {
    static DICT: OnceLock<DatasetDict> = OnceLock::new();
    let dict = DICT.get_or_init(|| {
        let numbers = (0..10i64).collect::<Vec<_>>();
        let dataset = Dataset::builder().column("n", numbers).build().unwrap();
        DatasetDict::from_iter([("train", dataset.clone()), ("test", dataset)])
    });
    let _ = dict.split(String::from_utf8_lossy(bytes).as_ref());
}

fn card(folder: &Path, bytes: &[u8]) {
    for name in ["a.csv", "b.csv"] {
        std::fs::write(folder.join(name), "x;y\n1;2\n").unwrap();
    }
    std::fs::write(folder.join("README.md"), bytes).unwrap();
    let _ = Loader::new(folder.to_str().unwrap()).cache(false).load();
}

/// A config of eight tokens and one layer.
fn small() -> Config {
    Config::new("roberta")
        .set("vocab_size", 8)
        .set("hidden_size", 4)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 1)
        .set("intermediate_size", 4)
        .set("max_position_embeddings", 8)
}

fn open_model(folder: &Path, files: &[(&str, &[u8])]) {
    let config = small().to_json().unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let _ = MaskedLm::from_pretrained(folder.to_str().unwrap());
}

fn safetensors(folder: &Path, bytes: &[u8]) {
    open_model(folder, &[("model.safetensors", bytes)]);
}

fn pickle(folder: &Path, bytes: &[u8]) {
    open_model(folder, &[("pytorch_model.bin", bytes)]);
}

fn index(folder: &Path, bytes: &[u8]) {
    let files: [(&str, &[u8]); 2] = [
        ("model.safetensors.index.json", bytes),
        ("model-00001-of-00001.safetensors", b"x"),
    ];
    open_model(folder, &files);
}

/// A config beside small weights, with which few of all configs agree.
fn config(folder: &Path, bytes: &[u8]) {
    static WEIGHTS: OnceLock<Vec<u8>> = OnceLock::new();
    let weights = WEIGHTS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let model = MaskedLm::from_config(&small(), 1).unwrap();
        model.save_pretrained(folder.path()).unwrap();
        std::fs::read(folder.path().join("model.safetensors")).unwrap()
    });
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    std::fs::write(folder.join("config.json"), bytes).unwrap();
    let _ = MaskedLm::from_pretrained(folder.to_str().unwrap());
}

fn use_tokenizer(tokenizer: &Tokenizer, folder: &Path) {
    for text in ["", "A word, the words\u{301} of <mask> 12 \u{4e2d}.", "ab"] {
        let Ok(encoding) = tokenizer.encode(text) else {
            continue;
        };
        let ids = encoding.ids.clone();
        let _ = tokenizer.decode(&ids, true);
        let _ = tokenizer.encode_pair(text, "the other");
    }
    let _ = tokenizer.save_pretrained(folder.join("saved"));
}

fn tokenizer(folder: &Path, bytes: &[u8]) {
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, bytes).unwrap();
    if let Ok(tokenizer) = Tokenizer::from_path(&path) {
        use_tokenizer(&tokenizer, folder);
    }
}

/// The files of which tokenizers consist that have no `tokenizer.json`.
const LEGACY: [&str; 12] = [
    "added_tokens.json",
    "config.json",
    "entity_vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "word_pronunciation.json",
];

/// Several files in one: each begins with a line `=== NAME`.
fn legacy_tokenizer(folder: &Path, bytes: &[u8]) {
    const MARK: &[u8] = b"=== ";
    for name in LEGACY {
        let _ = std::fs::remove_file(folder.join(name));
    }
    let mut rest = bytes;
    while let Some(after) = rest.strip_prefix(MARK) {
        let end = after.iter().position(|&byte| byte == b'\n');
        let (name, content) = after.split_at(end.unwrap_or(after.len()));
        let content = content.get(1..).unwrap_or_default();
        let next = content
            .windows(MARK.len() + 1)
            .position(|window| window == b"\n=== ");
        let (content, following) = match next {
            Some(at) => (&content[..at + 1], &content[at + 1..]),
            None => (content, &content[..0]),
        };
        if let Some(name) = LEGACY.iter().find(|known| known.as_bytes() == name) {
            std::fs::write(folder.join(name), content).unwrap();
        }
        rest = following;
    }
    if let Ok(tokenizer) = Tokenizer::from_path(folder) {
        use_tokenizer(&tokenizer, folder);
    }
}

/// A run of two steps that can be resumed: its folder.
fn run(output: &Path) -> Trainer {
    let tokenizer =
        Tokenizer::train_bpe(["the light of a star", "a cell divides"], 270).expect("a vocabulary");
    let config = small().set("vocab_size", 270);
    let model = MaskedLm::from_config(&config, 1).expect("a small model");
    let arguments = TrainingArguments::new(output)
        .per_device_train_batch_size(1)
        .epochs(2)
        .save_steps(1);
    let examples = |count: u32| -> Vec<Example> {
        (0..count)
            .map(|i| Example::from(vec![0, 100 + i, 120, 2]))
            .collect()
    };
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
    Trainer::new(model, arguments, (examples(1), examples(1)), collator)
}

/// A state of a trainer in an otherwise whole checkpoint, that a run goes on from.
fn trainer_state(_: &Path, bytes: &[u8]) {
    static CHECKPOINT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (output, whole) = CHECKPOINT.get_or_init(|| {
        let output = tempfile::tempdir().unwrap();
        run(output.path()).train().unwrap();
        let whole = output.path().join("checkpoint-1");
        (output, whole)
    });
    let state = whole.join("trainer_state.json");
    std::fs::write(&state, bytes).unwrap();
    let manifest = whole.join("checkpoint.json");
    let text = std::fs::read(&manifest).unwrap();
    let mut digests: serde_json::Value = serde_json::from_slice(&text).unwrap();
    digests["files"]["trainer_state.json"] = serde_json::json!({
        "bytes": bytes.len(),
        "blake3": blake3::hash(bytes).to_hex().to_string(),
    });
    std::fs::write(&manifest, digests.to_string()).unwrap();
    let _ = run(output.path()).resume_from_checkpoint(whole);
}
