//! Whatever stands in a file, reading it ends in data or in an error: no panic, no hang, no memory beyond reason.
//!
//! Every file of `tests/corpus` is read, and so are some thousand damaged copies of each, which are the same in every run.
//! The corpus holds a sound file of each kind, and what fuzzers have found. `tests/README.md` says how to let this run for
//! longer, with other damage, and how to let the fuzzers run.

#[path = "../support/damage.rs"]
mod damage;
#[path = "../support/untrusted.rs"]
mod untrusted;

/// Reads the files of a part of the corpus, and damaged copies of them.
fn replay(part: &str, copies: usize) {
    let (_, read) = untrusted::READERS
        .iter()
        .find(|(name, _)| *name == part)
        .expect("a kind of files");
    let folder = tempfile::tempdir().unwrap();
    damage::replay(part, copies, |bytes| read(folder.path(), bytes));
}

/// A test for each kind of files: how many damaged copies it reads of each file.
macro_rules! replays {
    ($($part:ident: $copies:literal,)*) => {
        $(#[test]
        fn $part() {
            replay(stringify!($part), $copies);
        })*

        #[test]
        fn every_kind_has_a_test() {
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
