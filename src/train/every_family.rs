//! Tests that every family learns, resumes from a checkpoint, and trains in bf16.

use std::path::Path;

use crate::collate::{BatchKey, Collator, DenoisingCollator, Example, IGNORED, MaskingCollator};
use crate::dataset::load_eli5;
use crate::model::{Column, Config, MaskedLm, SUPPORTED_MODEL_TYPES};
use crate::tokenizer::Tokenizer;
use crate::train::{History, IntervalStrategy, SchedulerType, Trainer, TrainingArguments};

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

/// Returns the fault if fifty steps do not lower the loss.
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
    let mut trainer = Trainer::new(model, arguments, (data.to_vec(), few), collator);
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

/// Six steps of a small model with dropout and a checkpoint after each third step.
fn short_run(
    model_type: &str,
    seed: u64,
    out: &Path,
    data: &[Example],
    collator: impl Collator + 'static,
) -> Trainer {
    let config = Config::small(model_type).set("vocab_size", VOCAB);
    let config = config.set("hidden_dropout_prob", 0.1).set("dropout", 0.1);
    let model = MaskedLm::from_config(&config, seed).unwrap();
    let arguments = TrainingArguments::new(out)
        .per_device_train_batch_size(4)
        .max_steps(6)
        .learning_rate(1e-3)
        .save_steps(3);
    let few = data[..8].to_vec();
    Trainer::new(model, arguments, (data[..40].to_vec(), few), collator)
}

/// The bits of every weight.
fn bits(model: &MaskedLm) -> Vec<(String, Vec<u32>)> {
    let params = model.params();
    let bits = params.iter().map(|param| {
        let values: Vec<f32> = param.var().flatten_all().unwrap().to_vec1().unwrap();
        (
            param.name().to_owned(),
            values.into_iter().map(f32::to_bits).collect(),
        )
    });
    bits.collect()
}

/// Returns the fault if a run resumed at its third step differs from an uninterrupted one.
fn goes_on(
    model_type: &str,
    data: &[Example],
    collator: impl Collator + Clone + 'static,
) -> Option<String> {
    let out = tempfile::tempdir().unwrap();
    let run = |seed: u64| short_run(model_type, seed, out.path(), data, collator.clone());
    let mut whole = run(3);
    if whole.model().main_input() != "input_ids" {
        return None;
    }
    let losses = |history: &History| -> Vec<u32> {
        history.losses().into_iter().map(f32::to_bits).collect()
    };
    let expected = losses(&whole.train().unwrap());
    let score = whole.evaluate().unwrap().loss.to_bits();
    // Other weights to begin with, so that all of them must come from the checkpoint.
    let mut resumed = run(99);
    let found = match resumed.resume_from_checkpoint(out.path().join("checkpoint-3")) {
        Ok(history) => losses(&history),
        Err(error) => return Some(format!("{model_type}: {error}")),
    };
    if found != expected {
        return Some(format!("{model_type}: the losses differ"));
    }
    if bits(resumed.model()) != bits(whole.model()) {
        return Some(format!("{model_type}: the weights differ"));
    }
    let again = resumed.evaluate().unwrap().loss.to_bits();
    // What was saved is what was trained: the last checkpoint scores the same in a model of its own.
    let saved =
        MaskedLm::from_pretrained(out.path().join("checkpoint-6").display().to_string()).unwrap();
    let same = bits(&saved) == bits(whole.model());
    (again != score || !same)
        .then(|| format!("{model_type}: the scores or the saved weights differ"))
}

#[test]
fn every_family_resumes_bit_for_bit() {
    let (tokenizer, data) = data();
    let collator = MaskingCollator::new(&tokenizer);
    let failed: Vec<String> = (SUPPORTED_MODEL_TYPES.iter())
        .filter_map(|model_type| goes_on(model_type, &data, collator.clone()))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Returns texts of different lengths, each with three entities.
fn with_entities(data: &[Example]) -> Vec<Example> {
    let entities = |(at, example): (usize, &Example)| {
        let mut example = Example::from(example.input_ids[..LENGTH - at % 5].to_vec());
        let id = |i: usize| 4 + ((at * 3 + i * 7) % 26) as i64;
        let mut places = vec![-1; 3 * 30];
        for (i, place) in places.chunks_mut(30).enumerate() {
            place[..2].copy_from_slice(&[4 * i as i64, 4 * i as i64 + 1]);
        }
        let columns = [
            ("entity_ids", Column::ids((0..3).map(id).collect(), [3])),
            ("entity_attention_mask", Column::ids(vec![1; 3], [3])),
            ("entity_token_type_ids", Column::ids(vec![0; 3], [3])),
            ("entity_position_ids", Column::ids(places, [3, 30])),
        ];
        for (name, column) in columns {
            example.columns.insert(name.to_owned(), column.unwrap());
        }
        example
    };
    data.iter().enumerate().map(entities).collect()
}

/// Spans, sentences and entities are drawn by the position in the epoch, and random plans by the step, for rows of any length.
#[test]
fn other_objectives_and_ragged_rows_resume_bit_for_bit() {
    let (tokenizer, data) = data();
    let denoising = DenoisingCollator::new(&tokenizer);
    let mut failed: Vec<String> = (["bart", "mbart", "mvp"].iter())
        .filter_map(|model_type| goes_on(model_type, &data, denoising.clone()))
        .collect();
    let ragged = with_entities(&data);
    // The words are those of another tokenizer; this one knows which entity is the mask.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers/luke");
    let masking = MaskingCollator::new(&Tokenizer::from_path(folder).unwrap());
    let masked = masking.clone().entity_mask_probability(0.5);
    let batch = masked.collate(&ragged[..4], BatchKey::new(0, 0)).unwrap();
    let labels = batch.columns["entity_labels"].as_ids("entity_labels");
    assert!(labels.unwrap().iter().any(|&label| label != IGNORED));
    failed.extend(goes_on("luke", &ragged, masked));
    let ragged: Vec<Example> = (ragged.iter())
        .map(|example| Example::from(example.input_ids.clone()))
        .collect();
    let others = [
        "big_bird",
        "convbert",
        "fnet",
        "mra",
        "nystromformer",
        "perceiver",
        "reformer",
        "yoso",
    ];
    let others = others.iter();
    failed.extend(others.filter_map(|model_type| goes_on(model_type, &ragged, masking.clone())));
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Returns the fault if six steps in bf16 deviate too far from those in f32.
fn trains_in_bf16(
    model_type: &str,
    data: &[Example],
    collator: &MaskingCollator,
) -> Option<String> {
    let config = Config::small(model_type).set("vocab_size", VOCAB);
    let run = |half: bool| -> crate::Result<Vec<f32>> {
        let model = MaskedLm::from_config(&config, 3)?;
        let arguments = TrainingArguments::new("")
            .per_device_train_batch_size(4)
            .max_steps(6)
            .learning_rate(1e-3)
            .bf16(half)
            .save_strategy(IntervalStrategy::No);
        let few = data[..8].to_vec();
        let mut trainer = Trainer::new(
            model,
            arguments,
            (data[..40].to_vec(), few),
            collator.clone(),
        );
        Ok(trainer.train()?.losses())
    };
    if MaskedLm::from_config(&config, 3).unwrap().main_input() != "input_ids" {
        return None;
    }
    let (full, half) = match (run(false), run(true)) {
        (Ok(full), Ok(half)) => (full, half),
        (Err(error), _) | (_, Err(error)) => return Some(format!("{model_type}: {error}")),
    };
    // Where the processor has no unit for bf16 the two are equal. Where it has one, 8 bits are kept: what a loss near 6 loses
    // by it, over a few layers, stays well below a twentieth.
    let near = full
        .iter()
        .zip(&half)
        .all(|(full, half)| (full - half).abs() < 0.3);
    (!near).then(|| format!("{model_type}: {full:?} in f32, {half:?} in bf16"))
}

#[test]
fn every_family_trains_in_bf16() {
    let (tokenizer, data) = data();
    let collator = MaskingCollator::new(&tokenizer);
    let failed: Vec<String> = (SUPPORTED_MODEL_TYPES.iter())
        .filter_map(|model_type| trains_in_bf16(model_type, &data, &collator))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn sequence_to_sequence_families_learn_to_denoise() {
    let (tokenizer, data) = data();
    let collator = DenoisingCollator::new(&tokenizer);
    let failed: Vec<String> = (["bart", "mbart", "mvp"].iter())
        .filter_map(|model_type| learns(model_type, &data, collator.clone()))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn predictions_of_a_decoder_are_places_of_the_whole_text() {
    let (tokenizer, data) = data();
    let data: Vec<Example> = (data.iter().take(6).enumerate())
        .map(|(at, example)| Example::from(example.input_ids[..LENGTH - 3 * at].to_vec()))
        .collect();
    let collator = DenoisingCollator::new(&tokenizer).mask_ratio(0.5);
    let config = Config::small("bart").set("vocab_size", VOCAB);
    let model = MaskedLm::from_config(&config, 3).unwrap();
    let arguments = TrainingArguments::new("").save_strategy(IntervalStrategy::No);
    let mut trainer = Trainer::new(model, arguments, data.clone(), collator);
    let found = trainer.predict(data.clone()).unwrap().tokens;
    let labels: usize = data.iter().map(|example| example.input_ids.len()).sum();
    assert_eq!(found.len(), labels);
    for token in &found {
        assert_eq!(data[token.example].input_ids[token.position], token.label);
    }
}
