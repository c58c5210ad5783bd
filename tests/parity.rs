//! Every model against transformers: logits, loss, and the gradient of every parameter.
//!
//! `CLOZE_FIXTURES=DIR` points the test to another folder of the same layout (one subfolder per model).

use candle_core::{Device, Tensor};
use cloze::model::{Context, MaskedLm};
use cloze::ops::Precision;

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

#[test]
#[ignore = "needs CLOZE_TRANSFORMERS: Pythons with torch and transformers"]
fn every_family_that_is_saved_opens_in_transformers() {
    open_in_transformers::check();
}

/// Texts of different lengths: the loss and all gradients with padding, and with the texts one behind the other.
#[test]
fn padding_that_is_left_out_changes_nothing() {
    let mut packed = Vec::new();
    for entry in std::fs::read_dir(checks::fixtures()).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(io) = candle_core::safetensors::load(folder.join("io.safetensors"), &Device::Cpu)
        else {
            continue;
        };
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = MaskedLm::from_pretrained(folder.to_string_lossy()).unwrap();
        let inputs = checks::inputs(&io);
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
    for name in [
        "bert",
        "roberta",
        "esm",
        "modernbert",
        "eurobert",
        "roformer",
    ] {
        assert!(
            packed.iter().any(|other| other == name),
            "{name} was padded"
        );
    }
}
