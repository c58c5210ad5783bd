//! The fields `dataset_info` and `configs` of a dataset's card, as written by `datasets`. All other fields are
//! unchanged.

use std::fmt::Write;

use arrow::datatypes::{DataType, Fields, Schema, TimeUnit};

use super::super::data_type::type_name;
use super::super::load::card::{self, Node};
use crate::hub::yaml::scalar;
use crate::{Error, Result};

/// A published split.
pub(super) struct Split {
    pub(super) name: String,
    /// Of its rows in memory.
    pub(super) bytes: u64,
    pub(super) rows: u64,
    /// Of its files.
    pub(super) download: u64,
}

/// A published configuration.
pub(super) struct Published<'a> {
    pub(super) config: &'a str,
    pub(super) is_default: Option<bool>,
    /// The pattern of its files.
    pub(super) folder: &'a str,
    pub(super) schema: &'a Schema,
    pub(super) splits: &'a [Split],
    /// Whether splits stay that the configuration has already.
    pub(super) keep_others: bool,
}

/// The content of a configuration after publishing.
#[derive(Default)]
struct Contents {
    /// The patterns of each split's files.
    data_files: Vec<(String, Vec<String>)>,
    /// The name, bytes and rows of each split.
    splits: Vec<(String, u64, u64)>,
    /// The bytes of all files.
    download: u64,
}

fn unread(reason: String) -> Error {
    Error::Dataset(format!("the repository's card can't be used: {reason}"))
}

impl Published<'_> {
    /// Returns the card `readme` with this configuration added or replaced. `size` is asked for the bytes of the files
    /// that a pattern of an earlier split means.
    ///
    /// # Errors
    /// A card that can't be read; other columns than the splits have that stay.
    pub(super) fn update(&self, readme: &str, size: impl Fn(&str) -> u64) -> Result<String> {
        let (header, body) = card::split(readme);
        let fields = blocks(header);
        let block = |name: &str| {
            let field = fields.iter().find(|(key, _)| *key == name);
            field.map_or("", |(_, text)| *text)
        };
        let infos = items(block("dataset_info"));
        let configs = items(block("configs"));
        let known = card::configs(readme).map_err(unread)?;
        let known = known.iter().find(|config| config.name == self.config);
        let info = infos.iter().find(|item| item.config == self.config);

        let mut contents = Contents::default();
        if self.keep_others {
            let data_files = known.map_or(&[][..], |config| &config.data_files[..]);
            self.keep(data_files, info, &size, &mut contents)?;
        }
        self.add_own(&mut contents);
        let is_default = self
            .is_default
            .unwrap_or(known.is_some_and(|config| config.is_default));

        let mut header = String::new();
        for (key, text) in &fields {
            if *key != "dataset_info" && *key != "configs" {
                header.push_str(text);
                if !header.ends_with('\n') {
                    header.push('\n');
                }
            }
        }
        self.write_infos(&infos, &self.info(&contents), &mut header);
        let config = self.config_entry(&contents.data_files, is_default);
        self.write_configs(&configs, &config, &mut header);
        let readme = format!("---\n{header}---\n{body}");
        // What can't be read back is not sent.
        card::configs(&readme).map_err(unread)?;
        Ok(readme)
    }

    /// Takes over the splits that stay: their patterns from `data_files`, their bytes and rows from `info`.
    fn keep(
        &self,
        data_files: &[(String, Vec<String>)],
        info: Option<&Item>,
        size: impl Fn(&str) -> u64,
        contents: &mut Contents,
    ) -> Result<()> {
        let mine = |name: &str| self.splits.iter().any(|split| split.name == name);
        for (name, patterns) in data_files {
            if !mine(name) {
                contents.download += patterns.iter().map(|pattern| size(pattern)).sum::<u64>();
            }
            contents.data_files.push((name.clone(), patterns.clone()));
        }
        let fields = info.map(Item::fields).transpose().map_err(unread)?;
        let fields = fields.unwrap_or_default();
        let others = splits_of(&fields).into_iter();
        contents.splits = others.filter(|(name, ..)| !mine(name)).collect();
        let own = format!("features:\n{}", features(self.schema.fields(), 0));
        let own = card::parse(&own).map_err(unread)?;
        if let (false, Some(there), Node::Map(own)) =
            (contents.splits.is_empty(), field(&fields, "features"), &own)
            && field(own, "features") != Some(there)
        {
            let names: Vec<&str> = contents.splits.iter().map(|(name, ..)| &**name).collect();
            return Err(Error::Dataset(format!(
                "the columns differ from those of the splits that the configuration {:?} has on the Hub ({}); push under \
                 another config_name, or all splits together",
                self.config,
                names.join(", ")
            )));
        }
        Ok(())
    }

    /// Adds the splits that are published now; the pattern of one that was there is replaced in its place.
    fn add_own(&self, contents: &mut Contents) {
        for split in self.splits {
            let pattern = vec![format!("{}/{}-*", self.folder, split.name)];
            let mut known = contents.data_files.iter_mut();
            match known.find(|(name, _)| *name == split.name) {
                Some((_, patterns)) => *patterns = pattern,
                None => contents.data_files.push((split.name.clone(), pattern)),
            }
            let row = (split.name.clone(), split.bytes, split.rows);
            contents.splits.push(row);
            contents.download += split.download;
        }
    }

    /// Writes the field `dataset_info`: the unchanged entries of other configurations, then this one's.
    fn write_infos(&self, infos: &[Item], own: &str, header: &mut String) {
        let mut others = infos.iter().filter(|item| item.config != self.config);
        header.push_str("dataset_info:\n");
        let first = others.next();
        if first.is_none() && self.config == "default" {
            header.push_str(own);
            return;
        }
        for other in first.into_iter().chain(others) {
            header.push_str(&other.as_list_item());
        }
        let _ = write!(header, "- config_name: {}\n{own}", scalar(self.config));
    }

    /// Writes the field `configs` in the same order.
    fn write_configs(&self, configs: &[Item], own: &str, header: &mut String) {
        header.push_str("configs:\n");
        for other in configs.iter().filter(|item| item.config != self.config) {
            // Only one is the default.
            let text = other.as_list_item();
            let lines = text
                .lines()
                .filter(|line| !(self.is_default == Some(true) && line.trim() == "default: true"));
            lines.for_each(|line| header.extend([line, "\n"]));
        }
        header.push_str(own);
    }

    fn info(&self, contents: &Contents) -> String {
        let mut text = format!(
            "  features:\n{}  splits:\n",
            features(self.schema.fields(), 2)
        );
        let mut all = 0;
        for (name, bytes, rows) in &contents.splits {
            let name = scalar(name);
            let _ = write!(
                text,
                "  - name: {name}\n    num_bytes: {bytes}\n    num_examples: {rows}\n"
            );
            all += bytes;
        }
        let download = contents.download;
        let _ = write!(text, "  download_size: {download}\n  dataset_size: {all}\n");
        text
    }

    fn config_entry(&self, data_files: &[(String, Vec<String>)], is_default: bool) -> String {
        let mut text = format!("- config_name: {}\n  data_files:\n", scalar(self.config));
        for (split, patterns) in data_files {
            let _ = write!(text, "  - split: {}\n    path:", scalar(split));
            match &patterns[..] {
                [only] => {
                    let _ = writeln!(text, " {}", scalar(only));
                }
                several => {
                    text.push('\n');
                    for pattern in several {
                        let _ = writeln!(text, "    - {}", scalar(pattern));
                    }
                }
            }
        }
        if is_default {
            text.push_str("  default: true\n");
        }
        text
    }
}

/// An entry of `dataset_info` or `configs`, as in the card.
struct Item {
    config: String,
    text: String,
    is_list_item: bool,
}

impl Item {
    fn fields(&self) -> Result<Vec<(String, Node)>, String> {
        match card::parse(&self.text)? {
            Node::Map(fields) => Ok(fields),
            Node::List(items) => match items.into_iter().next() {
                Some(Node::Map(fields)) => Ok(fields),
                _ => Ok(Vec::new()),
            },
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the entry with a dash before it.
    fn as_list_item(&self) -> String {
        match self.is_list_item {
            true => self.text.clone(),
            false => format!("- config_name: {}\n{}", scalar(&self.config), self.text),
        }
    }
}

/// Returns the entries of a field: those of its list, or the field itself where it is one entry of `default`.
fn items(block: &str) -> Vec<Item> {
    let Some((_, content)) = block.split_once('\n') else {
        return Vec::new();
    };
    let mut entries: Vec<String> = Vec::new();
    let mut indent = None;
    for line in content.split_inclusive('\n') {
        let depth = line.len() - line.trim_start_matches(' ').len();
        let begins = line.trim_start().starts_with("- ") && depth <= *indent.get_or_insert(depth);
        // Entries that are written further in come to the margin.
        let line = line.get(indent.unwrap_or(0).min(depth)..).unwrap_or(line);
        match entries.last_mut().filter(|_| !begins) {
            Some(entry) => entry.push_str(line),
            None => entries.push(line.to_owned()),
        }
    }
    let is_list = content.trim_start().starts_with("- ");
    if !is_list {
        entries = match content.trim().is_empty() {
            true => Vec::new(),
            false => vec![content.to_owned()],
        };
    }
    let item = |mut text: String| {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut item = Item {
            config: "default".to_owned(),
            text,
            is_list_item: is_list,
        };
        if let Ok(fields) = item.fields()
            && let Some(Node::Text(name)) = field(&fields, "config_name")
        {
            item.config.clone_from(name);
            if !is_list {
                // As a list item it gets the name once.
                let lines = item
                    .text
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("config_name:"));
                item.text = lines.flat_map(|line| [line, "\n"]).collect();
            }
        }
        item
    };
    entries.into_iter().map(item).collect()
}

/// Returns the fields of a card's header with their text, in order.
fn blocks(header: &str) -> Vec<(&str, &str)> {
    let mut starts: Vec<usize> = Vec::new();
    let mut at = 0;
    for line in header.split_inclusive('\n') {
        let begins = line.starts_with(|c: char| !c.is_whitespace() && !"-#".contains(c));
        if begins || starts.is_empty() {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([header.len()]);
    let texts = starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| &header[start..end]);
    texts
        .map(|text| {
            let key = text.split(':').next().unwrap_or_default();
            (key.trim_matches(['"', '\'']), text)
        })
        .filter(|(_, text)| !text.is_empty())
        .collect()
}

fn field<'a>(fields: &'a [(String, Node)], name: &str) -> Option<&'a Node> {
    let found = fields.iter().find(|(key, _)| key == name);
    found.map(|(_, node)| node)
}

/// Names, bytes and rows of the splits that an entry of `dataset_info` lists.
fn splits_of(fields: &[(String, Node)]) -> Vec<(String, u64, u64)> {
    let Some(Node::List(splits)) = field(fields, "splits") else {
        return Vec::new();
    };
    let split = |node: &Node| {
        let Node::Map(fields) = node else { return None };
        let number = |name: &str| match field(fields, name) {
            Some(Node::Text(number)) => number.parse().unwrap_or(0),
            _ => 0,
        };
        match field(fields, "name") {
            Some(Node::Text(name)) => {
                Some((name.clone(), number("num_bytes"), number("num_examples")))
            }
            _ => None,
        }
    };
    splits.iter().filter_map(split).collect()
}

/// Columns, or the fields of a record, as a list that is `depth` further in.
fn features(fields: &Fields, depth: usize) -> String {
    let margin = " ".repeat(depth);
    let mut text = String::new();
    for field in fields {
        let _ = writeln!(text, "{margin}- name: {}", scalar(field.name()));
        feature(&mut text, "dtype", field.data_type(), depth + 2);
    }
    text
}

/// A type under the key that its kind has, `key` where it is a plain one.
fn feature(text: &mut String, key: &str, data_type: &DataType, depth: usize) {
    let margin = " ".repeat(depth);
    let _ = match data_type {
        DataType::Struct(fields) if key == "list" => {
            write!(text, "{margin}list:\n{}", features(fields, depth))
        }
        DataType::Struct(fields) => write!(text, "{margin}struct:\n{}", features(fields, depth)),
        DataType::List(item) => {
            if key == "list" {
                let _ = writeln!(text, "{margin}list:");
                return feature(text, "list", item.data_type(), depth + 2);
            }
            match item.data_type() {
                DataType::List(_) => {
                    let _ = writeln!(text, "{margin}list:");
                    return feature(text, "dtype", item.data_type(), depth + 2);
                }
                inner => return feature(text, "list", inner, depth),
            }
        }
        plain => writeln!(text, "{margin}{key}: {}", scalar(&dtype(plain))),
    };
}

/// Returns the name that `datasets` has for a plain type.
fn dtype(data_type: &DataType) -> String {
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    match data_type {
        DataType::Timestamp(size, None) => format!("timestamp[{}]", unit(size)),
        DataType::Timestamp(size, Some(zone)) => format!("timestamp[{}, tz={zone}]", unit(size)),
        DataType::Duration(size) => format!("duration[{}]", unit(size)),
        DataType::Time32(size) => format!("time32[{}]", unit(size)),
        DataType::Time64(size) => format!("time64[{}]", unit(size)),
        DataType::Decimal128(precision, scale) => format!("decimal128({precision}, {scale})"),
        DataType::Decimal256(precision, scale) => format!("decimal256({precision}, {scale})"),
        other => type_name(other),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;
    use crate::dataset::ColumnType;

    fn schema(columns: &[(&str, &str)]) -> Schema {
        let field = |(name, kind): &(&str, &str)| {
            Field::new(*name, ColumnType::from(*kind).resolve().unwrap(), true)
        };
        Schema::new(columns.iter().map(field).collect::<Vec<_>>())
    }

    fn split(name: &str) -> Vec<Split> {
        vec![Split {
            name: name.to_owned(),
            bytes: 20,
            rows: 1,
            download: 10,
        }]
    }

    fn published<'a>(
        config: &'a str,
        folder: &'a str,
        schema: &'a Schema,
        splits: &'a [Split],
    ) -> Published<'a> {
        Published {
            config,
            is_default: None,
            folder,
            schema,
            splits,
            keep_others: true,
        }
    }

    #[test]
    fn a_new_card_equals_that_of_datasets() {
        let schema = schema(&[
            ("t", "string"),
            ("i", "int64"),
            ("l", "list<int64>"),
            ("ll", "list<list<string>>"),
            ("s", "struct<x: int64, y: string>"),
            ("ls", "list<struct<q: float64>>"),
            ("n", "null"),
            ("es", "list<null>"),
            ("at", "timestamp[us, tz=UTC]"),
        ]);
        let splits = split("train");
        let card = published("default", "data", &schema, &splits)
            .update("", |_| 0)
            .unwrap();
        // DatasetInfosDict and MetadataConfigs of datasets 5.2
        let expected = "---
dataset_info:
  features:
  - name: t
    dtype: string
  - name: i
    dtype: int64
  - name: l
    list: int64
  - name: ll
    list:
      list: string
  - name: s
    struct:
    - name: x
      dtype: int64
    - name: y
      dtype: string
  - name: ls
    list:
    - name: q
      dtype: float64
  - name: n
    dtype: 'null'
  - name: es
    list: 'null'
  - name: at
    dtype: 'timestamp[us, tz=UTC]'
  splits:
  - name: train
    num_bytes: 20
    num_examples: 1
  download_size: 10
  dataset_size: 20
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
";
        assert_eq!(card, expected);
    }

    #[test]
    fn other_fields_splits_and_configurations_are_kept() {
        let schema = schema(&[("t", "string")]);
        let (train, test) = (split("train"), split("test"));
        let mine = "---\nlicense: mit\ntags:\n- a\n- b\n---\n# My words\n";
        let card = published("default", "data", &schema, &train)
            .update(mine, |_| 0)
            .unwrap();
        assert!(
            card.starts_with("---\nlicense: mit\ntags:\n- a\n- b\ndataset_info:\n"),
            "{card}"
        );
        assert!(card.ends_with("---\n# My words\n"));
        let card = published("default", "data", &schema, &test)
            .update(
                &card,
                |pattern| if pattern == "data/train-*" { 7 } else { 0 },
            )
            .unwrap();
        assert!(
            card.contains("  download_size: 17\n  dataset_size: 40\n"),
            "{card}"
        );
        assert!(card.contains(
            "  - split: train\n    path: data/train-*\n  - split: test\n    path: data/test-*\n"
        ));
        let card = published("en", "en", &schema, &train)
            .update(&card, |_| 0)
            .unwrap();
        let configs = card::configs(&card).unwrap();
        assert_eq!(configs.len(), 2);
        assert_eq!(configs[0].data_files.len(), 2);
        assert_eq!(
            configs[1].data_files,
            [("train".to_owned(), vec!["en/train-*".to_owned()])]
        );
        assert!(
            card.contains("dataset_info:\n- config_name: default\n  features:\n"),
            "{card}"
        );
        assert!(card.contains("- config_name: en\n  features:\n"), "{card}");
        // Once more, with another default; pushing twice changes nothing else.
        let mut again = published("en", "en", &schema, &train);
        again.is_default = Some(true);
        let twice = again.update(&card, |_| 0).unwrap();
        assert_eq!(
            twice,
            card.replacen(
                "    path: en/train-*\n",
                "    path: en/train-*\n  default: true\n",
                1
            )
        );
        let other = schema_of_numbers();
        let error = published("default", "data", &other, &train)
            .update(&twice, |_| 0)
            .unwrap_err();
        assert!(error.to_string().contains("config_name"), "{error}");
        let mut all = published("default", "data", &other, &train);
        all.keep_others = false;
        let replaced = all.update(&twice, |_| 0).unwrap();
        let default = &card::configs(&replaced).unwrap()[1];
        assert_eq!(default.data_files.len(), 1);
    }

    fn schema_of_numbers() -> Schema {
        schema(&[("t", "int64")])
    }

    #[test]
    fn quoted_names_are_read_back() {
        for text in ["plain_1", "null", "Yes", "12", "it's: a", "", "- a", "a\nb"] {
            let node = card::parse(&format!("k: {}", scalar(text))).unwrap();
            let Node::Map(fields) = node else {
                panic!("{node:?}")
            };
            assert_eq!(fields[0].1, Node::Text(text.to_owned()));
        }
    }
}
