//! Whatever stands in a file, reading it ends in data or in an error: no panic, no hang, no memory beyond reason.
//!
//! Every file of `tests/corpus` is read, and so are some thousand damaged copies of each, which are the same in every run.
//! The corpus holds a sound file of each kind, and what fuzzers have found. `tests/README.md` says how to let this run for
//! longer, with other damage, and how to let the fuzzers run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[path = "../support/untrusted.rs"]
mod untrusted;

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

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Reads the files of a part of the corpus as they are, and `copies` damaged copies of each.
fn replay(part: &str, copies: usize) {
    let (_, read) = untrusted::READERS
        .iter()
        .find(|(name, _)| *name == part)
        .expect("a kind of files");
    let until = from_environment("CLOZE_FUZZ_SECONDS")
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
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
    let mut random = Random(from_environment("CLOZE_FUZZ_SEED").unwrap_or(7));
    let mut executions = 0u64;
    let mut round = 0;
    loop {
        for file in &files {
            let whole = std::fs::read(file).unwrap();
            for copy in 0..1 + copies {
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
                        "{} or a damaged copy of it panicked or took {took:?}; it is kept as {}",
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

/// A test for each kind of files: how many damaged copies it reads of each file.
macro_rules! replays {
    ($($part:ident: $copies:literal,)*) => {
        $(#[test]
        fn $part() {
            replay(stringify!($part), $copies);
        })*

        #[test]
        fn every_kind_has_its_test() {
            let tested = [$(stringify!($part)),*];
            let known: Vec<&str> = untrusted::READERS.iter().map(|(name, _)| *name).collect();
            assert_eq!(tested[..], known[..]);
        }
    };
}

replays! {
    arrow: 200,
    card: 200,
    config: 200,
    csv: 100,
    index: 200,
    json: 100,
    legacy_tokenizer: 20,
    parquet: 200,
    pickle: 100,
    safetensors: 100,
    split: 1000,
    text: 200,
    tokenizer: 50,
    trainer_state: 20,
}
