//! Gradient checkpointing: the numbers of a run that keeps everything, bit for bit, and what it refuses.

use std::path::Path;

use candle_core::{Device, Tensor};
use cloze::Error;
use cloze::model::{Column, Config, Context, MaskedLm, ModelInputs};
use cloze::ops::{self, Activation, Param, Precision, autocast, no_grad};

/// The families and the ways of counting positions, small, with dropout at every place that the family has one.
fn families() -> Vec<(String, Config)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let mut families: Vec<(String, Config)> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let mut config = Config::from_folder(&path).unwrap();
            for name in [
                "hidden_dropout_prob",
                "hidden_dropout",
                "attention_probs_dropout_prob",
                "dropout",
                "attention_dropout",
            ] {
                config = config.set(name, 0.1);
            }
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, config)
        })
        .collect();
    families.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(families.len() >= 7, "{families:?}");
    families
}

/// Four rows, two of which end in padding, with every third token counted.
fn inputs(seq: usize, pad: u32) -> ModelInputs {
    let (mut ids, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..4 {
        let length = if row % 2 == 0 { seq } else { seq - 5 };
        for at in 0..seq {
            let text = at < length;
            ids.push(if text {
                5 + ((row * 31 + at * 7) % 25) as u32
            } else {
                pad
            });
            mask.push(u32::from(text));
            labels.push(if text && at % 3 == 0 {
                (6 + (row + at) % 25) as i64
            } else {
                -100
            });
        }
    }
    ModelInputs::new(ids, (4, seq))
        .unwrap()
        .with_attention_mask(mask)
        .unwrap()
        .with_labels(labels)
        .unwrap()
}

/// As [`inputs`], for what the family of `config` reads.
fn inputs_of(config: &Config, seq: usize) -> ModelInputs {
    if config.model_type() == "wav2vec2" {
        let samples = 20 * seq;
        let sound = (0..2 * samples).map(|i| (i as f32 * 0.37).sin()).collect();
        let labels = Column::ids(vec![7, 3, 3, 7, -100, -100], [2, 3]).unwrap();
        let inputs = ModelInputs::from_waveforms(sound, (2, samples)).unwrap();
        return inputs.with_column("labels", labels);
    }
    let pad = config.get("pad_token_id").and_then(|v| v.as_u64());
    inputs(seq, pad.unwrap_or(1) as u32)
}

/// A parameter's name and the bits of its gradient; `None` for one without.
type Gradient = (String, Option<Vec<u32>>);

/// The losses of two passes and the gradients that they add up to.
fn passes(
    model: &MaskedLm,
    inputs: &ModelInputs,
    checkpointing: bool,
) -> (Vec<u32>, Vec<Gradient>) {
    model.zero_grad();
    let losses = (0..2)
        .map(|pass| {
            let context = Context::train(7, pass).gradient_checkpointing(checkpointing);
            let loss = model.loss(inputs, &context).unwrap();
            model.backward(&loss.mean().unwrap()).unwrap();
            loss.value().unwrap().to_bits()
        })
        .collect();
    let gradients = model
        .params()
        .iter()
        .map(|param| (param.name().to_owned(), param.grad().map(|g| bits(&g))))
        .collect();
    model.zero_grad();
    (losses, gradients)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Compares name by name, so that a failure says where. The model is made anew for each run: one in integers measures ranges as
/// it trains.
fn assert_same(name: &str, model: impl Fn() -> MaskedLm, inputs: &ModelInputs) {
    let (losses, gradients) = passes(&model(), inputs, false);
    let (again, checkpointed) = passes(&model(), inputs, true);
    assert_eq!(losses, again, "{name}");
    for (expected, found) in gradients.iter().zip(&checkpointed) {
        assert!(expected == found, "{name}: {}", expected.0);
    }
}

#[test]
fn losses_and_gradients_of_every_family_are_equal_bit_for_bit() {
    for (name, config) in families() {
        let model = || MaskedLm::from_config(&config, 3).unwrap();
        assert_same(&name, model, &inputs_of(&config, 17));
    }
}

#[test]
fn products_in_bf16_are_recomputed_in_bf16() {
    let (_, config) = families().remove(0);
    // Large enough that the matrix unit takes part where there is one.
    let config = config
        .set("hidden_size", 128)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 256);
    let model = MaskedLm::from_config(&config, 3).unwrap();
    let inputs = inputs(24, 0);
    let gradients = |checkpointing: bool| {
        model.zero_grad();
        let context = Context::train(7, 0).gradient_checkpointing(checkpointing);
        let loss = autocast(Precision::Bf16, || model.loss(&inputs, &context)).unwrap();
        // The backward pass of the layers that were kept has the precision of its own thread.
        autocast(Precision::Bf16, || model.backward(&loss.terms[0].sum)).unwrap();
        let grads = model.params().iter().map(|p| bits(&p.grad().unwrap()));
        grads.collect::<Vec<_>>()
    };
    assert!(gradients(false) == gradients(true));
}

#[test]
fn only_trainable_parameters_get_gradients() {
    for (name, config) in families() {
        for part in ["embeddings", "layer.0."] {
            let model = || {
                let model = MaskedLm::from_config(&config, 3).unwrap();
                for param in model.params() {
                    param.set_trainable(!param.name().contains(part));
                }
                model
            };
            let inputs = inputs_of(&config, 12);
            assert_same(&format!("{name} without {part}"), model, &inputs);
            let (_, gradients) = passes(&model(), &inputs, true);
            assert!(gradients.iter().any(|(_, grad)| grad.is_some()), "{name}");
        }
    }
}

fn layer() -> (Tensor, Param) {
    let x = Tensor::randn(0f32, 1.0, (3, 4), &Device::Cpu).unwrap();
    let w = Tensor::randn(0f32, 1.0, (4, 4), &Device::Cpu).unwrap();
    (x, Param::new("w", &w).unwrap())
}

#[test]
fn without_a_graph_a_layer_runs_once_and_stores_nothing() {
    let (x, w) = layer();
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (counter, weight) = (std::sync::Arc::clone(&runs), w.clone());
    let y = no_grad(|| {
        ops::checkpoint(&x, std::slice::from_ref(&w), move |x| {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            ops::linear_act(x, &weight, None, Activation::Gelu)
        })
    })
    .unwrap();
    assert!(!y.track_op());
    assert_eq!(runs.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn an_undeclared_parameter_is_an_error() {
    let (x, w) = layer();
    let hidden = Param::new("hidden", &w.var().as_detached_tensor()).unwrap();
    let (weight, secret) = (w.clone(), hidden.clone());
    let y = ops::checkpoint(&x, std::slice::from_ref(&w), move |x| {
        let y = ops::linear(x, &weight, None)?;
        // An operation of candle's, whose gradients are not added in place.
        Ok(y.matmul(&secret.tensor())?)
    })
    .unwrap();
    let loss = y.sum_all().unwrap();
    let error = ops::backward(&loss, &[w, hidden]).unwrap_err().to_string();
    assert!(
        error.contains("[4, 4]") && error.contains("lost"),
        "{error}"
    );
}

#[test]
fn a_backward_pass_inside_no_grad_is_an_error() {
    let (x, w) = layer();
    let weight = w.clone();
    let y = ops::checkpoint(&x, std::slice::from_ref(&w), move |x| {
        ops::linear(x, &weight, None)
    })
    .unwrap();
    let loss = ops::scale(&y, 1.0).unwrap();
    let error = no_grad(|| ops::backward(&loss, &[w])).unwrap_err();
    assert!(error.to_string().contains("no_grad"), "{error}");
    assert!(!matches!(error, Error::Interrupted(_)));
}

/// A pass over long sequences; run in a process of its own by the test below, which asks for its peak.
#[test]
#[ignore = "the test below starts it, once with checkpointing and once without"]
fn one_long_pass() {
    let config = Config::new("roberta")
        .set("vocab_size", 300)
        .set("hidden_size", 256)
        .set("num_hidden_layers", 6)
        .set("num_attention_heads", 4)
        .set("intermediate_size", 1024)
        .set("max_position_embeddings", 514);
    let model = MaskedLm::from_config(&config, 3).unwrap();
    let checkpointing = std::env::var_os("CLOZE_TEST_CHECKPOINTING").is_some();
    let (loss, _) = passes(&model, &inputs(512, 1), checkpointing);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.unwrap().trim().strip_suffix(" kB").unwrap();
    println!("peak {peak} loss {loss:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn checkpointing_uses_a_fraction_of_the_memory() {
    let run = |checkpointing: bool| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args([
            "--ignored",
            "--exact",
            "checkpointing::one_long_pass",
            "--nocapture",
        ]);
        if checkpointing {
            command.env("CLOZE_TEST_CHECKPOINTING", "1");
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, rest) = text.split_once("peak ").expect("it ran");
        let (peak, rest) = rest.split_once(" loss ").unwrap();
        let loss = rest.lines().next().unwrap().to_owned();
        (peak.parse::<f64>().unwrap() / 1024.0, loss)
    };
    let (everything, expected) = run(false);
    let (frugal, loss) = run(true);
    println!("{everything:.0} MiB without checkpointing, {frugal:.0} MiB with it");
    assert_eq!(loss, expected);
    assert!(
        frugal < 0.6 * everything,
        "{frugal} MiB and {everything} MiB"
    );
}
