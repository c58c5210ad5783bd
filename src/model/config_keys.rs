//! The keys that the config classes of transformers have, whether or not anything here reads them.

/// A line for each `model_type`; the first is for all of them. From transformers 4.35.2 and 5.24.0.
const KEYS: &str = include_str!("config_keys.txt");

/// Returns the keys of configs of `model_type`, besides the common ones.
pub(super) fn of(model_type: &str) -> impl Iterator<Item = &'static str> {
    line(model_type)
}

/// Returns whether transformers knows `key` in configs of `model_type`.
pub(super) fn is_known(model_type: &str, key: &str) -> bool {
    // What begins so is for the library's own use.
    key.starts_with('_') || line("").chain(line(model_type)).any(|known| known == key)
}

fn line(model_type: &str) -> impl Iterator<Item = &'static str> {
    let mut lines = KEYS.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(name, _)| *name == model_type);
    found.map_or("", |(_, keys)| keys).split_ascii_whitespace()
}
