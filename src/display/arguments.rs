//! Training arguments as a table: settings that were changed first, defaults in small print.

use crate::notebook::Rich;
use crate::notebook::html::{Align, MONO, MUTED, Table, count, escape, frame, heading, note};
use crate::train::TrainingArguments;

impl Rich for TrainingArguments {
    fn to_html(&self) -> String {
        let usual = fields(&Self::default());
        let (set, left): (Vec<_>, Vec<_>) = fields(self)
            .into_iter()
            .partition(|field| !usual.contains(field));
        let mut table = Table::new([("argument", Align::Left), ("value", Align::Left)]);
        for (name, value) in &set {
            table.row(vec![
                escape(name),
                format!("<span style=\"{MONO}\">{}</span>", escape(value)),
            ]);
        }
        let left: Vec<String> = left
            .iter()
            .map(|(name, value)| format!("{} {}", escape(name), escape(value)))
            .collect();
        let title = heading(
            "training arguments",
            &format!("{} set", count(set.len(), "argument")),
        );
        let rest = note(&format!(
            "<span style=\"{MUTED}\">as usual: {}</span>",
            left.join(", ")
        ));
        frame(&(title + &table.to_html() + &rest))
    }

    fn to_text(&self) -> String {
        let fields = fields(self).into_iter();
        let lines: Vec<String> = fields
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        lines.join("\n")
    }
}

/// Returns the names and values of all arguments, as their `Debug` has them, in its order.
fn fields(arguments: &TrainingArguments) -> Vec<(String, String)> {
    let text = format!("{arguments:#?}");
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().skip(1) {
        match line
            .strip_prefix("    ")
            .filter(|line| !line.starts_with([' ', '}', ')', ']']))
        {
            Some(line) => {
                if let Some((name, value)) = line.split_once(": ") {
                    fields.push((name.to_owned(), value.trim_end_matches(',').to_owned()));
                }
            }
            // What goes over several lines belongs to the field that it began with.
            None => {
                if let Some((_, value)) = fields.last_mut()
                    && line.starts_with("    ")
                {
                    value.push_str(line.trim().trim_end_matches(','));
                }
            }
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_settings_are_distinguished_from_defaults() {
        let arguments = TrainingArguments::new("out").learning_rate(3e-4);
        let html = arguments.to_html();
        let (set, usual) = html.split_once("as usual").expect("both");
        assert!(
            set.contains("learning_rate") && set.contains("0.0003"),
            "{html}"
        );
        assert!(
            usual.contains("weight_decay") && !usual.contains("learning_rate "),
            "{html}"
        );
        assert!(arguments.to_text().lines().count() > 10);
    }
}
