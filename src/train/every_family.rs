//! Whether every family learns.

use crate::collate::{Collator, DenoisingCollator, Example, MaskingCollator};
use crate::dataset::load_eli5;
use crate::model::{Config, MaskedLm, SUPPORTED_MODEL_TYPES};
use crate::tokenizer::Tokenizer;
use crate::train::{IntervalStrategy, SchedulerType, Trainer, TrainingArguments};

const VOCAB: usize = 400;
const LENGTH: usize = 32;
const STEPS: usize = 50;

/// Blocks of the shipped sample's answers.
fn blocks(tokenizer: &Tokenizer, texts: &[String]) -> Vec<Example> {
    let ids: Vec<u32> = texts
        .iter()
        .flat_map(|text| tokenizer.encode(text).unwrap().ids)
        .collect();
    let blocks = ids.chunks_exact(LENGTH).take(8 * STEPS);
    blocks.map(|block| Example::from(block.to_vec())).collect()
}

/// Returns a tokenizer and blocks of the shipped sample's titles.
fn data() -> (Tokenizer, Vec<Example>) {
    let eli5 = load_eli5("train_asks").unwrap();
    let texts: Vec<String> = (0..150)
        .map(|row| format!("{:?}", eli5.row(row).unwrap().get("title").unwrap()))
        .collect();
    let tokenizer = Tokenizer::train_bpe(&texts, VOCAB).unwrap();
    let blocks = blocks(&tokenizer, &texts);
    (tokenizer, blocks)
}

/// Says what is wrong where fifty steps do not lower the loss.
fn learns(model_type: &str, data: &[Example], collator: impl Collator + 'static) -> Option<String> {
    let config = Config::small(model_type).set("vocab_size", VOCAB);
    let model = MaskedLm::from_config(&config, 3).unwrap();
    if model.main_input() != "input_ids" {
        // Wav2Vec2 hears.
        return None;
    }
    let arguments = TrainingArguments::new("")
        .max_steps(STEPS)
        .learning_rate(5e-3)
        .lr_scheduler_type(SchedulerType::Constant)
        .save_strategy(IntervalStrategy::No);
    let few = data[..16].to_vec();
    let mut trainer = Trainer::new(model, arguments, data.to_vec(), few, collator);
    let history = match trainer.train() {
        Ok(history) => history,
        Err(error) => return Some(format!("{model_type}: {error}")),
    };
    if let Err(error) = trainer.evaluate() {
        return Some(format!("{model_type}: {error}"));
    }
    let mean = |steps: &[crate::train::StepRecord]| {
        steps.iter().map(|step| f64::from(step.loss)).sum::<f64>() / steps.len() as f64
    };
    let (first, last) = (
        mean(&history.steps[..5]),
        mean(&history.steps[STEPS - 10..]),
    );
    println!("{model_type:<24} {first:.3} -> {last:.3}");
    (last > first - 0.3).then(|| format!("{model_type}: {first:.3} -> {last:.3}"))
}

#[test]
fn fifty_steps_lower_the_loss_of_every_family() {
    let (tokenizer, data) = data();
    let collator = MaskingCollator::new(&tokenizer);
    let failed: Vec<String> = (SUPPORTED_MODEL_TYPES.iter())
        .filter_map(|model_type| learns(model_type, &data, collator.clone()))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn those_that_write_learn_to_mend_what_the_denoising_collator_has_damaged() {
    let (tokenizer, data) = data();
    let collator = DenoisingCollator::new(&tokenizer);
    let failed: Vec<String> = (["bart", "mbart", "mvp"].iter())
        .filter_map(|model_type| learns(model_type, &data, collator.clone()))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
