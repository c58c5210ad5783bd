//! Datasets as tables, records as nested tables.

use crate::dataset::{Dataset, DatasetDict, Row, Value};
use crate::notebook::Rich;
use crate::notebook::html::{
    Align, MONO, MUTED, Table, clip, count, escape, frame, heading, note, thousands,
};

/// How many rows of a dataset are shown.
const ROWS: usize = 5;
/// The number of columns that are visible at once on most pages; the table scrolls sideways.
const FIT: usize = 5;
/// The number of characters shown of a text in a table cell, and in a single record.
const CELL: usize = 140;
const ALONE: usize = 4_000;
/// The number of items shown of a list in a table cell, and in a single record.
const ITEMS: usize = 3;
const NUMBERS: usize = 10;
const ITEMS_ALONE: usize = 50;

impl Rich for Dataset {
    fn to_html(&self) -> String {
        let features = self.features();
        let mut aside = format!(
            "{} × {}",
            count(self.len(), "row"),
            count(features.len(), "column")
        );
        if features.len() > FIT {
            // On a narrow page the table is wider than what is seen of it.
            aside += ", the last ones further right →";
        }
        let mut columns = vec![(String::new(), Align::Right)];
        for (name, kind) in &features {
            let align = match kind.as_str() {
                kind if kind.starts_with("int") || kind.starts_with("uint") => Align::Right,
                kind if kind.starts_with("float") => Align::Right,
                _ => Align::Left,
            };
            columns.push((column_title(name, kind), align));
        }
        let mut table = Table::new(columns);
        for index in 0..self.len().min(ROWS) {
            let mut cells = vec![faint(&thousands(index))];
            match self.row(index) {
                Ok(row) => cells.extend(row.fields().iter().map(|(_, value)| cell(value))),
                Err(error) => cells.push(escape(&error.to_string())),
            }
            table.row(cells);
        }
        let more = match self.len().saturating_sub(ROWS) {
            0 => String::new(),
            more => note(&format!("… and {}", count(more, "more row"))),
        };
        frame(&(heading("dataset", &aside) + &table.to_html() + &more))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

impl Rich for DatasetDict {
    fn to_html(&self) -> String {
        let mut table = Table::new([
            ("split", Align::Left),
            ("rows", Align::Right),
            ("columns", Align::Left),
        ]);
        for (name, dataset) in self.iter() {
            let columns: Vec<String> = dataset
                .features()
                .iter()
                .map(|(name, kind)| {
                    let kind = escape(&clip(kind, 80));
                    format!(
                        "{} <span style=\"font-size:11px;{MUTED}\">{kind}</span>",
                        escape(name)
                    )
                })
                .collect();
            table.row(vec![
                format!("<b>{}</b>", escape(name)),
                thousands(dataset.len()),
                columns.join(", "),
            ]);
        }
        let title = heading("datasets", &count(self.len(), "split"));
        frame(&(title + &table.to_html()))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

impl Rich for Row {
    fn to_html(&self) -> String {
        frame(&record(self))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

impl Rich for Value {
    fn to_html(&self) -> String {
        frame(&whole(self))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

/// Returns a column's name over its type, which may be long.
fn column_title(name: &str, kind: &str) -> String {
    format!(
        "{}<br><span style=\"font-weight:400;font-size:11px;{MUTED}\" title=\"{}\">{}</span>",
        escape(name),
        escape(kind),
        escape(&clip(kind, 40))
    )
}

fn faint(text: &str) -> String {
    format!("<span style=\"{MUTED}\">{text}</span>")
}

/// Returns what is neither text nor made of parts.
fn scalar(value: &Value) -> String {
    match value {
        Value::Null => faint("None"),
        other => escape(&other.to_string()),
    }
}

/// Returns a value as it fits into a cell of a table.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => {
            // Long texts would be squeezed into towers by their neighbours.
            let least = if text.chars().count() > 40 { 170 } else { 0 };
            format!(
                "<div style=\"min-width:{least}px;max-width:340px\">{}</div>",
                escape(&clip(text, CELL))
            )
        }
        Value::List(items) => {
            let long = |item: &Value| item.as_str().is_some_and(|text| text.chars().count() > 40);
            let least = if items.iter().any(long) { 200 } else { 0 };
            format!(
                "<div style=\"min-width:{least}px;max-width:340px\">{}</div>",
                short_list(items)
            )
        }
        Value::Record(row) => {
            let line = |(name, value): &(String, Value)| {
                format!(
                    "<div style=\"max-width:340px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap\">{} {}</div>",
                    faint(&escape(name)),
                    short(value)
                )
            };
            row.fields().iter().map(line).collect()
        }
        other => scalar(other),
    }
}

/// Returns a value as a part of a cell.
fn short(value: &Value) -> String {
    match value {
        Value::String(text) => escape(&clip(text, CELL / 2)),
        Value::List(items) => short_list(items),
        Value::Record(row) => {
            let part = |(name, value): &(String, Value)| {
                format!("{} {}", faint(&escape(name)), short(value))
            };
            let parts: Vec<String> = row.fields().iter().map(part).collect();
            format!("{{{}}}", parts.join(", "))
        }
        other => scalar(other),
    }
}

fn short_list(items: &[Value]) -> String {
    let numbers = items.iter().all(|item| matches!(item, Value::Int(_)));
    let most = if numbers { NUMBERS } else { ITEMS };
    let mut parts: Vec<String> = items.iter().take(most).map(short).collect();
    if items.len() > most {
        parts.push(faint(&format!("… {} more", thousands(items.len() - most))));
    }
    format!("[{}]", parts.join(", "))
}

/// Returns a record in full: a line for each field, records in it indented.
fn record(row: &Row) -> String {
    let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
    for (name, value) in row.fields() {
        table.row(vec![
            format!("<span style=\"{MONO};{MUTED}\">{}</span>", escape(name)),
            whole(value),
        ]);
    }
    table.to_html()
}

/// Returns a value with room for itself.
fn whole(value: &Value) -> String {
    match value {
        Value::String(text) => format!(
            "<div style=\"white-space:pre-wrap;max-width:760px\">{}</div>",
            escape(&clip(text, ALONE))
        ),
        Value::Record(row) => record(row),
        Value::List(items) => {
            let plain = |item: &Value| !matches!(item, Value::Record(_) | Value::List(_));
            let brief = |item: &Value| item.as_str().is_none_or(|text| text.chars().count() <= 40);
            let more = match items.len().saturating_sub(ITEMS_ALONE) {
                0 => String::new(),
                more => faint(&format!("… {} more", thousands(more))),
            };
            let shown = items.iter().take(ITEMS_ALONE);
            if items.iter().all(|item| plain(item) && brief(item)) {
                let mut parts: Vec<String> = shown.map(short).collect();
                parts.extend((!more.is_empty()).then_some(more));
                return format!("[{}]", parts.join(", "));
            }
            // Long items get a line each, with their numbers.
            let line = |(number, item): (usize, &Value)| {
                format!(
                    "<div style=\"display:flex;margin-bottom:6px\"><div style=\"margin-right:10px;{MUTED}\">{number}</div><div>{}</div></div>",
                    whole(item)
                )
            };
            shown.enumerate().map(line).collect::<String>() + &more
        }
        other => scalar(other),
    }
}
