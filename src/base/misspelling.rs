//! Keys that nothing reads and that look like a misspelling of one that counts.

/// Returns the one of `known` that `key` looks like, if it looks like one: a few letters added, dropped, changed or swapped, or the
/// same words in another order. Case, `-` and missing underscores count as nothing.
pub(crate) fn meant<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (1 + key.len() / 8).min(2);
    known
        .map(|known| (distance(key, known), known))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, known)| known)
}

/// Counts how many letters must be added, dropped, changed or swapped with a neighbour.
fn distance(left: &str, right: &str) -> usize {
    let words = |text: &str| {
        let mut words: Vec<String> = text
            .to_lowercase()
            .split(['_', '-', '.', ' '])
            .map(str::to_owned)
            .collect();
        words.sort_unstable();
        words
    };
    let plain = |text: &str| -> Vec<char> {
        text.to_lowercase()
            .chars()
            .filter(|c| !"_-. ".contains(*c))
            .collect()
    };
    if words(left) == words(right) {
        return 0;
    }
    let (left, right) = (plain(left), plain(right));
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
                let swapped =
                    i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
                let swapped = if swapped {
                    rows[i - 2][j - 2] + 1
                } else {
                    usize::MAX
                };
                changed
                    .min(rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(swapped)
            };
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_keys_are_found_and_others_are_not() {
        let known = [
            "num_hidden_layers",
            "hidden_size",
            "hidden_act",
            "vocab_size",
            "eps",
        ];
        for (key, expected) in [
            ("num_hidden_layer", Some("num_hidden_layers")),
            ("numHiddenLayers", Some("num_hidden_layers")),
            ("hidden_num_layers", Some("num_hidden_layers")),
            ("hiden_size", Some("hidden_size")),
            ("hidden-size", Some("hidden_size")),
            ("vocabsize", Some("vocab_size")),
            ("vocab_sise", Some("vocab_size")),
            ("hidden_atc", Some("hidden_act")),
            ("num_attention_heads", None),
            ("seed", None),
            ("size", None),
            ("x", None),
        ] {
            assert_eq!(meant(key, known.into_iter()), expected, "{key}");
        }
    }
}
