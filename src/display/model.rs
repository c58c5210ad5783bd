//! Models and their configurations.

use crate::model::{Config, MaskedLm};
use crate::notebook::Rich;
use crate::notebook::html::{
    Align, BLUE, MONO, Table, bar, escape, facts, frame, heading, note, thousands,
};

impl Rich for MaskedLm {
    fn to_html(&self) -> String {
        let config = self.config();
        let value = |keys: &[&str]| {
            let found = keys
                .iter()
                .find_map(|key| config.get(key))
                .filter(|v| !v.is_null());
            found.map(|value| escape(&value.to_string()))
        };
        let mut rows = vec![
            ("parameters", thousands(self.num_parameters())),
            ("vocabulary", thousands(self.vocab_size())),
        ];
        // Families write the same things under different names.
        let known = [
            (
                "layers",
                value(&["num_hidden_layers", "n_layers", "encoder_layers"]),
            ),
            ("hidden size", value(&["hidden_size", "dim", "d_model"])),
            (
                "heads",
                value(&["num_attention_heads", "n_heads", "encoder_attention_heads"]),
            ),
        ];
        rows.extend(
            known
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        if let Some(longest) = self.max_positions() {
            rows.push(("longest input", format!("{} tokens", thousands(longest))));
        }
        rows.push((
            "device",
            escape(&format!("{:?}", self.device().location()).to_lowercase()),
        ));
        let name = match self.name() {
            name if name == config.model_type() => "newly initialised".to_owned(),
            name => escape(name),
        };
        let mut out = heading(self.class(), &name) + &facts(&rows) + &parts(self);
        let report = self.load_report();
        if !report.missing.is_empty() {
            out += &note(&format!(
                "{} of the weights were not in the checkpoint and are newly initialised: train the model before using it",
                report.missing.len()
            ));
        }
        frame(&out)
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

/// Returns where the parameters are: a line for each part of the network, layers of one stack together.
fn parts(model: &MaskedLm) -> String {
    let mut parts: Vec<(String, usize, usize)> = Vec::new();
    for param in model.params() {
        let (name, layer) = part_of(param.name());
        let count = param.elem_count();
        match parts.iter_mut().find(|part| part.0 == name) {
            Some(part) => {
                part.1 += count;
                part.2 = part.2.max(layer + 1);
            }
            None => parts.push((name, count, layer + 1)),
        }
    }
    // From the tokens to the logits: parameters come by name.
    parts.sort_by_key(|(name, _, layers)| match () {
        () if name.contains("embed") => 0,
        () if *layers > 1 || name.contains("layer") => 1,
        () => 2,
    });
    let total = model.num_parameters().max(1) as f64;
    let mut table = Table::new([
        ("part", Align::Left),
        ("parameters", Align::Right),
        ("share of all", Align::Left),
    ]);
    for (name, count, layers) in parts {
        let layers = if layers > 1 {
            format!(" × {layers}")
        } else {
            String::new()
        };
        table.row(vec![
            format!("<span style=\"{MONO}\">{}</span>{layers}", escape(&name)),
            thousands(count),
            bar(count as f64 / total, "120px", BLUE),
        ]);
    }
    format!("<div style=\"margin-top:8px\">{}</div>", table.to_html())
}

/// Returns the part of the network that a parameter belongs to, and the number of its layer: `roberta.encoder.layer`
/// and 3 for `roberta.encoder.layer.3.output.dense.bias`.
fn part_of(name: &str) -> (String, usize) {
    let words: Vec<&str> = name.split('.').collect();
    if let Some(place) = words.iter().position(|word| word.parse::<usize>().is_ok()) {
        let layer = words[place].parse().unwrap_or(0);
        return (words[..place].join("."), layer);
    }
    let depth = if name.contains("embed") { 2 } else { 1 };
    (words[..depth.min(words.len())].join("."), 0)
}

impl Rich for Config {
    fn to_html(&self) -> String {
        let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
        for (key, value) in self.entries() {
            let value = match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            table.row(vec![
                format!("<span style=\"{MONO}\">{}</span>", escape(key)),
                format!(
                    "<span style=\"{MONO}\">{}</span>",
                    escape(&crate::notebook::html::clip(&value, 200))
                ),
            ]);
        }
        let title = heading("config", &escape(self.model_type()));
        frame(&(title + &table.to_html()))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::part_of;

    #[test]
    fn parameters_belong_to_parts_and_layers() {
        for (name, part, layer) in [
            (
                "roberta.encoder.layer.3.output.dense.bias",
                "roberta.encoder.layer",
                3,
            ),
            (
                "roberta.embeddings.word_embeddings.weight",
                "roberta.embeddings",
                0,
            ),
            ("lm_head.dense.weight", "lm_head", 0),
            ("lm_head.bias", "lm_head", 0),
        ] {
            assert_eq!(part_of(name), (part.to_owned(), layer));
        }
    }
}
