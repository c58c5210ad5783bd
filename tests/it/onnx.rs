//! Models as ONNX files: what is in them, and what ONNX Runtime makes of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use cloze::model::{Context, MaskedLm, ModelInputs};
use serde_json::{Value, json};

/// The fixtures whose models can be written.
const WRITTEN: [&str; 18] = [
    "albert",
    "bert",
    "camembert",
    "data2vec-text",
    "distilbert",
    "electra",
    "esm",
    "esm_absolute",
    "eurobert",
    "ibert",
    "megatron-bert",
    "modernbert",
    "nomic_bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
];

fn folders() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let entries = std::fs::read_dir(folder).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

fn open(folder: &Path) -> MaskedLm {
    MaskedLm::from_pretrained(folder.display().to_string()).unwrap()
}

/// A batch with masks, whose second text ends in padding, with two segments, and the logits of `model`.
fn case(model: &MaskedLm, batch: usize, seq: usize) -> Value {
    let config = model.config();
    let vocab = model.vocab_size() as u64;
    let pad = config.get("pad_token_id").and_then(Value::as_u64);
    let pad = pad.filter(|&pad| pad < vocab).unwrap_or(0) as u32;
    let segments = config.get("type_vocab_size").and_then(Value::as_u64);
    let segments = segments.unwrap_or(1).clamp(1, 2) as usize;
    let mask_id = config.get("mask_token_id").and_then(Value::as_u64);
    let mask_id = mask_id.unwrap_or(3) as u32;
    let (mut ids, mut mask, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..batch {
        let length = seq - (row % 2) * (seq / 3);
        for at in 0..seq {
            let text = at < length;
            let id = 4 + ((row * 37 + at * 11) as u64 % (vocab - 4)) as u32;
            let id = if at % 5 == 2 { mask_id } else { id };
            ids.push(if text && id != pad { id } else { pad });
            mask.push(u32::from(text));
            types.push((at * segments / seq) as u32);
        }
    }
    let inputs = ModelInputs::new(ids.clone(), (batch, seq)).unwrap();
    let inputs = inputs.with_attention_mask(mask.clone()).unwrap();
    let inputs = inputs.with_token_type_ids(types.clone()).unwrap();
    let logits = model.logits(&inputs, &Context::eval()).unwrap();
    let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
    json!({
        "shape": [batch, seq],
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "logits": logits,
    })
}

#[test]
fn families_are_exported_or_explain_why_they_cannot_be() {
    let out = tempfile::tempdir().unwrap();
    let mut written = Vec::new();
    for folder in folders() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let path = out.path().join("model.onnx");
        match open(&folder).export_onnx(&path) {
            Ok(()) => written.push(name.to_owned()),
            Err(error) => {
                let error = error.to_string();
                assert!(
                    error.contains("can't be written as an ONNX file"),
                    "{name}: {error}"
                );
                assert!(!path.exists(), "{name}: half a file");
            }
        }
        let _ = std::fs::remove_file(path);
    }
    for name in WRITTEN {
        assert!(written.contains(&name.to_owned()), "{name}: {written:?}");
    }
}

#[test]
fn a_file_is_replaced_atomically_and_a_folder_never() {
    let model = open(&folders()[0]);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("model.onnx");
    std::fs::write(&path, "old").unwrap();
    model.export_onnx(&path).unwrap();
    let first = std::fs::read(&path).unwrap();
    model.export_onnx(&path).unwrap();
    assert_eq!(
        first,
        std::fs::read(&path).unwrap(),
        "two files of one model"
    );
    let error = model.export_onnx(out.path()).unwrap_err().to_string();
    assert!(error.contains(&out.path().display().to_string()), "{error}");
}

/// Runs with `CLOZE_ONNX_PYTHON=PYTHON cargo test --release --test it -- --ignored onnx`, where that Python has
/// onnxruntime from PyPI.
#[test]
#[ignore = "needs onnxruntime from PyPI"]
fn onnx_runtime_gives_the_same_logits() {
    let python = std::env::var("CLOZE_ONNX_PYTHON").unwrap_or("python3".to_owned());
    let out = tempfile::tempdir().unwrap();
    let mut written = 0;
    for folder in folders() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let model = open(&folder);
        if model
            .export_onnx(out.path().join(format!("{name}.onnx")))
            .is_err()
        {
            continue;
        }
        // Other sizes than one, and longer than the window of local attention.
        let cases = [case(&model, 2, 9), case(&model, 3, 24), case(&model, 1, 5)];
        let cases = serde_json::to_vec(&cases).unwrap();
        std::fs::write(out.path().join(format!("{name}.json")), cases).unwrap();
        written += 1;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx/compare.py");
    let output = Command::new(python).arg(script).arg(out.path()).output();
    let output = output.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = (text.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    print!("{text}");
    assert_eq!(lines.len(), 3 * written);
    let far: Vec<&Value> = (lines.iter())
        .filter(|line| !(line["far"].as_f64().is_some_and(|far| far <= 1e-4)))
        .collect();
    assert!(far.is_empty(), "{far:#?}");
}
