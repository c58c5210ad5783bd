//! What the benchmarks share: their arguments and how they sum up.
#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use cloze::model::Config;
use cloze::{Error, Result};

/// Tokens in DistilRoBERTa's vocabulary.
pub const VOCAB: usize = 50265;

/// A RoBERTa of DistilRoBERTa's size: 82M parameters.
pub fn distilroberta() -> Config {
    Config::new("roberta")
        .set("vocab_size", VOCAB)
        .set("hidden_size", 768)
        .set("num_hidden_layers", 6)
        .set("num_attention_heads", 12)
        .set("intermediate_size", 3072)
        .set("max_position_embeddings", 514)
        .set("type_vocab_size", 1)
        .set("layer_norm_eps", 1e-5)
        .set("pad_token_id", 1)
}

/// The arguments of a benchmark: `--name value`, and flags without a value.
pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    /// Reads the command line, on which only `names` and `flags` may stand.
    pub fn read(names: &[&str], flags: &[&str]) -> Result<Self> {
        let mut given = BTreeMap::new();
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            // Cargo says that this is a benchmark.
            if name == "--bench" {
                continue;
            }
            let wrong =
                || Error::argument("arguments", format!("{name} is unknown or lacks its value"));
            let bare = name.strip_prefix("--").ok_or_else(wrong)?;
            let value = match () {
                () if flags.contains(&bare) => String::new(),
                () if names.contains(&bare) => args.next().ok_or_else(wrong)?,
                () => return Err(wrong()),
            };
            given.insert(bare.to_owned(), value);
        }
        Ok(Self(given))
    }

    pub fn get<T: FromStr<Err: Display>>(&self, name: &str, default: T) -> Result<T> {
        Ok(self.find(name)?.unwrap_or(default))
    }

    pub fn find<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>> {
        let parse = |value: &String| {
            value
                .parse()
                .map_err(|e| Error::argument("arguments", format!("--{name} {value:?}: {e}")))
        };
        self.0.get(name).map(parse).transpose()
    }

    pub fn flag(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// The median; sorts on the way.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[values.len() / 2], values[(values.len() - 1) / 2])
}

/// The most memory that the process ever held, where the system tells.
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// The processor time of all threads so far, where the system tells: exact to a hundredth of a second.
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse)
        .collect();
    (ticks.len() == 2).then(|| ticks.iter().sum::<u64>() as f64 / 100.0)
}
