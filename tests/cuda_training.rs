//! Whole training runs on a GPU: the curves of the CPU, and what a run promises on either.
//!
//! Skipped, which is said, where there is no GPU: as for `cuda_ops`.

use std::path::Path;

use candle_core::Device;
use cloze::collate::{Example, MaskingCollator};
use cloze::fill_mask::FillMask;
use cloze::model::{Config, Context, MaskedLm, ModelInputs};
use cloze::ops;
use cloze::tokenizer::Tokenizer;
use cloze::train::{
    AdamW, Control, Event, GradScaler, History, IntervalStrategy, Trainer, TrainingArguments,
};

#[path = "support/gpu.rs"]
mod gpu;

use gpu::{device, distance, wide};

const VOCAB: u32 = 300;

fn tokenizer() -> Tokenizer {
    let text = [
        "the light of a star bends near a heavy star",
        "a cell divides and a star is born",
    ];
    Tokenizer::train_bpe(text, VOCAB as usize).unwrap()
}

/// Sizes that are no multiples of a warp, and heads that the fused attention takes.
fn config() -> Config {
    Config::new("roberta")
        .set("vocab_size", VOCAB)
        .set("hidden_size", 96)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 3)
        .set("intermediate_size", 136)
        .set("max_position_embeddings", 40)
        .set("hidden_dropout_prob", 0.1)
        .set("attention_probs_dropout_prob", 0.1)
}

fn model(device: &Device) -> MaskedLm {
    MaskedLm::from_config_on(&config(), 1, device).unwrap()
}

/// Examples of different lengths.
fn examples(count: usize) -> Vec<Example> {
    let example = |i: usize| {
        let words = (0..6 + i * 5 % 23).map(|t| 10 + ((i * 31 + t * t * 7) % 250) as u32);
        Example::from([vec![0], words.collect(), vec![2]].concat())
    };
    (0..count).map(example).collect()
}

/// Two epochs of three steps, the last of two batches and a half; clipped, evaluated after each epoch.
fn arguments(out: &Path) -> TrainingArguments {
    TrainingArguments::new(out)
        .per_device_train_batch_size(2)
        .gradient_accumulation_steps(3)
        .epochs(2)
        .learning_rate(3e-3)
        .weight_decay(0.1)
        .max_grad_norm(0.5)
        .eval_strategy(IntervalStrategy::Epoch)
        .save_strategy(IntervalStrategy::No)
        .data_seed(7)
}

fn trainer(arguments: TrainingArguments, model: MaskedLm) -> Trainer {
    let collator = MaskingCollator::new(&tokenizer()).mlm_probability(0.3);
    Trainer::new(model, arguments, (examples(17), examples(9)), collator)
}

fn weights(model: &MaskedLm) -> Vec<Vec<f64>> {
    model.params().iter().map(|p| wide(&p.tensor())).collect()
}

type Change = fn(TrainingArguments) -> TrainingArguments;

/// The history and the weights of a run with what `change` asks for.
fn run(
    device: &Device,
    change: impl Fn(TrainingArguments) -> TrainingArguments,
) -> (History, Vec<Vec<f64>>) {
    let out = tempfile::tempdir().unwrap();
    let model = model(device);
    let history = trainer(change(arguments(out.path())), model.clone())
        .train()
        .unwrap();
    assert_eq!(history.steps.len(), 6);
    assert_eq!(history.evaluations.len(), 2);
    (history, weights(&model))
}

/// The largest differences of losses and of gradients' norms, relative to what they are.
fn differences(a: &History, b: &History) -> (f64, f64) {
    let far = |a: f64, b: f64| (a - b).abs() / b.abs().max(1e-3);
    let largest = |pairs: Vec<(f64, f64)>| {
        let all = pairs.into_iter().map(|(a, b)| far(a, b));
        // A loss that is no number is as far as can be.
        all.fold(0.0, |most, far| {
            if far > most || far.is_nan() {
                far
            } else {
                most
            }
        })
    };
    let steps = a.steps.iter().zip(&b.steps);
    let losses = (steps.clone()).map(|(a, b)| (f64::from(a.loss), f64::from(b.loss)));
    let evaluations =
        (a.evaluations.iter().zip(&b.evaluations)).map(|(a, b)| (a.metrics.loss, b.metrics.loss));
    let norms = steps.map(|(a, b)| (f64::from(a.grad_norm), f64::from(b.grad_norm)));
    (
        largest(losses.chain(evaluations).collect()),
        largest(norms.collect()),
    )
}

#[test]
fn a_run_in_f32_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    let (cpu, cpu_weights) = run(&Device::Cpu, |args| args);
    let (gpu, gpu_weights) = run(&device, |args| args);
    let names = model(&Device::Cpu);
    let names = names.params().iter().map(|param| param.name());
    let (losses, norms) = differences(&gpu, &cpu);
    assert!(
        losses < 1e-4 && norms < 1e-3,
        "losses {losses:e}, norms {norms:e}"
    );
    for (name, (found, expected)) in names.zip(gpu_weights.iter().zip(&cpu_weights)) {
        // A key's bias moves no weight of the attention: its gradient is rounding only, which AdamW makes steps of.
        if !name.ends_with("key.bias") {
            let far = distance(found, expected);
            assert!(far < 1e-3, "{name}: {far:e}");
        }
    }
    assert!(gpu.peak_device_memory.is_some_and(|bytes| bytes > 0));
}

#[test]
fn runs_in_fewer_bits_agree_with_f32_within_their_precision() {
    let Some(device) = device() else { return };
    let (exact, _) = run(&Device::Cpu, |args| args);
    let (fp16, _) = run(&device, |args| args.fp16(true));
    assert_eq!(fp16.skipped_steps(), 0);
    let (losses, norms) = differences(&fp16, &exact);
    assert!(
        losses < 5e-3 && norms < 5e-2,
        "fp16: losses {losses:e}, norms {norms:e}"
    );
    if ops::Precision::Bf16.is_available_on(&device) {
        let (bf16, _) = run(&device, |args| args.bf16(true));
        let (losses, norms) = differences(&bf16, &exact);
        assert!(
            losses < 2e-2 && norms < 2e-1,
            "bf16: losses {losses:e}, norms {norms:e}"
        );
        assert_ne!(bf16.losses(), fp16.losses());
    }
}

#[test]
fn checkpointing_and_repeating_change_no_bit() {
    let Some(device) = device() else { return };
    let precisions: [(&str, Change); 3] = [
        ("f32", |args| args),
        ("bf16", |args| args.bf16(true)),
        ("fp16", |args| args.fp16(true)),
    ];
    for (name, precision) in precisions {
        let (history, weights) = run(&device, precision);
        let (checkpointed, same) =
            run(&device, |args| precision(args).gradient_checkpointing(true));
        assert_eq!(history.losses(), checkpointed.losses(), "{name}");
        assert!(weights == same, "{name}");
    }
}

#[test]
fn an_overflow_in_fp16_skips_the_step_and_lowers_the_scale() {
    let Some(device) = device() else { return };
    let model = model(&device);
    let before = weights(&model);
    let ids: Vec<u32> = (10..26).collect();
    let labels = (0..16)
        .map(|i| if i % 3 == 0 { 20 + i } else { -100 })
        .collect();
    let inputs = ModelInputs::new(ids, (2, 8))
        .unwrap()
        .with_labels(labels)
        .unwrap();
    let mut optimizer = AdamW::new(&model);
    let mut scaler = GradScaler::new().init_scale(2f64.powi(40));
    let mut step = |scaler: &mut GradScaler| {
        ops::autocast(ops::Precision::F16, || {
            let loss = model.loss(&inputs, &Context::train(42, 0)).unwrap();
            let loss = scaler.scale(&loss.mean().unwrap()).unwrap();
            model.backward(&loss).unwrap();
        });
        scaler.unscale(&mut optimizer);
        let norm = optimizer.clip_grad_norm(1.0).unwrap();
        let taken = scaler.update(norm);
        if taken {
            optimizer.step(1e-3).unwrap();
        }
        optimizer.zero_grad();
        taken
    };
    assert!(!step(&mut scaler));
    assert_eq!(scaler.get_scale(), 2f64.powi(39));
    assert!(weights(&model) == before);
    let skipped = (0..40).take_while(|_| !step(&mut scaler)).count();
    assert!(skipped < 40, "the scale never came down to what fp16 holds");
    assert!(weights(&model) != before);
}

#[test]
fn a_stopped_run_resumes_bit_for_bit() {
    let Some(device) = device() else { return };
    let args = |out: &Path| {
        arguments(out)
            .save_strategy(IntervalStrategy::Steps)
            .save_steps(1)
    };
    let out = tempfile::tempdir().unwrap();
    let whole_model = model(&device);
    let whole = trainer(args(out.path()), whole_model.clone())
        .train()
        .unwrap();
    let out = tempfile::tempdir().unwrap();
    let stop = |event: &Event| {
        let done = matches!(event, Event::StepEnd { step, .. } if step.step == 4);
        Ok(if done {
            Control::Stop
        } else {
            Control::Continue
        })
    };
    let stopped = trainer(args(out.path()), model(&device))
        .callback(stop)
        .train()
        .unwrap();
    assert_eq!(stopped.steps.len(), 4);
    // Other weights to begin with, so that all of them must come from the checkpoint.
    let resumed_model = MaskedLm::from_config_on(&config(), 99, &device).unwrap();
    let resumed = trainer(args(out.path()), resumed_model.clone())
        .resume_from_latest_checkpoint()
        .unwrap();
    assert_eq!(resumed.losses(), whole.losses());
    assert!(weights(&resumed_model) == weights(&whole_model));
}

#[test]
fn a_trained_model_gives_the_same_results_elsewhere() {
    let Some(device) = device() else { return };
    let out = tempfile::tempdir().unwrap();
    let trained = model(&device);
    let mut on_gpu = trainer(arguments(out.path()), trained.clone());
    on_gpu.train().unwrap();
    let folder = tempfile::tempdir().unwrap();
    trained.save_pretrained(folder.path()).unwrap();
    let name = folder.path().to_str().unwrap();
    let opened = MaskedLm::from_pretrained(name).unwrap();
    assert!(weights(&opened) == weights(&trained));
    assert!(weights(&MaskedLm::from_pretrained_on(name, &device).unwrap()) == weights(&trained));

    let mut on_cpu = trainer(arguments(out.path()), opened.clone());
    let (gpu, cpu) = (on_gpu.evaluate().unwrap(), on_cpu.evaluate().unwrap());
    assert!(
        (gpu.loss - cpu.loss).abs() < 1e-4,
        "{} {}",
        gpu.loss,
        cpu.loss
    );
    let predicted = |trainer: &mut Trainer| trainer.predict(examples(9)).unwrap().tokens;
    let (gpu, cpu) = (predicted(&mut on_gpu), predicted(&mut on_cpu));
    assert_eq!(gpu.len(), cpu.len());
    for (gpu, cpu) in gpu.iter().zip(&cpu) {
        assert_eq!((gpu.label, gpu.predicted), (cpu.label, cpu.predicted));
        assert!(
            (gpu.loss - cpu.loss).abs() < 1e-3,
            "{} {}",
            gpu.loss,
            cpu.loss
        );
    }

    let texts = [
        "a star <mask> born",
        "the <mask> of a <mask> bends",
        "near a heavy <mask>",
    ];
    let fill = |model: MaskedLm| {
        let fill_mask = FillMask::new(model, tokenizer()).top_k(4);
        let all = fill_mask.fill_batch(texts).unwrap();
        let masks = (0..texts.len())
            .flat_map(|i| all[i].masks().to_vec())
            .flatten();
        masks.map(|p| (p.token_str, p.score)).collect::<Vec<_>>()
    };
    let (gpu, cpu) = (fill(trained), fill(opened));
    assert_eq!(gpu.len(), 16);
    for ((token, score), (expected, exact)) in gpu.iter().zip(&cpu) {
        assert_eq!(token, expected);
        assert!((score - exact).abs() < 1e-4, "{token}: {score} {exact}");
    }
}

#[test]
fn one_gpu_serves_several_threads() {
    let Some(device) = device() else { return };
    let (alone, _) = run(&device, |args| args);
    let losses = std::thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| run(&device, |args| args).0.losses()));
        runs.map(|run| run.join().unwrap())
    });
    for together in losses {
        assert_eq!(together, alone.losses());
    }
}
