//! A GPU's memory: how it is counted, and what happens at its end. Other tests on the same GPU would be in the way.

use std::sync::Mutex;

use candle_core::{DType, Device, Tensor, Var};
use cloze::Error;
use cloze::collate::{Example, MaskingCollator};
use cloze::model::{Config, MaskedLm};
use cloze::ops::{self, AttentionOptions, Band, RelativeIndex, RelativeTerms, SparsePlan};
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

/// What attention of `n` positions by one head of 8 features keeps for its backward pass, and the most that both take at once,
/// in bytes.
fn attention_takes(
    device: &Device,
    n: usize,
    attend: &dyn Fn([&Tensor; 3], &Tensor) -> Tensor,
) -> [u64; 2] {
    let leaf = |shape: &[usize], seed| {
        let values = gpu::noise(shape, seed).to_device(device).unwrap();
        Var::from_tensor(&values).unwrap()
    };
    let qkv = [1, 2, 3].map(|seed| leaf(&[1, n, 8], seed));
    let table = leaf(&[9, 8], 4);
    let used = || {
        device.synchronize().unwrap();
        ops::device_memory(device).unwrap()
    };
    let before = used().used;
    ops::reset_peak_memory(device);
    let out = attend(qkv.each_ref().map(|x| x.as_tensor()), &table);
    let kept = used().used - before;
    let grads = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let dq = gpu::wide(grads.get(&qkv[0]).unwrap());
    assert!(dq.iter().all(|x| x.is_finite()) && dq.iter().any(|x| *x != 0.0));
    [kept, used().peak - before]
}

#[test]
fn windows_take_memory_as_their_width_and_never_for_all_pairs() {
    let Some(device) = gpu::device() else { return };
    let _alone = ALONE.lock().unwrap();
    /// Of what is beside the window.
    #[derive(Clone, Copy, Debug)]
    enum With {
        Nothing,
        Bias,
        Globals,
    }
    let takes = |n: usize, with: With| {
        attention_takes(&device, n, &|[q, k, v], table| {
            let band = Band::both(64);
            let plain = AttentionOptions::new(1, 8);
            let options = AttentionOptions {
                band: Some(band),
                ..plain.clone()
            };
            match with {
                With::Nothing => ops::attention_with(q, k, v, &options),
                With::Bias => {
                    let terms = RelativeTerms {
                        bias_table: Some(ops::narrow(table, 1, 0, 1).unwrap()),
                        ..RelativeTerms::new(RelativeIndex::clipped(n, n, -4, 4))
                    };
                    ops::relative_attention(q, k, v, &terms, &options)
                }
                With::Globals => {
                    let globals = (0..n as u32).map(|i| u32::from(i < 2)).collect();
                    let globals = Tensor::from_vec(globals, (1, n), &Device::Cpu).unwrap();
                    let plan = SparsePlan::band(n, band).with_globals(&globals);
                    ops::sparse_attention(q, k, v, &plan, &plain)
                }
            }
            .unwrap()
        })
    };
    for with in [With::Nothing, With::Bias, With::Globals] {
        takes(128, with);
        let [short, long] = [2048, 8192].map(|n| takes(n, with));
        for (short, long) in short.into_iter().zip(long) {
            // Four times as many positions; a byte for every pair would be 67 million.
            assert!(long <= 4 * short + (64 << 10), "{with:?}: {short} {long}");
            assert!(long < 8192 * 8192 / 8, "{with:?}: {long}");
        }
    }
}

#[test]
fn relative_terms_keep_nothing_for_pairs() {
    let Some(device) = gpu::device() else { return };
    let _alone = ALONE.lock().unwrap();
    let n = 512;
    let kept = |which: usize| {
        let [kept, _] = attention_takes(&device, n, &|[q, k, v], table| {
            let table = |of: usize| (which == of).then(|| table.clone());
            let terms = RelativeTerms {
                query_table: table(0),
                key_table: table(1),
                value_table: table(2),
                ..RelativeTerms::new(RelativeIndex::clipped(n, n, -4, 4))
            };
            ops::relative_attention(q, k, v, &terms, &AttentionOptions::new(1, 8)).unwrap()
        });
        kept
    };
    for which in 0..3 {
        kept(which);
        // The result, and little more; the scores would be a megabyte.
        let kept = kept(which);
        assert!(kept < 128 << 10, "{which}: {kept}");
    }
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
