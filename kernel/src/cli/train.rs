//! `cloze train` and `cloze fill`: training and filling masks without a notebook, for servers and batch systems.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use cloze::fill_mask::FillMask;
use cloze::train::Recipe;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Trains with the settings given as arguments and in the file after `--config`.
pub fn train(arguments: &[String]) -> Result<()> {
    let mut rest = Vec::new();
    let mut config = None;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix("--config") {
            Some("") => {
                let path = arguments.next();
                let path =
                    path.ok_or_else(|| Error::Message("--config needs a file".to_owned()))?;
                config = Some(read(Path::new(path))?);
            }
            Some(path) if path.starts_with('=') => config = Some(read(Path::new(&path[1..]))?),
            _ => rest.push(argument.as_str()),
        }
    }
    if rest
        .iter()
        .any(|argument| ["--help", "-h"].contains(argument))
    {
        println!(
            "Usage: cloze train --model NAME --dataset NAME --output FOLDER [--config FILE.toml] [--SETTING VALUE]...\n"
        );
        println!("Settings, with hyphens or underscores:");
        for name in Recipe::names() {
            println!("  --{}", name.replace('_', "-"));
        }
        return Ok(());
    }
    let recipe = Recipe::from_args(rest, config).map_err(told)?;
    let history = recipe.run().map_err(told)?;
    // Only the first of several ranks prints.
    if cloze::distributed::environment().rank == 0 {
        println!("{history:?}");
        println!("saved {}", recipe.arguments.output_dir.display());
    }
    Ok(())
}

/// Fills the masks of `text`.
pub fn fill(model: &str, text: &str, top_k: usize) -> Result<()> {
    let fill_mask = FillMask::from_pretrained(model).map_err(told)?;
    // `<mask>` and `[MASK]` are accepted whatever the model's own mask token is.
    let mut text = text.to_owned();
    if let Some(mask) = fill_mask.tokenizer().mask_token()
        && !text.contains(mask)
    {
        text = text.replace("<mask>", mask).replace("[MASK]", mask);
    }
    let predictions = fill_mask.top_k(top_k).fill(text).map_err(told)?;
    println!("{predictions:?}");
    Ok(())
}

fn told(error: cloze::Error) -> Error {
    Error::Message(error.to_string())
}

/// Settings take a few kilobytes. What is read into memory takes a hundred times as much as some files.
const LARGEST: u64 = 1 << 20;

fn read(path: &Path) -> Result<Map<String, Value>> {
    let refuse = |error: String| Error::Message(format!("{}: {error}", path.display()));
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text));
    read.map_err(|error| refuse(error.to_string()))?;
    if text.len() as u64 > LARGEST {
        return Err(refuse(
            "it is longer than 1 MiB, which no file of settings is".to_owned(),
        ));
    }
    let json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    if json {
        return serde_json::from_str(&text).map_err(|error| refuse(error.to_string()));
    }
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| {
            let before = &text.as_bytes()[..span.start.min(text.len())];
            1 + before.iter().filter(|&&byte| byte == b'\n').count()
        });
        let line = line
            .map(|line| format!("line {line}: "))
            .unwrap_or_default();
        refuse(format!("{line}{}", error.message()))
    })?;
    let values = table.into_iter().map(|(name, value)| {
        let value = json_of(value).map_err(|problem| refuse(format!("{name}: {problem}")))?;
        Ok((name, value))
    });
    values.collect()
}

/// Returns a value of TOML as JSON has it.
fn json_of(value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) if number.is_finite() => number.into(),
        toml::Value::Float(number) => return Err(format!("{number} is no number to work with")),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => {
            return Err(format!(
                "no setting takes a time, which {time} is: put it in quotes"
            ));
        }
        toml::Value::Array(values) => {
            let values: Result<_, _> = values.into_iter().map(json_of).collect();
            Value::Array(values?)
        }
        toml::Value::Table(table) => {
            let values = table
                .into_iter()
                .map(|(name, value)| json_of(value).map(|value| (name, value)));
            Value::Object(values.collect::<Result<_, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str, text: &str) -> Result<Map<String, Value>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_are_read_in_their_types() {
        let text = "model = \"m\"\nlr = 1e-4\nepochs = 3\nfp16 = true\nnames = [\"a\", \"b\"]\n[more]\nx = 1";
        let read = read_as("a.toml", text).expect("settings");
        let told = serde_json::json!({
            "model": "m", "lr": 1e-4, "epochs": 3, "fp16": true, "names": ["a", "b"], "more": { "x": 1 },
        });
        assert_eq!(Value::Object(read), told);
    }

    #[test]
    fn what_is_no_file_of_settings_is_refused_in_a_line() {
        let deep = |open: &str, close: &str| {
            format!("x = {}{}", open.repeat(50_000), close.repeat(50_000))
        };
        for (name, text, told) in [
            ("a.toml", deep("[", "]"), "line 1: "),
            ("a.toml", deep("{a=", "}"), "line 1: "),
            (
                "a.json",
                format!("{{\"x\": {}", "[".repeat(50_000)),
                "recursion",
            ),
            (
                "a.toml",
                format!("a{} = 1", ".a".repeat(50_000)),
                "recursion",
            ),
            ("a.toml", format!("[{}a]", "a.".repeat(50_000)), "recursion"),
            ("a.toml", "a = 1\nb = 'x".to_owned(), "line 2: "),
            ("a.toml", "lr = nan".to_owned(), "lr: NaN"),
            (
                "a.toml",
                "lr = 1979-05-27".to_owned(),
                "lr: no setting takes a time",
            ),
            (
                "a.toml",
                "epochs = 99999999999999999999".to_owned(),
                "line 1: ",
            ),
            (
                "a.toml",
                "x = [".to_owned() + &"1,".repeat(1 << 20) + "]",
                "1 MiB",
            ),
            ("a.json", " ".repeat(2 << 20), "1 MiB"),
        ] {
            let problem = read_as(name, &text).expect_err("refused");
            assert!(problem.contains(told), "{told}: {problem}");
            assert!(problem.len() < 400, "{told}: {} bytes", problem.len());
        }
    }
}
