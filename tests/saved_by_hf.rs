//! Model folders travel between transformers and this one in both directions.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::safetensors;
use cloze::prelude::*;

/// The folder of the fixtures; `CLOZE_GUIDE_FIXTURES=DIR` takes those in `DIR/saved_by_hf`.
fn root() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide");
    let guide = std::env::var_os("CLOZE_GUIDE_FIXTURES").map_or_else(own, PathBuf::from);
    guide.join("saved_by_hf")
}

/// The names of the folders that hold a model.
fn folders() -> Vec<String> {
    let entries = std::fs::read_dir(root()).unwrap().map(Result::unwrap);
    let models = entries.filter(|entry| entry.path().join("io.safetensors").exists());
    let mut names: Vec<String> = models
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no models in {}", root().display());
    names
}

fn fixture(name: impl AsRef<Path>) -> PathBuf {
    root().join(name)
}

fn open(folder: &Path) -> MaskedLm {
    MaskedLm::from_pretrained(folder.to_str().unwrap()).unwrap()
}

/// `transformers`' inputs for the folder's texts, and its logits.
fn reference(folder: &Path) -> (ModelInputs, Tensor) {
    let mut io = safetensors::load(folder.join("io.safetensors"), &Device::Cpu).unwrap();
    let mask = io.remove("attention_mask").unwrap();
    let mask = mask.to_dtype(DType::U32).unwrap().flatten_all().unwrap();
    let inputs = ModelInputs::from_tensor(&io["input_ids"])
        .and_then(|inputs| inputs.with_attention_mask(mask.to_vec1()?))
        .unwrap();
    (inputs, io.remove("logits").unwrap())
}

fn max_difference(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let difference = (ours - theirs).unwrap().abs().unwrap();
    difference
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap()
}

#[test]
fn a_folder_saved_by_transformers_opens_with_its_logits_and_token_ids() {
    for name in &folders() {
        let folder = fixture(name);
        let (inputs, theirs) = reference(&folder);
        let model = open(&folder);
        assert!(model.load_report().missing.is_empty(), "{name}");
        assert!(model.load_report().unexpected.is_empty(), "{name}");
        let worst = max_difference(&model.forward(&inputs).unwrap(), &theirs);
        assert!(worst < 2e-5, "{name}: logits differ by {worst}");

        let texts: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("texts.json")).unwrap()).unwrap();
        let texts: Vec<String> = serde_json::from_value(texts["texts"].clone()).unwrap();
        let tokenizer = Tokenizer::from_path(&folder).unwrap();
        let options = EncodeOptions::new().padding(Padding::Longest);
        let encodings = tokenizer.encode_batch_with(&texts, &options).unwrap();
        let ids: Vec<u32> = encodings.iter().flat_map(|e| e.ids.clone()).collect();
        assert_eq!(ids, inputs.input_ids, "{name}");
    }
}

fn save(name: &str) -> tempfile::TempDir {
    let saved = tempfile::tempdir().unwrap();
    let folder = fixture(name);
    open(&folder).save_pretrained(saved.path()).unwrap();
    Tokenizer::from_path(&folder)
        .and_then(|tokenizer| tokenizer.save_pretrained(saved.path()))
        .unwrap();
    saved
}

#[test]
fn saved_folders_have_the_files_names_shapes_and_config_of_transformers() {
    for name in &folders() {
        let saved = save(name);
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            assert!(saved.path().join(file).is_file(), "{name}: {file}");
        }
        let tensors = |folder: &Path| -> HashMap<String, Tensor> {
            safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap()
        };
        let (ours, theirs) = (tensors(saved.path()), tensors(&fixture(name)));
        let mut names: Vec<_> = ours.keys().collect();
        let mut expected: Vec<_> = theirs.keys().collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected, "{name}");
        for (weight, theirs) in &theirs {
            assert_eq!(
                max_difference(&ours[weight], theirs),
                0.0,
                "{name}: {weight}"
            );
        }

        let bytes = std::fs::read(saved.path().join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        assert_eq!(header["__metadata__"]["format"], "pt", "{name}");

        let (ours, theirs) = (
            Config::from_folder(saved.path()).unwrap(),
            Config::from_folder(fixture(name)).unwrap(),
        );
        for key in [
            "architectures",
            "model_type",
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "layer_norm_eps",
        ] {
            assert_eq!(ours.get(key), theirs.get(key), "{name}: {key}");
        }
    }
}

/// Opens the folder `argv[1]` with the Python library and compares with `argv[2]`/io.safetensors.
const REOPEN: &str = r#"
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer
ours, theirs = sys.argv[1:]
model, info = AutoModelForMaskedLM.from_pretrained(ours, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
io = load_file(theirs + "/io.safetensors")
with torch.no_grad():
    logits = model.eval()(input_ids=io["input_ids"], attention_mask=io["attention_mask"]).logits
worst = (logits - io["logits"]).abs().max().item()
assert worst < 2e-5, f"logits differ by {worst}"
texts = json.load(open(theirs + "/texts.json"))["texts"]
ids = AutoTokenizer.from_pretrained(ours)(texts, padding=True, return_tensors="pt")["input_ids"]
assert torch.equal(ids, io["input_ids"]), ids
"#;

/// A Python that has transformers: `CLOZE_PYTHON`, else the first `python3`.
fn python() -> Option<String> {
    let python = std::env::var("CLOZE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python)
        .args(["-c", "import torch, transformers, safetensors"])
        .output();
    found
        .is_ok_and(|output| output.status.success())
        .then_some(python)
}

#[test]
fn saved_folders_open_in_transformers_with_the_same_logits() {
    let Some(python) = python() else {
        eprintln!(
            "SKIPPED: no Python with transformers was found; set CLOZE_PYTHON to one to run this test"
        );
        return;
    };
    for name in &folders() {
        let saved = save(name);
        let Output { status, stderr, .. } = Command::new(&python)
            .arg("-c")
            .arg(REOPEN)
            .args([saved.path(), &fixture(name)])
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        assert!(
            status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&stderr)
        );
    }
}
