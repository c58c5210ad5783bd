//! Whatever stands in a file, reading it ends in data or in an error: no panic, no hang, no memory beyond reason.
//!
//! Every file of `tests/corpus` is read, and so are some thousand damaged copies of each, which are the same in every run.
//! `tests/README.md` says how to let this run for longer, with other damage.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloze::dataset::{Dataset, DatasetDict, FileFormat, Loader};
use cloze::model::{Config, MaskedLm};

/// Numbers that files are damaged by.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below.max(1) as u64) as usize
    }
}

/// Damages `bytes` in one to four places.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    const TOKENS: [&[u8]; 12] = [
        b"\"",
        b"{",
        b"]",
        b",",
        b"\r",
        b"\n",
        b"NaN",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\0\0\0\0",
        b"99999999999999999999",
        b"\x80",
        b"h\x00h\x00\x86q\x00",
    ];
    for _ in 0..1 + random.next(4) {
        let at = random.next(bytes.len() + 1);
        let end = (at + 1 + random.next(8)).min(bytes.len());
        match random.next(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.next(8),
            1 if at < bytes.len() => bytes[at] = random.next(256) as u8,
            2 => drop(bytes.splice(at..at, TOKENS[random.next(TOKENS.len())].iter().copied())),
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            5 => {
                let part = bytes[at..end].repeat(1 + random.next(20));
                drop(bytes.splice(at..at, part));
            }
            _ => {
                let token = TOKENS[random.next(TOKENS.len())];
                for (place, &byte) in bytes[at..].iter_mut().zip(token) {
                    *place = byte;
                }
            }
        }
    }
}

/// Reads the files of a part of the corpus, as they are and damaged.
fn replay(part: &str, read: impl Fn(&Path, &[u8])) {
    let seconds = std::env::var("CLOZE_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = std::env::var("CLOZE_FUZZ_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(part);
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(seed.unwrap_or(7));
    let mut executions = 0u64;
    let mut round = 0;
    loop {
        for file in &files {
            let whole = std::fs::read(file).unwrap();
            for copy in 0..if round == 0 { 200 } else { 1000 } {
                let mut bytes = whole.clone();
                if copy + round > 0 {
                    damage(&mut bytes, &mut random);
                }
                executions += 1;
                let started = Instant::now();
                let result = catch_unwind(AssertUnwindSafe(|| read(folder.path(), &bytes)));
                let took = started.elapsed();
                if result.is_err() || took > Duration::from_secs(10) {
                    let kept = std::env::temp_dir().join(format!("cloze-damaged-{part}"));
                    std::fs::write(&kept, &bytes).unwrap();
                    panic!(
                        "a damaged copy of {} panicked or took {took:?}; it is kept as {}",
                        file.display(),
                        kept.display()
                    );
                }
            }
        }
        round += 1;
        if until.is_none_or(|until| Instant::now() > until) {
            println!("{part}: {executions} executions");
            return;
        }
    }
}

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
        let _ = dataset.to_parquet(folder.join("out.parquet"));
        let _ = dataset.to_json_lines(folder.join("out.jsonl"));
    }
}

#[test]
fn json() {
    replay("json", |folder, bytes| {
        load(folder, "a.json", bytes, FileFormat::Json)
    });
}

#[test]
fn csv() {
    replay("csv", |folder, bytes| {
        load(folder, "a.csv", bytes, FileFormat::Csv)
    });
}

#[test]
fn text() {
    replay("text", |folder, bytes| {
        load(folder, "a.txt", bytes, FileFormat::Text)
    });
}

#[test]
fn arrow() {
    replay("arrow", |folder, bytes| {
        load(folder, "a.arrow", bytes, FileFormat::Arrow)
    });
}

/// Parquet files are made here: they change with the library that writes them.
#[test]
fn parquet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.parquet");
    let dataset = Dataset::builder()
        .column("t", vec![Some("a"), None, Some("a longer text")])
        .column("n", vec![vec![1i64, 2], vec![], vec![3]])
        .build()
        .unwrap();
    dataset.to_parquet(&path).unwrap();
    let whole = std::fs::read(path).unwrap();
    let mut random = Random(11);
    for _ in 0..1000 {
        let mut bytes = whole.clone();
        damage(&mut bytes, &mut random);
        load(folder.path(), "a.parquet", &bytes, FileFormat::Parquet);
    }
}

#[test]
fn splits() {
    let dataset = Dataset::builder()
        .column("n", (0..10i64).collect::<Vec<_>>())
        .build()
        .unwrap();
    let dict = DatasetDict::from_iter([("train", dataset.clone()), ("test", dataset)]);
    replay("split", |_, bytes| {
        let _ = dict.split(String::from_utf8_lossy(bytes).as_ref());
    });
}

#[test]
fn cards() {
    replay("card", |folder, bytes| {
        std::fs::write(folder.join("a.csv"), "x;y\n1;2\n").unwrap();
        std::fs::write(folder.join("b.csv"), "x;y\n1;2\n").unwrap();
        std::fs::write(folder.join("README.md"), bytes).unwrap();
        let _ = Loader::new(folder.to_str().unwrap()).cache(false).load();
    });
}

fn open_model(folder: &Path) {
    let config = Config::new("roberta")
        .set("vocab_size", 8)
        .set("hidden_size", 4)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 1)
        .set("intermediate_size", 4)
        .set("max_position_embeddings", 8);
    std::fs::write(folder.join("config.json"), config.to_json().unwrap()).unwrap();
    let _ = MaskedLm::from_pretrained(folder.to_str().unwrap());
}

#[test]
fn weights() {
    replay("weights", |folder, bytes| {
        let names = ["model.safetensors", "pytorch_model.bin"];
        // What begins with the length of a header is a safetensors file; the rest are pickles.
        let is_pickle = bytes.starts_with(b"PK") || bytes.starts_with(b"\x80");
        for (name, is_it) in names.into_iter().zip([!is_pickle, is_pickle]) {
            let path = folder.join(name);
            match is_it {
                true => std::fs::write(path, bytes).unwrap(),
                false => drop(std::fs::remove_file(path)),
            }
        }
        open_model(folder);
    });
}

#[test]
fn weight_indexes() {
    replay("index", |folder, bytes| {
        std::fs::write(folder.join("model.safetensors.index.json"), bytes).unwrap();
        std::fs::write(folder.join("model-00001-of-00001.safetensors"), b"x").unwrap();
        open_model(folder);
    });
}
