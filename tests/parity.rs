//! Every model against transformers: logits, loss, and the gradient of every parameter.
//!
//! `CLOZE_FIXTURES=DIR` points the test to another folder of the same layout (one subfolder per model).

use candle_core::{Device, Tensor};
use cloze::model::{Context, MaskedLm, ModelInputs};
use cloze::ops::{Precision, autocast, inference, no_grad};

#[path = "support/parity_checks.rs"]
mod checks;
#[path = "support/open_in_transformers.rs"]
mod open_in_transformers;

#[test]
fn every_fixture_of_a_supported_family_is_reproduced() {
    let limits = checks::Limits {
        logits: 2e-5,
        loss: 1e-5,
        gradient: 1e-4,
        all_gradients: 1e-4,
    };
    checks::reproduce(&Device::Cpu, Precision::F32, &limits);
}

/// Every fixture's name, model and inputs.
fn opened() -> impl Iterator<Item = (String, MaskedLm, ModelInputs)> {
    let entries = std::fs::read_dir(checks::fixtures()).unwrap();
    entries.filter_map(|entry| {
        let folder = entry.unwrap().path();
        let io = candle_core::safetensors::load(folder.join("io.safetensors"), &Device::Cpu);
        let inputs = checks::inputs(&io.ok()?);
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = MaskedLm::from_pretrained(folder.to_string_lossy()).unwrap();
        Some((name, model, inputs))
    })
}

/// As a model that is only read computes them: no graph, weights rearranged and kept.
#[test]
fn cached_weights_give_equal_logits_and_lower_precision_close_ones() {
    let mut failed = Vec::new();
    let mut compared = 0;
    for (name, model, inputs) in opened() {
        let recorded = model.logits(&inputs, &Context::eval()).unwrap().detach();
        let size = checks::norm(&recorded);
        for (precision, most) in [
            (Precision::F32, 1e-5),
            (Precision::Bf16, 0.05),
            (Precision::Int8, 0.1),
        ] {
            let family = model.config().model_type();
            if precision != Precision::F32 && checks::CHOOSING.contains(&family) {
                continue;
            }
            let kept = autocast(precision, || {
                inference(|| no_grad(|| model.logits(&inputs, &Context::eval()).unwrap()))
            });
            let error = checks::norm(&(&kept - &recorded).unwrap()) / size;
            println!("{name:<24} {precision:?}: {error:.1e}");
            // Written so that NaN fails.
            let ok = error <= most;
            if !ok {
                failed.push(format!("{name} {precision:?}: {error:e}"));
            }
            compared += 1;
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(compared > 0);
}

#[test]
#[ignore = "needs CLOZE_TRANSFORMERS: Pythons with torch and transformers"]
fn saved_models_of_every_family_open_in_transformers() {
    open_in_transformers::check();
}

/// Texts of different lengths: the loss and all gradients with padding, and with the texts one behind the other.
#[test]
fn removing_padding_changes_nothing() {
    let mut packed = Vec::new();
    for (name, model, inputs) in opened() {
        let [padded, unpadded] = [false, true].map(|unpadded| {
            model.zero_grad();
            let loss = model.loss(&inputs, &Context::eval().unpadded(unpadded));
            let loss = loss.unwrap().mean().unwrap();
            model.backward(&loss).unwrap();
            let grads = model.params().iter().map(|param| param.grad());
            let grads: Vec<Option<Tensor>> = grads.collect();
            (loss.to_scalar::<f32>().unwrap(), grads)
        });
        assert!((padded.0 - unpadded.0).abs() <= 1e-5, "{name}");
        let mut same = padded.0 == unpadded.0;
        for (a, b) in padded.1.iter().zip(&unpadded.1) {
            let (Some(a), Some(b)) = (a, b) else {
                assert!(a.is_none() && b.is_none(), "{name}");
                continue;
            };
            let norm = |x: &Tensor| {
                let sum = x.sqr().unwrap().sum_all().unwrap();
                sum.to_scalar::<f32>().unwrap().sqrt()
            };
            let difference = norm(&(a - b).unwrap());
            assert!(difference <= 1e-6 + 1e-5 * norm(a), "{name}: {difference}");
            same &= difference == 0.0;
        }
        if !same {
            packed.push(name);
        }
    }
    // Rounding tells where another way was taken.
    println!("without padding: {packed:?}");
    if std::env::var_os("CLOZE_FIXTURES").is_some() {
        // Those of another folder need not be of these families.
        return;
    }
    for name in [
        "bert",
        "roberta",
        "esm",
        "modernbert",
        "eurobert",
        "roformer",
        "mpnet",
        "nezha",
        "deberta",
        "deberta-v2",
    ] {
        assert!(
            packed.iter().any(|other| other == name),
            "{name} was padded"
        );
    }
}

/// Where all of it is dropped nothing is left to chance: each key of the config alone, against what transformers gives in
/// training.
#[test]
fn dropout_is_where_transformers_has_it() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dropout");
    let mut compared = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let io = candle_core::safetensors::load(folder.join("io.safetensors"), &Device::Cpu);
        let io = io.unwrap();
        let inputs = checks::inputs(&io);
        let expected = io.iter();
        let expected = expected.filter_map(|(name, x)| Some((name.strip_suffix(".logits")?, x)));
        for (key, expected) in expected {
            let place = tempfile::tempdir().unwrap();
            let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
            let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
            if key != "none" {
                config[key] = 0.9999999.into();
            }
            std::fs::write(place.path().join("config.json"), config.to_string()).unwrap();
            let weights = "model.safetensors";
            std::fs::copy(folder.join(weights), place.path().join(weights)).unwrap();
            let model = MaskedLm::from_pretrained(place.path().to_string_lossy()).unwrap();
            let logits = model.logits(&inputs, &Context::train(0, 0)).unwrap();
            let off = checks::max_abs(&(logits - expected).unwrap());
            // Written so that NaN fails.
            let ok = off <= 1e-4;
            assert!(ok, "{} {key}: {off}", folder.display());
            compared += 1;
        }
    }
    assert!(compared > 0);
}
