//! What is saved here opens in the reference library: no name missing or unexpected, and the same logits.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device};
use cloze::model::{Config, MaskedLm, SUPPORTED_MODEL_TYPES};
use serde_json::Value;

use super::checks::{fixtures, inputs};

/// As far as two libraries' logits may be apart.
const LIMIT: f64 = 1e-4;

/// Saves each fixture's model again, and a random one of its config, each with our logits of the fixture's inputs.
fn save_all(root: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for entry in std::fs::read_dir(fixtures())? {
        let fixture = entry?.path();
        if !fixture.join("io.safetensors").exists() {
            continue;
        }
        let config = Config::from_folder(&fixture)?;
        if !SUPPORTED_MODEL_TYPES.contains(&config.model_type()) {
            continue;
        }
        let mut io = candle_core::safetensors::load(fixture.join("io.safetensors"), &Device::Cpu)?;
        // What the reference once drew in training; here both evaluate.
        io.retain(|name, _| !name.starts_with("aux."));
        let models = [
            (
                "resaved",
                MaskedLm::from_pretrained(fixture.to_string_lossy())?,
            ),
            ("random", MaskedLm::from_config(&config, 1)?),
        ];
        for (kind, model) in models {
            if kind == "random" && config.get("quant_mode") == Some(&true.into()) {
                model.calibrate([inputs(&io)])?;
            }
            let folder = root.join(fixture.file_name().ok_or("no name")?).join(kind);
            model.save_pretrained(&folder)?;
            let logits = model.forward(inputs(&io))?.to_dtype(DType::F32)?;
            let ours = HashMap::from([("logits", logits)]);
            candle_core::safetensors::save(&ours, folder.join("ours.safetensors"))?;
        }
    }
    Ok(())
}

/// What one Python finds in the folders below `root`, by name and kind.
fn opened_by(python: &str, root: &Path) -> BTreeMap<(String, String), Value> {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/open_in_transformers.py"
    );
    let output = Command::new(python)
        .arg(script)
        .args([root, &fixtures()])
        .output()
        .unwrap_or_else(|e| panic!("{python}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{python}: {stderr}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let found = lines
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| {
            let found: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| found[key].as_str().unwrap().to_owned();
            ((text("name"), text("kind")), found)
        });
    found.collect()
}

/// Fixtures of which names alone are compared: MRA's numbers need a GPU there, and padded batches of YOSO's are broken there.
const BY_NAMES_ALONE: [&str; 4] = ["mra", "mra_padded", "mra_sparse", "yoso_pad"];

/// What is wrong with a folder, if anything.
fn fault(found: &Value) -> Option<String> {
    if let Some(error) = found["error"].as_str() {
        return Some(error.to_owned());
    }
    if found["absent"] == true {
        return Some("no version has the class".to_owned());
    }
    for key in ["missing_keys", "unexpected_keys", "mismatched_keys"] {
        if found[key].as_array().is_none_or(|names| !names.is_empty()) {
            return Some(format!("{key}: {}", found[key]));
        }
    }
    if BY_NAMES_ALONE.iter().any(|name| found["name"] == *name) {
        return None;
    }
    let difference = found["difference"].as_f64().unwrap_or(f64::NAN);
    // Written so that NaN is a fault.
    let close = difference <= LIMIT;
    (!close).then(|| format!("logits differ by {difference:.1e}"))
}

/// Saves, opens with each Python of `CLOZE_TRANSFORMERS` (separated by colons; the first that opens a folder counts, for
/// newer versions have lost some families and broken others), and prints a table.
pub fn check() {
    let pythons = std::env::var("CLOZE_TRANSFORMERS")
        .expect("CLOZE_TRANSFORMERS names Pythons that have torch and transformers");
    let root = tempfile::tempdir().unwrap();
    save_all(root.path()).unwrap();
    let mut found: BTreeMap<(String, String), Value> = BTreeMap::new();
    for python in pythons.split(':') {
        for (folder, opened) in opened_by(python, root.path()) {
            let known = found.get(&folder);
            if known.is_none_or(|known| fault(known).is_some()) {
                found.insert(folder, opened);
            }
        }
    }
    let mut faults = 0;
    for ((name, kind), found) in &found {
        let fault = fault(found);
        faults += usize::from(fault.is_some());
        println!(
            "{name:<24} {kind:<8} {:<30} {:<8} largest {:>6.2}  differs by {:.1e}  {}",
            found["class"].as_str().unwrap_or("?"),
            found["transformers"].as_str().unwrap_or("?"),
            found["largest"].as_f64().unwrap_or(f64::NAN),
            found["difference"].as_f64().unwrap_or(f64::NAN),
            fault.unwrap_or_else(|| "ok".to_owned())
        );
    }
    println!("{} folders, {faults} faults", found.len());
    assert!(!found.is_empty() && faults == 0);
}
