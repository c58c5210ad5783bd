use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::model::{Config, Context, MaskedLm, ModelInputs};

/// A model whose integers transformers saved, with ranges that it measured.
fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/ibert_quant")
}

fn open(folder: &Path) -> MaskedLm {
    MaskedLm::from_pretrained(folder.to_str().unwrap()).unwrap()
}

fn saved(folder: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn inputs() -> ModelInputs {
    let inputs = ModelInputs::new((5..17).collect(), (2, 6)).unwrap();
    let labels = vec![7, -100, 9, -100, -100, 4, 8, -100, 5, 6, -100, -100];
    let inputs = inputs.with_labels(labels).unwrap();
    inputs
        .with_attention_mask(vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
        .unwrap()
}

fn small() -> MaskedLm {
    // Weights as large as trained ones, so that no part of a block is lost in the rounding of the others.
    let config = Config::small("ibert").set("initializer_range", 0.2);
    MaskedLm::from_config(&config.set("quant_mode", true), 3).unwrap()
}

fn ranges(model: &MaskedLm) -> Vec<f32> {
    let measured = model.measured().iter();
    measured.flat_map(|of| flat(&of.get().unwrap())).collect()
}

fn difference(a: &MaskedLm, b: &MaskedLm) -> f32 {
    let (a, b) = (a.forward(inputs()).unwrap(), b.forward(inputs()).unwrap());
    let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap();
    difference.to_scalar().unwrap()
}

/// What is worked out when a model is saved is what transformers worked out: every integer and every step, bit for bit.
#[test]
fn integers_are_saved_as_in_transformers() {
    let folder = tempfile::tempdir().unwrap();
    open(&fixture()).save_pretrained(folder.path()).unwrap();
    let (theirs, ours) = (saved(&fixture()), saved(folder.path()));
    let mut integers = 0;
    for (name, expected) in &theirs {
        let found = ours.get(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(found.dims(), expected.dims(), "{name}");
        // The bias of a map is in steps of its input's last pass, which for the first block were the embeddings'.
        assert_eq!(flat(found), flat(expected), "{name}");
        integers += usize::from(name.ends_with("_integer"));
    }
    assert_eq!((ours.len(), integers), (theirs.len(), 3 + 2 * 2 * 6));
}

#[test]
fn integers_are_close_to_floats_after_calibration() {
    let model = small();
    let error = model.forward(inputs()).unwrap_err().to_string();
    assert!(error.contains("calibrate"), "{error}");
    assert_eq!(model.calibrate([inputs(), inputs()]).unwrap(), 2);
    let mut float = model.clone();
    float.set_quant_mode(false).unwrap();
    let far = difference(&float, &model);
    let largest = float
        .forward(inputs())
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap();
    let largest = largest.to_scalar::<f32>().unwrap();
    println!("{far} of {largest}");
    assert!(far > 0.0 && far < 0.25 * largest, "{far} of {largest}");
    // Each function may stay in floats, which makes other numbers, near to these.
    let mut seen = vec![far];
    for function in ["gelu", "softmax", "layernorm", "nonlinear"] {
        let config = model.config().clone().set("force_dequant", function);
        let partly = model.rebuilt(config, None).unwrap();
        let near = difference(&partly, &float);
        assert!(near > 0.0 && near < 0.25 * largest, "{function}: {near}");
        assert!(!seen.contains(&near), "{function}");
        seen.push(near);
    }
    let bad = model.config().clone().set("force_dequant", "all");
    assert!(MaskedLm::from_config(&bad, 1).is_err());
    for (key, value) in [
        ("position_embedding_type", "relative_key"),
        ("hidden_act", "relu"),
    ] {
        let bad = model.config().clone().set(key, value);
        let error = MaskedLm::from_config(&bad, 1).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

/// The ranges of the first batch are its own; each further batch moves them by a twentieth.
#[test]
fn training_moves_the_ranges_and_evaluation_does_not() {
    let model = small();
    model.loss(inputs(), &Context::train(1, 0)).unwrap();
    let first = ranges(&model);
    model.loss(inputs(), &Context::eval()).unwrap();
    assert_eq!(ranges(&model), first);
    for step in 1..4 {
        let loss = model.loss(inputs(), &Context::train(1, step)).unwrap();
        model.zero_grad();
        model.backward(&loss.mean().unwrap()).unwrap();
    }
    assert_ne!(ranges(&model), first);
    // All parameters learn but the biases that the reference's normalization in integers detaches.
    for param in model.params() {
        let detached = param.name().contains("LayerNorm.bias");
        assert_eq!(param.grad().is_none(), detached, "{}", param.name());
    }

    // What is read back, by a trainer that resumes or from a folder, has the ranges too.
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("weights.safetensors");
    model.save_weights(&weights).unwrap();
    let other = small();
    other.load_weights(&weights).unwrap();
    assert_eq!(ranges(&other), ranges(&model));
    model.save_pretrained(folder.path()).unwrap();
    let opened = open(folder.path());
    assert_eq!(ranges(&opened), ranges(&model));
    assert_eq!(difference(&opened, &model), 0.0);
    assert!(opened.load_report().unexpected.is_empty());
    assert!(opened.load_report().notes.is_empty());
}

/// A block that is run again in the backward pass is not measured again, and computes the same.
#[test]
fn checkpointed_gradients_are_equal_and_ranges_measured_once() {
    let run = |checkpointing: bool| {
        let model = small();
        for step in 0..2 {
            model.zero_grad();
            let context = Context::train(1, step).gradient_checkpointing(checkpointing);
            let loss = model.loss(inputs(), &context).unwrap();
            model.backward(&loss.mean().unwrap()).unwrap();
        }
        let grads = model
            .params()
            .iter()
            .map(|param| param.grad().map(|grad| flat(&grad)));
        (grads.collect::<Vec<_>>(), ranges(&model))
    };
    assert_eq!(run(true), run(false));
}

/// A float checkpoint, of RoBERTa's shape, becomes one of integers without a file between.
#[test]
fn a_float_model_is_calibrated_and_trains_in_integers() {
    let mut model = MaskedLm::from_config(&Config::small("ibert"), 3).unwrap();
    let frozen = model.params()[0].name().to_owned();
    model.param(&frozen).unwrap().set_trainable(false);
    model.set_quant_mode(true).unwrap();
    assert!(!model.param(&frozen).unwrap().is_trainable());
    model.calibrate([inputs()]).unwrap();
    let loss = || {
        let loss = model.loss(inputs(), &Context::train(1, 1)).unwrap();
        loss.mean().unwrap()
    };
    let before = loss().to_scalar::<f32>().unwrap();
    for _ in 0..30 {
        model.zero_grad();
        model.backward(&loss()).unwrap();
        for param in model.params().iter().filter(|param| param.is_trainable()) {
            if let Some(grad) = param.grad() {
                let step = (grad * 0.5).unwrap();
                param.set(&(param.value() - step).unwrap()).unwrap();
            }
        }
    }
    let after = loss().to_scalar::<f32>().unwrap();
    assert!(after < 0.7 * before, "{before} -> {after}");
    assert!(
        MaskedLm::from_config(&Config::small("bert"), 1)
            .unwrap()
            .set_quant_mode(true)
            .is_err()
    );
}
