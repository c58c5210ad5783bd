//! What ships with [Cloze](https://docs.rs/cloze), as bytes: a small RoBERTa with its tokenizer, questions and answers in the
//! layout of ELI5, text to pretrain on, spoken digits.
//!
//! Cloze opens them by name (`bundled:tiny_roberta`), wherever the program runs: they are in the program, and no path of the
//! machine that compiled it is asked for. `README.md` says what they are and how they were made, `NOTICES.md` under which
//! licences.
//!
//! ```
//! let sample = cloze_data::files().find(|(name, _)| *name == "eli5_sample.jsonl");
//! let (_, bytes) = sample.expect("the sample is there");
//! assert!(bytes.starts_with(b"{"));
//! ```
#![warn(missing_docs)]

static FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// Returns all files: their names, with `/` between folders, and what is in them.
pub fn files() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    let encoder = (
        "tiny_roberta/model-00002-of-00002.safetensors",
        cloze_data_encoder::WEIGHTS,
    );
    FILES.iter().copied().chain([encoder])
}
