//! Training steps on several ranks: `mpirun -n N PROGRAM`, or alone. Prints one JSON line.
//!
//! RoBERTa of DistilRoBERTa's size (or what `--tiny` makes of it), 8 x 128 tokens a batch, two batches a step whatever the
//! number of ranks, f32, dropout on.

mod support;

use std::sync::{Arc, Mutex};

use cloze::collate::{BatchKey, Collator, Example, MlmBatch};
use cloze::distributed::Group;
use cloze::model::{Config, MaskedLm};
use cloze::train::{Control, Event, IntervalStrategy, Trainer, TrainingArguments};

const SEQ: usize = 128;
const BATCH: usize = 8;

/// Masks every seventh token.
struct Masked;

impl Collator for Masked {
    fn collate(&self, examples: &[Example], _: BatchKey) -> cloze::Result<MlmBatch> {
        let ids: Vec<u32> = examples.iter().flat_map(|e| e.input_ids.clone()).collect();
        let label = |(i, &id): (usize, &u32)| match i % 7 {
            0 => i64::from(id),
            _ => -100,
        };
        let labels = ids.iter().enumerate().map(label).collect();
        MlmBatch::new(ids, (examples.len(), SEQ))?.with_labels(labels)
    }
}

fn main() -> cloze::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let number = |name: &str, other: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)?.parse().ok())
            .unwrap_or(other)
    };
    let (layers, width, vocabulary) = match has("--tiny") {
        true => (2, 128, 2000),
        false => (6, 768, 50265),
    };
    let config = Config::new("roberta")
        .set("vocab_size", vocabulary)
        .set("hidden_size", width)
        .set("num_hidden_layers", layers)
        .set("num_attention_heads", width / 64)
        .set("intermediate_size", 4 * width)
        .set("max_position_embeddings", 514);
    let model = MaskedLm::from_config(&config, 1)?;
    let parameters: usize = model.params().iter().map(|param| param.elem_count()).sum();
    let steps = number("--steps", 6);
    let row = |i: usize| {
        let ids = (0..SEQ).map(|t| 5 + ((i * 131 + t * 29) % (vocabulary - 5)) as u32);
        Example::from(ids.collect::<Vec<_>>())
    };
    let rows: Vec<Example> = (0..steps * 2 * BATCH).map(row).collect();
    let settings = TrainingArguments::new("")
        .per_device_train_batch_size(BATCH)
        .global_batch_size(2 * BATCH)
        .epochs(1)
        .save_strategy(IntervalStrategy::No)
        .shard_optimizer(has("--shard"))
        .overlap_exchange(has("--overlap"));
    let group = Group::current()?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (noted, by) = (Arc::clone(&seen), Arc::clone(&group));
    let mut trainer = Trainer::new(model, settings, rows, Masked).callback(move |event: &Event| {
        if let Event::StepEnd { step, .. } = event {
            let exchanged = (by.exchange_seconds(), by.bytes_received());
            let spent = (by.waited_seconds(), support::cpu_seconds().unwrap_or(0.0));
            noted
                .lock()
                .expect("whole")
                .push((step.seconds, exchanged, spent));
        }
        Ok(Control::Continue)
    });
    trainer.train()?;
    // The first two steps make memory and find kernels.
    let seen = seen.lock().expect("whole");
    let (first, last) = (seen[1], seen[seen.len() - 1]);
    let each = |all: f64| all / (seen.len() - 2) as f64;
    // Processor time counts what this rank did itself; of waiting it has a part, for MPI asks again and again.
    let processor = group.vote("processor time", Ok(each(last.2.1 - first.2.1)))?;
    if !group.is_main() {
        return Ok(());
    }
    let mut seconds: Vec<f64> = seen[2..].iter().map(|(seconds, ..)| *seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let mut exchanges: Vec<f64> = seen[1..]
        .windows(2)
        .map(|pair| pair[1].1.0 - pair[0].1.0)
        .collect();
    exchanges.sort_by(f64::total_cmp);
    let bytes = seen[seen.len() - 1].1.1 - seen[seen.len() - 2].1.1;
    println!(
        "{}",
        serde_json::json!({
            "benchmark": "ranks", "ranks": group.size(), "parameters": parameters,
            "step_seconds": seconds[seconds.len() / 2],
            "exchange_seconds": exchanges[exchanges.len() / 2],
            "waited_seconds": each(last.2.0 - first.2.0),
            "processor_seconds": processor.iter().sum::<f64>(),
            "received_bytes": bytes, "shard": has("--shard"), "overlap": has("--overlap"),
        })
    );
    Ok(())
}
