//! The README's table of the families: written from the list of them, and true of every one.

use std::fmt::Write;
use std::path::Path;

use super::FillMask;
use crate::model::{Config, MaskedLm, SUPPORTED_MODEL_TYPES, family_of};
use crate::tokenizer::{Tokenizer, has_mask};

const BEGIN: &str = "<!-- written by a test: the families -->\n";
const END: &str = "<!-- the end of the families -->\n";

/// A small model of a family.
fn model(model_type: &str, vocab: usize) -> MaskedLm {
    let config = Config::small(model_type).set("vocab_size", vocab);
    MaskedLm::from_config(&config, 1).unwrap()
}

/// What a family's row says besides its name.
struct Row {
    class: &'static str,
    learns: &'static str,
    fills: bool,
    inputs: Vec<&'static str>,
    pads: bool,
}

fn row(model_type: &str) -> Row {
    let family = family_of(model_type).unwrap();
    let model = model(model_type, 300);
    let main = model.main_input();
    let inputs = family.inputs.iter().map(|input| input.name);
    // What is labelled is no input.
    let inputs = inputs
        .filter(|name| *name != main && !name.ends_with("labels"))
        .collect();
    let entities = family
        .inputs
        .iter()
        .any(|input| input.name == "entity_labels");
    Row {
        class: family.class,
        learns: match (main, entities) {
            ("input_ids", false) => "masked tokens",
            ("input_ids", true) => "masked tokens and entities",
            _ => "what recordings say",
        },
        fills: main == "input_ids" && has_mask(model_type),
        inputs,
        pads: !family.padding_sensitive,
    }
}

fn table() -> String {
    let mut table = String::from(
        "| `model_type` | class | learns from | fills masks | further inputs | texts of several lengths in a batch |\n\
         |---|---|---|---|---|---|\n",
    );
    let yes = |yes| if yes { "yes" } else { "no" };
    for model_type in SUPPORTED_MODEL_TYPES {
        let row = row(model_type);
        let inputs: Vec<String> = row.inputs.iter().map(|name| format!("`{name}`")).collect();
        writeln!(
            table,
            "| `{model_type}` | `{}` | {} | {} | {} | {} |",
            row.class,
            row.learns,
            yes(row.fills),
            inputs.join(", "),
            yes(row.pads)
        )
        .unwrap();
    }
    table
}

/// `CLOZE_WRITE_README=1` writes the table anew.
#[test]
fn the_readme_says_what_every_family_can_do() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the mark before the table");
    let (found, after) = rest.split_once(END).expect("the mark behind the table");
    let table = table();
    if std::env::var_os("CLOZE_WRITE_README").is_some() {
        let readme = [before, BEGIN, "\n", &table, "\n", END, after].concat();
        std::fs::write(&path, readme).unwrap();
        return;
    }
    assert_eq!(
        found.trim(),
        table.trim(),
        "run this test with CLOZE_WRITE_README=1"
    );
}

#[test]
fn families_that_fill_masks_do_and_the_others_say_why_not() {
    let tokenizer =
        Tokenizer::train_bpe(["a spiral galaxy", "a barred spiral galaxy"], 300).unwrap();
    let mut failed = Vec::new();
    for model_type in SUPPORTED_MODEL_TYPES {
        let fill = FillMask::new(model(model_type, tokenizer.len()), tokenizer.clone());
        let filled = fill.fill("a <mask> galaxy");
        if row(model_type).fills
            && let Err(error) = &filled
        {
            failed.push(format!("{model_type}: {error}"));
        }
        if row(model_type).learns == "what recordings say" {
            assert!(filled.unwrap_err().to_string().contains("input_values"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
