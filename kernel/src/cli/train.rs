//! `cloze train` and `cloze fill`: training and filling masks without a notebook, for servers and batch systems.

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

fn read(path: &Path) -> Result<Map<String, Value>> {
    let refuse = |error: String| Error::Message(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    let json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    match json {
        true => serde_json::from_str(&text).map_err(|error| refuse(error.to_string())),
        false => toml::from_str(&text).map_err(|error| refuse(error.to_string())),
    }
}
