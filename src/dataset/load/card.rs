//! The information in a dataset's card about its files: the field `configs` in the YAML header of README.md.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser};

/// A configuration of a dataset, as its card declares it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CardConfig {
    pub(crate) name: String,
    pub(crate) is_default: bool,
    /// The folder that patterns and splits are looked for in.
    pub(crate) data_dir: Option<String>,
    /// Patterns of file names by split; empty if names decide.
    pub(crate) data_files: Vec<(String, Vec<String>)>,
    /// Arguments for the reader of the format: `sep`, `field`, `encoding`, ...
    pub(crate) arguments: Vec<(String, Argument)>,
}

/// An argument for a reader.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Argument {
    One(String),
    Several(Vec<String>),
}

/// Returns the configurations that the card `text` declares, in its order; none if it has no such field.
///
/// # Errors
/// The problem with the YAML or the field, as the end of a sentence about the card.
pub(crate) fn configs(text: &str) -> Result<Vec<CardConfig>, String> {
    let Some(header) = header(text) else {
        return Ok(Vec::new());
    };
    let Node::Map(fields) = parse(header)? else {
        return Ok(Vec::new());
    };
    match field(&fields, "configs") {
        None | Some(Node::Null) => Ok(Vec::new()),
        Some(Node::List(configs)) => {
            let configs = configs.iter().map(config).collect::<Result<Vec<_>, _>>()?;
            for (index, config) in configs.iter().enumerate() {
                if configs[..index]
                    .iter()
                    .any(|other| other.name == config.name)
                {
                    return Err(format!(
                        "it declares the configuration {:?} twice",
                        config.name
                    ));
                }
            }
            Ok(configs)
        }
        Some(_) => Err("its field configs is not a list".to_owned()),
    }
}

fn config(node: &Node) -> Result<CardConfig, String> {
    let Node::Map(fields) = node else {
        return Err("an entry of configs has no fields".to_owned());
    };
    let mut config = CardConfig::default();
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("config_name", Node::Text(name)) => config.name.clone_from(name),
            ("default", Node::Text(yes)) => config.is_default = yes.eq_ignore_ascii_case("true"),
            ("data_dir", Node::Text(folder)) => config.data_dir = Some(folder.clone()),
            ("data_files", value) => config.data_files = data_files(value)?,
            // Here it is no default: the first line is a row then.
            ("header", Node::Null) => {
                let argument = Argument::One("null".to_owned());
                config.arguments.push((key.clone(), argument));
            }
            (_, Node::Text(text)) => {
                let argument = Argument::One(text.clone());
                config.arguments.push((key.clone(), argument));
            }
            (_, Node::List(items)) => {
                if let Some(texts) = texts(items) {
                    let argument = Argument::Several(texts);
                    config.arguments.push((key.clone(), argument));
                }
            }
            _ => {}
        }
    }
    if config.name.is_empty() {
        return Err("an entry of configs has no config_name".to_owned());
    }
    Ok(config)
}

fn data_files(node: &Node) -> Result<Vec<(String, Vec<String>)>, String> {
    let patterns = |node: &Node| match node {
        Node::Text(pattern) => Some(vec![pattern.clone()]),
        Node::List(items) => texts(items),
        _ => None,
    };
    let unclear = "its data_files are neither patterns nor splits with a path".to_owned();
    if let Some(patterns) = patterns(node) {
        return Ok(vec![("train".to_owned(), patterns)]);
    }
    let Node::List(entries) = node else {
        return match node {
            Node::Null => Ok(Vec::new()),
            _ => Err(unclear),
        };
    };
    let mut splits: Vec<(String, Vec<String>)> = Vec::new();
    for entry in entries {
        let Node::Map(fields) = entry else {
            return Err(unclear);
        };
        let (Some(Node::Text(split)), Some(path)) = (field(fields, "split"), field(fields, "path"))
        else {
            return Err(unclear);
        };
        if splits.iter().any(|(name, _)| name == split) {
            return Err(format!("its data_files name the split {split:?} twice"));
        }
        splits.push((split.clone(), patterns(path).ok_or(unclear.clone())?));
    }
    Ok(splits)
}

/// Returns the header of a card, without its lines of dashes, and what follows; a card without one is all the latter.
#[cfg(feature = "hub")]
pub(crate) fn split(text: &str) -> (&str, &str) {
    let Some(header) = header(text) else {
        return ("", text);
    };
    let end = header.as_ptr() as usize - text.as_ptr() as usize + header.len();
    let rest = &text[end..];
    let line = rest.find('\n').map_or(rest.len(), |at| at + 1);
    (header, &rest[line..])
}

/// Returns the YAML between two lines of three dashes at the beginning.
fn header(text: &str) -> Option<&str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_start();
    let rest = text.strip_prefix("---")?;
    let rest = rest.strip_prefix('\r').unwrap_or(rest).strip_prefix('\n')?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&rest[..at]);
        }
        at += line.len();
    }
    None
}

/// A part of a YAML document; numbers and booleans are kept as text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

fn field<'a>(fields: &'a [(String, Node)], name: &str) -> Option<&'a Node> {
    fields
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, node)| node)
}

fn texts(items: &[Node]) -> Option<Vec<String>> {
    let text = |item: &Node| match item {
        Node::Text(text) => Some(text.clone()),
        _ => None,
    };
    items.iter().map(text).collect()
}

/// A card that is longer, deeper, or unfolds into more is none that people write.
const MOST_BYTES: usize = 4 << 20;
const MOST_NODES: usize = 200_000;
const DEEPEST: usize = 64;

/// A list or map that is not complete yet.
struct Open {
    anchor: usize,
    is_map: bool,
    items: Vec<Node>,
}

pub(crate) fn parse(yaml: &str) -> Result<Node, String> {
    if yaml.len() > MOST_BYTES {
        return Err("its header is too long".to_owned());
    }
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, (Node, usize)> = HashMap::new();
    let mut nodes = 0usize;
    let mut root = Node::Null;
    for event in Parser::new_from_str(yaml) {
        let (event, _) = event.map_err(|error| format!("its header is not valid YAML: {error}"))?;
        let (node, anchor, size) = match event {
            Event::Scalar(text, style, anchor, _) => (scalar(text, style), anchor, 1),
            Event::Alias(anchor) => {
                let (node, size) = anchors
                    .get(&anchor)
                    .cloned()
                    .ok_or("its header refers to an anchor that it does not define")?;
                (node, 0, size)
            }
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                if open.len() == DEEPEST {
                    return Err(format!("its header is more than {DEEPEST} levels deep"));
                }
                let is_map = matches!(event, Event::MappingStart(..));
                open.push(Open {
                    anchor,
                    is_map,
                    items: Vec::new(),
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(done) = open.pop() else { continue };
                let node = match done.is_map {
                    true => map(done.items),
                    false => Node::List(done.items),
                };
                let size = if done.anchor > 0 { size_of(&node) } else { 1 };
                (node, done.anchor, size)
            }
            _ => continue,
        };
        nodes += size;
        if nodes > MOST_NODES {
            return Err("its header expands beyond the size limit".to_owned());
        }
        if anchor > 0 {
            anchors.insert(anchor, (node.clone(), size));
        }
        match open.last_mut() {
            Some(parent) => parent.items.push(node),
            None => root = node,
        }
    }
    Ok(root)
}

fn scalar(text: Cow<str>, style: saphyr_parser::ScalarStyle) -> Node {
    let plain = style == saphyr_parser::ScalarStyle::Plain;
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" if plain => Node::Null,
        _ => Node::Text(text.into_owned()),
    }
}

/// Keys and values that came one after the other; keys that are no text are left out.
fn map(items: Vec<Node>) -> Node {
    let mut fields = Vec::with_capacity(items.len() / 2);
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        if let Node::Text(key) = key {
            fields.push((key, value));
        }
    }
    Node::Map(fields)
}

fn size_of(node: &Node) -> usize {
    match node {
        Node::Null | Node::Text(_) => 1,
        Node::List(items) => 1 + items.iter().map(size_of).sum::<usize>(),
        Node::Map(fields) => {
            1 + fields
                .iter()
                .map(|(_, node)| 1 + size_of(node))
                .sum::<usize>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_have_their_splits_folders_and_arguments() {
        let card = "\u{feff}---\nlicense: mit\nconfigs:\n- config_name: en\n  default: true\n  data_files:\n  - split: train\n    \
                    path: [\"a/*.csv\", b.csv]\n  - {split: held_out, path: 'c.csv'}\n  sep: \";\"\n  names: [x, y]\n- config_name: de\n  \
                    data_dir: german\n- config_name: all\n  data_files: \"**/*.csv\"\n---\n# Card\n---\nconfigs: no\n";
        let configs = configs(card).unwrap();
        let owned = |files: &[&str]| {
            files
                .iter()
                .map(|file| (*file).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(configs[0].name, "en");
        assert!(configs[0].is_default && !configs[1].is_default);
        assert_eq!(
            configs[0].data_files,
            [
                ("train".to_owned(), owned(&["a/*.csv", "b.csv"])),
                ("held_out".to_owned(), owned(&["c.csv"])),
            ]
        );
        assert_eq!(
            configs[0].arguments,
            [
                ("sep".to_owned(), Argument::One(";".to_owned())),
                ("names".to_owned(), Argument::Several(owned(&["x", "y"]))),
            ]
        );
        assert_eq!(configs[1].data_dir.as_deref(), Some("german"));
        assert_eq!(
            configs[2].data_files,
            [("train".to_owned(), owned(&["**/*.csv"]))]
        );
    }

    #[test]
    fn cards_without_the_field_declare_no_configurations() {
        for card in [
            "",
            "# A card",
            "---\n---\n",
            "---\nlicense: mit\n---\n",
            "---\nconfigs:\n---\n",
            "---\nnever ended",
            "----\nconfigs: x\n---\n",
        ] {
            assert_eq!(configs(card), Ok(Vec::new()), "{card:?}");
        }
    }

    #[test]
    fn invalid_cards_are_reported() {
        for (yaml, expected) in [
            ("configs: 5", "not a list"),
            ("configs: [a]", "no fields"),
            ("configs: [{data_files: x}]", "no config_name"),
            ("configs: [{config_name: a}, {config_name: a}]", "twice"),
            (
                "configs: [{config_name: a, data_files: {x: y}}]",
                "neither patterns",
            ),
            (
                "configs: [{config_name: a, data_files: [{split: t, path: a}, {split: t, path: b}]}]",
                "twice",
            ),
            ("a: [b", "not valid YAML"),
        ] {
            let error = configs(&format!("---\n{yaml}\n---\n")).unwrap_err();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }

    #[test]
    fn a_card_cannot_expand_beyond_its_size() {
        let mut bomb = "---\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..30 {
            let of = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{of}]\n"));
        }
        bomb.push_str("---\n");
        let started = std::time::Instant::now();
        assert!(configs(&bomb).unwrap_err().contains("size limit"));
        let deep = format!("---\n{}\n---\n", "- ".repeat(20_000));
        assert!(configs(&deep).is_err());
        let deep = format!("---\n{}\n---\n", "[".repeat(20_000));
        assert!(configs(&deep).is_err());
        assert!(started.elapsed().as_secs_f64() < 2.0);
    }
}
