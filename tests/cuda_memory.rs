//! A GPU's memory: how it is counted, and what happens at its end. Other tests on the same GPU would be in the way.

use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};
use cloze::Error;
use cloze::collate::{Example, MaskingCollator};
use cloze::model::{Config, MaskedLm};
use cloze::ops;
use cloze::tokenizer::Tokenizer;
use cloze::train::{IntervalStrategy, Trainer, TrainingArguments};

#[path = "support/gpu.rs"]
mod gpu;

/// One test at a time: the memory is all of theirs.
static ALONE: Mutex<()> = Mutex::new(());

/// Tensors that take what memory there is, but for less than `spare` bytes.
fn fill(device: &Device, spare: usize) -> Vec<Tensor> {
    let total = ops::device_memory(device).unwrap().total as usize;
    let mut bytes = total / 4;
    let mut all = Vec::new();
    while bytes >= spare / 2 {
        match Tensor::zeros(bytes, DType::U8, device) {
            Ok(tensor) => all.push(tensor),
            Err(_) => bytes /= 2,
        }
    }
    all
}

#[test]
fn memory_is_counted_and_its_peak_can_be_reset() {
    const BYTES: u64 = 16 << 20;
    let Some(device) = gpu::device() else { return };
    let _alone = ALONE.lock().unwrap();
    let before = ops::device_memory(&device).unwrap();
    let large = Tensor::zeros(BYTES as usize, DType::U8, &device).unwrap();
    let with = ops::device_memory(&device).unwrap();
    assert!(with.used >= before.used + BYTES && with.used <= with.total);
    drop(large);
    // What is freed is so in the order of the stream.
    device.synchronize().unwrap();
    let after = ops::device_memory(&device).unwrap();
    assert!(after.used < with.used && after.peak >= with.used);
    ops::reset_peak_memory(&device);
    assert!(ops::device_memory(&device).unwrap().peak < with.used);
}

#[test]
fn an_error_suggests_settings_and_the_run_can_be_repeated() {
    let Some(device) = gpu::device() else { return };
    let _alone = ALONE.lock().unwrap();
    let tokenizer = Tokenizer::train_bpe(["a star is born near a star"], 300).unwrap();
    let config = Config::new("roberta")
        .set("vocab_size", 300)
        .set("hidden_size", 64)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 128)
        .set("max_position_embeddings", 140);
    let model = MaskedLm::from_config_on(&config, 1, &device).unwrap();
    let example = |i: usize| {
        Example::from(
            (0..128)
                .map(|t| ((i * 7 + t * 3) % 290) as u32 + 5)
                .collect::<Vec<_>>(),
        )
    };
    let examples: Vec<Example> = (0..16).map(example).collect();
    let out = tempfile::tempdir().unwrap();
    let arguments = TrainingArguments::new(out.path())
        .per_device_train_batch_size(16)
        .per_device_eval_batch_size(16)
        .max_steps(2)
        .save_strategy(IntervalStrategy::No);
    let collator = MaskingCollator::new(&tokenizer);
    let mut trainer = Trainer::new(model, arguments, (examples.clone(), examples), collator);
    // Libraries and tables are in place after a first run.
    trainer.train().unwrap();
    let exact = trainer.evaluate().unwrap().loss;

    let ballast = fill(&device, 1 << 20);
    let advice = |error: Error| match error {
        Error::OutOfMemory {
            batch_size: 16,
            seq: 128,
            advice,
            ..
        } => advice,
        other => panic!("{other}"),
    };
    let training = advice(trainer.train().unwrap_err());
    for way in [
        "per_device_train_batch_size(8)",
        "gradient_accumulation_steps(2)",
        "gradient_checkpointing(true)",
        "bf16(true)",
    ] {
        assert!(training.contains(way), "{training}");
    }
    let evaluation = advice(trainer.evaluate().unwrap_err());
    assert!(
        evaluation.contains("per_device_eval_batch_size(8)"),
        "{evaluation}"
    );

    drop(ballast);
    let again = trainer.evaluate().unwrap().loss;
    assert!((again - exact).abs() < 0.5, "{exact} {again}");
    trainer.train().unwrap();
}
