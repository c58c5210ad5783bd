//! Replays transformers' training runs: same weights, same batches, so the same losses, norms, rates and final weights.
//!
//! `CLOZE_TRAINING_FIXTURES=DIR` replays the runs in another folder of the same layout.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use cloze::collate::{BatchKey, Collator, DataLoader, Example, MlmBatch};
use cloze::model::{Context, MaskedLm};
use cloze::ops::Param;
use cloze::train::{IntervalStrategy, Trainer, TrainingArguments};

/// Rows of one length, masked beforehand.
struct Stack;

impl Collator for Stack {
    fn collate(&self, examples: &[Example], _: BatchKey) -> cloze::Result<MlmBatch> {
        let column = |of: fn(&Example) -> Option<&Vec<u32>>| -> Option<Vec<u32>> {
            let columns: Option<Vec<&Vec<u32>>> = examples.iter().map(of).collect();
            Some(columns?.into_iter().flatten().copied().collect())
        };
        Ok(MlmBatch {
            input_ids: column(|e| Some(&e.input_ids)).unwrap(),
            attention_mask: column(|e| e.attention_mask.as_ref()).unwrap(),
            token_type_ids: column(|e| e.token_type_ids.as_ref()),
            labels: examples
                .iter()
                .flat_map(|e| e.labels.clone().unwrap())
                .collect(),
            columns: Default::default(),
            batch: examples.len(),
            seq: examples[0].input_ids.len(),
        })
    }
}

fn examples(tensors: &HashMap<String, Tensor>, prefix: &str) -> Option<Vec<Example>> {
    let rows = |name: &str| -> Option<Vec<Vec<i64>>> {
        let tensor = tensors.get(&format!("{prefix}{name}"))?;
        Some(tensor.to_dtype(DType::I64).unwrap().to_vec2().unwrap())
    };
    let unsigned = |rows: Vec<Vec<i64>>| -> Vec<Vec<u32>> {
        let row = |row: Vec<i64>| row.into_iter().map(|v| u32::try_from(v).unwrap()).collect();
        rows.into_iter().map(row).collect()
    };
    let ids = unsigned(rows("input_ids")?);
    let labels = rows("labels")?;
    let mask = rows("attention_mask").map(unsigned);
    let types = rows("token_type_ids").map(unsigned);
    let example = |i: usize| {
        let mut example = Example::from(ids[i].clone());
        let all = vec![1; ids[i].len()];
        example.attention_mask = Some(mask.as_ref().map_or(all, |mask| mask[i].clone()));
        example.token_type_ids = types.as_ref().map(|types| types[i].clone());
        example.labels = Some(labels[i].clone());
        example
    };
    Some((0..ids.len()).map(example).collect())
}

fn series(tensors: &HashMap<String, Tensor>, name: &str) -> Vec<f64> {
    flat(&tensors[name])
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor
        .flatten_all()
        .unwrap()
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The largest deviation, which is NaN if any is.
fn worst(pairs: impl Iterator<Item = (f64, f64)>, relative: bool) -> f64 {
    let deviation = |(ours, theirs): (f64, f64)| {
        let scale = if relative {
            theirs.abs().max(1e-12)
        } else {
            1.0
        };
        (ours - theirs).abs() / scale
    };
    pairs
        .map(deviation)
        .fold(0.0, |worst, d| if d <= worst { worst } else { d })
}

struct Deviations {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
    weights: f64,
    /// Of the weights without a gradient.
    without: f64,
    evaluation: Option<f64>,
}

fn replay(folder: &Path, device: &Device) -> Deviations {
    let meta: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("meta.json")).unwrap()).unwrap();
    let run = candle_core::safetensors::load(folder.join("run.safetensors"), &Device::Cpu).unwrap();
    let mut args: TrainingArguments =
        serde_json::from_value(meta["training_arguments"].clone()).unwrap();
    args.save_strategy = IntervalStrategy::No;
    let model = MaskedLm::from_pretrained_on(folder.to_str().unwrap(), device).unwrap();
    let loader = |examples, size| DataLoader::new(examples, Stack, size).unwrap();
    let train = loader(
        examples(&run, "").unwrap(),
        args.per_device_train_batch_size,
    );
    let eval_batch_size = args.per_device_eval_batch_size;
    let eval = examples(&run, "eval_");
    let eval_loader = eval
        .clone()
        .map(|examples| loader(examples, eval_batch_size));
    let idle = without_gradient(&model, &train);
    let mut trainer = Trainer::from_loaders(model.clone(), args, train, eval_loader);
    let history = trainer.train().unwrap();

    let theirs = series(&run, "loss");
    assert_eq!(
        history.steps.len(),
        theirs.len(),
        "{}: the number of steps",
        folder.display()
    );
    let steps = &history.steps;
    let compare = |name: &str, ours: Vec<f64>, relative| {
        worst(ours.into_iter().zip(series(&run, name)), relative)
    };
    let (mut weights, mut without) = (0.0, 0.0);
    let rates: f64 = steps.iter().map(|step| step.learning_rate).sum();
    for (param, idle) in model.params().iter().zip(idle) {
        let theirs = series(&run, &format!("final.{}", param.name()));
        let ours = flat(param.var());
        assert_eq!(ours.len(), theirs.len(), "{}", param.name());
        let deviation = worst(ours.into_iter().zip(theirs), false);
        if idle {
            assert!(deviation <= 2.0 * rates, "{}: {deviation:e}", param.name());
            without = f64::max(without, deviation);
        } else {
            weights = worst([(weights, 0.0), (deviation, 0.0)].into_iter(), false);
        }
    }
    let finals = run.keys().filter(|name| name.starts_with("final.")).count();
    assert!(
        model.params().len() <= finals,
        "{}: final weights are missing",
        folder.display()
    );
    Deviations {
        loss: compare(
            "loss",
            steps.iter().map(|s| f64::from(s.loss)).collect(),
            false,
        ),
        grad_norm: compare(
            "grad_norm",
            steps.iter().map(|s| f64::from(s.grad_norm)).collect(),
            true,
        ),
        learning_rate: compare(
            "learning_rate",
            steps.iter().map(|s| s.learning_rate).collect(),
            true,
        ),
        weights,
        without,
        evaluation: eval.map(|examples| {
            let ours = evaluate(&mut trainer, &examples, eval_batch_size);
            (ours - series(&run, "eval_loss")[0]).abs()
        }),
    }
}

/// Which parameters the loss does not depend on, though they take part (the biases of attention keys). Their gradients are
/// rounding errors, which Adam scales up to the learning rate: no two machines agree on where they go.
fn without_gradient(model: &MaskedLm, train: &DataLoader) -> Vec<bool> {
    let batch = train.epoch(0).next().unwrap().unwrap();
    let loss = model.loss(&batch, &Context::eval()).unwrap();
    model.backward(&loss.mean().unwrap()).unwrap();
    let idle = |param: &Param| {
        let grad = param.grad().map(|grad| flat(&grad)).unwrap_or_default();
        param.name().ends_with(".bias") && grad.iter().all(|g| g.abs() < 1e-7)
    };
    let idle = model.params().iter().map(idle).collect();
    model.zero_grad();
    idle
}

/// The evaluation loss as transformers reports it, where every example weighs the same; checks on the way that ours is
/// the one in which every masked token does.
fn evaluate(trainer: &mut Trainer, examples: &[Example], batch_size: usize) -> f64 {
    let (mut by_example, mut by_token, mut counted) = (0.0, 0.0, 0);
    for batch in examples.chunks(batch_size) {
        let batch = DataLoader::new(batch.to_vec(), Stack, batch_size).unwrap();
        let metrics = trainer.evaluate_on(&batch).unwrap();
        by_example += metrics.loss * metrics.samples as f64;
        by_token += metrics.loss * metrics.counted as f64;
        counted += metrics.counted;
    }
    let ours = trainer.evaluate().unwrap();
    assert_eq!((ours.counted, ours.samples), (counted, examples.len()));
    assert!(
        (ours.loss - by_token / counted as f64).abs() < 1e-9,
        "{ours:?}"
    );
    by_example / examples.len() as f64
}

/// Trains as transformers did, on `device`; losses, relative gradient norms and final weights may differ by `tolerance`.
pub fn replay_all(device: &Device, tolerance: f64) {
    let folder = std::env::var_os("CLOZE_TRAINING_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training"),
        PathBuf::from,
    );
    let mut runs: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("run.safetensors").exists())
        .collect();
    runs.sort();
    assert!(!runs.is_empty(), "{} holds no runs", folder.display());
    let mut failed = Vec::new();
    for run in runs {
        let name = run.file_name().unwrap().to_string_lossy().into_owned();
        let d = replay(&run, device);
        let evaluation = d.evaluation.map_or("-".to_owned(), |d| format!("{d:.1e}"));
        println!(
            "{name:24} |Δloss| {:.1e}  grad_norm (rel) {:.1e}  learning_rate (rel) {:.1e}  |Δweights| {:.1e} (without gradient {:.1e})  |Δeval loss| {evaluation}",
            d.loss, d.grad_norm, d.learning_rate, d.weights, d.without
        );
        let close = [d.loss, d.grad_norm, d.weights, d.evaluation.unwrap_or(0.0)];
        if !close.iter().all(|&d| d <= tolerance)
            || d.learning_rate.is_nan()
            || d.learning_rate > 1e-12
        {
            failed.push(name);
        }
    }
    assert!(
        failed.is_empty(),
        "beyond {tolerance:e}: {}",
        failed.join(", ")
    );
}
