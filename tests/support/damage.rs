//! Damaged copies of the files of `tests/corpus`, the same in every run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// Reads the files of a part of the corpus as they are, and `copies` damaged copies of each. `read` must return, in ten
/// seconds.
pub fn replay(part: &str, copies: usize, read: impl Fn(&[u8])) {
    let until = from_environment("CLOZE_FUZZ_SECONDS")
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    // Of the workspace, whichever package is tested.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = package
        .ancestors()
        .map(|folder| folder.join("tests/corpus").join(part))
        .find(|folder| folder.is_dir())
        .expect("a corpus");
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{part}");
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
                let result = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
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
