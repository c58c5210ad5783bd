//! Training: what a run promises when it is stopped, resumed, given bad arguments, bad numbers or a full disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use cloze::collate::{BatchKey, Collator, DataLoader, Example, MaskingCollator, MlmBatch};
use cloze::model::{Config, MaskedLm};
use cloze::tokenizer::Tokenizer;
use cloze::train::{
    Callback, Control, Event, History, IntervalStrategy, SchedulerKwargs, SchedulerType, Trainer,
    TrainingArguments, latest_checkpoint,
};
use cloze::{Error, Result};
use tempfile::TempDir;

use crate::small_disk::SmallDisk;

const VOCAB: u32 = 300;

fn tokenizer() -> Tokenizer {
    let text = [
        "the light of a star bends near a heavy star",
        "a cell divides and a star is born",
    ];
    Tokenizer::train_bpe(text, VOCAB as usize).unwrap()
}

/// A model with transformers' dropout of 0.1 everywhere.
fn model(seed: u64) -> MaskedLm {
    MaskedLm::from_config(&config(0.1), seed).unwrap()
}

fn config(dropout: f64) -> Config {
    Config::new("roberta")
        .set("vocab_size", VOCAB)
        .set("hidden_size", 32)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 4)
        .set("intermediate_size", 64)
        .set("max_position_embeddings", 40)
        .set("hidden_dropout_prob", dropout)
        .set("attention_probs_dropout_prob", dropout)
}

/// Examples of different lengths.
fn examples(count: usize) -> Vec<Example> {
    let example = |i: usize| {
        let words = (0..6 + i % 5).map(|t| 10 + ((i * 31 + t * t * 7) % 250) as u32);
        Example::from([vec![0], words.collect(), vec![2]].concat())
    };
    (0..count).map(example).collect()
}

fn collator() -> MaskingCollator {
    MaskingCollator::new(&tokenizer()).mlm_probability(0.3)
}

/// Two epochs of three steps, the last of two batches and a half.
fn args(out: &Path) -> TrainingArguments {
    TrainingArguments::new(out)
        .per_device_train_batch_size(2)
        .gradient_accumulation_steps(3)
        .epochs(2)
        .learning_rate(3e-3)
        .weight_decay(0.1)
        .warmup_steps(2)
        .lr_scheduler_type(SchedulerType::Cosine)
        .logging_steps(2)
        .eval_strategy(IntervalStrategy::Epoch)
        .save_steps(1)
        .data_seed(7)
}

fn trainer(args: TrainingArguments, model: MaskedLm) -> Trainer {
    Trainer::new(model, args, (examples(17), examples(9)), collator())
}

fn weights(model: &MaskedLm) -> Vec<Vec<f32>> {
    let values = |param: &cloze::ops::Param| param.var().flatten_all().unwrap().to_vec1().unwrap();
    model.params().iter().map(values).collect()
}

fn loss_bits(history: &History) -> Vec<u32> {
    history.losses().into_iter().map(f32::to_bits).collect()
}

fn checkpoints(out: &Path) -> Vec<String> {
    let names = std::fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    // Beside them stand the run's reports.
    let mut names: Vec<String> = names
        .filter(|name| !["history.jsonl", "runs"].contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

fn stop_after(step: usize) -> impl Callback {
    move |event: &Event| {
        let stop = matches!(event, Event::StepEnd { step: done, .. } if done.step == step);
        Ok(if stop {
            Control::Stop
        } else {
            Control::Continue
        })
    }
}

#[test]
fn a_run_resumed_after_any_step_equals_the_uninterrupted_one_bit_for_bit() {
    let out = tempfile::tempdir().unwrap();
    let whole_model = model(1);
    let mut whole = trainer(args(out.path()), whole_model.clone());
    let expected = whole.train().unwrap();
    assert_eq!(expected.steps.len(), 6);
    assert_eq!(expected.evaluations.len(), 2);
    for stop in 1..6 {
        let out = tempfile::tempdir().unwrap();
        let stopped = trainer(args(out.path()), model(1))
            .callback(stop_after(stop))
            .train()
            .unwrap();
        assert!(stopped.stopped_early);
        assert_eq!(stopped.steps.len(), stop);
        // Other weights to begin with, so that all of them must come from the checkpoint.
        let resumed_model = model(99);
        let mut resumed = trainer(args(out.path()), resumed_model.clone());
        let history = resumed.resume_from_latest_checkpoint().unwrap();
        assert_eq!(
            loss_bits(&history),
            loss_bits(&expected),
            "stopped after step {stop}"
        );
        let rates = |h: &History| {
            h.steps
                .iter()
                .map(|s| (s.learning_rate, s.grad_norm))
                .collect::<Vec<_>>()
        };
        assert_eq!(rates(&history), rates(&expected));
        assert_eq!(history.logs, expected.logs);
        let evaluated = |h: &History| {
            h.evaluations
                .iter()
                .map(|e| (e.step, e.metrics.loss))
                .collect::<Vec<_>>()
        };
        assert_eq!(evaluated(&history), evaluated(&expected));
        assert_eq!(
            weights(&resumed_model),
            weights(&whole_model),
            "stopped after step {stop}"
        );
    }
}

#[test]
fn dropout_and_data_order_depend_on_the_seeds() {
    let losses = |args: TrainingArguments| {
        let args = args.save_strategy(IntervalStrategy::No).max_steps(4);
        loss_bits(&trainer(args, model(1)).train().unwrap())
    };
    let base = args(Path::new(""));
    let expected = losses(base.clone());
    assert_eq!(losses(base.clone()), expected);
    assert_ne!(losses(base.clone().seed(43)), expected);
    assert_ne!(losses(base.data_seed(8)), expected);
}

/// Rows of one length, masked beforehand.
struct Fixed;

impl Collator for Fixed {
    fn collate(&self, examples: &[Example], _: BatchKey) -> Result<MlmBatch> {
        let ids: Vec<u32> = examples.iter().flat_map(|e| e.input_ids.clone()).collect();
        let labels = examples.iter().flat_map(|e| e.labels.clone().unwrap());
        let shape = (examples.len(), examples[0].input_ids.len());
        MlmBatch::new(ids, shape)?.with_labels(labels.collect())
    }
}

/// Rows of 8 tokens, of which row i has 1 + i % 4 masked.
fn fixed(rows: usize) -> Vec<Example> {
    let row = |i: usize| {
        let mut example = Example::from(
            (0..8)
                .map(|t| 5 + ((i * 13 + t * 29) % 290) as u32)
                .collect::<Vec<_>>(),
        );
        let label = |t: usize| if t <= i % 4 { 7 + (i + t) as i64 } else { -100 };
        example.labels = Some((0..8).map(label).collect());
        example
    };
    (0..rows).map(row).collect()
}

#[test]
fn accumulation_equals_a_large_batch_even_at_the_end_of_an_epoch() {
    let run = |batch: usize, accumulation: usize| {
        let model = MaskedLm::from_config(&config(0.0), 3).unwrap();
        let args = TrainingArguments::new("")
            .gradient_accumulation_steps(accumulation)
            .epochs(2)
            .learning_rate(1e-3)
            .save_strategy(IntervalStrategy::No);
        let loader = DataLoader::new(fixed(22), Fixed, batch).unwrap();
        let history = Trainer::from_loaders(model, args, loader, None)
            .train()
            .unwrap();
        history.steps
    };
    let large = run(8, 1);
    let accumulated = run(2, 4);
    assert_eq!(large.len(), 6);
    assert_eq!(accumulated.len(), 6);
    for (a, b) in large.iter().zip(&accumulated) {
        assert_eq!((a.counted, a.tokens), (b.counted, b.tokens));
        assert!((a.loss - b.loss).abs() < 2e-6, "{a:?} {b:?}");
        assert!(
            (a.grad_norm - b.grad_norm).abs() < 2e-6 * a.grad_norm,
            "{a:?} {b:?}"
        );
    }
}

#[test]
fn a_non_finite_loss_stops_training_before_an_update() {
    let run = |steps: usize| {
        let model = model(5);
        let args = args(Path::new(""))
            .save_strategy(IntervalStrategy::No)
            .eval_strategy(IntervalStrategy::No)
            .lr_scheduler_type(SchedulerType::Constant)
            .learning_rate(1e25)
            .max_steps(steps);
        (trainer(args, model.clone()).train(), model)
    };
    let (one, after_one) = run(1);
    one.unwrap();
    let (error, after_error) = run(3);
    match error.unwrap_err() {
        Error::NonFiniteLoss { step: 2, loss, .. } => assert!(!loss.is_finite()),
        Error::NonFiniteGradient {
            step: 2, grad_norm, ..
        } => assert!(!grad_norm.is_finite()),
        other => panic!("{other:?}"),
    }
    assert_eq!(weights(&after_error), weights(&after_one));
    assert!(
        after_error
            .params()
            .iter()
            .all(|param| param.grad().is_none())
    );
}

#[test]
fn a_nan_weight_is_reported_at_the_first_step() {
    let model = model(5);
    let bias = model.param("lm_head.bias").unwrap();
    bias.var()
        .set(&bias.var().affine(0.0, f64::INFINITY).unwrap())
        .unwrap();
    let args = args(Path::new("")).save_strategy(IntervalStrategy::No);
    let error = trainer(args, model).train().unwrap_err();
    assert!(
        matches!(error, Error::NonFiniteLoss { step: 1, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("at step 1"), "{error}");
}

#[test]
fn training_stops_when_evaluations_stop_improving() {
    let out = tempfile::tempdir().unwrap();
    let args = args(out.path())
        .learning_rate(0.0)
        .epochs(50)
        .early_stopping_patience(3)
        .save_strategy(IntervalStrategy::No);
    let history = trainer(args, model(2)).train().unwrap();
    assert!(history.stopped_early && !history.interrupted);
    assert_eq!(history.evaluations.len(), 4);
    assert_eq!(history.steps.len(), 12);
}

#[test]
fn the_best_model_is_kept_and_loaded_at_the_end() {
    let out = tempfile::tempdir().unwrap();
    // Few examples, again and again at a high rate: other text becomes ever less likely.
    let args = args(out.path())
        .learning_rate(2e-2)
        .lr_scheduler_type(SchedulerType::Constant)
        .epochs(12)
        .save_strategy(IntervalStrategy::Epoch)
        .save_total_limit(2)
        .load_best_model_at_end(true)
        .metric_for_best_model("eval_perplexity");
    let mut trainer = trainer(args, model(2));
    let history = trainer.train().unwrap();
    let losses: Vec<f64> = history.evaluations.iter().map(|e| e.metrics.loss).collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(
        losses[11] > best,
        "the last is the best already: {losses:?}"
    );
    assert_eq!(trainer.evaluate().unwrap().loss, best);
    let step = history.best_step.unwrap();
    let mut expected = [format!("checkpoint-{step}"), "checkpoint-36".to_owned()];
    expected.sort();
    assert_eq!(checkpoints(out.path()), expected);
}

#[test]
fn a_checkpoint_is_a_model_folder() {
    let out = tempfile::tempdir().unwrap();
    let trained = model(4);
    trainer(args(out.path()).save_total_limit(1), trained.clone())
        .train()
        .unwrap();
    assert_eq!(checkpoints(out.path()), ["checkpoint-6"]);
    let folder = out.path().join("checkpoint-6");
    let opened = MaskedLm::from_pretrained(folder.to_str().unwrap()).unwrap();
    assert_eq!(weights(&opened), weights(&trained));
    let texts = ["a heavy star"];
    let encode = |tokenizer: &Tokenizer| {
        Example::from(tokenizer.encode_batch(&texts).unwrap().remove(0)).input_ids
    };
    assert_eq!(
        encode(&Tokenizer::from_pretrained(folder.to_str().unwrap()).unwrap()),
        encode(&tokenizer())
    );
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("trainer_state.json")).unwrap()).unwrap();
    assert_eq!(state["global_step"], 6);
    assert_eq!(state["log_history"].as_array().unwrap().len(), 5);
    let saved: TrainingArguments =
        serde_json::from_slice(&std::fs::read(folder.join("training_args.json")).unwrap()).unwrap();
    assert_eq!(saved, args(out.path()).save_total_limit(1));
}

#[test]
fn mfu_is_the_ratio_of_model_flops_to_peak_flops() {
    let args = args(Path::new("")).save_strategy(IntervalStrategy::No);
    let unknown = trainer(args.clone(), model(1)).train().unwrap();
    assert_eq!((unknown.mfu(), unknown.peak_device_memory), (None, None));
    let model = model(1);
    let flops = model.flops().unwrap();
    let history = trainer(args.peak_tflops(2.0), model).train().unwrap();
    for step in &history.steps {
        // Rows are at most 12 tokens long, and at least the encoder's maps meet every token.
        let least = flops.of_training(step.tokens, 0, step.counted);
        let most = flops.of_training(step.tokens, 12, step.counted);
        assert!(least < step.flops && step.flops <= most, "{step:?}");
    }
    let flops: f64 = history.steps.iter().map(|step| step.flops).sum();
    let seconds: f64 = history.steps.iter().map(|step| step.seconds).sum();
    let mfu = history.mfu().unwrap();
    assert!(
        (mfu / (flops / seconds / 2e12) - 1.0).abs() < 1e-12,
        "{mfu}"
    );
    assert!(format!("{history:?}").contains("% MFU"), "{history:?}");
}

#[test]
fn a_history_without_flops_opens() {
    let args = args(Path::new("")).save_strategy(IntervalStrategy::No);
    let history = trainer(args, model(1)).train().unwrap();
    let mut old = serde_json::to_value(&history).unwrap();
    old["steps"].as_object_mut().unwrap().remove("flops");
    let old: History = serde_json::from_value(old).unwrap();
    assert_eq!(old.losses(), history.losses());
    assert!(old.steps.iter().all(|step| step.flops == 0.0));
}

#[test]
fn invalid_arguments_are_refused_before_training() {
    use IntervalStrategy::{Epoch, No, Steps};
    type Change = fn(TrainingArguments) -> TrainingArguments;
    let cases: [(&str, Change); 28] = [
        ("learning_rate", |a| a.learning_rate(-1e-5)),
        ("learning_rate", |a| a.learning_rate(f64::NAN)),
        ("learning_rate", |a| {
            a.lr_scheduler_type(SchedulerType::Polynomial)
                .learning_rate(1e-8)
        }),
        ("lr_scheduler_kwargs", |a| {
            a.lr_scheduler_kwargs(SchedulerKwargs {
                power: f64::NAN,
                ..SchedulerKwargs::default()
            })
        }),
        ("per_device_train_batch_size", |a| {
            a.per_device_train_batch_size(0)
        }),
        ("per_device_eval_batch_size", |a| {
            a.per_device_eval_batch_size(0)
        }),
        ("gradient_accumulation_steps", |a| {
            a.gradient_accumulation_steps(0)
        }),
        ("num_train_epochs", |a| a.epochs(0)),
        ("num_train_epochs", |a| a.epochs(f64::INFINITY)),
        ("max_steps", |a| a.max_steps(0)),
        ("weight_decay", |a| a.weight_decay(-0.1)),
        ("adam_beta1", |a| a.adam_beta1(1.0)),
        ("adam_beta2", |a| a.adam_beta2(-0.1)),
        ("max_grad_norm", |a| a.max_grad_norm(-1.0)),
        ("warmup_ratio", |a| a.warmup_ratio(1.5)),
        ("logging_steps", |a| a.logging_steps(0)),
        ("save_total_limit", |a| a.save_total_limit(0)),
        ("metric_for_best_model", |a| a.metric_for_best_model("bleu")),
        ("greater_is_better", |a| a.greater_is_better(true)),
        ("early_stopping_patience", |a| {
            a.eval_strategy(No).early_stopping_patience(2)
        }),
        ("load_best_model_at_end", |a| {
            a.eval_strategy(No).load_best_model_at_end(true)
        }),
        ("load_best_model_at_end", |a| {
            a.eval_strategy(Epoch)
                .save_strategy(Steps)
                .load_best_model_at_end(true)
        }),
        ("load_best_model_at_end", |a| {
            a.eval_strategy(Steps)
                .eval_steps(3)
                .save_steps(4)
                .load_best_model_at_end(true)
        }),
        // The model is on the CPU.
        ("fp16", |a| a.fp16(true)),
        ("fp16", |a| a.fp16(true).bf16(true)),
        ("peak_tflops", |a| a.peak_tflops(0.0)),
        ("peak_tflops", |a| a.peak_tflops(f64::NAN)),
        ("output_dir", |mut a| {
            a.output_dir = PathBuf::new();
            a
        }),
    ];
    let out = tempfile::tempdir().unwrap();
    for (i, (expected, change)) in cases.into_iter().enumerate() {
        let unchanged = model(1);
        let error = trainer(change(args(out.path())), unchanged.clone())
            .train()
            .unwrap_err();
        match &error {
            Error::Argument { name, .. } => assert_eq!(*name, expected, "case {i}: {error}"),
            other => panic!("case {i}, {expected}: {other:?}"),
        }
        assert_eq!(weights(&unchanged), weights(&model(1)));
    }
    assert!(checkpoints(out.path()).is_empty());
}

#[test]
fn data_without_usable_examples_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let make = |train, eval: Option<Vec<Example>>, args| {
        Trainer::new(model(1), args, (train, eval), collator())
    };
    let error = make(examples(9), None, args(out.path()))
        .train()
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("eval_strategy: there are no examples"),
        "{error}"
    );
    let error = make(Vec::new(), Some(examples(3)), args(out.path()))
        .train()
        .unwrap_err();
    assert!(
        error.to_string().contains("the dataset is empty"),
        "{error}"
    );
    let drop_last = args(out.path()).dataloader_drop_last(true);
    let error = make(examples(1), Some(examples(3)), drop_last)
        .train()
        .unwrap_err();
    assert!(
        error.to_string().contains("dataloader_drop_last"),
        "{error}"
    );
    let nothing = MaskingCollator::new(&tokenizer()).mlm_probability(0.0);
    let silent = args(out.path()).eval_strategy(IntervalStrategy::No);
    let error = Trainer::new(model(1), silent, examples(9), nothing)
        .train()
        .unwrap_err();
    assert!(error.to_string().contains("mlm_probability"), "{error}");
    let error = make(examples(9), None, args(out.path()))
        .evaluate()
        .unwrap_err();
    assert!(
        error.to_string().starts_with("eval: there are no examples"),
        "{error}"
    );
}

/// A stopped run: `checkpoint-1` to `checkpoint-3`.
fn stopped() -> TempDir {
    let out = tempfile::tempdir().unwrap();
    trainer(args(out.path()), model(1))
        .callback(stop_after(3))
        .train()
        .unwrap();
    out
}

#[test]
fn a_damaged_checkpoint_is_refused_and_skipped() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("model.safetensors has", |folder| {
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(folder.join("model.safetensors"))
                .unwrap();
            file.set_len(1000).unwrap();
        }),
        ("optimizer.safetensors is not what was written", |folder| {
            let path = folder.join("optimizer.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }),
        ("trainer_state.json can't be read", |folder| {
            std::fs::remove_file(folder.join("trainer_state.json")).unwrap();
        }),
        (
            "checkpoint.json, which is written last, can't be read",
            |folder| {
                std::fs::remove_file(folder.join("checkpoint.json")).unwrap();
            },
        ),
    ];
    for (expected, damage) in damages {
        let out = stopped();
        let newest = out.path().join("checkpoint-3");
        damage(&newest);
        let untouched = model(6);
        let error = trainer(args(out.path()), untouched.clone())
            .resume_from_checkpoint(&newest)
            .unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(weights(&untouched), weights(&model(6)));
        assert_eq!(
            latest_checkpoint(out.path()).unwrap(),
            out.path().join("checkpoint-2")
        );
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let out = stopped();
    let resume = |args: TrainingArguments, train: Vec<Example>, collator: MaskingCollator| {
        let mut trainer = Trainer::new(model(6), args, (train, examples(9)), collator);
        trainer
            .resume_from_latest_checkpoint()
            .unwrap_err()
            .to_string()
    };
    let same = args(out.path());
    for (expected, error) in [
        (
            "gradient_accumulation_steps 3",
            resume(
                same.clone().gradient_accumulation_steps(2),
                examples(17),
                collator(),
            ),
        ),
        (
            "batches per epoch 9",
            resume(same.clone(), examples(19), collator()),
        ),
        (
            "seed 42",
            resume(same.clone().seed(1), examples(17), collator()),
        ),
        (
            "other batches",
            resume(same.clone().data_seed(1), examples(17), collator()),
        ),
        (
            "other batches",
            resume(same.clone(), examples(17), collator().mlm_probability(0.5)),
        ),
        (
            "other batches",
            resume(same.clone(), examples(18).split_off(1), collator()),
        ),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let empty = tempfile::tempdir().unwrap();
    let error = resume(args(empty.path()), examples(17), collator());
    assert!(
        error.contains("there is no checkpoint to resume from"),
        "{error}"
    );
}

#[test]
fn a_resumed_run_may_be_longer() {
    let out = stopped();
    let history = trainer(args(out.path()).epochs(3), model(9))
        .resume_from_latest_checkpoint()
        .unwrap();
    assert_eq!(history.steps.len(), 9);
}

#[test]
fn a_full_disk_is_reported_and_keeps_older_checkpoints_and_the_run() {
    let whole_out = tempfile::tempdir().unwrap();
    let expected = trainer(args(whole_out.path()), model(1)).train().unwrap();
    let size: u64 = std::fs::read_dir(whole_out.path().join("checkpoint-1"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    // Two and a half checkpoints.
    let Some(disk) = SmallDisk::mount(size as usize * 5 / 2 / 1024) else {
        return;
    };
    let mut trainer = trainer(args(disk.path()), model(1));
    let error = trainer.train().unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert_eq!(checkpoints(disk.path()), ["checkpoint-1", "checkpoint-2"]);
    assert_eq!(
        latest_checkpoint(disk.path()).unwrap(),
        disk.path().join("checkpoint-2")
    );
    std::fs::remove_dir_all(disk.path().join("checkpoint-1")).unwrap();
    let error = trainer.train().unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    let grown = Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(disk.path())
        .status();
    assert!(grown.unwrap().success());
    let history = trainer.train().unwrap();
    assert_eq!(loss_bits(&history), loss_bits(&expected));
}

#[test]
fn events_are_ordered_and_carry_what_a_display_needs() {
    let out = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = {
        let told = Arc::clone(&told);
        move |event: &Event| {
            let state = event.state();
            assert_eq!(state.max_steps, 6);
            assert_eq!(state.num_train_epochs, 2.0);
            let text = match event {
                Event::TrainBegin { .. } => "begin".to_owned(),
                Event::StepEnd { step, .. } => {
                    assert!(
                        step.loss > 0.0 && step.grad_norm > 0.0 && step.tokens_per_second() > 0.0
                    );
                    format!("step {}", step.step)
                }
                Event::Log { log, .. } => format!("log {} {:.4}", log.step, log.epoch),
                Event::EpochEnd { state } => format!("epoch {}", state.epoch),
                Event::EvaluateStep { done, total, .. } => format!("evaluating {done}/{total}"),
                Event::Evaluate { .. } => format!("evaluated {}", event.evaluation().unwrap().step),
                Event::Save { path, .. } => {
                    format!("saved {}", path.file_name().unwrap().display())
                }
                Event::TrainEnd { history, .. } => format!("end {}", history.steps.len()),
                other => panic!("{other:?}"),
            };
            told.lock().unwrap().push(text);
            Ok(Control::Continue)
        }
    };
    let args = args(out.path()).save_steps(3).max_steps(6);
    trainer(args, model(1)).callback(listener).train().unwrap();
    assert_eq!(
        *told.lock().unwrap(),
        [
            "begin",
            "step 1",
            "step 2",
            "log 2 0.6667",
            "step 3",
            "epoch 1",
            "evaluating 1/2",
            "evaluating 2/2",
            "evaluated 3",
            "saved checkpoint-3",
            "step 4",
            "log 4 1.3333",
            "step 5",
            "step 6",
            "epoch 2",
            "log 6 2.0000",
            "evaluating 1/2",
            "evaluating 2/2",
            "evaluated 6",
            "saved checkpoint-6",
            "end 6",
        ]
    );
}

#[test]
fn a_callback_can_request_evaluations_and_checkpoints_and_its_error_ends_the_run() {
    let out = tempfile::tempdir().unwrap();
    let args = args(out.path())
        .eval_strategy(IntervalStrategy::No)
        .save_steps(100)
        .max_steps(5);
    let wishes = |event: &Event| match event {
        Event::StepEnd { step, .. } if step.step == 2 => Ok(Control::Evaluate),
        Event::StepEnd { step, .. } if step.step == 3 => Ok(Control::Save),
        Event::StepEnd { step, .. } if step.step == 4 => Err(Error::Dataset("enough".to_owned())),
        _ => Ok(Control::Continue),
    };
    let mut trainer = trainer(args, model(1)).callback(wishes);
    assert_eq!(trainer.train().unwrap_err().to_string(), "enough");
    assert_eq!(checkpoints(out.path()), ["checkpoint-3"]);
    // The step itself was taken, so the run goes on after it.
    let history = trainer.train().unwrap();
    assert_eq!(history.steps.len(), 5);
    assert_eq!(
        history
            .evaluations
            .iter()
            .map(|e| e.step)
            .collect::<Vec<_>>(),
        [2]
    );
}

#[test]
fn evaluation_and_prediction_agree_and_are_repeatable() {
    let mut trainer = trainer(args(Path::new("unused")), model(1));
    let first = trainer.evaluate().unwrap();
    let again = trainer.evaluate().unwrap();
    assert_eq!((first.loss, first.counted), (again.loss, again.counted));
    assert_eq!(first.perplexity(), first.loss.exp());
    let predictions = trainer.predict(examples(9)).unwrap();
    assert_eq!(predictions.tokens.len(), first.counted);
    assert!(
        (predictions.metrics.loss - first.loss).abs() < 1e-5,
        "{predictions:?} {first:?}"
    );
    assert!((0.0..=1.0).contains(&predictions.accuracy()));
    let batch = DataLoader::new(examples(9), collator(), 8)
        .unwrap()
        .epoch(0)
        .next()
        .unwrap()
        .unwrap();
    for token in predictions.tokens.iter().filter(|token| token.example < 8) {
        assert_eq!(
            batch.labels[token.example * batch.seq + token.position],
            i64::from(token.label)
        );
    }
}
