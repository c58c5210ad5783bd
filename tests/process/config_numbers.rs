//! Odd numbers in configs: whatever stands in place of a number, the model of a folder runs or is refused with the reason, at
//! once and without memory beyond what its weights take.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use cloze::model::{Column, Config, Context, MaskedLm, ModelInputs};
use serde_json::{Map, Value};

/// What stands in place of a number.
fn odd_values() -> Vec<Value> {
    let text = r#"[0, 1, 3, 7, -1, 0.5, -2.5, 1e300, 100000, 2000000000, 4611686018427387904, 18446744073709551615,
        "7", true, [], [3], {}, null]"#;
    serde_json::from_str(text).unwrap()
}

/// The places of all numbers of a config, as paths.
fn numbers(values: &Map<String, Value>) -> Vec<String> {
    fn walk(value: &Value, path: String, found: &mut Vec<String>) {
        match value {
            Value::Number(_) => found.push(path),
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate().take(2) {
                    walk(item, format!("{path}/{at}"), found);
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    walk(value, format!("{path}/{name}"), found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&Value::Object(values.clone()), String::new(), &mut found);
    found
}

/// Opens a folder and sends a short text (or sound) through the model; the error is told.
fn try_model(folder: &Path) -> Result<(), String> {
    let run = || -> cloze::Result<()> {
        let model = MaskedLm::from_pretrained(folder.to_str().unwrap())?;
        let inputs = match model.main_input() {
            "input_values" => ModelInputs::from_waveforms(
                (0..400).map(|n| (n as f32 / 9.0).sin()).collect(),
                (1, 400),
            )?,
            _ => ModelInputs::new((0..12).map(|n| n * 5 % 32).collect(), (1, 12))?,
        };
        let logits = model.forward(inputs)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(logits.iter().all(|logit| logit.is_finite()));
        Ok(())
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("PANIC".to_owned()),
    }
}

/// The most memory that the process has had, in megabytes.
fn peak() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kilobytes.unwrap_or(0) >> 10
}

#[test]
fn any_value_in_place_of_a_number_is_told_or_taken() {
    let _alone = crate::alone();
    // A part of all pairs of a number and a value, another one in every folder, or all of them.
    let step = match std::env::var_os("CLOZE_TEST_LONG") {
        Some(_) => 1,
        None => 9,
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(fixtures)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    let (mut tried, mut ran, mut faults) = (0, 0, Vec::new());
    let (before, odd) = (peak(), odd_values());
    for (start, fixture) in folders.iter().enumerate() {
        let name = fixture.file_name().unwrap().to_string_lossy().into_owned();
        let folder = tempfile::tempdir().unwrap();
        let weights = "model.safetensors";
        std::fs::copy(fixture.join(weights), folder.path().join(weights)).unwrap();
        let config = Config::from_folder(fixture).unwrap();
        let entries = config
            .entries()
            .map(|(key, value)| (key.to_owned(), value.clone()));
        let values: Map<String, Value> = entries.collect();
        let pairs = numbers(&values)
            .into_iter()
            .flat_map(|place| odd.iter().map(move |value| (place.clone(), value)));
        for (place, value) in pairs.skip(start % step).step_by(step) {
            let mut changed = Value::Object(values.clone());
            *changed.pointer_mut(&place).unwrap() = value.clone();
            std::fs::write(folder.path().join("config.json"), changed.to_string()).unwrap();
            let started = Instant::now();
            let result = try_model(folder.path());
            let took = started.elapsed();
            let case = format!("{name}: {place} = {value}");
            tried += 1;
            ran += usize::from(result.is_ok());
            let fault = match result {
                Err(error) if error == "PANIC" => format!("{case} panicked"),
                _ if took > Duration::from_secs(1) => format!("{case} took {took:?}"),
                _ => continue,
            };
            println!("{fault}");
            faults.push(fault);
        }
    }
    println!(
        "{tried} configs, of which {ran} ran; {} MB more",
        peak() - before
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(tried > 2000 && ran > tried / 10, "{tried}, {ran}");
    assert!(peak() - before < 300, "{} MB", peak() - before);
}

/// Set for the processes that build a deep model: the folder with its config, and the number of its layers.
const DEEP: &str = "CLOZE_TEST_DEEP";

/// Returns the config in a folder with `layers` layers in all.
fn deep(fixture: &Path, layers: usize) -> Config {
    let config = Config::from_folder(fixture)
        .unwrap()
        .set("layer_types", Value::Null);
    let count = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    let with = |key: &str, others: usize| config.clone().set(key, layers.saturating_sub(others));
    match config.model_type() {
        "distilbert" | "xlm" | "flaubert" => with("n_layers", 0),
        "bart" | "mbart" | "mvp" => with("encoder_layers", count("decoder_layers")),
        "perceiver" => with("num_self_attends_per_block", 0).set("num_blocks", 1),
        "mobilebert" => with("num_hidden_layers", 0).set("num_feedforward_networks", 1),
        // For all layers.
        "longformer" => with("num_hidden_layers", 0).set("attention_window", 4),
        "funnel" => {
            let first = layers.saturating_sub(count("num_decoder_layers") + 1);
            config
                .set("block_sizes", vec![first, 1])
                .set("block_repeats", Value::Null)
        }
        "reformer" => {
            let kinds = ["local", "lsh"].into_iter().cycle().take(layers);
            config.set("attn_layers", kinds.collect::<Vec<_>>())
        }
        "wav2vec2" => {
            let others = config
                .get("conv_dim")
                .and_then(Value::as_array)
                .map_or(0, Vec::len);
            with("num_hidden_layers", others)
        }
        _ => with("num_hidden_layers", 0),
    }
}

/// Learns from a short text, in a thread with the stack that threads have; then saves the model and opens it again.
fn use_deep(fixture: &Path, layers: usize) {
    let config = deep(fixture, layers);
    let work = move || {
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let ids: Vec<u32> = (0..12).map(|n| 4 + n).collect();
        let letters = Tensor::new(&[[3i64, 4]], &Device::Cpu).unwrap();
        let inputs = match model.main_input() {
            "input_values" => ModelInputs::from_waveforms(vec![0.1; 400], (1, 400))
                .unwrap()
                .with_column("labels", Column::from_tensor(&letters).unwrap()),
            _ => ModelInputs::new(ids.clone(), (1, 12))
                .unwrap()
                .with_labels(ids.into_iter().map(i64::from).collect())
                .unwrap(),
        };
        let loss = model.loss(inputs, &Context::train(1u64, 0u64)).unwrap();
        model.backward(&loss.mean().unwrap()).unwrap();
        drop(loss);
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        MaskedLm::from_pretrained(folder.path().to_str().unwrap()).unwrap();
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    thread.spawn(work).unwrap().join().unwrap();
}

#[test]
fn as_many_layers_as_a_model_may_have_fit_the_stack_of_a_thread() {
    let _alone = crate::alone();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    if let Ok(asked) = std::env::var(DEEP) {
        let (name, layers) = asked.split_once(' ').unwrap();
        return use_deep(&fixtures.join(name), layers.parse().unwrap());
    }
    let mut names: Vec<String> = std::fs::read_dir(&fixtures)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let (mut faults, mut tried) = (Vec::new(), 0);
    let (all, mut known) = (std::env::var_os("CLOZE_TEST_LONG").is_some(), Vec::new());
    for name in names {
        let fixture = fixtures.join(&name);
        // One of each family, and what rounds.
        let model_type = Config::from_folder(&fixture)
            .unwrap()
            .model_type()
            .to_owned();
        if known.contains(&model_type) && !all && !name.ends_with("_quant") {
            continue;
        }
        known.push(model_type);
        for more in [257, 300, 100_000] {
            let error = MaskedLm::from_config(&deep(&fixture, more), 1).unwrap_err();
            assert!(error.to_string().contains("layers"), "{name}: {error}");
        }
        // The limit of some is lower.
        let mut limits = [256, 128, 64].into_iter();
        let layers =
            limits.find(|&layers| MaskedLm::from_config(&deep(&fixture, layers), 1).is_ok());
        let layers = layers.unwrap_or_else(|| {
            let error = MaskedLm::from_config(&deep(&fixture, 64), 1).unwrap_err();
            panic!("{name}: {error}")
        });
        // An overflow would end this process.
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("config_numbers::as_many_layers_as_a_model_may_have_fit_the_stack_of_a_thread")
            .env(DEEP, format!("{name} {layers}"))
            .output()
            .unwrap();
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let words = text
                .lines()
                .find(|line| line.contains("overflow") || line.contains("Err"));
            faults.push(format!(
                "{name} with {layers} layers: {}",
                words.unwrap_or(&text)
            ));
        }
        tried += 1;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(tried > 40, "{tried}");
}
