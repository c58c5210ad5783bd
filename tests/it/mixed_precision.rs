//! Training with bf16 products: the curve of f32 within bf16's noise, and what stays exact.

use cloze::ops::{Precision, autocast};
use cloze::prelude::*;

fn blocks(tokenizer: &Tokenizer) -> DatasetDict {
    let eli5 = load_eli5("train_asks[:120]").unwrap().flatten().unwrap();
    let tokenize =
        Map::new(tokenizer.tokenize_column("answers.text")).remove_columns(eli5.column_names());
    let blocks = eli5.map(tokenize).unwrap().group_texts(128).unwrap();
    blocks
        .train_test_split(TrainTestSplit::new(0.2).seed(1))
        .unwrap()
}

/// The losses of twenty steps, and the loss after them.
fn run(bf16: bool) -> (Vec<f32>, f64) {
    let name = "bundled:tiny_roberta";
    let tokenizer = Tokenizer::from_pretrained(name).unwrap();
    let blocks = blocks(&tokenizer);
    let folder = tempfile::tempdir().unwrap();
    let arguments = TrainingArguments::new(folder.path())
        .learning_rate(3e-4)
        .max_steps(20)
        .bf16(bf16)
        .save_strategy(IntervalStrategy::No);
    let model = MaskedLm::from_pretrained(name).unwrap();
    let collator = MaskingCollator::new(&tokenizer);
    let mut trainer = Trainer::new(model, arguments, &blocks, collator);
    let history = trainer.train().unwrap();
    let losses = history.steps.iter().map(|step| step.loss).collect();
    (losses, trainer.evaluate().unwrap().loss)
}

#[test]
fn losses_agree_with_f32_within_bf16_precision() {
    let (exact, exact_end) = run(false);
    let (rounded, rounded_end) = run(true);
    for (step, (exact, rounded)) in exact.iter().zip(&rounded).enumerate() {
        assert!(
            (exact - rounded).abs() < 0.02,
            "step {step}: {exact} in f32, {rounded} in bf16"
        );
    }
    assert!(
        (exact_end - rounded_end).abs() < 0.01,
        "at the end {exact_end} in f32, {rounded_end} in bf16"
    );
    assert_eq!(
        exact != rounded,
        Precision::Bf16.is_available(),
        "bf16 is used where the processor has it"
    );
}

/// Trains and evaluates in bf16; run in a process of its own by the test below.
#[test]
#[ignore = "the test below starts it on a processor without a unit for bf16"]
fn train_twice_in_bf16() {
    assert_eq!(run(true), run(true));
}

#[test]
fn without_a_bf16_unit_products_stay_f32_with_one_notice() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "mixed_precision::train_twice_in_bf16",
            "--nocapture",
        ])
        .env("CLOZE_CPU", "avx2")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("note: bf16: ").count(), 1, "{said}");
}

#[test]
fn a_run_in_bf16_repeats_bit_for_bit() {
    assert_eq!(run(true), run(true));
}

#[test]
fn fill_mask_keeps_its_precision() {
    let fill_mask = FillMask::from_pretrained("bundled:tiny_roberta").unwrap();
    let texts: Vec<String> = (0..32)
        .map(|i| format!("Number {i} of the planets is a <mask> world of rock and ice."))
        .collect();
    let scores = |precision| -> Vec<f32> {
        let all = autocast(precision, || fill_mask.fill_batch(&texts)).unwrap();
        (0..texts.len()).map(|i| all[i][0].score).collect()
    };
    let (exact, rounded) = (scores(Precision::F32), scores(Precision::Bf16));
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert!(
            (exact - rounded).abs() < 0.01,
            "{exact} in f32, {rounded} in bf16"
        );
    }
    assert_eq!(exact != rounded, Precision::Bf16.is_available());
}
