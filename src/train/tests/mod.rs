//! Tests of the trainer's settings, each with a small model and a few rows.

mod data;
mod evaluations;
mod lora;
mod optimizers;
mod recipes;
mod refusals;
mod reports;

use crate::collate::{BatchKey, Collator, Example, MlmBatch};
use crate::model::{Config, MaskedLm};
use crate::ops::Param;
use crate::train::{Trainer, TrainingArguments};
use crate::{Error, Result};

pub(super) const VOCAB: u32 = 60;

/// Unchanged rows, padded with 1.
pub(super) struct AsTheyAre;

impl Collator for AsTheyAre {
    fn collate(&self, examples: &[Example], _: BatchKey) -> Result<MlmBatch> {
        let seq = examples.iter().map(|e| e.input_ids.len()).max();
        let seq = seq.ok_or_else(|| Error::Dataset("no examples".to_owned()))?;
        let (mut ids, mut labels, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            let length = example.input_ids.len();
            ids.extend(&example.input_ids);
            labels.extend(example.labels.iter().flatten());
            mask.extend(vec![1; length]);
            ids.resize(mask.len() + seq - length, 1);
            labels.resize(ids.len(), -100);
            mask.resize(ids.len(), 0);
        }
        let batch = MlmBatch::new(ids, (examples.len(), seq))?;
        batch.with_attention_mask(mask)?.with_labels(labels)
    }
}

/// Row i has `length(i)` tokens, `masked(i)` of which have labels.
pub(super) fn rows_of(
    count: u32,
    length: impl Fn(u32) -> u32,
    masked: impl Fn(u32) -> u32,
) -> Vec<Example> {
    let row = |i: u32| {
        let tokens = 0..length(i);
        let ids = tokens.clone().map(|t| 5 + (i * 13 + t * 29) % (VOCAB - 5));
        let mut example = Example::from(ids.collect::<Vec<u32>>());
        let label = |t| match t < masked(i) {
            true => i64::from(5 + (t + i) % 7),
            false => -100,
        };
        example.labels = Some(tokens.map(label).collect());
        example
    };
    (0..count).map(row).collect()
}

/// Rows of 6 tokens, 1 to 3 of them masked.
pub(super) fn rows(count: u32) -> Vec<Example> {
    rows_of(count, |_| 6, |i| 1 + i % 3)
}

pub(super) fn model(seed: u64) -> MaskedLm {
    let config = Config::new("roberta")
        .set("vocab_size", VOCAB)
        .set("hidden_size", 16)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 32)
        .set("hidden_dropout_prob", 0.0)
        .set("attention_probs_dropout_prob", 0.0);
    MaskedLm::from_config(&config, seed).unwrap()
}

/// Two epochs of six steps, without checkpoints.
pub(super) fn nowhere() -> TrainingArguments {
    TrainingArguments::new("")
        .per_device_train_batch_size(4)
        .epochs(2)
        .learning_rate(2e-3)
        .save_strategy("no")
}

pub(super) fn trainer(args: TrainingArguments, model: &MaskedLm) -> Trainer {
    Trainer::new(model.clone(), args, (rows(24), rows(9)), AsTheyAre)
}

/// Returns all weights, bit by bit.
pub(super) fn bits(model: &MaskedLm) -> Vec<Vec<u32>> {
    let values =
        |param: &Param| -> Vec<f32> { param.value().flatten_all().unwrap().to_vec1().unwrap() };
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    model.params().iter().map(values).map(bits).collect()
}
